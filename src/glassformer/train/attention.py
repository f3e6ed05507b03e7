"""Causal attention for training on a processor: explicit products on tiles that stay in cache.

PyTorch's fused kernel spends, for bfloat16 on a processor, several times as long in its backward pass as explicit
products do. This computes the same function with matrix products and a softmax, a tile of queries and a few heads at
a time, and for long rows forgets the pattern and computes it again for the gradient, so that memory stays linear in
the row's length. It knows queries, keys and values; it is put in place of a module's `attend` while that trains.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from glassformer.kernels import ops_abi
from glassformer.model import Transformer

TILE = 256
"""Queries at a time."""
KEPT = 256
"""Up to this length the pattern is kept for the gradient; above, it is computed again."""
_CACHE = 8 << 20
"""Bytes of scores at a time."""


@functools.lru_cache(maxsize=64)
def _kept_bias(rows: int, keys: int, dtype: torch.dtype) -> Tensor:
    return _new_bias(rows, keys, dtype)


def _bias(rows: int, keys: int, dtype: torch.dtype) -> Tensor:
    # what is compiled keeps it by itself, and warns of functions that do
    return (_new_bias if torch.compiler.is_compiling() else _kept_bias)(rows, keys, dtype)


def _new_bias(rows: int, keys: int, dtype: torch.dtype) -> Tensor:
    """0 where the last `rows` of `keys` positions may look, −∞ where they may not."""
    allowed = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    return torch.zeros(rows, keys, dtype=dtype).masked_fill(~allowed, float("-inf"))


def _tiles(heads: int, length: int, size: int) -> Iterator[tuple[slice, int, int]]:
    """Heads and query ranges whose scores fit in `_CACHE`."""
    some = max(1, _CACHE // (size * min(TILE, length) * length))
    for h in range(0, heads, some):
        for q0 in range(0, length, TILE):
            yield slice(h, h + some), q0, min(q0 + TILE, length)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """Products of all q with all k, (heads, rows, keys).

    A part of longer rows is copied as it lies: torch would copy it turned, several times as slowly.
    """
    return torch.bmm(q, k.contiguous().mT)


def _pattern(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Softmax of the scaled scores of the last queries over all keys up to them, (heads, rows, keys)."""
    scores = _products(q, k)
    if ops_abi.causal_softmax_(scores, scale):
        return scores
    return torch.softmax(scores * scale + _bias(q.shape[1], k.shape[1], q.dtype), -1)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """Weighted values of (heads, query, d_head) inputs, and the patterns if they are to be kept."""
    heads, length, _ = q.shape
    z = torch.empty_like(q)
    kept = []
    for h, q0, q1 in _tiles(heads, length, q.element_size()):
        p = _pattern(q[h, q0:q1], k[h, :q1], scale)
        if length <= KEPT:
            kept.append(p)
        if q0 == 0 and q1 == length:
            torch.bmm(p, v[h], out=z[h])
        else:
            z[h, q0:q1] = torch.bmm(p, v[h, :q1])
    return z, kept


def backward(
    dz: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: list[Tensor], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    heads, length, _ = q.shape
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for i, (h, q0, q1) in enumerate(_tiles(heads, length, q.element_size())):
        p = kept[i] if kept else _pattern(q[h, q0:q1], k[h, :q1], scale)
        dp = _products(dz[h, q0:q1], v[h, :q1])
        if not ops_abi.softmax_gradient_(p, dp, scale):
            dp = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
        ds = dp
        if q0 == 0 and q1 == length:
            torch.bmm(ds, k[h], out=dq[h])
            torch.bmm(ds.mT, q[h], out=dk[h])
            torch.bmm(p.mT, dz[h], out=dv[h])
            continue
        dq[h, q0:q1] = torch.bmm(ds, k[h, :q1])
        dk_part, dv_part = torch.bmm(ds.mT, q[h, q0:q1]), torch.bmm(p.mT, dz[h, q0:q1])
        if q0:
            dk[h, :q0] += dk_part[:, :q0]
            dv[h, :q0] += dv_part[:, :q0]
            dk_part, dv_part = dk_part[:, q0:], dv_part[:, q0:]
        dk[h, q0:q1] = dk_part
        dv[h, q0:q1] = dv_part
    return dq, dk, dv


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        z, kept = forward(q, k, v, scale)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        return *backward(dz.contiguous(), q, k, v, kept, ctx.scale), None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention: q (batch, query, head, d_head), k and v (batch, key, kv_head, d_head), as many keys as queries.

    Returns the weighted values, (batch, query, head, d_head).
    """
    batch, length, heads, d_head = q.shape
    groups = heads // k.shape[2]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
    q, k, v = (x.transpose(1, 2).reshape(batch * heads, length, d_head) for x in (q, k, v))
    z: Tensor = _Attention.apply(q, k, v, scale)
    return z.view(batch, heads, length, d_head).transpose(1, 2)


def install(transformer: Transformer) -> bool:
    """Let every layer of a model in training attend this way, where its design allows; whether it does."""
    config = transformer.config
    if not config.all_softmax:
        return False
    for i in range(config.n_layers):
        a = config.attention(i)
        if a.plain != a or a.softcap is not None or a.window is not None:
            return False
    for block in transformer.blocks:
        part: Any = block.attn
        part.attend = functools.partial(_in_place_of, part.attend, part.scale)
    return True


def _in_place_of(plain: Any, scale: float, q: Tensor, k: Tensor, v: Tensor, visible: Any, indexed: Any = None) -> Any:
    ours = q.shape[2] == k.shape[2] and visible.mask is None and torch.is_grad_enabled()
    if not ours or indexed is not None:
        return plain(q, k, v, visible, indexed)
    return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale).transpose(1, 2)
