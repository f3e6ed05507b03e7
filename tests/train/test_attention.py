"""Attention by explicit products is the same function as the model's own, and so are all gradients through it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glassformer.model import Transformer
from glassformer.train import attention
from glassformer.train.attention import attend
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import TorchStepper, initialise


@pytest.mark.parametrize("length", [1, 5, 64, 256, 300, 700])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_equals_torchs(length: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_CACHE", 1 << 20)  # several heads at a time, then the rest
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, 4, 8), (2, length, kv_heads, 8), (2, length, kv_heads, 8)]
    ours = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    z = attend(*ours, 0.3)
    q, k, v = (x.transpose(1, 2) for x in theirs)
    groups = 4 // kv_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3).transpose(1, 2)
    up = torch.randn(z.shape, generator=generator)
    z.backward(up)
    expected.backward(up)
    assert torch.allclose(z, expected, atol=2e-6)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


def gradients(recipe: Recipe, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    transformer = Transformer(recipe.config(65))
    initialise(transformer, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    engine = TorchStepper(transformer, recipe, dtype)
    x, y = (torch.randint(0, 65, (3, 48), generator=generator) for _ in range(2))
    engine.zero()
    loss = engine.accumulate(x, y, 1 / 144) + engine.accumulate(y, x, 1 / 144)
    return float(loss), {name: grad.clone() for name, grad in engine.weights.named_grads().items()}


@pytest.mark.parametrize("design", ["qwen3", "llama", "gpt2"])
def test_every_gradient_is_the_plain_one(design: str) -> None:
    recipe = Recipe().with_settings({"design": design, "layers": 3, "width": 64, "heads": 2, "context": 48})
    plain, expected = gradients(recipe.with_settings({"fused": False}), torch.float32)
    ours, found = gradients(recipe, torch.float32)
    assert ours == pytest.approx(plain, rel=1e-6)
    size = max(float(grad.norm()) for grad in expected.values())
    for name, grad in expected.items():
        # a key's bias moves no score apart from another, so its gradient is 0 and what is there is rounding
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6 * size, name


@pytest.mark.parametrize("design", ["qwen3", "llama"])
def test_in_bfloat16_it_is_as_near_to_the_truth(design: str) -> None:
    recipe = Recipe().with_settings({"design": design, "layers": 3, "width": 64, "heads": 2, "context": 48})
    _, truth = gradients(recipe.with_settings({"fused": False}), torch.float32)
    _, plain = gradients(recipe.with_settings({"fused": False}), torch.bfloat16)
    _, ours = gradients(recipe, torch.bfloat16)

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[n] - truth[n]).norm() / truth[n].norm()) for n in truth)

    assert error(ours) <= 1.2 * error(plain)


def test_who_looks_inside_sees_the_model_itself() -> None:
    recipe = Recipe().with_settings({"layers": 2, "width": 32, "heads": 2, "context": 8})
    transformer = Transformer(recipe.config(20))
    initialise(transformer, 1)
    tokens = torch.arange(8)[None]
    expected = transformer(tokens).detach()
    TorchStepper(transformer, recipe, torch.float32)
    with torch.no_grad():
        assert torch.equal(transformer(tokens), expected)
