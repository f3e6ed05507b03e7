"""A block's forward and backward in few operations, for training on a processor.

On a processor a small model spends its time not in matrix products but in the hundreds of small operations around
them. For the plain design most recipes use (RMS norms, rotary positions, gated SiLU, no biases) this computes the
same block with the norms' and rotations' arithmetic in float32, the products in the run's precision, weights read
and gradients written where `FlatWeights` keeps them, and only what the backward pass needs kept. The block's own
forward stays the definition: the two are tested against each other, and other designs and anybody who looks inside
use the block itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassformer.model import Config, FeedForward, Transformer
from glassformer.model.layers import linear
from glassformer.model.parts.passing import Pass
from glassformer.model.positions import RotaryTable
from glassformer.model.sites import View
from glassformer.model.transformer import rotary_kinds
from glassformer.train import attention
from glassformer.train.dropout import Dropout
from glassformer.train.weights import FlatWeights


def supported(transformer: Transformer) -> bool:
    """Whether this model is of the plain design, on a processor."""
    return transformer.device.type == "cpu" and plain(transformer.config)


def plain(c: Config) -> bool:
    """Whether this design is the plain one."""
    layer = c.alike
    if layer is None or not c.all_softmax:
        return False
    a, f, n = c.attention(0), c.feed_forward(0), c.norm
    assert isinstance(f, FeedForward)
    if a.plain != a or len(rotary_kinds(c)) != 1:
        return False
    return (
        n.kind == "rms"
        and not n.one_plus
        and n.weight
        and not n.biased
        and layer.norms == "before"
        and layer.residual_scale is None
        and layer.averaged is None
        and not layer.scalar
        and layer.embedding is None
        and not layer.parallel
        and not c.adds_positions
        and not c.turns_by_length
        and c.head is None
        and f.out_norm is None
        and f.clamp is None
        and not f.linear_shift
        and not c.embedding_norm
        and c.d_embed is None
        and c.final_norm
        and a.rotary_dims == a.d_head
        and a.n_kv_heads == a.n_heads
        and not (a.bias or a.out_bias or f.bias)
        and a.softcap is None
        and all(c.window(i) is None for i in range(c.n_layers))
        and f.gated
        and f.activation == "silu"
    )


class _Part:
    """One block's weights and gradients, joined where they lie together."""

    def __init__(self, weights: FlatWeights, prefix: str, transformer: Transformer) -> None:
        def both(*names: str) -> tuple[Tensor, Tensor]:
            return weights.joined([f"{prefix}.{name}.weight" for name in names])

        c = transformer.config
        a = c.attention(0)
        self.heads, self.d_head, self.d_ff = a.n_heads, a.d_head, c.feed_forward(0).d_ff
        self.scale, self.eps = a.score_scale, c.norm.eps
        self.qkv, self.g_qkv = both("attn.q", "attn.k", "attn.v")
        self.o, self.g_o = both("attn.o")
        self.gate_up, self.g_gate_up = both("mlp.gate", "mlp.up")
        self.down, self.g_down = both("mlp.down")
        self.ln1, self.g_ln1 = both("ln1")
        self.ln2, self.g_ln2 = both("ln2")
        self.qk_norm = a.qk_norm
        if self.qk_norm:
            self.q_norm, self.g_q_norm = both("attn.q_norm")
            self.k_norm, self.g_k_norm = both("attn.k_norm")

    def qk_scales(self) -> Tensor:
        """Each query and key head's norm weight, (2 · head, d_head), float32."""
        pair = torch.stack([self.q_norm, self.k_norm]).float()
        return pair.repeat_interleave(self.heads, 0)


class FusedBlocks:
    """Calls blocks this way where nobody looks inside, and as they are otherwise.

    Args:
        transformer: of a supported design.
        weights: its flat weights.
        dropout: what is left out of the stream, if anything.
    """

    def __init__(self, transformer: Transformer, weights: FlatWeights, dropout: Dropout | None = None) -> None:
        self.parts = {id(b): _Part(weights, f"blocks.{i}", transformer) for i, b in enumerate(transformer.blocks)}
        self.numbers = {id(b): i for i, b in enumerate(transformer.blocks)}
        self.last = transformer.blocks[-1]
        self.dropout = dropout
        (rotary, d_head) = rotary_kinds(transformer.config)[0]
        self.rotary = RotaryTable(rotary.dims(d_head), rotary.theta, rotary.scaling)
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, block: nn.Module, x: Tensor, state: Pass, view: View | None = None) -> Tensor:
        """The block's output; float32 between blocks, the block's own dtype after the last."""
        plain = state.cache is None and view is None and state.visible.mask is None
        if not plain or not torch.is_grad_enabled():
            out: Tensor = block(x, state, view)
            return out
        length = x.shape[1]
        if length not in self._angles:
            cos, sin = self.rotary(torch.arange(length)[None], torch.float32)
            self._angles[length] = cos[0], sin[0]
        part = self.parts[id(block)]
        masks: list[Tensor | None] = [None, None]
        if self.dropout is not None:
            i, rows, width = self.numbers[id(block)], x.shape[0] * length, x.shape[2]
            if i == 0:
                x = x * self.dropout.keep(0, rows, width, x.dtype).view(x.shape)
            masks = [self.dropout.keep(site, rows, width, part.o.dtype) for site in (2 * i + 1, 2 * i + 2)]
        y: Tensor = _Block.apply(x, part, *self._angles[length], *masks)
        return y.to(part.o.dtype) if block is self.last else y


class _Block(torch.autograd.Function):
    """Gradients of weights go where the weights' owner wants them; autograd sees only the stream."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, part: _Part, cos: Tensor, sin: Tensor, keep_a: Tensor | None, keep_m: Tensor | None
    ) -> Tensor:
        batch, length, width = x.shape
        heads, d_head = part.heads, part.d_head
        stream = x.float().view(-1, width)
        n1, r1 = _normed(stream, part.eps, part.ln1.dtype)
        qkv = linear(n1 * part.ln1, part.qkv)
        qk = qkv.view(batch, length, 3 * heads, d_head)[:, :, : 2 * heads]
        r_qk = None
        if part.qk_norm:
            r_qk = _inverse_rms(qk, part.eps)
            turned = _rotate(qk * r_qk * part.qk_scales(), cos, sin)
        else:
            turned = _rotate(qk.float(), cos, sin)
        q, k = (_heads_first(turned[:, :, i * heads : (i + 1) * heads], qkv.dtype) for i in (0, 1))
        v = _heads_first(qkv.view(batch, length, 3 * heads, d_head)[:, :, 2 * heads :], qkv.dtype)
        z, kept = attention.forward(q, k, v, part.scale)
        z = _heads_last(z, batch)
        middle = stream + _kept(linear(z, part.o), keep_a)
        n2, r2 = _normed(middle, part.eps, part.ln2.dtype)
        gate_up = linear(n2 * part.ln2, part.gate_up)
        gate, up = gate_up[:, : part.d_ff], gate_up[:, part.d_ff :]
        open_ = F.silu(gate)
        out = middle + _kept(linear(open_ * up, part.down), keep_m)
        ctx.save_for_backward(n1, r1, qkv, r_qk, q, k, v, z, n2, r2, gate_up, open_, cos, sin, keep_a, keep_m, *kept)
        ctx.part, ctx.dtype = part, x.dtype
        return out.view(batch, length, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        part: _Part = ctx.part
        n1, r1, qkv, r_qk, q, k, v, z, n2, r2, gate_up, open_, cos, sin, keep_a, keep_m, *kept = ctx.saved_tensors
        batch, length, width = d_out.shape
        heads, d_head, d_ff = part.heads, part.d_head, part.d_ff
        dtype = gate_up.dtype
        d_stream = d_out.reshape(-1, width)
        gate, up = gate_up[:, :d_ff], gate_up[:, d_ff:]
        dy = _kept(d_stream.to(dtype), keep_m)
        d_inner = _back(dy, part.down)
        _accumulate(part.g_down, dy, open_ * up)
        d_gate_up = torch.empty_like(gate_up)
        torch.mul(d_inner, open_, out=d_gate_up[:, d_ff:])
        torch.ops.aten.silu_backward.grad_input(d_inner.mul_(up), gate, grad_input=d_gate_up[:, :d_ff])
        _accumulate(part.g_gate_up, d_gate_up, n2 * part.ln2)
        d_middle = _norm_back(_back(d_gate_up, part.gate_up), n2, r2, part.ln2, part.g_ln2).add_(d_stream)
        da = _kept(d_middle.to(dtype), keep_a)
        dz = _back(da, part.o)
        _accumulate(part.g_o, da, z)
        dq, dk, dv = attention.backward(
            _heads_first(dz.view(batch, length, heads, d_head), dtype), q, k, v, kept, part.scale
        )
        d_turned = torch.empty(batch, length, 2 * heads, d_head)
        for i, d in ((0, dq), (1, dk)):
            d_turned[:, :, i * heads : (i + 1) * heads] = d.view(batch, heads, length, d_head).transpose(1, 2)
        d_qk = _rotate(d_turned, cos, -sin)
        d_qkv = torch.empty_like(qkv)
        by_head = d_qkv.view(batch, length, 3 * heads, d_head)
        if part.qk_norm:
            unit = qkv.view(batch, length, 3 * heads, d_head)[:, :, : 2 * heads] * r_qk
            per_head = (d_qk * unit).sum((0, 1)).view(2, heads, d_head).sum(1)
            part.g_q_norm += per_head[0].to(dtype)
            part.g_k_norm += per_head[1].to(dtype)
            d_qk *= part.qk_scales()
            along = (d_qk * unit).mean(-1, keepdim=True)
            d_qk = d_qk.addcmul_(unit, along, value=-1).mul_(r_qk)
        by_head[:, :, : 2 * heads] = d_qk
        by_head[:, :, 2 * heads :] = dv.view(batch, heads, length, d_head).transpose(1, 2)
        _accumulate(part.g_qkv, d_qkv, n1 * part.ln1)
        dx = _norm_back(_back(d_qkv, part.qkv), n1, r1, part.ln1, part.g_ln1).add_(d_middle)
        return dx.view(batch, length, width).to(ctx.dtype), None, None, None, None, None


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / root mean square over the last axis, float32."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows over their root mean square, in `dtype`, and what they were multiplied by."""
    r = _inverse_rms(x, eps)
    return (x * r).to(dtype), r


def _norm_back(dh: Tensor, n: Tensor, r: Tensor, scale: Tensor, g_scale: Tensor) -> Tensor:
    """From the gradient of n · scale to that of what was normed; the scale's is added to `g_scale`."""
    g_scale += (dh * n).sum(0)
    d = dh * scale.float()
    wide = n.float()
    along = (d * wide).mean(-1, keepdim=True)
    return d.addcmul_(wide, along, value=-1).mul_(r)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (batch, query, head, d_head) by (query, 1, pair) angles, in float32."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty(x.shape)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def _heads_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(batch, query, head, d_head) → (batch · head, query, d_head), contiguous."""
    batch, length, heads, d_head = x.shape
    out = torch.empty(batch, heads, length, d_head, dtype=dtype)
    out.copy_(x.transpose(1, 2))
    return out.view(batch * heads, length, d_head)


def _heads_last(x: Tensor, batch: int) -> Tensor:
    """(batch · head, query, d_head) → (batch · query, head · d_head), contiguous."""
    heads, length, d_head = x.shape[0] // batch, x.shape[1], x.shape[2]
    return x.view(batch, heads, length, d_head).transpose(1, 2).reshape(batch * length, heads * d_head)


def _back(d: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a product's input."""
    return linear(d, weight.t())


def _accumulate(grad: Tensor, d: Tensor, x: Tensor) -> None:
    """Add the gradient of a product's weight."""
    if grad.dtype == torch.float32:
        grad += linear(d.t(), x.t())
    else:
        grad.addmm_(d.t(), x)
