"""The numbers in docs/inspecting.md are those that the model gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[1] / "docs" / "inspecting.md").read_text("utf-8")
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"

pytestmark = pytest.mark.smollm2


def rows(name: str) -> list[list[str]]:
    """The cells of the page's table of this name, its head left out."""
    table = PAGE.split(f"<!-- {name} -->\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def stated(sentence: str) -> list[float]:
    """The numbers in a sentence of the page, which is given as a pattern."""
    found = re.search(sentence, " ".join(PAGE.split()))
    assert found, sentence
    return [float(number) for number in found.groups()]


def quoted(before: str) -> list[str]:
    """The quoted texts of the command after some words of the page."""
    return re.findall(r'"([^"]+)"', PAGE.split(before)[1].split("```")[0])


@pytest.mark.parametrize(
    ("word", "pairs"),
    [
        ("mole", [(0, 1), (0, 2), (1, 2)]),
        ("bank", [(0, 1), (2, 3), (0, 2), (0, 3), (1, 2), (1, 3)]),
    ],
)
def test_meaning(smollm2, word, pairs):
    from glassformer.cli.meaning import place_name

    texts = quoted(f"glassformer meaning {word}")
    found = smollm2.meaning(word, texts)
    by_name = {place_name(p, found.places): found.similarity[i] for i, p in enumerate(found.places)}
    for name, *cells in rows(word):
        for cell, (i, j) in zip(cells, pairs, strict=True):
            assert float(cell) == pytest.approx(float(by_name[name][i, j]), abs=0.002), (name, i, j)
    if word == "mole":
        assert float(found.parted.max()) == pytest.approx(0.130, abs=0.002)
        assert found.parted.argmax() == 2 * 29 + 1


def test_patching(smollm2):
    assert quoted("glassformer patch") == [CLEAN, CORRUPTED]
    stream = smollm2.patch([(CLEAN, CORRUPTED)])
    assert stream.clean[0] == pytest.approx(6.120, abs=0.01)
    assert stream.corrupted[0] == pytest.approx(-5.485, abs=0.01)
    assert [stream.texts[i] for i in (stream.answer[0], stream.wrong[0])] == [" Mary", " John"]
    for layer, name, end in rows("stream"):
        assert 100 * stream.restored[0, int(layer), 9] == pytest.approx(float(name), abs=1)
        assert 100 * stream.restored[0, int(layer), 13] == pytest.approx(float(end), abs=1)
    assert stream.columns[9] == " Mary"
    assert stream.columns[13] == " to"
    assert stream.correlation == pytest.approx(0.85, abs=0.02)
    heads = smollm2.patch([(CLEAN, CORRUPTED)], "heads")
    ranked = [(f"{row['layer']}.{row['head']}", 100 * row["restored"]) for row in heads.ranked(6)]
    for (head, value), (name, measured) in zip(rows("heads"), ranked, strict=True):
        assert head == name
        assert float(value) == pytest.approx(measured, abs=1)
    assert heads.correlation == pytest.approx(0.98, abs=0.01)


@pytest.fixture(scope="module")
def edges_of_names(smollm2):
    """The edges of the two prompts; the unreliable and the 300 strongest are measured."""
    return smollm2.trace(CLEAN).edges(corrupted=smollm2.trace(CORRUPTED))


def test_edges(edges_of_names):
    from glassformer.interp.edge_exact import Exact

    assert quoted("glassformer circuit") == [CLEAN, CORRUPTED]
    found = edges_of_names
    assert found.graph.total == 70_651
    assert found.adds_up == pytest.approx(0.94, abs=0.01)
    assert float((~found.reliable).double().mean()) == pytest.approx(0.042, abs=0.003)
    [correlation] = stated(r"with a correlation of (0\.\d+)")
    assert found.correlation == pytest.approx(correlation, abs=0.001)
    exact = Exact(found.pairs[0])
    table = rows("edges")
    numbers = [found.graph.edge(sender, receiver) for sender, receiver, _ in table]
    assert set(numbers) <= set(found.order()[:60].tolist())
    assert exact(torch.tensor(numbers)).tolist() == pytest.approx([float(worth) for *_, worth in table], abs=0.01)
    most, trusted, others = stated(r"Of the (\d+) that EAP-IG ranks highest, (\d+) % of those .+?, and (\d+) % of")
    highest = found.estimate[0].abs().topk(int(most)).indices.sort().values
    measured = exact(highest)
    off = (found.estimate[0, highest] - measured).abs() > 0.5 * measured.abs()
    for named, chosen in ((trusted, found.reliable[highest]), (others, ~found.reliable[highest])):
        assert 100 * float(off[chosen].double().mean()) == pytest.approx(named, abs=1)


def test_the_circuit_of_two_prompts(edges_of_names):
    """The edges that the command found run alone; without any one of them they bring back less than was asked."""
    from glassformer.interp.circuit_search import Runs, curve, greedy, prefixes

    found, graph = edges_of_names, edges_of_names.graph
    runs = Runs(found.pairs)
    [size] = stated(r"here (\d+) edges, each of which was taken out alone")
    listed = json.loads((Path(__file__).parent / "circuit_of_names.json").read_text())
    assert len(listed) == size
    mine = torch.tensor([graph.edge(*names) for names in listed])
    sets = torch.zeros(len(mine) + 1, graph.total, dtype=torch.bool)
    sets[:, mine] = True
    sets[torch.arange(len(mine)), mine] = False
    f = runs.faithfulness(sets)
    assert 0.9 <= float(f[-1]) < 0.91
    assert float(f[:-1].max()) < 0.9
    drawn = torch.rand(graph.total, generator=torch.Generator().manual_seed(0))
    ours, estimated, random = stated(r"is (0\.\d+); by the estimates alone it is (0\.\d+), for random edges (0\.\d+)\.")
    for strength, cmd, tolerance in (
        (found.strength, ours, 0.001),
        (found.estimate[0], estimated, 0.001),
        (drawn, random, 0.04),
    ):
        assert curve(runs, graph.total, greedy(graph, strength)).cmd == pytest.approx(cmd, abs=tolerance)
    [most] = stated(r"none of the 57, up to (\d+) of them, bring nothing back")
    assert most == 16 * size
    rivals = greedy(graph, found.strength.index_fill(0, mine, 0.0))
    rivals = rivals[~torch.isin(rivals, mine)]
    beside = runs.faithfulness(prefixes(graph.total, rivals, [len(mine), 4 * len(mine), 16 * len(mine)]))
    assert beside.tolist() == pytest.approx([0.0] * 3, abs=0.01)


def test_heads(smollm2):
    found = smollm2.heads()
    for kind, _, head, score, null in rows("scores"):
        best = found.ranked(kind, 1)[0]
        assert head == f"{best['layer']}.{best['head']}"
        assert float(score) == pytest.approx(best["score"], abs=0.003)
        assert (null == "–") if best["null"] is None else float(null) == pytest.approx(best["null"], abs=0.003)


def test_neurons(smollm2):
    found = smollm2.trace("The capital of France is").neurons(k=4)
    assert found.token == " Paris"
    assert found.value == pytest.approx(19.230, abs=0.01)
    assert found.all == pytest.approx(9.382, abs=0.01)
    for (name, output, share), neuron in zip(rows("neurons"), found.neurons, strict=True):
        assert name == f"{neuron['layer']}.{neuron['index']}"
        assert float(output) == pytest.approx(neuron["activation"], abs=0.02)
        assert float(share) == pytest.approx(neuron["contribution"], abs=0.005)
    assert {" French", " Paris", " France"} <= set(found.neurons[0]["excited_by"])
    assert {" French", " Paris", " France"} <= set(found.neurons[0]["lowers"])


def test_why_a_head_looks_there(smollm2):
    [text] = quoted("glassformer look")
    found = smollm2.trace(text).reasons(18, 6, -1)
    assert found.pairs.numel() == 32_761
    assert found.steps[0].score == pytest.approx(7.953, abs=0.002)
    assert found.steps[0].weight == pytest.approx(0.928, abs=0.001)
    assert found.residual <= 1e-5
    for (name, share), (part, value) in zip(rows("look"), found.side("key"), strict=False):
        assert part.name == name
        assert value == pytest.approx(float(share), abs=0.005)
    by_key = dict(zip([w.text for w in found.words[:3]], found.by_word.sum(0).tolist(), strict=False))
    assert by_key["shrew"] == pytest.approx(13.888, abs=0.01)
    assert by_key["mole"] == pytest.approx(-12.131, abs=0.01)


def test_the_graph_of_a_prediction(smollm2):
    found = smollm2.trace("The capital of France is").graph(most=60)
    by_name = {node["name"]: node for node in found.nodes}
    for name, *cells in rows("graph"):
        for cell, key in zip(cells, ("effect", "direct", "measured"), strict=True):
            assert float(cell) == pytest.approx(by_name[name][key], abs=0.02), (name, key)
    assert found.value == pytest.approx(19.230, abs=0.01)
    assert found.direct + found.constant == pytest.approx(found.value, abs=1e-9)
    mine = found.grouped({"movers": ["a23.h4@4", "a24.h6@4"]})
    assert mine.turned("movers", 0.0) < mine.value


@pytest.mark.parametrize("row", [2, 3, 4])  # earlier layers take longer
def test_which_layers_the_plain_lens_is_right_at(smollm2, row):
    from glassformer.interp.agreement import agreement

    layer, correlation, share = rows("agree")[row]
    [found] = agreement(smollm2.trace("The capital of France is"), int(layer), {"plain": None}).rows()
    assert found["correlation"] == pytest.approx(float(correlation), abs=0.01)
    assert found["share"] == pytest.approx(float(share), abs=0.01)


def test_the_page_names_every_test():
    here = {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_every_test"}
    assert set(re.findall(r"`(test_\w+)`", PAGE)) == here
