"""The native step is the same function as the model and its optimiser, to the bit every time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glassformer.errors import ShapeError
from glassformer.kernels.compile import find_compiler
from glassformer.model import Transformer
from glassformer.train.native_step import NativeStep
from glassformer.train.native_stepper import NativeStepper
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import TorchStepper, initialise
from glassformer.train.weights import FlatWeights

Make = Callable[..., Recipe]
Place = Callable[[], Path]
PORTABLE = "-DGLASSFORMER_PORTABLE"


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if find_compiler() is None and not os.environ.get("CI"):
        pytest.skip("there is no C++ compiler here")


def recipe_of(**changes: Any) -> Recipe:
    return Recipe().with_settings({"layers": 3, "width": 64, "heads": 2, "context": 200, **changes})


def model_of(recipe: Recipe, vocab: int = 65) -> Transformer:
    """Every parameter random, so that a part that is left out shows."""
    transformer = Transformer(recipe.config(vocab))
    initialise(transformer, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return transformer


def batch_of(batch: int, length: int, vocab: int = 65) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    x, y = (torch.randint(0, vocab, (batch, length), generator=generator) for _ in range(2))
    y[0, : length // 3] = -100  # some do not count
    return x, y


def truth(
    recipe: Recipe, x: Tensor, y: Tensor, lengths: Sequence[int] | None = None
) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradient by autograd through the model itself, in float64."""
    from torch.nn.functional import cross_entropy

    transformer = model_of(recipe).double().requires_grad_(True)
    loss = cross_entropy(transformer(x, lengths=lengths).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    return float(loss.detach()), {n: p.grad.float() for n, p in transformer.named_parameters() if p.grad is not None}


def found(
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    dtype: torch.dtype,
    *extra: str,
    threads: int = 1,
    lengths: Sequence[int] | None = None,
) -> tuple[float, dict[str, Tensor]]:
    transformer = model_of(recipe).requires_grad_(True)
    weights = FlatWeights(transformer, dtype, tied=transformer.config.tied)
    step = NativeStep(transformer.config, weights, recipe.optimizer, extra=extra, threads=threads)
    loss = step.accumulate(x, y, 1.0, lengths=lengths)
    assert lengths is not None or float(step.loss(x, y)) == float(loss)
    assert step.norm() == pytest.approx(float(weights.grad.double().norm()), rel=1e-5)
    return float(loss), {name: grad.clone() for name, grad in weights.named_grads().items()}


def errors(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    # some are 0 in truth and rounding in fact: of a key's bias, and of queries and keys of a row of one token
    size = max(float(g.norm()) for g in expected.values())
    return {n: float((ours[n] - g).norm() / g.norm()) for n, g in expected.items() if g.norm() > 1e-6 * size}


DESIGNS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"design": "llama"},
    "gpt2": {"design": "gpt2"},
    "tied": {"tied": True},
    "shared keys": {"heads": 4, "kv_heads": 2},
    "one key head": {"kv_heads": 1, "design": "llama"},
    "odd sizes": {"width": 40, "heads": 5, "d_ff": 71, "head_dims": 24},
    "odd gpt2": {"design": "gpt2", "width": 36, "heads": 3, "d_ff": 50},
}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("batch", "length"), [(3, 48), (7, 5), (2, 1), (2, 150), (1, 200)])
def test_every_gradient_is_autograds(design: str, batch: int, length: int) -> None:
    recipe = recipe_of(**DESIGNS[design])
    x, y = batch_of(batch, length)
    loss, expected = truth(recipe, x, y)
    ours, grads = found(recipe, x, y, torch.float32)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert grads.keys() == expected.keys()
    assert max(errors(grads, expected).values()) < 2e-5


@settings(max_examples=20)
@given(
    batch=st.integers(1, 9),
    length=st.integers(1, 140),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dims=st.sampled_from([2, 10, 16, 32, 48]),
    width=st.integers(8, 70),  # layer norm of one number forgets it
    d_ff=st.integers(1, 70),
    design=st.sampled_from(["qwen3", "llama", "gpt2"]),
)
def test_every_shape_is_the_same_function(
    batch: int, length: int, heads: tuple[int, int], dims: int, width: int, d_ff: int, design: str
) -> None:
    shape = {"heads": heads[0], "kv_heads": heads[1], "head_dims": dims, "width": width, "d_ff": d_ff}
    recipe = recipe_of(layers=2, design=design, **shape)
    x, y = batch_of(batch, length)
    loss, expected = truth(recipe, x, y)
    ours, grads = found(recipe, x, y, torch.float32)
    size = max(float(grad.norm()) for grad in expected.values())
    assert ours == pytest.approx(loss, rel=1e-5)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-5 * size, name


@pytest.mark.parametrize("design", ["qwen3", "shared keys", "gpt2"])
@pytest.mark.parametrize("length", [48, 150])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_torch(design: str, length: int) -> None:
    recipe = recipe_of(**DESIGNS[design])
    x, y = batch_of(3, length)
    _, expected = truth(recipe, x, y)
    engine = TorchStepper(model_of(recipe), recipe, torch.bfloat16)
    engine.zero()
    engine.accumulate(x, y, 1.0)
    plain = errors(engine.weights.named_grads(), expected)
    for extra in ((), (PORTABLE,)):
        ours = errors(found(recipe, x, y, torch.bfloat16, *extra)[1], expected)
        assert sum(ours.values()) <= sum(plain.values())


def test_the_portable_build_computes_the_same() -> None:
    recipe = recipe_of()
    x, y = batch_of(3, 48)
    loss, expected = found(recipe, x, y, torch.float32)
    ours, grads = found(recipe, x, y, torch.float32, PORTABLE)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert max(errors(grads, expected).values()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    def weights(threads: int) -> dict[str, Tensor]:
        recipe = recipe_of(layers=2)
        transformer = model_of(recipe).requires_grad_(True)
        flat = FlatWeights(transformer, dtype)
        step = NativeStep(transformer.config, flat, recipe.optimizer, threads=threads)
        for i in range(5):
            step.zero()
            step.accumulate(*batch_of(5 + i, 60), 1 / 300)
            step.step(1.0, 0.9)
        return flat.named()

    one = weights(1)
    for threads in (2, 3):
        other = weights(threads)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("wave", [1, 4 << 20])
def test_a_batch_in_waves_is_the_same(wave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of()
    x, y = batch_of(40, 60)
    _, expected = truth(recipe, x, y)
    _, grads = found(recipe, x, y, torch.float32, f"-DGLASSFORMER_STORE={wave}")
    assert max(errors(grads, expected).values()) < 2e-5
    lengths = [60, 3, 150, 27] * 10
    x, y = x.view(1, -1), y.view(1, -1)
    _, expected = truth(recipe, x, y, lengths)
    _, grads = found(recipe, x, y, torch.float32, f"-DGLASSFORMER_STORE={wave}", lengths=lengths)
    assert max(errors(grads, expected).values()) < 2e-5


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("lengths", [(3, 150, 1, 47), (20, 20, 5, 9, 130, 64, 2)])
def test_documents_of_any_lengths_are_as_if_alone(design: str, lengths: tuple[int, ...]) -> None:
    recipe = recipe_of(**DESIGNS[design])
    x, y = batch_of(1, sum(lengths))
    loss, expected = truth(recipe, x, y, lengths)
    ours, grads = found(recipe, x, y, torch.float32, lengths=lengths)
    assert ours == pytest.approx(loss, rel=1e-6)
    assert max(errors(grads, expected).values()) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_came_before_does_not_show(dtype: torch.dtype) -> None:
    """Lengths in any order, with infinities left in memory, by any number of threads, in waves: the same bits."""
    recipe = recipe_of()
    lengths = (70, 3, 140, 33, 64, 9)
    x, y = batch_of(1, sum(lengths))
    _, expected = found(recipe, x, y, dtype, lengths=lengths)
    transformer = model_of(recipe).requires_grad_(True)
    step = NativeStep(transformer.config, FlatWeights(transformer, dtype), recipe.optimizer, threads=3)
    healthy = step.weights.master.clone()
    for some in ((200,), (31, 1), (5,) * 9):
        step.weights.master.fill_(float("inf"))
        step.publish()
        assert not torch.isfinite(step.accumulate(*batch_of(1, sum(some)), 1.0, lengths=some))
    step.weights.master.copy_(healthy)
    step.publish()
    step.zero()
    step.accumulate(x, y, 1.0, lengths=lengths)
    for name, grad in step.weights.named_grads().items():
        assert torch.equal(grad, expected[name]), name
    with pytest.raises(ShapeError, match="do not fill one row"):
        step.accumulate(x, y, 1.0, lengths=(3, 4))


def test_gradients_accumulate() -> None:
    recipe = recipe_of(design="gpt2")
    x, y = batch_of(4, 30)
    engine = NativeStepper(model_of(recipe), recipe, torch.float32)
    for _ in range(2):  # the second time in place of the first
        engine.zero()
        engine.accumulate(x[:3], y[:3], 1.0)
        engine.accumulate(x[3:], y[3:], 1.0)
    _, expected = truth(recipe, x, y)
    assert max(errors(engine.weights.named_grads(), expected).values()) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"muon_decay": 0.1, "adam_decay": 0.1},
        {"muon_decay": 0.1, "cautious": True, "design": "gpt2"},
        {"kind": "adamw", "adam_decay": 0.1},
        {"width": 40, "heads": 5, "kv_heads": 1, "tied": True, "newton_schulz": 3},
    ],
)
def test_the_optimisers_step_is_torchs(changes: dict[str, Any], dtype: torch.dtype) -> None:
    recipe = recipe_of(layers=2, **changes)
    engines = (TorchStepper(model_of(recipe), recipe, dtype), NativeStepper(model_of(recipe), recipe, dtype))
    before = {name: value.clone() for name, value in engines[0].whole().items()}
    generator = torch.Generator().manual_seed(3)
    for i in range(4):
        grad = torch.randn(engines[0].weights.grad.shape, generator=generator)
        for engine in engines:
            engine.weights.grad.copy_(grad)
            engine.step(0.7, 0.85 + i / 100)
    a, b = (engine.whole() for engine in engines)
    limit = 2e-5 if dtype == torch.float32 else 0.05  # Newton-Schulz runs in the products' precision
    for name, value in a.items():
        assert (value - b[name]).norm() <= limit * (value - before[name]).norm(), name
    states = [engines[0].optimizer.state(), engines[1].native.state()]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=1e-5, atol=1e-6), name
    flat = engines[1].weights
    for name in flat.shapes:  # what the module itself computes with
        assert torch.equal(flat.view(flat.working, name), flat.view(flat.master, name).to(dtype)), name


def test_a_clipped_gradient_is_what_is_stepped() -> None:
    recipe = recipe_of(clip=0.01)
    engine = NativeStepper(model_of(recipe), recipe, torch.float32)
    engine.zero()
    engine.accumulate(*batch_of(3, 20), 1.0)
    assert engine.finish() > 0.01
    assert float(engine.weights.grad.norm()) == pytest.approx(0.01, rel=1e-4)


def test_what_is_no_token_is_refused() -> None:
    engine = NativeStepper(model_of(recipe_of()), recipe_of(), torch.float32)
    x, y = batch_of(1, 8)
    for bad in (x + 65, x - 65):
        with pytest.raises(ShapeError, match="Tokens must be below 65, and at most 200 in a row"):
            engine.accumulate(bad, y, 1.0)
    with pytest.raises(ShapeError, match="at most 200"):
        engine.loss(*batch_of(1, 201))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_no_number_shows_in_the_loss(dtype: torch.dtype) -> None:
    recipe = recipe_of()
    for name in ("embed.weight", "blocks.1.attn.k.weight", "blocks.0.mlp.gate.weight", "unembed.weight"):
        transformer = model_of(recipe)
        with torch.no_grad():
            transformer.get_parameter(name).fill_(float("nan"))
        engine = NativeStepper(transformer, recipe, dtype)
        engine.zero()
        assert not torch.isfinite(engine.accumulate(*batch_of(2, 20), 1.0)), name
        assert not torch.isfinite(torch.tensor(engine.finish())), name
