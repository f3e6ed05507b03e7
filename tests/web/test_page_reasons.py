"""Why a head looks there, and the circuit between two texts, in a browser: what is drawn is what the API says."""

from __future__ import annotations

import csv
import io
import json
import threading
from typing import Any

import numpy as np
import pytest

from tests.web.conftest import HERE, TEXT, Watched, bars
from tests.web.test_page_tools import taken

pytestmark = pytest.mark.browser

OTHER = TEXT.replace("shrew", "carbon")
DATA = "(all) => all.map((e) => Object.fromEntries(Object.entries(e.dataset)))"


def view(app: Watched, name: str, **asked: Any) -> Any:
    address = app.server.address.split("/?")[0] if app.server else ""
    return app.page.request.post(f"{address}/api/view/{name}", data=json.dumps(asked)).json()


def taken_of(app: Watched, name: str) -> tuple[dict[str, list[str]], dict[str, Any], str]:
    """What leaves the page of one view: columns of the table, arrays, lines of Python."""
    app.page.select_option("[aria-label='Which numbers are taken']", name)
    head, *rows = csv.reader(io.StringIO(taken(app, "CSV").decode("utf-8")))
    arrays = np.load(io.BytesIO(taken(app, "npz")), allow_pickle=False)
    app.page.click("text=Copy as Python")
    app.page.wait_for_selector("text=/on the clipboard/")
    lines = app.page.locator(".tool-row [data-lines]").get_attribute("data-lines") or ""
    compile(lines, name, "exec")
    return dict(zip(head, map(list, zip(*rows, strict=True)), strict=True)), dict(arrays), lines


def test_a_score_is_taken_apart_into_words_and_parts(app: Watched):
    app.open(f"{HERE}&layer=1&head=2&query=3&key=1").see(".cell")
    app.page.click(".reasons-door summary")
    app.settle()
    told = view(app, "reasons", text=TEXT, layer=1, head=2, query=3, key=1, most=24)
    shares = [float(x["share"]) for x in app.page.eval_on_selector_all(".heat td[data-share]", DATA)]
    assert shares == pytest.approx([x for row in told["by_word"] for x in row])
    drawn = app.page.eval_on_selector_all(".reasons .edge", DATA)
    want = sorted(p["share"] for p in told["pairs"][:20])
    assert sorted(float(e["measured"]) for e in drawn) == pytest.approx(want)
    assert told["sentence"] in app.page.locator(".reasons .receipt").text_content()
    app.page.select_option("[aria-label='Rather than at']", "0")
    app.see(".reasons")
    against = view(app, "reasons", text=TEXT, layer=1, head=2, query=3, key=1, against=0, most=24)
    shares = [float(x["share"]) for x in app.page.eval_on_selector_all(".heat td[data-share]", DATA)]
    assert shares == pytest.approx([x for row in against["by_word"] for x in row])
    app.shot("reasons")
    app.page.locator(".composition button").first.click()
    app.settle()
    assert app.problems() == []


def test_the_circuit_between_two_texts(app: Watched):
    app.open(HERE).room("why")
    app.page.fill("[aria-label='A text that ends differently']", OTHER)
    app.page.click(".circuit-form button")
    app.settle()
    told = view(app, "graph", clean=TEXT, corrupted=OTHER)
    edges = app.page.eval_on_selector_all(".circuit .edge", DATA)
    for key, name in (("measured", "exact"), ("claimed", "estimate")):
        assert sum(float(e[key]) for e in edges) == pytest.approx(sum(e[name] for e in told["edges"]), abs=1e-4)
    nodes = app.page.locator(".circuit .node")
    assert nodes.count() == len(told["nodes"]) <= 25
    output = app.page.locator(".circuit output")
    assert float(output.get_attribute("data-f") or "nan") == pytest.approx(told["kept"][-1]["f"], abs=1e-4)
    assert f"these {len(told['edges'])} of" in output.inner_text()
    app.shot("circuit")
    # Fewer edges, a pin, a name, a group; all of it in the address.
    app.page.locator("[aria-label='Edges kept']").fill("1")
    assert f"these {told['kept'][1]['edges']} of" in output.inner_text()
    app.page.locator("[aria-label='Edges kept']").fill(str(len(told["kept"]) - 1))
    app.page.focus("[data-node='m0']")
    app.page.keyboard.press("Enter")
    app.page.focus("[data-node='embed']")
    app.page.keyboard.press(" ")
    assert app.page.locator(".circuit .node.on").count() == 2
    assert app.page.locator(".circuit .edge.dim").count() > 0
    app.page.fill("[aria-label='Name of what is pinned']", "the words as they begin")
    app.page.click(".graph-bar >> text=Group")
    assert nodes.count() == len(told["nodes"]) - 1
    assert "the words as they begin" in (app.page.locator(".circuit .node.on").get_attribute("aria-label") or "")
    assert "the%20words%20as%20they%20begin" in app.page.evaluate(
        "() => { document.querySelector('#save-session'); return [...document.querySelectorAll('.tools button')]"
        ".find((b) => b.textContent === 'Copy link').click() ?? location.hash; }"
    )
    app.page.click(".graph-bar >> text=Take apart")
    assert nodes.count() == len(told["nodes"])
    app.page.fill("[aria-label='A text that ends differently']", "Too short")
    app.page.click(".circuit-form button")
    app.settle()
    assert app.problems()
    app.complaints.clear()


def test_the_circuit_by_position_has_a_row_for_each_word(app: Watched):
    app.open(HERE).room("why")
    app.page.fill("[aria-label='A text that ends differently']", OTHER)
    app.page.check("#circuit-apart")
    app.page.click(".circuit-form button")
    app.settle()
    told = view(app, "graph", clean=TEXT, corrupted=OTHER, by_position=True)
    edges = app.page.eval_on_selector_all(".circuit .edge", DATA)
    for key, name in (("measured", "exact"), ("claimed", "estimate")):
        assert sum(float(e[key]) for e in edges) == pytest.approx(sum(e[name] for e in told["edges"]), abs=1e-4)
    assert all(e["from"].split("@")[1] == e["to"].split("@")[1] for e in edges)  # an edge stays at its word
    rows = app.page.locator(".circuit .band-name").all_text_contents()
    words = {e["position"]: e["token"].replace(" ", "␣") for e in told["edges"]}
    assert rows == [f"{at} {words[at]}" for at in sorted(words)]
    for tie in app.page.eval_on_selector_all(".circuit .tie", DATA):  # one head, from what it reads to where it writes
        assert tie["from"].split("@")[0] == tie["to"].split("@")[0]
        assert int(tie["from"].split("@")[1]) <= int(tie["to"].split("@")[1])
    app.shot("circuit-by-position")
    app.page.locator("[aria-label='Edges kept']").fill("0")
    kept = told["kept"][0]
    said = app.page.inner_text(".circuit output")
    assert f"{kept['edges']} of {told['total_edges']:,} edges" in said
    assert float(app.page.get_attribute(".circuit output", "data-f") or "nan") == pytest.approx(kept["f"], abs=1e-4)
    assert "explain" in said
    app.page.uncheck("#circuit-apart")
    app.settle()
    assert "explain" in app.page.inner_text(".circuit output")


def test_steering_by_examples_moves_the_bars_and_the_text(app: Watched):
    app.open(HERE).room("why")
    app.page.click(".steering summary")
    app.page.fill("[aria-label='Examples to steer towards, one a line']", "the mole\na small mole")
    app.page.fill("[aria-label='Examples to steer away from, one a line']", "the bank\na bank of")
    app.page.fill("[aria-label='Layer to steer after']", "1")
    app.page.click(".steering form button")
    app.settle()
    examples = {"positive": ["the mole", "a small mole"], "negative": ["the bank", "a bank of"]}
    told = view(app, "direction", **examples, layer=1, position="mean")
    assert "with shuffled labels" in app.page.inner_text(".steer")
    assert "Move the slider" in app.page.inner_text(".steering")
    app.page.locator("[aria-label='How far to steer']").fill("2")
    app.settle()
    app.page.wait_for_timeout(500)
    app.settle()
    assert "steered after layer 1 × 2.0" in app.page.inner_text(".changed")
    edit = {"kind": "steer", "layer": 1, "vector": told["vector"], "strength": 2}
    best = view(app, "next", text=TEXT, edits=[edit])["tokens"][0]
    assert bars(app)[0] == f"{100 * best['probability']:.1f}%"
    plain, steered = app.page.locator(".steering .sample").all_inner_texts()
    assert plain.startswith(TEXT)
    assert len(steered) > len(TEXT)
    assert app.problems() == []
    app.shot("steering")


def test_a_cell_draws_the_columns_and_the_matrices_between_them(app: Watched):
    app.open(f"{HERE}&layer=1&head=2&query=3&key=1").see(".cell")
    app.page.wait_for_selector(".through .map")
    assert app.page.locator(".products .map").count() == 2
    apart = [float(e["apart"]) for e in app.page.eval_on_selector_all(".products .through", DATA)]
    assert max(apart) < 1e-4
    told = view(app, "cell", text=TEXT, layer=1, head=2, query=3, key=1)
    titles = app.page.eval_on_selector_all(".added .upright span", "(all) => all.map((e) => e.title)")
    columns = told["stream"]["columns"]
    assert len(titles) == 3 * len(columns["before"])
    shown = [float(t.split(": ")[1].replace("−", "-")) for t in titles]
    want = [x for name in ("before", "write", "after") for x in columns[name]]
    assert shown == pytest.approx(want, rel=1e-3, abs=1e-6)
    app.shot("cell-columns")


def test_the_graph_of_a_prediction_is_the_view_s(app: Watched):
    app.open(HERE).room("why")
    app.page.click(".nodes-form button")
    app.settle()
    told = view(app, "prediction", text=TEXT)
    drawn = told["edges"][: 3 * len(told["nodes"])]
    names = [node["name"] for node in told["nodes"]]
    home = {name: name for name in names} | {None: "logits"}
    for group in told["groups"]:
        for member in group["nodes"]:
            home[names[member]] = "+".join(names[i] for i in group["nodes"])
    ends = [(home[names[e["from"]]], home[None if e["to"] is None else names[e["to"]]]) for e in drawn]
    want = sum(e["share"] for e, (a, b) in zip(drawn, ends, strict=True) if a != b)
    edges = app.page.eval_on_selector_all(".nodes .edge", DATA)
    assert {(e["from"], e["to"]) for e in edges} == {(a, b) for a, b in ends if a != b}
    assert sum(float(e["measured"]) for e in edges) == pytest.approx(want, abs=1e-3)
    assert app.page.locator(".nodes .node").count() == len(set(home.values()))
    said = app.page.inner_text(".nodes .sentence")
    assert f"{len(names)} parts have {told['coverage']:.0%}" in said
    rows = app.page.locator(".nodes .band-name").all_text_contents()
    at = sorted({node["position"] for node in told["nodes"]} | {told["position"]})
    assert rows == [f"{i} {told['tokens'][i].replace(' ', '␣')}" for i in at]
    app.shot("prediction")
    assert app.problems() == []


def test_a_long_search_says_how_far_it_is_and_can_be_stopped(app: Watched, monkeypatch: pytest.MonkeyPatch):
    app.open(HERE).room("why")
    asked = {"clean": TEXT, "corrupted": OTHER, "exact": "none"}
    address = app.server.address.split("/?")[0] if app.server else ""
    answer = app.page.request.post(f"{address}/api/watch/circuit", data=json.dumps(asked)).text()
    events = [json.loads(line.removeprefix("data: ")) for line in answer.split("\n\n") if line]
    whats = [event["what"] for event in events[:-1]]
    assert [what for i, what in enumerate(whats) if what not in whats[:i]] == [
        "estimating", "running sets", "random sets", "finding the smallest", "taking edges out", "rivals",
    ]  # fmt: skip
    assert all(0 <= event["done"] <= event["total"] for event in events[:-1])
    # Runs of the model are counted one by one.
    assert {e["done"] for e in events[:-1] if e["what"] == "running sets"} == {0, 10}
    early = [event["early"] for event in events[:-1] if "early" in event]
    assert [e["edges"] for e in early] == [view(app, "graph", clean=TEXT, corrupted=OTHER, measure=False)["edges"]]
    assert events[-1]["found"] == view(app, "circuit", **asked)
    # A search without an end, as the page shows it.
    held: list[Any] = []
    app.page.route("**/api/watch/circuit", lambda route: held.append(route))
    app.page.wait_for_selector("#circuit-task option[value='copying']", state="attached")
    app.page.locator("#circuit-task").select_option("copying")
    app.page.click(".circuit-form button")
    app.page.wait_for_selector(".circuit progress")
    app.page.click("#circuit-stop")
    app.settle()
    assert app.page.locator(".circuit progress").count() == 0
    assert len(held) == 1
    app.page.unroute("**/api/watch/circuit")
    app.page.fill("#composer", TEXT + " a")
    app.settle()
    assert len(held) == 1  # it is not begun again by itself
    assert app.problems() == []


def test_the_circuit_of_a_task(app: Watched, monkeypatch: pytest.MonkeyPatch):
    from glassformer.interp import circuit_search, tasks

    app.open(HERE).room("why")
    task = app.page.locator("#circuit-task")
    app.page.wait_for_selector("#circuit-task option[value='copying']", state="attached")
    assert [one.get_attribute("value") for one in task.locator("option").all()] == ["", *tasks.TASKS]
    app.page.fill("[aria-label='A text that ends differently']", OTHER)
    task.select_option("brackets")
    assert not app.page.locator("[aria-label='A text that ends differently']").is_visible()
    app.page.click(".circuit-form button")
    app.settle()
    assert "it does not have the task" in " ".join(app.problems())
    assert app.page.locator(".circuit progress").count() == 0
    app.complaints.clear()
    # A task that it can do.
    rows = [
        {"clean": f"{a} mole of", "corrupted": f"{b} mole of", "answer": " mole", "wrong": " of"}
        for a, b in ("aA", "12", "bc", "xy")
    ]
    monkeypatch.setattr(tasks, "solved", lambda name, rows, pairs: list(range(len(rows))))
    monkeypatch.setattr(tasks, "examples", lambda name, encode, count: rows)
    go, whole = threading.Event(), circuit_search.circuit
    monkeypatch.setattr(circuit_search, "circuit", lambda *args, **more: (go.wait(60), whole(*args, **more))[1])
    task.select_option("copying")
    # The estimates are drawn, and said to be that, while the search goes on.
    app.page.wait_for_selector(".circuit .edge", state="attached")
    assert app.page.locator(".circuit progress").count() == 1
    assert not app.page.get_by_text("it does not have the task").is_visible()
    assert "estimates" in app.page.inner_text(".circuit .sentence")
    assert app.page.locator(".circuit .edge:not(.only-claimed)").count() == 0
    app.shot("circuit-task-estimates")
    go.set()
    app.settle()
    told = view(app, "circuit", task="copying", exact="strongest", strongest=60)
    circuit = told["circuit"]
    drawn = app.page.eval_on_selector_all(".circuit .edge", DATA)
    pairs = {(row["from"], part) for row in circuit["edges"] for part in told["into"][row["to"]]}
    known = {*circuit["nodes"], "logits"}
    assert {(e["from"], e["to"]) for e in drawn} == {(a, b) for a, b in pairs if b in known}
    said = app.page.inner_text(".circuit .sentence")
    assert f"{circuit['size']} of {told['total_edges']:,} edges" in said
    assert f"{circuit['f']:.0%}" in said
    assert f"{circuit['held_out']:.0%}" in said
    trust = app.page.inner_text(".circuit .trust")
    assert f"as many edges brings back {told['random']['f']:.0%}" in trust
    assert f"of up to {told['rivals'][-1]['size']:,}, at most {max(r['f'] for r in told['rivals']):.0%}" in trust
    assert f"{told['jaccard']:.0%} of the edges" in trust
    columns, held, lines = taken_of(app, "circuit")
    assert columns["from"] == [row["from"] for row in circuit["edges"]]
    assert held["circuit.edges.estimate"].tolist() == [row["estimate"] for row in circuit["edges"]]
    assert "'task': 'copying'" in lines
    assert app.problems() == []
    app.shot("circuit-task")
    task.select_option("")
    app.see(".circuit")  # the buttons stand above it
    assert "ahead of" in app.page.inner_text(".circuit .sentence")


def test_a_graph_of_a_prediction_is_pruned_named_turned_and_kept_in_the_address(app: Watched, tiny_model: Any):
    app.open(HERE).room("why")
    app.page.click(".nodes-form button")
    app.settle()
    graph = tiny_model.trace(TEXT).graph(measure=False)
    names = [node["name"] for node in graph.nodes]
    alone = [name for i, name in enumerate(names) if not any(i in group for group in graph.groups.values())][:2]
    for name in alone:
        app.page.focus(f".nodes [data-node='{name}']")
        app.page.keyboard.press("Enter")
    app.page.fill(".nodes [aria-label='Name of what is pinned']", "these two")
    app.page.click(".nodes .graph-bar >> text=Group")
    dial = app.page.locator(".nodes [aria-label='Turn what is pinned, from 0 to 2 times']")
    dial.fill("0.5")
    app.settle()
    want = graph.turned(alone, 0.5)
    effect = app.page.locator(".nodes output[data-value]")
    assert float(effect.get_attribute("data-value") or "nan") == pytest.approx(want, abs=1e-4)
    assert "2 parts × 0.50" in effect.inner_text()
    sizes = [abs(node["effect"]) for node in graph.nodes]
    count = next(n for n in range(1, len(sizes) + 1) if sum(sizes[:n]) >= 0.7 * sum(sizes))
    app.page.locator(".nodes [aria-label='Share of the effects drawn']").fill("0.7")
    assert f"{count} of {len(names)} parts" in app.page.inner_text(".nodes")
    app.shot("prediction-turned")
    columns, held, lines = taken_of(app, "prediction")
    assert columns["name"] == names
    assert held["nodes.effect"] == pytest.approx([node["effect"] for node in graph.nodes], abs=1e-5)
    assert "view('prediction', {'" in lines  # the last that was asked is turned, which has no shorter line
    seen = app.page.eval_on_selector_all(".nodes .node", DATA)
    address = app.page.evaluate(
        "() => [...document.querySelectorAll('.tools button')].find((b) => b.textContent === 'Copy link').click()"
        " ?? location.hash"
    )
    app.open(address)
    app.see(".nodes")
    app.page.wait_for_selector(".nodes output[data-value]")
    assert app.page.eval_on_selector_all(".nodes .node", DATA) == seen
    assert "these two" in (app.page.locator(".nodes .node.on").get_attribute("aria-label") or "")
    assert float(effect.get_attribute("data-value") or "nan") == pytest.approx(want, abs=1e-4)
    # Another text has other parts: their names and groups go, the share stays.
    app.page.fill("#composer", TEXT + " a")
    app.settle()
    app.see(".nodes")
    assert app.page.locator(".nodes .node.on").count() == 0
    assert app.page.locator(".nodes [aria-label='Share of the effects drawn']").input_value() == "0.7"
    assert app.problems() == []
