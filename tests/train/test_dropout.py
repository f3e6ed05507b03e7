"""What dropout leaves out is the same however a step is computed, and nothing when nobody trains."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.kernels.compile import find_compiler
from glassformer.model import Transformer
from glassformer.train.dropout import Dropout
from glassformer.train.native_stepper import NativeStepper
from glassformer.train.recipe import Recipe
from glassformer.train.stepper import LocalStepper
from glassformer.train.torch_stepper import TorchStepper, initialise

SHAPE = {"layers": 2, "width": 64, "heads": 2, "context": 48, "dropout": 0.3}


def engine_of(recipe: Recipe, native: bool = False) -> LocalStepper:
    transformer = Transformer(recipe.config(65))
    initialise(transformer, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return (NativeStepper if native else TorchStepper)(transformer, recipe, torch.float32)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.randint(0, 65, (4, 40), generator=generator) for _ in range(2))
    return x, y


def gradients(engine: LocalStepper, rows: int = 4, step: int = 0) -> dict[str, Tensor]:
    x, y = batch()
    engine.updates = step
    engine.zero()
    for i in range(0, 4, rows):
        engine.accumulate(x[i : i + rows], y[i : i + rows], 1 / 160)
    return {name: grad.clone() for name, grad in engine.weights.named_grads().items()}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    size = max(float(grad.norm()) for grad in expected.values())
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6 * size, name


def test_the_share_asked_for_is_left_out_and_the_rest_made_up() -> None:
    dropout = Dropout(0.2, 1, Recipe().config(65))
    dropout.begin(0)
    masks = torch.stack([dropout.keep(site, 200, 96) for site in range(5)])
    assert set(masks.unique().tolist()) == {0.0, 1.25}
    # five deviations of a binomial
    for axes in ((0, 1, 2), (1, 2), (0, 2), (0, 1)):
        share = (masks == 0).float().mean(axes)
        n = masks.numel() / share.numel()
        assert (share - 0.2).abs().max() < 5 * (0.2 * 0.8 / n) ** 0.5
    flat = (masks == 0).float().flatten(1) - 0.2
    assert (flat @ flat.T / flat.shape[1]).triu(1).abs().max() < 0.01  # places do not go together


def test_steps_seeds_and_rows_have_masks_of_their_own() -> None:
    config = Recipe().config(65)
    one, other = Dropout(0.5, 1, config), Dropout(0.5, 2, config)
    one.begin(0), other.begin(0)
    first = one.keep(1, 8, 64)
    assert not torch.equal(first, other.keep(1, 8, 64))
    assert torch.equal(first, one.keep(1, 8, 64))  # asked again, the same
    one.passed(4)
    assert torch.equal(one.keep(1, 4, 64), first[4:])
    one.begin(1)
    assert not torch.equal(first, one.keep(1, 8, 64))


@pytest.mark.parametrize("design", ["qwen3", "llama"])
def test_fused_blocks_leave_out_what_plain_ones_do(design: str) -> None:
    recipe = Recipe().with_settings({**SHAPE, "design": design})
    plain = gradients(engine_of(recipe.with_settings({"fused": False})))
    close(gradients(engine_of(recipe)), plain)
    without = gradients(engine_of(recipe.with_settings({"dropout": 0.0})))
    assert (without["blocks.0.attn.o.weight"] - plain["blocks.0.attn.o.weight"]).norm() > 1e-3


@pytest.mark.parametrize("design", ["qwen3", "llama", "gpt2"])
def test_the_native_step_leaves_out_the_same(design: str) -> None:
    recipe = Recipe().with_settings({**SHAPE, "design": design, "fused": False})
    if find_compiler() is None and not os.environ.get("CI"):
        pytest.skip("there is no C++ compiler here")
    engine, plain = engine_of(recipe, native=True), engine_of(recipe)
    close(gradients(engine, rows=2, step=3), gradients(plain, step=3))
    x, y = (side.view(1, -1) for side in batch())
    for each in (engine, plain):
        each.zero()
        each.accumulate(x, y, 1 / 160, (30, 5, 45, 40, 40))
    close(engine.weights.named_grads(), plain.weights.named_grads())


def test_micro_batches_and_recomputing_change_nothing() -> None:
    recipe = Recipe().with_settings(SHAPE)
    expected = gradients(engine_of(recipe))
    close(gradients(engine_of(recipe), rows=1), expected)
    close(gradients(engine_of(recipe.with_settings({"recompute": True}))), expected)


def test_measuring_leaves_nothing_out() -> None:
    x, y = batch()
    with torch.no_grad():
        dropped = engine_of(Recipe().with_settings(SHAPE)).loss(x, y)
        assert torch.equal(dropped, engine_of(Recipe().with_settings({**SHAPE, "dropout": 0.0})).loss(x, y))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="dropout must be at least 0 and below 1; got 1.0"):
        Recipe().with_settings(["dropout=1"])
    with pytest.raises(UsageError, match="dropout needs shard=none"):
        Recipe().with_settings(["dropout=0.1", "shard=full"])
