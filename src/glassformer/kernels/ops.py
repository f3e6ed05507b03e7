"""The operations of a forward pass, each by the quickest way that this machine has: torch is the reference.

Linear products, attention, norms, gates, rotations of plain tensors and choices among logits, complete: whoever calls
one gets its result, differentiable, on every device and in every dtype. Where our kernels (`ops_abi`) or oneDNN are
quicker they are used; both agree with torch within float32's rounding. Which is used depends on shapes and on the
machine, never on timing, so a run repeats to the bit. It knows no model.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glassformer.kernels import ops_abi
from glassformer.system.hardware import processor_facts

# Below this many rows calling oneDNN costs more than its product saves.
_ONEDNN_ROWS = 32
# Queries at a time where torch forms a grid of scores or a mask: a tile of all heads stays in cache.
_TILE = 256
# Up to this many queries the explicit product is quicker than the fused kernel and copies no keys.
_FEW = 8

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
"""The activations that `gated` knows."""


def _onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's float32 product on dense weights, where torch has it and it is the quicker one.

    MKL uses AVX-512 on Intel's processors only; there the two are equal and `F.linear` is kept. The choice depends on
    the processor alone, so a run repeats to the bit on the same machine.
    """
    if not torch.backends.mkldnn.is_available() or processor_facts().get("vendor_id") == "GenuineIntel":
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


_ONEDNN = _onednn_linear()


class _OneDnnProduct(torch.autograd.Function):
    """x @ weight.T + bias in float32 through oneDNN, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        assert _ONEDNN is not None
        return _ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # ty: ignore
        assert _ONEDNN is not None
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_x = _ONEDNN(rows, weight.t(), None, "none", [], "").view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = _ONEDNN(rows.t(), x.reshape(-1, x.shape[-1]).t(), None, "none", [], "")
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def linear(
    x: Float[Tensor, "*batch d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*batch d_out"]:
    """x @ weight.T + bias.

    In float32 on a processor with many rows it goes through the tiles where there are any (docs/decisions/0016), and
    through oneDNN where that uses the whole width of the processor and MKL, behind `F.linear`, does not
    (docs/decisions/0002).
    """
    if (out := ops_abi.linear(x, weight, bias)) is not None:
        return out
    if (
        _ONEDNN is not None
        and x.dtype == torch.float32 == weight.dtype
        and x.device.type == "cpu"
        and x.numel() >= _ONEDNN_ROWS * x.shape[-1]
        and not torch.compiler.is_compiling()
        and type(weight) in (Tensor, nn.Parameter)
        and type(x) is Tensor
        and not torch._C._functorch.peek_interpreter_stack()
    ):
        if bias is not None:
            bias = bias.contiguous()  # oneDNN reads one with gaps as if it had none
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _OneDnnProduct.apply(x, weight, bias)
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def attention(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    v: Float[Tensor, "batch kv_head key d_value"],
    *,
    start: int = 0,
    window: int | None = None,
    scale: float,
    mask: Bool[Tensor, "batch key"] | None = None,
    cap: float | None = None,
) -> Float[Tensor, "batch head query d_value"]:
    """Causal softmax attention; each kv_head serves head / kv_head heads in a row.

    Args:
        start: slot of the first query; query i stands at slot start + i and sees no later key.
        window: how many latest slots a query sees, itself included; None for all.
        scale: what products are multiplied by.
        mask: False where a slot holds padding. A row that sees nothing is zero.
        cap: scores become cap × tanh(score / cap).
    """
    queries, keys = q.shape[2], k.shape[2]
    if mask is None and cap is None and q.shape[3] == v.shape[3]:
        z = ops_abi.attention(q, k, v, start=start, window=window, scale=scale)
        if z is not None:
            return z
    explicit = cap is not None or queries <= _FEW
    if not explicit:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        if mask is None and start == 0 and (window is None or window >= keys):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    out, tile = [], _TILE if explicit else 4 * _TILE
    for q0 in range(0, queries, tile):
        q1 = min(q0 + tile, queries)
        k0, k1 = 0 if window is None else max(0, start + q0 - window + 1), start + q1
        allowed = _allowed(start + q0, start + q1, k0, k1, window, mask, q.device)
        part, near, values = q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1]
        if explicit:
            out.append(_explicit(part, near, values, allowed, scale, cap))
            continue
        z = F.scaled_dot_product_attention(part, near, values, attn_mask=allowed, scale=scale)
        if mask is not None:  # kernels differ on rows that see nothing
            z = z.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
        out.append(z)
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def _allowed(
    q0: int, q1: int, k0: int, k1: int, window: int | None, mask: Tensor | None, device: torch.device
) -> Bool[Tensor, "rows 1 query key"]:
    """True where the query at slot q0 + i may see key k0 + j; rows is 1 unless there is padding."""
    slots, keys = torch.arange(q0, q1, device=device)[:, None], torch.arange(k0, k1, device=device)[None, :]
    allowed = keys <= slots
    if window is not None:
        allowed &= keys > slots - window
    allowed = allowed[None, None]
    return allowed if mask is None else allowed & mask[:, None, None, k0:k1]


def _explicit(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, cap: float | None) -> Tensor:
    """The textbook's: scores, softmax in at least float32, weighted sum."""
    batch, heads, queries, d_head = q.shape
    folded = q.reshape(batch, k.shape[1], -1, d_head)
    grid = torch.matmul(folded, k.transpose(-1, -2)).view(batch, heads, queries, k.shape[2]) * scale
    if cap is not None:
        grid = cap * torch.tanh(grid / cap)
    weights = torch.softmax(_wide(grid.masked_fill(~allowed, float("-inf"))), dim=-1)
    weights = torch.nan_to_num(weights, nan=0.0).to(grid.dtype)
    return torch.matmul(weights.view(batch, k.shape[1], -1, k.shape[2]), v).view(batch, heads, queries, v.shape[3])


def rms_norm(
    x: Float[Tensor, "*batch d"], weight: Float[Tensor, " d"], plus: float, eps: float
) -> Float[Tensor, "*batch d"]:
    """x / root mean square of its last axis × (weight + plus), computed in at least float32 (arXiv:1910.07467)."""
    if (out := ops_abi.rms_norm(x, weight, plus, eps)) is not None:
        return out
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight + plus if plus else weight, eps)
    wide = _wide(x)
    unit = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    return (unit * (_wide(weight) + plus)).to(x.dtype) if plus else unit.to(x.dtype) * weight


def gated(
    activation: str, gate: Float[Tensor, "*batch d_ff"], up: Float[Tensor, "*batch d_ff"] | None = None
) -> Float[Tensor, "*batch d_ff"]:
    """act(gate) × up, or act(gate) alone; `activation` is a key of `ACTIVATIONS`."""
    if (out := ops_abi.gated(activation, gate, up)) is not None:
        return out
    if ops_abi.learns_gated(activation, gate, up):
        return _Gated.apply(activation, gate, up)
    return _gated(activation, gate, up)


def _gated(activation: str, gate: Tensor, up: Tensor | None) -> Tensor:
    h = ACTIVATIONS[activation](gate)
    return h if up is None else h * up


class _Gated(torch.autograd.Function):
    """`gated` in bfloat16, each way in one pass."""

    @staticmethod
    def forward(ctx: Any, activation: str, gate: Tensor, up: Tensor | None) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up)
        out = ops_abi.gated(activation, gate, up)
        return _gated(activation, gate, up) if out is None else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:  # ty: ignore
        gate, up = ctx.saved_tensors
        if not torch.is_grad_enabled():
            found = ops_abi.gated_gradient(ctx.activation, grad.contiguous(), gate, up)
            if found is not None:
                return None, *found
        given = [x for x, wanted in zip((gate, up), ctx.needs_input_grad[1:], strict=True) if wanted]
        with torch.enable_grad():  # somebody differentiates again
            y = _gated(ctx.activation, gate, up)
            slopes = iter(torch.autograd.grad(y, given, grad, create_graph=torch.is_grad_enabled()))
        to_gate, to_up = (next(slopes) if wanted else None for wanted in ctx.needs_input_grad[1:])
        return None, to_gate, to_up


def rotate(
    x: Float[Tensor, "batch query head d_head"],
    cos: Float[Tensor, "#batch #query 1 pair"],
    sin: Float[Tensor, "#batch #query 1 pair"],
) -> Float[Tensor, "batch query head d_head"]:
    """Turn dimensions (i, i + pair) of every head by their position's angles; those from 2·pair on stay.

    Angles of one text, or of one position, serve all.
    """
    if (out := ops_abi.rotate(x, cos, sin)) is not None:
        return out
    pairs = cos.shape[-1]
    first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if 2 * pairs < x.shape[-1]:
        turned.append(x[..., 2 * pairs :])
    return torch.cat(turned, dim=-1)


_STRETCH = 256  # tokens whose weights are summed together before one is drawn
_COLDEST = 1e-30  # temperatures below are divided by in float64


def _weights(logits: Tensor, temperature: float) -> Tensor:
    scores = logits.float() if temperature > _COLDEST else logits.double()
    return (scores - scores.max()).div_(temperature).exp_()


def weight_sum(logits: Float[Tensor, " vocab"], temperature: float) -> float:
    """The sum of weights exp((logits − largest) / temperature), which are float32's: softmax's denominator."""
    if (out := ops_abi.weight_sum(logits, temperature)) is not None:
        return out
    return float(_weights(logits, temperature).sum(dtype=torch.float64))


def draw(logits: Float[Tensor, " vocab"], temperature: float, share: float) -> int:
    """The first token at which the running sum of those weights passes `share` of the whole, 0 ≤ share < 1.

    Weights and their sums over a stretch are float32's, what is summed of those float64's: whose share is uniformly
    distributed draws from the softmax, within float32's rounding.
    """
    if (out := ops_abi.draw(logits, temperature, share)) is not None:
        return out
    weights = _weights(logits, temperature)
    whole = len(weights) // _STRETCH * _STRETCH
    sums = [weights[:whole].view(-1, _STRETCH).sum(1), weights[whole:].sum(0, True)]
    reached = torch.cat(sums).double().cumsum(0)
    aim = share * float(reached[-1])
    stretch = min(int(torch.searchsorted(reached, aim, right=True)), len(reached) - 1)
    start = stretch * _STRETCH
    within = weights[start : start + _STRETCH].double()
    left = aim - (float(reached[stretch - 1]) if stretch else 0.0)
    at = int(torch.searchsorted(within.cumsum(0), left, right=True))
    if at < len(within):
        return start + at
    return int(weights[: start + _STRETCH].nonzero()[-1])  # the end of a stretch, by rounding


def largest(logits: Float[Tensor, " vocab"], count: int) -> Int[Tensor, " count"]:
    """Ids of the `count` largest logits, largest first, the lower id first among equals."""
    if (out := ops_abi.largest(logits, count)) is not None:
        return out
    if count == len(logits):
        return logits.sort(descending=True, stable=True).indices
    ids = (logits >= logits.topk(count).values[-1]).nonzero()[:, 0]
    return ids[logits[ids].sort(descending=True, stable=True).indices[:count]]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


WIDE, LARGE = 2, 256
"""From this ratio of columns to rows, and from so many rows on, the products of `_by_gram` are fewer and count."""
CARRIED = 1000.0
"""How far rounding in the Gram matrix may be multiplied, by a² in each round, before rounds go one by one."""


def newton_schulz(
    x: Float[Tensor, "matrix row column"], rules: Sequence[tuple[float, float, float]]
) -> Float[Tensor, "matrix row column"]:
    """Rounds x ← a x + b (x xᵀ) x + c (x xᵀ)² x, one for each (a, b, c), of matrices with no more rows than columns."""
    if (out := ops_abi.newton_schulz(x, rules)) is not None:
        return out
    if x.shape[-2] >= LARGE and x.shape[-1] >= WIDE * x.shape[-2] and not torch.is_grad_enabled():
        growth = itertools.accumulate((a * a for a, _, _ in rules[:-1]), operator.mul)
        count = 1 + sum(1 for _ in itertools.takewhile(lambda grown: grown <= CARRIED, growth))
        x, rules = _by_gram(x, rules[:count]), rules[count:]
    for a, b, c in rules:
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


def _by_gram(x: Tensor, rules: Sequence[tuple[float, float, float]]) -> Tensor:
    """The same of wide matrices, with fewer products: all rounds are polynomials of one small matrix, x xᵀ.

    A multiple of the identity stands apart, as `a` is large beside the entries that it would be added to.
    """
    gram, alone, rest = torch.bmm(x, x.mT), 1.0, None
    for i, (a, b, c) in enumerate(rules):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        rest = factor if rest is None else torch.baddbmm(torch.add(a * rest, factor, alpha=alone), factor, rest)
        alone *= a
        if i + 1 < len(rules):
            once = torch.baddbmm(gram, factor, gram, beta=a)
            gram = torch.baddbmm(once, factor, once, beta=a)
    assert rest is not None  # there is a round
    return torch.baddbmm(x, rest, x, beta=alone)
