"""Attention: queries find keys, a softmax weighs them, values are summed.

Three paths compute the same numbers. The fused path never forms the grid; the tiled path forms it a
few queries at a time, for scores that the fused kernel cannot express; the visible path forms it
whole, for taps that look at it. One score function serves the last two and everything that is
derived from a trace later.

Shapes inside: q (batch, head, query, d_head); k, v (batch, kv_head, key, d_head).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.kernels import ops
from glassformer.model.choices import Attention
from glassformer.model.layers import softcap

# Queries at a time where the grid is formed in tiles: small enough that a tile of all heads stays in
# cache, large enough that the products stay efficient.
TILE = 256
# Up to this many queries the explicit product is quicker than the fused kernel and copies no keys.
EXPLICIT_QUERIES = 8


@dataclass(frozen=True)
class Visible:
    """Which keys each query may see.

    Args:
        start: slot of the first query; query i stands at slot start + i and sees no later slot.
        mask: (batch, key) bool, False where a slot holds padding; None when none does.
        lengths: of the documents that lie one after another in one row and do not see each other; None for one text.
    """

    start: int
    mask: Bool[Tensor, "batch key"] | None
    lengths: tuple[int, ...] | None = None

    def grid(
        self, q0: int, q1: int, k0: int, k1: int, reach: Attention, device: torch.device
    ) -> Bool[Tensor, "rows 1 query key"]:
        """True where query q0+i may see key k0+j within this attention's window or chunk; rows is 1 unless there is
        padding."""
        queries = torch.arange(self.start + q0, self.start + q1, device=device)[:, None]
        keys = torch.arange(k0, k1, device=device)[None, :]
        allowed = keys <= queries
        if reach.window is not None:
            allowed &= keys > queries - reach.window
        if self.lengths is not None:
            begins = self._begins(device)
            queries, keys = queries - begins[q0:q1, None], keys - begins[k0:k1]
            allowed &= begins[q0:q1, None] == begins[k0:k1]
        allowed = allowed[None, None]
        if reach.chunk is not None:
            allowed = allowed & self._same_chunk(queries, keys, reach.chunk)
        if self.mask is not None:
            allowed = allowed & self.mask[:, None, None, k0:k1]
        return allowed

    def _begins(self, device: torch.device) -> Int[Tensor, " slot"]:
        """The slot at which each slot's document begins."""
        assert self.lengths is not None
        lengths = torch.tensor(self.lengths, device=device)
        return (lengths.cumsum(0) - lengths).repeat_interleave(lengths)

    def _same_chunk(self, queries: Tensor, keys: Tensor, chunk: int) -> Bool[Tensor, "rows 1 query key"]:
        """Chunks are counted from each text's first token."""
        if self.mask is None:
            return ((queries // chunk) == (keys // chunk))[None, None]
        pad = (~self.mask).sum(1)[:, None, None, None]  # padding stands on the left
        return torch.div(queries - pad, chunk, rounding_mode="floor") == torch.div(
            keys - pad, chunk, rounding_mode="floor"
        )

    def keys_for(self, q0: int, q1: int, reach: Attention) -> tuple[int, int]:
        """The range of keys that queries q0 to q1 can see at all."""
        low = 0 if reach.window is None else max(0, self.start + q0 - reach.window + 1)
        return low, self.start + q1

    def key_positions(self, k0: int, k1: int, device: torch.device) -> Int[Tensor, "rows key"]:
        """The position of each key slot in its own text; rows is 1 unless there is padding, whose slots count as 0."""
        keys = torch.arange(k0, k1, device=device)[None, :]
        if self.lengths is not None:
            return keys - self._begins(device)[k0:k1]
        return keys if self.mask is None else (keys - (~self.mask).sum(1, keepdim=True)).clamp(min=0)

    def everything(self, reach: Attention, keys: int) -> bool:
        """Whether every query sees all keys before it: nothing is padding, and no window or chunk cuts any off."""
        whole = (reach.window is None or reach.window >= keys) and (reach.chunk is None or reach.chunk >= keys)
        return self.mask is None and self.lengths is None and whole


def distances(
    slopes: Float[Tensor, " head"], start: int, q0: int, q1: int, k0: int, k1: int
) -> Float[Tensor, "head query key"]:
    """What ALiBi adds to the scores: the slope of each head times how far behind the key lies, negative."""
    queries = torch.arange(start + q0, start + q1, device=slopes.device)[:, None]
    keys = torch.arange(k0, k1, device=slopes.device)[None, :]
    return slopes[:, None, None] * (keys - queries).to(slopes.dtype)


def rounded_distances(
    slopes: Float[Tensor, " head"], positions: Int[Tensor, "rows key"]
) -> Float[Tensor, "rows head 1 key"]:
    """What ALiBi adds where it counts from the text's first token in bfloat16: slope times position, each rounded to
    it and their product too. Along one row of keys it differs from `distances` by a constant, which a softmax does not
    see, and by the rounding."""
    return (slopes.bfloat16()[None, :, None] * positions[:, None])[:, :, None].to(slopes.dtype)


def scores(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    allowed: Bool[Tensor, "rows 1 query key"] | None,
    *,
    scale: float,
    cap: float | None,
    bias: Float[Tensor, "*rows head query_or_1 key"] | None = None,
) -> Float[Tensor, "batch head query key"]:
    """Scaled, soft-capped products with `bias` added, minus infinity where `allowed` is False."""
    batch, heads, queries, d_head = q.shape
    groups = heads // k.shape[1]
    folded = q.reshape(batch, k.shape[1], groups * queries, d_head)
    grid = torch.matmul(folded, k.transpose(-1, -2)).view(batch, heads, queries, k.shape[2])
    grid = softcap(grid * scale, cap)
    if bias is not None:
        grid = grid + bias
    return grid if allowed is None else grid.masked_fill(~allowed, float("-inf"))


def pattern(
    grid: Float[Tensor, "batch head query key"], sink: Float[Tensor, " head"] | None = None
) -> Float[Tensor, "batch head query key"]:
    """Softmax over the keys (and the head's sink) in at least float32; a row with nothing to see is zero."""
    wide = grid if grid.dtype in (torch.float32, torch.float64) else grid.float()
    if sink is not None:
        column = sink.to(wide.dtype)[None, :, None, None].expand(*wide.shape[:3], 1)
        return torch.softmax(torch.cat([wide, column], dim=-1), dim=-1)[..., :-1].to(grid.dtype)
    weights = torch.softmax(wide, dim=-1)
    clean = torch.nan_to_num if weights.requires_grad else torch.nan_to_num_
    return clean(weights, nan=0.0).to(grid.dtype)


def weighted_sum(
    weights: Float[Tensor, "batch head query key"], v: Float[Tensor, "batch kv_head key d_head"]
) -> Float[Tensor, "batch head query d_head"]:
    """Each head's weighted sum of the values it shares."""
    batch, heads, queries, keys = weights.shape
    folded = weights.reshape(batch, v.shape[1], -1, keys)
    return torch.matmul(folded, v).view(batch, heads, queries, v.shape[3])


def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, *, scale: float, reach: Attention
) -> Float[Tensor, "batch head query d_head"]:
    """Attention through a fused kernel, ours or torch's; the grid is never formed.

    It knows no soft cap, sink or ALiBi.
    """
    if reach.chunk is None:
        return ops.attention(q, k, v, start=visible.start, window=reach.window, scale=scale, mask=visible.mask)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    queries, keys = q.shape[2], k.shape[2]
    if visible.start == 0 and visible.everything(reach, keys):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    out = []
    tile = 4 * TILE
    for q0 in range(0, queries, tile):
        q1 = min(q0 + tile, queries)
        k0, k1 = visible.keys_for(q0, q1, reach)
        allowed = visible.grid(q0, q1, k0, k1, reach, q.device)
        z = F.scaled_dot_product_attention(
            q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1], attn_mask=allowed, scale=scale
        )
        if visible.mask is not None:
            # Kernels differ on rows that see nothing; here such a row is zero.
            z = z.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
        out.append(z)
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)
