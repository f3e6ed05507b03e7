"""The edges of circuits written by hand stand above all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glassformer.interp.circuit_search import circuit
from glassformer.interp.edges import edges
from glassformer.interp.trace import Trace
from tests.interp.planted_models import HARD, KINDS, Planted, auroc, planted


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_planted_edges_are_found(kind):
    for seed in range(3):
        p = planted(kind, seed)
        ends = p.transformer(torch.tensor([p.clean, p.corrupted]))[:, -1]
        assert int(ends[0].argmax()) == p.answer
        pair = [(Trace(p.transformer, p.clean), Trace(p.transformer, p.corrupted))]
        seen = edges(pair, answer=p.answer, wrong=p.wrong, strongest=30)
        true = torch.tensor([seen.graph.names(i) in p.true for i in range(seen.graph.total)])
        assert int(true.sum()) == len(p.true)
        assert auroc(seen.value.abs(), true) >= 0.95
    result = circuit(seen, 0.9, randoms=1)
    assert {seen.graph.names(int(i)) for i in result.chosen} <= p.true | {("embed", "logits")}
    assert result.f >= 0.9


@pytest.mark.parametrize("kind", sorted(HARD))
def test_where_no_slope_tells_more_steps_are_taken(kind):
    """Five gradients miss what happens between them; that they do not add up says so."""
    for seed in range(3):
        p = planted(kind, seed)
        pair = [(Trace(p.transformer, p.clean), Trace(p.transformer, p.corrupted))]

        def found(pair: Any = pair, p: Planted = p, **options: Any) -> Any:
            return edges(pair, answer=p.answer, wrong=p.wrong, **options)

        seen, few, whole = found(strongest=30), found(strongest=30, steps=5), found(exact="all")
        true = torch.tensor([seen.graph.names(i) in p.true for i in range(seen.graph.total)])
        assert int(true.sum()) == len(p.true)
        assert auroc(whole.value.abs(), true) >= 0.99
        assert auroc(seen.value.abs(), true) >= 0.99
        assert auroc(few.first[0].abs(), true) < 0.8
        assert abs(few.adds_up - 1) > 0.5
        if kind == "switched":
            assert auroc(few.value.abs(), true) < 0.8


def test_the_area_by_hand():
    size, true = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert auroc(size, true) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
