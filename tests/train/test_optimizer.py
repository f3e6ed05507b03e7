"""Muon against torch's own, and what a step must keep."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from glassformer.kernels import ops
from glassformer.model import Transformer
from glassformer.train import optimizer, weights
from glassformer.train.optimizer import MuonAdamW, orthogonalise
from glassformer.train.recipe import Recipe
from glassformer.train.weights import FlatWeights


def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(Recipe().with_settings(["layers=2", "width=32", "heads=2", "kv_heads=1", "d_ff=48"]).config(50))


def grads(flat: FlatWeights, seed: int) -> None:
    flat.grad.normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 24, 8), (4, 8, 24)])
def test_orthogonalising_evens_singular_values(shape: tuple[int, ...]) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(stack, 10, torch.float32))
    assert 0.5 < values.min() <= values.max() < 1.3
    assert torch.equal(orthogonalise(torch.zeros(shape), 5, torch.float32), torch.zeros(shape))


@pytest.mark.parametrize(("rounds", "floor"), [(2, 0.0399), (3, 0.00964), (4, 0.00233)])
def test_rounds_bring_all_above_a_floor_near_one(rounds: int, floor: float) -> None:
    """On a grid: within 0.3 of 1 from the floor that the docstring names on, and not from lower."""
    x = torch.logspace(math.log10(floor), math.log10(1.02), 200_000, dtype=torch.float64)
    for a, b, c in optimizer.newton_schulz_rules(rounds):
        x = a * x + b * x**3 + c * x**5
    assert 0.699 < x.min() < 0.71
    assert 1.29 < x.max() < 1.301


@pytest.mark.parametrize("shape", [(2, 256, 256), (1, 256, 1024), (2, 512, 256)])
@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_the_quick_rounds_are_as_near_as_torchs(shape: tuple[int, ...], rounds: int) -> None:
    """In bfloat16, against polynomials of the singular values in float64: a full matrix, one of rank 1, zeros."""
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for x in (stack, stack[:, :1] * stack[..., :1], torch.zeros_like(stack)):
        u, values, v = torch.linalg.svd(x, full_matrices=False)
        values = values / values.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        for a, b, c in optimizer.newton_schulz_rules(rounds):
            values = a * values + b * values**3 + c * values**5
        expected = u * values[:, None] @ v
        plain = (orthogonalise(x, rounds).double() - expected).norm()  # with gradients torch computes, round by round
        with torch.no_grad():
            error = (orthogonalise(x, rounds).double() - expected).norm()
        assert error <= max(0.06 * expected.norm(), 2.5 * plain)


def test_muon_equals_torchs_own() -> None:
    ours, theirs = model(), model()
    recipe = Recipe().with_settings({"muon_lr": 0.03, "muon_decay": 0.1, "newton_schulz": 5}).optimizer
    flat = FlatWeights(ours, torch.float32)
    stepper = MuonAdamW(flat.stretches, recipe)
    named = {
        n: nn.Parameter(p.detach().clone())
        for n, p in theirs.named_parameters()
        if weights.kind_of(n, p.shape) == "matrix"
    }
    reference = torch.optim.Muon(named.values(), lr=0.03, weight_decay=0.1, momentum=0.95, ns_steps=5)
    for seed in range(4):
        grads(flat, seed)
        for name, p in named.items():
            p.grad = flat.named_grads()[name].clone()
        stepper.step(1.0, 0.95)
        reference.step()
    for name, p in named.items():
        assert torch.allclose(flat.named()[name], p, atol=1e-6), name


def test_adamw_equals_torchs_own_parameter_by_parameter() -> None:
    ours, theirs = model(), model()
    spec = Recipe().with_settings({"kind": "adamw", "adam_decay": 0.1}).optimizer
    flat = FlatWeights(ours, torch.float32)
    optimizer = MuonAdamW(flat.stretches, spec)
    rates = {"matrix": spec.matrix_lr, "embed": spec.embed_lr, "head": spec.head_lr, "vector": spec.vector_lr}
    groups = [
        {"params": [p], "lr": rates[kind], "weight_decay": 0.0 if kind == "vector" else 0.1}
        for n, p in theirs.named_parameters()
        for kind in [weights.kind_of(n, p.shape)]
    ]
    reference = torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.eps)
    for seed in range(3):
        grads(flat, seed)
        for name, p in theirs.named_parameters():
            p.grad = flat.named_grads()[name].clone()
        optimizer.step(1.0, 0.95)
        reference.step()
    for name, p in theirs.named_parameters():
        assert torch.allclose(flat.named()[name], p, atol=1e-6), name


@pytest.mark.parametrize("rounds", [1, 3, 5, 7])
def test_wide_matrices_are_orthogonalised_by_their_gram_matrix(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer products, the same function: in bfloat16 about as near to it."""
    monkeypatch.setattr(ops, "LARGE", 1)
    stack = torch.randn(2, 48, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, _, v = torch.linalg.svd(stack, full_matrices=False)
    stack[1] = u[1] * torch.logspace(0, -3, 48, dtype=torch.float64) @ v[1]
    for x in (stack, stack.mT):
        expected = orthogonalise(x, rounds, torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(orthogonalise(x, rounds, torch.float64), expected, rtol=1e-9, atol=1e-11)
            rough = orthogonalise(x, rounds, torch.bfloat16).double()
        plain = orthogonalise(x, rounds, torch.bfloat16).double()
        errors = [(y - expected).norm(dim=(-2, -1)) for y in (rough, plain)]
        assert (errors[0] < 4 * errors[1]).all()


def test_queries_keys_and_values_are_orthogonalised_apart() -> None:
    ours = model()
    flat = FlatWeights(ours, torch.float32)
    optimizer = MuonAdamW(flat.stretches, Recipe().with_settings({"muon_lr": 1.0}).optimizer, torch.float32)
    before = {name: tensor.clone() for name, tensor in flat.named().items()}
    grads(flat, 7)
    optimizer.step(1.0, 0.9)
    for name in ("blocks.0.attn.q.weight", "blocks.0.attn.k.weight", "blocks.1.mlp.down.weight"):
        change = torch.linalg.svdvals(before[name] - flat.named()[name])
        rows, columns = before[name].shape
        assert 0.6 < change.min() / max(1, rows / columns) ** 0.5 < change.max() / max(1, rows / columns) ** 0.5 < 1.31


def test_cautious_decay_only_where_it_agrees() -> None:
    from glassformer.train.optimizer import apply_update

    value = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    update = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    apply_update(value, update, 0.1, 0.5, True, 1.0)
    assert torch.allclose(value, torch.tensor([[0.85, 1.1], [-1.1, -0.85]]))


def test_state_goes_out_and_in() -> None:
    a, b = FlatWeights(model(), torch.float32), FlatWeights(model(), torch.float32)
    spec = Recipe().optimizer
    one, two = MuonAdamW(a.stretches, spec), MuonAdamW(b.stretches, spec)
    for seed in range(3):
        grads(a, seed)
        one.step(1.0, 0.9)
    b.load({name: tensor.clone() for name, tensor in a.named().items()})
    state = {name: tensor.clone() for name, tensor in one.state().items()}
    assert {"muon.momentum.blocks.0.attn.q.weight", "adamw.exp_avg.embed.weight"} <= state.keys()
    two.load(state, 3)
    for flat, its in ((a, one), (b, two)):
        grads(flat, 9)
        its.step(0.5, 0.9)
    assert torch.equal(a.master, b.master)


def test_flat_weights_are_the_module() -> None:
    module = model()
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    flat = FlatWeights(module, torch.bfloat16)
    for name, p in module.named_parameters():
        assert p.dtype == torch.bfloat16
        assert torch.equal(flat.named()[name], expected[name])
        assert torch.equal(p, expected[name].bfloat16())
    tokens = torch.randint(0, 50, (2, 5))
    flat.zero()
    module(tokens).float().sum().backward()
    flat.collect()
    assert flat.named_grads()["blocks.1.attn.v.weight"].abs().sum() > 0
    flat.master.add_(1.0)
    flat.publish()
    assert torch.equal(module.embed.weight, (expected["embed.weight"] + 1).bfloat16())
