"""The operations against the textbook in float64, on every path: ours, oneDNN's, torch's, and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glassformer.kernels import ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LOOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def apart(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 31, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_and_its_gradients(dtype: torch.dtype, rows: int, bias: bool) -> None:
    x, w = torch.randn(2, rows, 48).to(dtype), torch.randn(20, 48).to(dtype)
    b = torch.randn(20).to(dtype) if bias else None
    reference = x.double() @ w.double().T + (0 if b is None else b.double())
    assert apart(ops.linear(x, w, b), reference) < LOOSE[dtype]
    leaves = [t.clone().requires_grad_() for t in (x, w, b) if t is not None]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    out = ops.linear(*leaves)
    grad = torch.randn(out.shape).to(dtype)
    expected = torch.autograd.grad(wide[0] @ wide[1].T + (wide[2] if bias else 0), wide, grad.double())
    for ours, right in zip(torch.autograd.grad(out, leaves, grad), expected, strict=True):
        assert apart(ours, right) < LOOSE[dtype]


def textbook(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, cap: float | None) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(groups, 1) for x in (k, v))
    grid = q.double() @ k.mT * scale
    grid = cap * torch.tanh(grid / cap) if cap else grid
    return grid.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0) @ v


@pytest.mark.parametrize("rows", [5, 40])
def test_weights_and_biases_with_gaps_in_memory(rows: int) -> None:
    """As experts' stacks have them where a file joins gates and neurons in turn."""
    x, both, biases = torch.randn(rows, 32), torch.randn(3, 32, 48), torch.randn(3, 48)
    for weight in (both[1, :, ::2].T, both[1, :, ::2].contiguous().T):
        bias = biases[1, ::2]
        want = x.double() @ weight.double().T + bias.double()
        torch.testing.assert_close(ops.linear(x, weight, bias).double(), want, rtol=1e-5, atol=1e-5)


@given(
    queries=st.integers(1, 40),
    start=st.sampled_from([0, 5]),
    groups=st.integers(1, 3),
    window=st.sampled_from([None, 1, 7, 100]),
    cap=st.sampled_from([None, 3.0]),
    padded=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=100, deadline=None)
def test_attention_is_the_textbooks(
    queries: int, start: int, groups: int, window: int | None, cap: float | None, padded: bool, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(queries * 10 + groups)
    keys = start + queries
    q = torch.randn(2, groups * 2, queries, 16, generator=g).to(dtype)
    k, v = (torch.randn(2, 2, keys, 16, generator=g).to(dtype) for _ in range(2))
    mask = torch.ones(2, keys, dtype=torch.bool)
    if padded:
        mask[0, :3] = False
    i, j = torch.arange(start, keys)[:, None], torch.arange(keys)[None]
    seen = (j <= i) & (j > i - (window or keys + 1))
    seen = seen[None, None] & mask[:, None, None]
    z = ops.attention(q, k, v, start=start, window=window, scale=0.3, mask=mask if padded else None, cap=cap)
    assert z.dtype == dtype
    right = textbook(q, k, v, seen, 0.3, cap)
    assert (z.double() - right).abs().max() <= LOOSE[dtype] * max(1.0, float(right.abs().max()))


@pytest.mark.parametrize("tile", [3, 8])
@pytest.mark.parametrize("window", [None, 5])
def test_long_texts_are_read_in_tiles(monkeypatch: pytest.MonkeyPatch, tile: int, window: int | None) -> None:
    q, k, v = (torch.randn(1, 2, 50, 8) for _ in range(3))
    whole = ops.attention(q, k, v, scale=0.3, window=window, cap=2.0)
    monkeypatch.setattr(ops, "_TILE", tile)
    assert torch.allclose(ops.attention(q, k, v, scale=0.3, window=window, cap=2.0), whole, atol=1e-6)
    i = torch.arange(50)
    seen = (i[None] <= i[:, None]) & (i[None] > i[:, None] - (window or 51))
    assert apart(ops.attention(q, k, v, scale=0.3, window=window), textbook(q, k, v, seen, 0.3, None)) < 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_gate_and_rotation(dtype: torch.dtype) -> None:
    x, up, w = torch.randn(2, 9, 64).to(dtype), torch.randn(2, 9, 64).to(dtype), torch.randn(64).to(dtype)
    wide = x.double()
    for plus in (0.0, 1.0):
        right = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (w.double() + plus)
        assert apart(ops.rms_norm(x, w, plus, 1e-5), right) < LOOSE[dtype]
    for name, act in ops.ACTIVATIONS.items():
        assert apart(ops.gated(name, x, up), act(wide) * up.double()) < LOOSE[dtype]
        assert apart(ops.gated(name, x), act(wide)) < LOOSE[dtype]
    heads, angles = x.view(2, 9, 4, 16), torch.randn(2, 9, 1, 6)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    turned = ops.rotate(heads, cos, sin)
    pairs = torch.complex(heads[..., :6].double(), heads[..., 6:12].double()) * torch.complex(
        cos.double(), sin.double()
    )
    assert apart(turned, torch.cat([pairs.real, pairs.imag, heads[..., 12:].double()], -1)) < LOOSE[dtype]


def test_under_functorch_torch_computes() -> None:
    w = torch.randn(32, 64)
    rows = torch.randn(5, 40, 64)
    assert torch.allclose(torch.func.vmap(lambda x: ops.linear(x, w))(rows), rows @ w.T, atol=1e-4)
    jacobian = torch.func.jacrev(lambda x: ops.rms_norm(x, torch.ones(8), 0.0, 1e-6))(torch.randn(8))
    assert jacobian.shape == (8, 8)
