"""Experts in training: Muon turns each expert's matrix alone, and takes no bias for a matrix."""

from __future__ import annotations

import torch

from glassformer.model import Transformer
from glassformer.train.optimizer import orthogonalise
from glassformer.train.weights import FlatWeights, kind_of
from tests.interp.test_experts import design


def test_stacked_matrices_are_turned_one_by_one() -> None:
    stack = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(stack, 5, torch.float32)
    assert found.shape == stack.shape
    torch.testing.assert_close(found[1, 2], orthogonalise(stack[1, 2][None], 5, torch.float32)[0])


def test_experts_matrices_lie_with_matrices_of_their_shape() -> None:
    transformer = Transformer(design(bias=True))
    weights = FlatWeights(transformer, torch.float32)
    gates = next(part for part in weights.stretches if "blocks.0.mlp.experts.gate.weight" in part.names)
    assert gates.kind == "matrix"
    assert gates.value.shape[-2:] == (6, 16)
    assert gates.value.ndim == 3
    assert kind_of("blocks.0.mlp.experts.gate.bias", (8, 6)) == "vector"
    views = gates.split(gates.value)
    assert torch.equal(views["blocks.0.mlp.experts.gate.weight"], transformer.blocks[0].mlp.experts.gate.weight)
