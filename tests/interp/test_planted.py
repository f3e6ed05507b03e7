"""The edges of circuits written by hand stand above all others."""

from __future__ import annotations

import pytest
import torch

from glassformer.interp.circuit_search import circuit
from glassformer.interp.edges import edges
from glassformer.interp.trace import trace
from tests.interp.planted_models import KINDS, auroc, planted


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_planted_edges_are_found(kind):
    for seed in range(3):
        p = planted(kind, seed)
        ends = p.transformer(torch.tensor([p.clean, p.corrupted]))[:, -1]
        assert int(ends[0].argmax()) == p.answer
        pair = [(trace(p.transformer, p.clean), trace(p.transformer, p.corrupted))]
        seen = edges(pair, answer=p.answer, wrong=p.wrong, strongest=30)
        true = torch.tensor([seen.graph.names(i) in p.true for i in range(seen.graph.total)])
        assert int(true.sum()) == len(p.true)
        assert auroc(seen.value.abs(), true) >= 0.95
    result = circuit(seen, 0.9, randoms=1)
    assert {seen.graph.names(int(i)) for i in result.chosen} <= p.true | {("embed", "logits")}
    assert result.f >= 0.9


def test_the_area_by_hand():
    size, true = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert auroc(size, true) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
