"""A circuit run alone: against sets of edges run by the search, in the forward, with a cache, and in generation."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import assume, given, settings

from glassformer.errors import CheckpointError, GlassformerError, UnsupportedError, UsageError
from glassformer.interp.circuit_edit import RunCircuit, circuit
from glassformer.interp.circuit_search import Runs
from glassformer.interp.circuit_search import circuit as searched
from glassformer.interp.edge_graph import Graph
from glassformer.interp.edge_pair import Pair
from glassformer.interp.trace import Trace
from glassformer.model import Config
from glassformer.model.cache import Cache
from tests.interp.test_circuit_search import found
from tests.interp.test_edges import CLEAN, CORRUPTED, RIGHT, WRONG, small
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks


def some(graph: Graph, share: float = 0.5) -> list[int]:
    g = torch.Generator().manual_seed(4)
    return (torch.rand(graph.total, generator=g) < share).nonzero()[:, 0].tolist()


def of(transformer, numbers: list[int], ids: list[int]) -> RunCircuit:
    graph = Graph(transformer.config)
    return RunCircuit(transformer, tuple(graph.names(n) for n in numbers), tuple(ids))


def expected(transformer, clean: list[int], corrupted: list[int], numbers: list[int]) -> float:
    """The difference of two logits by the search's own runs of a set."""
    graph = Graph(transformer.config)
    pair = Pair(
        graph,
        Trace(transformer, clean),
        Trace(transformer, corrupted),
        lambda x, _: x[:, 1] - x[:, 2],
        None,
        None,
        -1,
        0,
    )
    inside = torch.zeros(1, graph.total, dtype=torch.bool)
    inside[0, numbers] = True
    return float(Runs([pair]).metric(inside)[0])


def difference(logits: torch.Tensor) -> float:
    return float(logits[1] - logits[2])


def stepwise(transformer, ids: list[int], first: int, tap) -> torch.Tensor:
    """Logits after every token from `first` on, with a cache, one token at a time after the first few."""
    cache = Cache(transformer.config, 1, len(ids), transformer.dtype, transformer.device)
    out = [transformer(torch.tensor([ids[:first]]), cache, tap=tap)[0, -1]]
    out += [transformer(torch.tensor([[id]]), cache, tap=tap)[0, -1] for id in ids[first:]]
    return torch.stack(out)


def test_the_forward_is_the_set_alone_and_goes_on_after_the_prompt():
    t = small()
    numbers = some(Graph(t.config))
    edit = of(t, numbers, CORRUPTED)
    more = [3, 11, 3]
    whole = t(torch.tensor([CLEAN + more]), tap=edit.bind(t.config))[0]
    for length in range(len(CLEAN), len(CLEAN) + len(more) + 1):
        ids = CLEAN + more
        want = expected(t, ids[:length], (CORRUPTED + more)[:length], numbers)
        assert difference(whole[length - 1]) == pytest.approx(want, abs=1e-10)
    cached = stepwise(t, CLEAN + more, len(CLEAN), edit.bind(t.config))
    torch.testing.assert_close(cached, whole[len(CLEAN) - 1 :], rtol=0, atol=1e-10)
    everything = of(t, list(range(Graph(t.config).total)), CORRUPTED)
    plain = t(torch.tensor([CLEAN]))
    torch.testing.assert_close(t(torch.tensor([CLEAN]), tap=everything.bind(t.config)), plain, rtol=0, atol=1e-10)
    other = t(torch.tensor([CLEAN]), tap=of(t, [], CORRUPTED).bind(t.config))[0, -1]
    torch.testing.assert_close(other, t(torch.tensor([CORRUPTED]))[0, -1], rtol=0, atol=1e-10)


def test_what_was_found_is_run_saved_and_read(tmp_path):
    t = small()
    result = searched(found(), 0.8)
    edit = circuit(result)
    assert edit.counterfactual == tuple(CORRUPTED)
    logits = t(torch.tensor([CLEAN]), tap=edit.bind(t.config))[0, -1]
    got = float(logits[RIGHT] - logits[WRONG])
    span = found().clean - found().corrupted
    assert (got - found().corrupted) / span == pytest.approx(result.f, abs=1e-10)
    edit.save(tmp_path / "c.json")
    again = RunCircuit.load(tmp_path / "c.json", t)
    assert (again.edges, again.counterfactual, again.facts) == (edit.edges, edit.counterfactual, edit.facts)
    assert circuit(again, [1, 2]).counterfactual == (1, 2)
    traced = Trace(t, CLEAN, tap=again)
    torch.testing.assert_close(traced.logits(-1), logits, rtol=0, atol=1e-10)


@given(stacks())
@settings(max_examples=12, phases=PHASES)
def test_any_stack_runs_a_set_alone(config: Config) -> None:
    transformer = drawn(config)
    g = torch.Generator().manual_seed(2)
    clean = torch.randint(0, config.vocab_size, (9,), generator=g).tolist()
    corrupted = [(i + 1) % config.vocab_size if at in (3, 5) else i for at, i in enumerate(clean)]
    ends = transformer(torch.tensor([clean, corrupted]))[:, -1]
    assume(float((ends[:, 1] - ends[:, 2]).diff().abs()) > 1e-6)
    numbers = some(Graph(config))
    try:
        tap = of(transformer, numbers, corrupted).bind(config)
    except UnsupportedError:
        return
    logits = transformer(torch.tensor([clean]), tap=tap)[0, -1]
    want = expected(transformer, clean, corrupted, numbers)
    assert difference(logits) == pytest.approx(want, abs=1e-8 * max(1.0, abs(want)))


def test_what_cannot_be_is_said(tmp_path):
    t = small()
    edit = of(t, [0, 1], CORRUPTED)
    with pytest.raises(UnsupportedError, match="one text at a time"):
        t(torch.tensor([CLEAN, CLEAN]), tap=edit.bind(t.config))
    cache = Cache(t.config, 1, 9, t.dtype, t.device)
    t(torch.tensor([CLEAN]), cache)
    with pytest.raises(UnsupportedError, match="a text from its start"):
        t(torch.tensor([[3]]), cache, tap=edit.bind(t.config))
    with pytest.raises(UsageError, match="needs a counterfactual"):
        of(t, [0], []).bind(t.config)
    with pytest.raises(UsageError, match="Token id 400 of the counterfactual"):
        of(t, [0], [400]).bind(t.config)
    with pytest.raises(GlassformerError, match="no edge from m1 to a0.h1.q"):
        RunCircuit(t, (("m1", "a0.h1.q"),), (1,)).bind(t.config)
    with pytest.raises(UsageError, match="there is no pair 3"):
        circuit(searched(found(), 0.5), pair=3)
    edit.require_of(small())
    with pytest.raises(UsageError, match="of another model"):
        edit.require_of(small().__class__(t.config))
    path = tmp_path / "c.json"
    edit.save(path)
    told = json.loads(path.read_text())
    changed = {key: value for key, value in told.items() if key != "sha256"}  # by hand, and said to be
    for spoilt, said in (
        ({"format": "x"}, "not of the format"),
        ({**told, "counterfactual": [1, 2]}, "does not match the checksum"),
        ({**changed, "weights": "0"}, "other weights"),
        ({**changed, "edges": 3}, "lacks its edges"),
    ):
        path.write_text(json.dumps(spoilt))
        with pytest.raises(CheckpointError, match=said):
            RunCircuit.load(path, t)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="no readable circuit"):
        RunCircuit.load(path, t)
    with pytest.raises(UnsupportedError, match="begins in the middle of the model"):
        t.stream(torch.zeros(1, 2, 12, dtype=t.dtype), torch.tensor([[0, 1]]), tap=edit.bind(t.config))
