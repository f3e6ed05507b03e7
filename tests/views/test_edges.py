"""Edges and circuits as views: the numbers of the Python API and of the command, stopped when nobody waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from glassformer.errors import GlassformerError
from glassformer.interp import tasks
from glassformer.views import Cancelled, Session
from glassformer.views import edges as views
from tests.cli.running import answer
from tests.tiny import tiny_directory

PAIR = {"clean": "a mole of", "corrupted": "A mole of", "answer": " mole", "wrong": " of"}
NAMED: dict[str, Any] = {"answer": " mole", "wrong": " of"}


def close(told: Any, want: Any) -> None:
    """Alike, numbers to a millionth."""
    if isinstance(want, dict):
        assert set(told) == set(want)
        for key in want:
            close(told[key], want[key])
    elif isinstance(want, list):
        assert len(told) == len(want)
        for x, y in zip(told, want, strict=True):
            close(x, y)
    else:
        assert told == (pytest.approx(want, abs=1e-6) if isinstance(want, float) else want)


@pytest.mark.parametrize(
    "options",
    [
        {"exact": "none", "method": "eap"},
        {"exact": "strongest", "strongest": 4, "by_position": True},
        {"metric": "probability", "wrong": None, "exact": "all", "method": "eap-ig-activations"},
        {"metric": "kl", "answer": None, "wrong": None, "position": 2},
    ],
)
def test_edges_are_those_of_a_trace(session: Session, model: Any, options: dict[str, Any]):
    told = session.view("edges", {**PAIR, **options, "top": 30})
    want = model.trace("a mole of").edges(corrupted=model.trace("A mole of"), **{**NAMED, **options}).to_dict(30)
    assert told["model"] == model.name
    close({key: told[key] for key in want}, json.loads(json.dumps(want)))
    assert len(told["edges"]) == 30
    assert set(told["into"]) == {row["to"] for row in told["edges"]}
    heads = model.config.attention(1)
    for receiver, parts in told["into"].items():  # a key or value input is one of all heads that share it
        shared = heads.n_heads // heads.n_kv_heads if ".kv" in receiver else 1
        assert len(parts) == shared, receiver
        assert all(part.split(".")[0] == receiver.split(".")[0] for part in parts)
    measured = sum(row["exact"] is not None for row in told["edges"])
    assert measured == {"none": 0, "strongest": 4, "all": 30}.get(options.get("exact", ""), measured)


def test_a_circuit_is_what_the_command_prints(session: Session, tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    source = tiny_directory(tmp_path / "tiny")
    args = ("circuit", "a mole of", "A mole of", "--answer", " mole", "--wrong", " of", "-k", 20, "-f", 0.8)
    for more, option in (({}, ()), ({"by_position": True, "exact": "none"}, ("--by-position", "--exact", "none"))):
        told = session.view("circuit", {**PAIR, "faithfulness": 0.8, **more})
        into = told.pop("into")
        close(told, answer(capsys, *args, *option, "-m", source))
        assert set(into) == {row["to"] for row in told["circuit"]["edges"]}
        assert all(part.split(".")[0] == end.split(".")[0] for end, parts in into.items() for part in parts)
    assert all("position" in row for row in told["circuit"]["edges"])


def test_a_task_is_tried_and_its_circuit_held_to_other_prompts(
    session: Session, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(GlassformerError, match=r"of 8 examples of 'brackets' right .* no circuit to find"):
        session.view("circuit", {"task": "brackets", "examples": 8})
    with pytest.raises(GlassformerError, match="There is no task 'name'; choose names"):
        session.view("circuit", {"task": "name"})
    with pytest.raises(GlassformerError, match="task: it brings its own prompts"):
        session.view("circuit", {**PAIR, "task": "names"})
    rows = [
        {"clean": f"{a} mole of", "corrupted": f"{b} mole of", "answer": " mole", "wrong": " of"}
        for a, b in ("aA", "12", "bc", "xy")
    ]
    monkeypatch.setattr(tasks, "solved", lambda name, rows, pairs: list(range(len(rows))))
    monkeypatch.setattr(tasks, "examples", lambda name, encode, count: rows)
    ask = {"task": "copying", "examples": 4, "exact": "strongest", "strongest": 5}
    told = session.view("circuit", {**ask, "top": 100_000})
    model = tiny_directory(tmp_path / "tiny")
    want = answer(capsys, "circuit", "-m", model, "--task", "copying", "--examples", 4, "--exact", "strongest",
                  "--strongest", 5)  # fmt: skip
    told.pop("into")
    close(told, want)
    assert (told["task"], told["accuracy"]) == ("copying", 1)
    assert [one["name"] for one in session.view("tasks", {})["tasks"]] == list(tasks.TASKS)
    assert isinstance(told["circuit"]["held_out"], float)
    lines = session.view("python", {"name": "circuit", "arguments": ask})["lines"]
    assert "view('circuit', {'" in lines


def test_copied_lines_give_the_numbers(session: Session, model: Any, monkeypatch: pytest.MonkeyPatch):
    import glassformer

    monkeypatch.setattr(glassformer, "load", lambda source: model)
    for name, more in (("edges", {"by_position": True}), ("circuit", {"faithfulness": 0.5})):
        ask = {**PAIR, "exact": "none", **more}
        scope: dict[str, Any] = {}
        exec(session.view("python", {"name": name, "arguments": ask})["lines"], scope)  # noqa: S102
        want = json.loads(json.dumps(scope["answer"].to_dict(20)))
        told = session.view(name, ask)
        close({key: told[key] for key in want}, want)


def test_each_step_of_the_work_can_be_stopped(session: Session):
    """Whenever the one who asked goes, the work ends there."""
    steps = 0

    def counting(*_: object) -> None:
        nonlocal steps
        steps += 1

    session.view("circuit", PAIR, counting)
    assert steps > 20
    for last in (2, steps // 2, steps - 1):
        seen = 0

        def gone(*_: object, last: int = last) -> None:
            nonlocal seen
            seen += 1
            if seen == last:
                raise Cancelled

        with pytest.raises(Cancelled):
            session.view("circuit", PAIR, gone)
        assert seen == last


def test_too_much_to_measure_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "LIMIT", 9)
    for name in ("edges", "circuit"):
        with pytest.raises(GlassformerError, match="edges would be measured, and at most 9 are"):
            session.view(name, {**PAIR, "exact": "all"})
        assert session.view(name, {**PAIR, "exact": "strongest", "strongest": 9})["edges"]
    with pytest.raises(GlassformerError, match="strongest: Input should be less than or equal to 5000"):
        session.view("edges", {**PAIR, "strongest": 5001})
    with pytest.raises(GlassformerError, match="The text is empty"):
        session.view("edges", {"clean": "", "corrupted": ""})
    with pytest.raises(GlassformerError, match="The two prompts are the same"):
        session.view("circuit", {**PAIR, "corrupted": PAIR["clean"]})


def test_a_drawing_holds_few_parts_and_says_what_they_bring_back(session: Session, model: Any):
    from glassformer.interp.circuit_search import Runs

    told = session.view("graph", {**PAIR, "nodes": 6})
    found = model.trace("a mole of").edges(corrupted=model.trace("A mole of"), exact="all", **NAMED)
    value = {(row["from"], row["to"]): row for row in found.to_dict(None)["edges"]}
    assert told["nodes"][-1] == "logits"
    assert len(told["nodes"]) <= 6
    for edge in told["edges"]:
        want = value[edge["from"], edge["to"]]
        assert edge["exact"] == pytest.approx(want["exact"], abs=1e-6)
        assert edge["estimate"] == pytest.approx(want["estimate"], abs=1e-6)
        assert set(edge["into"]) & set(told["nodes"])
        assert edge["from"] in told["nodes"]
    sets = torch.zeros(1, found.graph.total, dtype=torch.bool)
    sets[0, [found.graph.edge(edge["from"], edge["to"]) for edge in told["edges"]]] = True
    assert told["kept"][-1]["edges"] == len(told["edges"])
    assert told["kept"][-1]["f"] == pytest.approx(float(Runs(found.pairs).faithfulness(sets)[0]), abs=1e-4)
    quick = session.view("graph", {**PAIR, "nodes": 6, "measure": False})
    assert [edge["from"] for edge in quick["edges"]] == [edge["from"] for edge in told["edges"]]
    assert {edge["exact"] for edge in quick["edges"]} == {None}
    assert quick["kept"] == []


def test_a_drawing_by_position_says_what_its_edges_bring_back(session: Session, model: Any):
    from glassformer.interp.circuit_search import Runs

    told = session.view("graph", {**PAIR, "by_position": True})
    found = model.trace("a mole of").edges(corrupted=model.trace("A mole of"), exact="all", by_position=True, **NAMED)
    value = {(row["from"], row["to"], row["position"]): row for row in found.to_dict(None)["edges"]}
    assert told["total_edges"] == len(value)
    assert len({edge["position"] for edge in told["edges"]}) > 1
    for edge in told["edges"]:
        want = value[edge["from"], edge["to"], edge["position"]]
        assert edge["token"] == want["token"]
        assert edge["exact"] == pytest.approx(want["exact"], abs=1e-5)
        assert edge["estimate"] == pytest.approx(want["estimate"], abs=1e-5)
    sets = torch.zeros(1, len(value), dtype=torch.bool)
    for edge in told["edges"]:
        sets[0, found.graph.edge(edge["from"], edge["to"]) * found.wide + edge["position"] - found.pairs[0].first] = (
            True
        )
    assert told["kept"][-1]["edges"] == len(told["edges"])
    assert told["kept"][-1]["f"] == pytest.approx(float(Runs(found.pairs).faithfulness(sets)[0]), abs=1e-4)
    assert session.view("graph", {**PAIR, "by_position": True, "measure": False})["kept"] == []


def test_a_graph_of_a_prediction_is_that_of_a_trace(session: Session, model: Any):
    told = session.view(
        "prediction", {"text": "a mole of", "token": " mole", "against": " of", "nodes": 9, "coverage": 1}
    )
    want = model.trace("a mole of").graph(" mole", " of", coverage=1.0, most=9).to_dict()
    close({key: told[key] for key in want}, json.loads(json.dumps(want)))
    assert {"layer", "position", "effect", "measured", "direct"} <= set(told["nodes"][0])


def test_nodes_of_a_graph_are_turned_together_and_the_score_measured(
    session: Session, model: Any, monkeypatch: pytest.MonkeyPatch
):
    from glassformer.interp import prediction_graph

    made: list[Any] = []
    make = prediction_graph.prediction_graph

    def making(*given: Any, **more: Any) -> Any:
        made.append(make(*given, **more))
        return made[-1]

    monkeypatch.setattr(prediction_graph, "prediction_graph", making)
    ask = {"text": "a mole of", "token": " mole", "against": " of", "nodes": 9, "coverage": 1, "measure": False}
    names = [node["name"] for node in session.view("prediction", ask)["nodes"]][1:4]
    told = session.view("prediction", {**ask, "turn": [{"nodes": names, "by": by} for by in (0.5, 1)]})
    assert len(made) == 1  # turning does not make the graph anew
    graph = model.trace("a mole of").graph(" mole", " of", most=9, coverage=1.0, measure=False)
    turned = model.edited(*graph.taps(names, 0.5)).trace("a mole of")
    mole, of = (turned.token_id(text) for text in (" mole", " of"))
    scores = [float(found.logits(-1)[mole] - found.logits(-1)[of]) for found in (turned, graph.trace)]
    assert [one["value"] for one in told["turned"]] == pytest.approx(scores, abs=1e-4)
    assert abs(scores[0] - scores[1]) > 1e-4
    assert [(one["what"], one["by"]) for one in told["turned"]] == [(names, 0.5), (names, 1)]
    with pytest.raises(GlassformerError, match="shows no node 'x'"):
        session.view("prediction", {**ask, "turn": [{"nodes": ["x"], "by": 0}]})
    session.view("prediction", {**ask, "nodes": 8})
    session.view("prediction", {**ask, "text": "a mole"})
    assert len(made) == 4  # the comparison's own among them
    asked = {"name": "prediction", "arguments": {**ask, "turn": [{"nodes": names, "by": 0}]}}
    assert "view('prediction', {'" in session.view("python", asked)["lines"]
