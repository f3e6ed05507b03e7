"""Circuits: greedy sets, runs of a set alone, their measures, and the tasks they are found for."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace

import pytest
import torch

from glassformer.errors import TaskError, UsageError
from glassformer.interp import tasks
from glassformer.interp.circuit_edit import circuit as run_alone
from glassformer.interp.circuit_search import SHARES, Curve, Runs, circuit, greedy, jaccard, smallest
from glassformer.interp.edge_graph import Graph
from glassformer.interp.edges import Edges, edges, prepared
from glassformer.interp.trace import Trace
from tests.interp.helpers import planted
from tests.interp.test_edges import CLEAN, CORRUPTED, RIGHT, WRONG, begin, difference, small, textbook


@functools.cache
def found() -> Edges:
    t = small()
    return edges([(Trace(t, CLEAN), Trace(t, CORRUPTED))], answer=RIGHT, wrong=WRONG, exact="all")


@functools.cache
def apart() -> Edges:
    """The same, positions told apart; the first difference is at position 2 of 6."""
    t = small()
    return edges([(Trace(t, CLEAN), Trace(t, CORRUPTED))], answer=RIGHT, wrong=WRONG, exact="none", by_position=True)


def alone(inside: set[tuple[str, str]] | set[tuple[str, str, int]]) -> float:
    """The metric when only these edges, at one position or at all, carry this run's values, by the forward written out
    in the test."""
    t = small()
    streams: dict[str, torch.Tensor] = {}
    _, corrupted = textbook(t, begin(t, CORRUPTED), None, lambda name, x, before: streams.setdefault(name, x))

    def at(sender: str, name: str) -> torch.Tensor:
        return torch.tensor([[(sender, name) in inside or (sender, name, p) in inside] for p in range(6)]).double()

    def hear(name: str, x: torch.Tensor, before: dict[str, torch.Tensor]) -> torch.Tensor:
        return streams[name] + sum(at(sender, name) * (y - corrupted[sender]) for sender, y in before.items())

    return float(difference(textbook(t, begin(t, CLEAN), None, hear)[0]))


def test_a_set_alone_is_what_a_forward_by_hand_says():
    graph, g = found().graph, torch.Generator().manual_seed(1)
    sets = torch.rand(5, graph.total, generator=g) < torch.tensor([0.1, 0.3, 0.5, 0.8, 0.95])[:, None]
    runs = Runs(found().pairs)
    expected = [alone({graph.names(int(e)) for e in row.nonzero()[:, 0]}) for row in sets]
    torch.testing.assert_close(runs.metric(sets), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    f = runs.faithfulness(sets)
    whole = found().clean - found().corrupted
    assert float(f[2]) == pytest.approx((expected[2] - found().corrupted) / whole, abs=1e-10)


def naively(graph: Graph, strength: torch.Tensor) -> list[int]:
    """Greedy growth by trying every edge at every step."""
    counts, out = {graph.logits[0]}, []
    size = strength.abs().tolist()
    while len(out) < graph.total:
        open_ = [e for e in range(graph.total) if int(graph.receiver_of[e]) in counts and e not in out]
        best = max(open_, key=lambda e: size[e])
        out.append(best)
        counts |= set(graph.inputs[int(graph.sender_of[best])])
    return out


def test_greedy_sets_grow_from_the_logits():
    graph = found().graph
    strength = torch.randn(graph.total, generator=torch.Generator().manual_seed(3))
    order = greedy(graph, strength)
    assert order.tolist() == naively(graph, strength)
    assert greedy(graph, strength, 7).tolist() == order[:7].tolist()


def test_a_set_at_positions_alone_is_what_a_forward_by_hand_says():
    graph, g = apart().graph, torch.Generator().manual_seed(1)
    sets = torch.rand(3, graph.total * 4, generator=g) < torch.tensor([0.3, 0.6, 0.9])[:, None]
    cells = [row.nonzero()[:, 0].tolist() for row in sets]
    expected = [alone({(*graph.names(c // 4), c % 4 + 2) for c in row}) for row in cells]
    told = Runs(apart().pairs).metric(sets)
    torch.testing.assert_close(told, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    everywhere = torch.rand(2, graph.total, generator=g) < 0.5
    both = Runs(apart().pairs).metric(everywhere), Runs(apart().pairs).metric(everywhere.repeat_interleave(4, 1))
    torch.testing.assert_close(*both, rtol=0, atol=1e-12)


def test_greedy_sets_grow_from_the_logits_at_the_last_position():
    """Every edge at every position is tried at every step; what a head reads at a position by key or value, later
    positions of its output are made of."""
    graph = apart().graph
    size = torch.rand(graph.total * 4, generator=torch.Generator().manual_seed(5))
    counts, out = {("logits", 3)}, list[int]()
    made = {"m0": ["m0"], "m1": ["m1"], "embed": list[str]()}
    made |= {
        f"a{i}.h{h}": [f"a{i}.h{h}.q", f"a{i}.kv{h // 2}.k", f"a{i}.kv{h // 2}.v"] for i in range(2) for h in range(4)
    }
    while True:
        open_ = [c for c in range(len(size)) if (graph.names(c // 4)[1], c % 4) in counts and c not in out]
        if not open_:
            break
        out.append(max(open_, key=lambda c: float(size[c])))
        sender, at = graph.names(out[-1] // 4)[0], out[-1] % 4
        for name in made[sender]:
            counts |= {(name, p) for p in range(0 if name[-2:] in (".k", ".v") else at, at + 1)}
    assert greedy(graph, size).tolist() == out
    assert len(out) < len(size)  # nothing but the last position reaches the logits in the last layer


def test_a_circuit_by_position():
    result = circuit(apart(), 0.8)
    assert result.f >= 0.8
    assert result.tried
    rows = result.to_dict()["circuit"]["edges"]
    assert all(2 <= row["position"] <= 5 and row["token"] for row in rows)
    mine = {(row["from"], row["to"], row["position"]) for row in rows}
    told = found().corrupted + result.f * (found().clean - found().corrupted)
    assert len(mine) == len(rows) == len(result.chosen)
    assert alone(mine) == pytest.approx(told, abs=1e-10)
    assert set(result.nodes()) == {row["from"] for row in rows}
    assert result.curve.f[-1] == pytest.approx(1)
    with pytest.raises(UsageError, match="find one without by_position to run it"):
        run_alone(result)


def test_areas_by_hand():
    seen = Curve((0.0, 0.5, 1.0), (0.0, 1.2, 1.0))
    assert seen.cpr == pytest.approx(0.5 * 0.6 + 0.5 * 1.1)
    assert seen.cmd == pytest.approx(0.5 * (1 + 0.2) / 2 + 0.5 * (0.2 + 0) / 2)


def test_a_circuit_reaches_its_faithfulness_and_needs_every_edge():
    said: list[tuple[int, int | None, str]] = []
    result = circuit(found(), 0.8, progress=lambda *at: said.append(at))
    steps: dict[str, list[tuple[int, int]]] = {}
    for done, total, what in said:
        steps.setdefault(what, []).append((done, total or 0))
    assert list(steps) == ["running sets", "random sets", "finding the smallest", "taking edges out", "rivals"]
    for each in steps.values():
        assert each[0][0] == 0
        assert each == sorted(each, key=lambda at: at[0])
        assert all(done <= total for done, total in each)
        assert [total for _, total in each] == sorted((total for _, total in each), reverse=True)
    assert [steps[what][-1] for what in ("running sets", "random sets")] == [(10, 10), (30, 30)]
    done, total = steps["finding the smallest"][-1]
    assert done == total
    runs, graph = Runs(found().pairs), found().graph
    assert result.f >= 0.8
    assert result.tried
    sets = torch.zeros(len(result.chosen), graph.total, dtype=torch.bool)
    sets[:, result.chosen] = True
    sets[range(len(sets)), result.chosen] = False
    assert (runs.faithfulness(sets) < 0.8).all()
    data = result.to_dict()
    assert [row["share"] for row in data["faithfulness"]] == list(SHARES)
    assert data["faithfulness"][-1]["f"] == pytest.approx(1, abs=1e-9)
    assert set(data) >= {"total_edges", "metric", "edges", "faithfulness", "cpr", "cmd", "random", "jaccard", "rivals"}
    assert set(data["random"]) >= {"cpr", "cmd"}
    # areas from the least share on, under what each set brings back in a run of its own: CPR of f, CMD of |1 - f|
    order, span = greedy(graph, found().strength), float(found().clean - found().corrupted)
    f = []
    for share in SHARES:
        [inside] = result_sets(graph, order, [max(1, int(share * graph.total))])
        names = {graph.names(int(n)) for n in inside.nonzero()[:, 0]}
        f.append((alone(names) - float(found().corrupted)) / span)
    f, at = torch.tensor(f, dtype=torch.float64), torch.tensor(SHARES, dtype=torch.float64)
    assert data["cpr"] == pytest.approx(float(torch.trapezoid(f, at)), abs=1e-9)
    assert data["cmd"] == pytest.approx(float(torch.trapezoid((1 - f).abs(), at)), abs=1e-9)
    assert data["jaccard"] is None
    assert data["circuit"]["size"] == len(data["circuit"]["edges"]) == len(result.chosen)
    mine = {(row["from"], row["to"]) for row in data["circuit"]["edges"]}
    assert alone(mine) == pytest.approx(found().corrupted + result.f * (found().clean - found().corrupted), abs=1e-10)
    order = greedy(graph, found().value)
    n = smallest(runs, graph.total, order, 0.8)
    assert float(runs.faithfulness(result_sets(graph, order, [n]))[0]) >= 0.8


def result_sets(graph: Graph, order: torch.Tensor, counts: list[int]) -> torch.Tensor:
    sets = torch.zeros(len(counts), graph.total, dtype=torch.bool)
    for row, n in zip(sets, counts, strict=True):
        row[order[:n]] = True
    return sets


def test_the_planted_circuit_is_found_to_the_edge():
    transformer, ids, at = planted()
    other = [51 if i == at else id for i, id in enumerate(ids)]
    pairs = [(Trace(transformer, ids), Trace(transformer, other))]
    seen = edges(pairs, answer=33, wrong=34)
    result = circuit(seen, 0.9, held_out=prepared(pairs, answer=33, wrong=34))
    names = {seen.graph.names(int(e)) for e in result.chosen}
    assert names == {("embed", "a1.kv2.k"), ("embed", "a1.kv2.v"), ("a1.h2", "logits")}
    assert result.held_out == pytest.approx(result.f)
    assert result.random_f < 0.5
    assert all(row["f"] < 0.5 for row in result.rivals)
    assert result.nodes() == ["embed", "a1.h2"]
    # area under the ROC curve: every true edge stands above every other
    true = torch.tensor([seen.graph.names(e) in names for e in range(seen.graph.total)])
    size = seen.value.abs()
    assert float((size[true][:, None] > size[~true][None]).double().mean()) >= 0.99


def test_redrawn_prompts_change_the_set():
    t = small()
    pairs = [
        (Trace(t, [5, 9, a, 7, 8, 4]), Trace(t, [5, 9, b, 7, 8, 4])) for a, b in ((1, 2), (3, 6), (11, 20), (30, 14))
    ]
    several = edges(pairs, answer=RIGHT, wrong=WRONG, exact="none")
    value = jaccard(several.graph, 4, 10, several.strengths())
    assert value is not None
    assert 0.1 < value < 1
    same = edges([pairs[0]] * 3, answer=RIGHT, wrong=WRONG, exact="none")
    assert jaccard(same.graph, 3, 10, same.strengths()) == pytest.approx(1)
    torch.testing.assert_close(several.strength, sum(v.abs() for v in several.estimate) / 4)
    torch.testing.assert_close(same.strength, same.value.abs())
    measured = edges(pairs[:2], answer=RIGHT, wrong=WRONG, exact="strongest", strongest=5)
    drawn = measured.strengths()(torch.tensor([1.0, 0.0]).double())
    for cell in measured.measured.nonzero()[:, 0].tolist():
        both = [(abs(float(measured.estimate[i, cell])) + abs(float(measured.exact[i, cell]))) / 2 for i in (0, 1)]
        assert float(measured.strength[cell]) == pytest.approx((both[0] + both[1]) / 2)
        assert float(drawn[cell]) == pytest.approx(both[0])
    with pytest.raises(UsageError, match=r"above 0 and at most 1; 1.5 is not"):
        circuit(several, 1.5)


def test_over_many_pairs_some_are_measured(monkeypatch):
    monkeypatch.setattr("glassformer.interp.edges.MEASURED_ON", 6)
    t = small()
    texts = [([5, 9, a, 7, 8, 4], [5, 9, b, 7, 8, 4]) for a, b in zip(range(10, 17), range(20, 27), strict=True)]
    pairs = [(Trace(t, clean), Trace(t, corrupted)) for clean, corrupted in texts]
    named = {"answer": RIGHT, "wrong": WRONG}
    some, whole = edges(pairs, **named, strongest=9), edges(pairs, **named, exact="all")
    done = ~torch.isnan(some.exact)
    top = some.estimate.abs().mean(0).topk(9).indices
    flagged = ~some.reliable
    flagged[top] = False
    assert done[:6, top].all()
    assert torch.equal(done[3:6].any(0), done[5])
    assert not done[6].any()
    assert torch.equal(done[:3].all(0), done.any(0))
    assert torch.equal(done[:3].all(0), flagged.index_fill(0, top, True))
    size = some.estimate[:3].abs()
    size[:, done[0]] = (size[:, done[0]] + whole.exact[:3, done[0]].abs()) / 2
    near = flagged & (size.mean(0) >= size.mean(0).topk(9).values[-1] / 2)
    assert torch.equal(done[3:6].all(0), near.index_fill(0, top, True))
    assert some.replaced < some.tried < 1
    assert some.to_dict()["tried"] == some.tried
    torch.testing.assert_close(some.exact[done], whole.exact[done], rtol=0, atol=1e-12)
    for edge in range(some.graph.total):
        many = int(done[:, edge].sum())
        wrong = float((whole.exact[:many, edge] - some.estimate[:many, edge]).mean()) if many else 0.0
        assert float(some.value[edge]) == pytest.approx(float(some.estimate[:, edge].mean()) + wrong, abs=1e-12)
        assert (some.rows([edge])[0]["exact"] is None) == (many == 0)
    sizes = torch.where(done, (some.estimate.abs() + whole.exact.abs()) / 2, some.estimate.abs())
    torch.testing.assert_close(some.strength, sizes.mean(0))
    with pytest.raises(UsageError, match=f"^{9 * 6 + int(flagged.sum()) * 3:,} edges would be measured"):
        edges(pairs, **named, strongest=9, limit=9)


def words(text: str) -> list[int]:
    """A tokenizer of whole words, single digits and signs."""
    return [sum(map(ord, piece)) * 1000 + len(piece) for piece in re.findall(r" ?[A-Za-z]+| ?\d|.", text)]


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_examples_line_up(name):
    rows = tasks.examples(name, words, 100)
    assert len({row["clean"] for row in rows}) == 100
    assert tasks.examples(name, words, 12) == rows[:12]
    rows = rows[:12]
    assert tasks.examples(name, words, 12, seed=1) != rows
    for row in rows:
        assert row["clean"] != row["corrupted"]
        assert row["answer"] != row["wrong"]
        assert len(words(row["clean"])) == len(words(row["corrupted"]))
        if name == "names":
            assert row["clean"].count(row["answer"]) == 1
            assert row["clean"].count(row["wrong"]) == 2
        if name == "induction":
            assert row["answer"] in row["clean"]
        if name == "greater-than":
            assert int(row["answer"][0]) > int(row["clean"].split()[6][2]) > int(row["wrong"][0])


def test_a_task_the_model_cannot_do_is_refused():
    rows = tasks.examples("capitals", words, 4)

    pairs = []
    for row, right in zip(rows, (True, True, True, False), strict=True):
        ids = {row["answer"]: 0, row["wrong"]: 1}
        clean = SimpleNamespace(token_id=ids.get, logits=lambda at, right=right: torch.tensor([2.0 * right, 1.0]))
        pairs.append((clean, SimpleNamespace(token_id=ids.get, logits=lambda at: torch.tensor([0.0, 1.0]))))
    assert tasks.solved("capitals", rows, pairs) == [0, 1, 2]
    with pytest.raises(TaskError, match=r"gets 0 of 1 examples of 'capitals' right \(0%\).*70% are needed"):
        tasks.solved("capitals", rows[3:], pairs[3:])
    with pytest.raises(UsageError, match=r"no task 'capital'; choose names.*Did you mean capitals"):
        tasks.examples("capital", words, 1)
    with pytest.raises(UsageError, match="Only 0 different examples of 'names' line up"):
        tasks.examples("names", lambda text: list(range(len(text) % 7)), 3)
