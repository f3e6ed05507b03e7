"""The graph of one prediction: its sums, its edges against nodes taken away by hand, and what turning a group does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from glassformer.errors import CheckpointError, SiteError, UsageError
from glassformer.interp.edits import ablate
from glassformer.interp.prediction_graph import PredictionGraph, opened, prediction_graph
from glassformer.interp.trace import Trace
from glassformer.model import Config, Transformer, uniform
from glassformer.model.config import Attention, FeedForward
from tests.interp.helpers import Letters, randomised
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks

IDS = [5, 9, 1, 7, 8, 4]


def small(**more: Any) -> Transformer:
    config = uniform(40, 12, 2, 32, Attention(4, 2, 6), FeedForward(10), **more)
    return randomised(Transformer(config)).double()


def graph(t: Transformer, **options: Any) -> PredictionGraph:
    return prediction_graph(Trace(t, IDS, vocabulary=Letters(40)), 3, 7, **options)


@pytest.mark.parametrize("norms", ["before", "both"])
def test_all_nodes_together_are_the_score(norms):
    t = small(norms=norms)
    found = graph(t, coverage=1.0, most=10_000, measure=False)
    logits = t(torch.tensor([IDS]))[0, -1]
    assert found.value == pytest.approx(float(logits[3] - logits[7]), abs=1e-10)
    assert found.coverage == pytest.approx(1)
    assert len(found.nodes) <= 6 * (1 + 2 * (4 + 10))
    assert sum(node["direct"] for node in found.nodes) == pytest.approx(found.direct, abs=1e-9)
    assert found.direct + found.constant == pytest.approx(found.value, abs=1e-12)
    assert found.constant == pytest.approx(0, abs=1e-9)
    # every node is what those before it gave it, and the embeddings are where all of it comes from
    assert max(map(abs, found.others)) <= 1e-9
    assert max(abs(node["bias"]) for node in found.nodes if node["kind"] != "embed") <= 1e-9
    begins = sum(node["effect"] for node in found.nodes if node["kind"] == "embed")
    assert begins == pytest.approx(found.value, abs=1e-9)


def test_what_is_shown_is_stated_and_measured():
    t = small()
    found = graph(t, coverage=0.95, most=9)
    assert len(found.nodes) == 9
    assert 0 < found.coverage < 0.95
    whole = graph(t, coverage=1.0, most=10_000, measure=False)
    sizes = sorted((abs(node["effect"]) for node in whole.nodes), reverse=True)
    assert [abs(node["effect"]) for node in found.nodes] == pytest.approx(sizes[:9])
    assert found.coverage == pytest.approx(sum(sizes[:9]) / sum(sizes))
    for node in found.nodes:
        if node["kind"] == "embed":
            continue
        named = {"head": node["index"]} if node["kind"] == "head" else {"neuron": node["index"]}
        edit = ablate(layer=node["layer"], positions=node["position"], **named).bind(t.config)
        logits = t(torch.tensor([IDS]), tap=edit)[0, -1]
        assert node["measured"] == pytest.approx(found.value - float(logits[3] - logits[7]), abs=1e-9), node["name"]
    at = {node["name"]: i for i, node in enumerate(found.nodes)}
    for start, end, share in found.edges:
        if end is not None:
            a, b = (whole.numbers([found.nodes[i]["name"]])[0] for i in (start, end))
            assert next(s for x, y, s in whole.edges if (x, y) == (a, b)) == pytest.approx(share, abs=1e-9)
    data = json.loads(json.dumps(found.to_dict()))
    assert {node["name"] for node in data["nodes"]} == set(at)
    assert data["layers"] == 2
    assert len(data["tokens"]) == 6


def test_groups_are_turned_up_and_down():
    t = small()
    found = graph(t, most=12).grouped({"mine": [0, 1]})
    assert found.turned("mine", 1.0) == pytest.approx(found.value, abs=1e-9)
    assert found.turned([0], 0.0) == pytest.approx(found.value - found.nodes[0]["measured"], abs=1e-9)
    assert found.turned("mine", 2.0) != pytest.approx(found.value, abs=1e-6)
    assert found.numbers([found.nodes[3]["name"]]) == [3]
    [group] = found.to_dict()["groups"]
    assert group["effect"] == pytest.approx(found.nodes[0]["effect"] + found.nodes[1]["effect"])
    with pytest.raises(SiteError, match="shows no node 'a9.h9@1'; it has 12"):
        found.turned("a9.h9@1", 0)
    automatic = graph(t, most=40).groups
    assert all(len(members) > 1 for members in automatic.values())
    flat = [i for members in automatic.values() for i in members]
    assert len(flat) == len(set(flat))


@given(stacks())
@settings(max_examples=10, phases=PHASES)
def test_any_stack_s_graph_adds_up(config: Config) -> None:
    transformer = drawn(config)
    ids = torch.randint(0, config.vocab_size, (7,), generator=torch.Generator().manual_seed(2)).tolist()
    traced = Trace(transformer, ids)
    found = prediction_graph(traced, 1, 2, most=15, coverage=1.0)
    scale = max(1.0, abs(found.value), *(abs(node["effect"]) for node in found.nodes))
    assert traced.why(1, 2).value == pytest.approx(found.value, abs=1e-8 * scale)
    assert found.direct + found.constant == pytest.approx(found.value, abs=1e-8 * scale)
    for number, node in enumerate(found.nodes):
        assert node["measured"] is not None
        given = sum(share for _, end, share in found.edges if end == number)
        assert given + found.others[number] + node["bias"] == pytest.approx(node["effect"], abs=1e-8 * scale)
        tap = node["node"].scaled(0.0).bind(config)
        normed = transformer.hidden(torch.tensor([ids]), tap=tap)[:, -1]
        after = float(normed[0].double() @ found.way.vector + found.way.offset)
        assert node["measured"] == pytest.approx(found.value - after, abs=1e-7 * scale), node["name"]


def test_what_cannot_be_is_said(tmp_path):
    t = small()
    file = tmp_path / "g.json"
    graph(t, most=3, measure=False).save(file, "mine")
    assert opened(file, t)["name"] == "mine"
    with pytest.raises(CheckpointError, match="other weights"):
        opened(file, randomised(Transformer(t.config), 5).double())
    altered = file.read_text().replace('"layers": ', '"layers": 1')
    wrong = ((altered, "not match the checksum"), ("{", "no readable graph"), ("{}", "not of the format"))
    for spoilt, said in wrong:
        file.write_text(spoilt)
        with pytest.raises(CheckpointError, match=said):
            opened(file)
    with pytest.raises(UsageError, match="coverage is above 0 and at most 1; 0 is not"):
        graph(t, coverage=0)
    with pytest.raises(UsageError, match="1 node or more; 0 is not"):
        graph(t, most=0)
    with pytest.raises(UsageError, match="without edits"):
        prediction_graph(Trace(t, IDS, tap=ablate(layer=0, head=1)), 3, 7)
