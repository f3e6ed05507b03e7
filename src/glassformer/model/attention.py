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
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glassformer.kernels import ops
from glassformer.model.cache import Cache
from glassformer.model.config import Config
from glassformer.model.layers import Linear, NormLayer, rotate, softcap
from glassformer.model.sites import View, see

# Queries at a time where the grid is formed in tiles: small enough that a tile of all heads stays in
# cache, large enough that the products stay efficient.
TILE = 256
# Up to this many queries the explicit product is quicker than the fused kernel and copies no keys.
_FEW = 8


@dataclass(frozen=True)
class Visible:
    """Which keys each query may see.

    Args:
        start: slot of the first query; query i stands at slot start + i and sees no later slot.
        mask: (batch, key) bool, False where a slot holds padding; None when none does.
    """

    start: int
    mask: Bool[Tensor, "batch key"] | None

    def grid(
        self, q0: int, q1: int, k0: int, k1: int, window: int | None, device: torch.device
    ) -> Bool[Tensor, "rows 1 query key"]:
        """True where query q0+i may see key k0+j; rows is 1 unless there is padding."""
        queries = torch.arange(self.start + q0, self.start + q1, device=device)[:, None]
        keys = torch.arange(k0, k1, device=device)[None, :]
        allowed = keys <= queries
        if window is not None:
            allowed &= keys > queries - window
        allowed = allowed[None, None]
        if self.mask is not None:
            allowed = allowed & self.mask[:, None, None, k0:k1]
        return allowed

    def keys_for(self, q0: int, q1: int, window: int | None) -> tuple[int, int]:
        """The range of keys that queries q0 to q1 can see at all."""
        low = 0 if window is None else max(0, self.start + q0 - window + 1)
        return low, self.start + q1


def scores(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch kv_head key d_head"],
    allowed: Bool[Tensor, "rows 1 query key"] | None,
    *,
    scale: float,
    cap: float | None,
) -> Float[Tensor, "batch head query key"]:
    """Scaled, soft-capped products, minus infinity where `allowed` is False."""
    batch, heads, queries, d_head = q.shape
    groups = heads // k.shape[1]
    folded = q.reshape(batch, k.shape[1], groups * queries, d_head)
    grid = torch.matmul(folded, k.transpose(-1, -2)).view(batch, heads, queries, k.shape[2])
    grid = softcap(grid * scale, cap)
    return grid if allowed is None else grid.masked_fill(~allowed, float("-inf"))


def pattern(grid: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
    """Softmax over the keys in at least float32; a row with nothing to see is zero."""
    wide = grid if grid.dtype in (torch.float32, torch.float64) else grid.float()
    weights = torch.softmax(wide, dim=-1)
    return torch.nan_to_num(weights, nan=0.0).to(grid.dtype)


def mix(
    weights: Float[Tensor, "batch head query key"], v: Float[Tensor, "batch kv_head key d_head"]
) -> Float[Tensor, "batch head query d_head"]:
    """Each head's weighted sum of the values it shares."""
    batch, heads, queries, keys = weights.shape
    folded = weights.reshape(batch, v.shape[1], -1, keys)
    return torch.matmul(folded, v).view(batch, heads, queries, v.shape[3])


def attend_tiled(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, *, scale: float, cap: float | None, window: int | None
) -> Float[Tensor, "batch head query d_head"]:
    """Attention with the grid formed `TILE` queries at a time: memory O(key × TILE)."""
    out = []
    for q0 in range(0, q.shape[2], TILE):
        q1 = min(q0 + TILE, q.shape[2])
        k0, k1 = visible.keys_for(q0, q1, window)
        allowed = visible.grid(q0, q1, k0, k1, window, q.device)
        grid = scores(q[:, :, q0:q1], k[:, :, k0:k1], allowed, scale=scale, cap=cap)
        out.append(mix(pattern(grid), v[:, :, k0:k1]))
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, *, scale: float, window: int | None
) -> Float[Tensor, "batch head query d_head"]:
    """Attention through a fused kernel, ours or torch's; the grid is never formed."""
    if visible.mask is None:
        z = ops.attention(q, k, v, start=visible.start, window=window, scale=scale)
        if z is not None:
            return z
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    queries, keys = q.shape[2], k.shape[2]
    if visible.mask is None and visible.start == 0 and (window is None or window >= keys):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    out = []
    tile = 4 * TILE
    for q0 in range(0, queries, tile):
        q1 = min(q0 + tile, queries)
        k0, k1 = visible.keys_for(q0, q1, window)
        allowed = visible.grid(q0, q1, k0, k1, window, q.device)
        z = F.scaled_dot_product_attention(
            q[:, :, q0:q1], k[:, :, k0:k1], v[:, :, k0:k1], attn_mask=allowed, scale=scale
        )
        if visible.mask is not None:
            # Kernels differ on rows that see nothing; here such a row is zero.
            z = z.masked_fill(~allowed.any(-1, keepdim=True), 0.0)
        out.append(z)
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


class AttentionPart(nn.Module):
    """One layer's attention, from the normed stream to what is added to the residual stream."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        a = config.attention
        self.layer = layer
        self.heads, self.kv_heads, self.d_head = a.n_heads, a.n_kv_heads, a.d_head
        self.scale, self.cap, self.window = config.score_scale, a.softcap, config.window(layer)
        self.q = Linear(config.d_model, a.n_heads * a.d_head, a.bias)
        self.k = Linear(config.d_model, a.n_kv_heads * a.d_head, a.bias)
        self.v = Linear(config.d_model, a.n_kv_heads * a.d_head, a.bias)
        self.o = Linear(a.n_heads * a.d_head, config.d_model, a.out_bias)
        self.q_norm = NormLayer(a.d_head, config, kind="rms") if a.qk_norm else None
        self.k_norm = NormLayer(a.d_head, config, kind="rms") if a.qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "batch query d_model"],
        angles: tuple[Tensor, Tensor] | None,
        visible: Visible,
        cache: Cache | None = None,
        view: View | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        batch, queries, _ = x.shape
        q = self.q(x).view(batch, queries, self.heads, self.d_head)
        k = self.k(x).view(batch, queries, self.kv_heads, self.d_head)
        v = self.v(x).view(batch, queries, self.kv_heads, self.d_head)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = see(view, "attn.q", q), see(view, "attn.k", k), see(view, "attn.v", v)
        if angles is not None:
            q, k = see(view, "attn.rot_q", rotate(q, *angles)), see(view, "attn.rot_k", rotate(k, *angles))
        z = self.attend(q, k, v, visible, cache, view)
        z = see(view, "attn.z", z)
        return self.o(z.reshape(batch, queries, self.heads * self.d_head))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, cache: Cache | None, view: View | None
    ) -> Float[Tensor, "batch query head d_head"]:
        q = q.transpose(1, 2)
        if cache is None:
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        else:
            k, v = cache.store(self.layer, k, v)
        if view is not None and view.wants("attn.scores", "attn.pattern"):
            allowed = visible.grid(0, q.shape[2], 0, k.shape[2], self.window, q.device)
            grid = view.visit("attn.scores", scores(q, k, allowed, scale=self.scale, cap=self.cap))
            z = mix(view.visit("attn.pattern", pattern(grid)), v)
        elif self.cap is not None or q.shape[2] <= _FEW:
            z = attend_tiled(q, k, v, visible, scale=self.scale, cap=self.cap, window=self.window)
        else:
            z = attend_fused(q, k, v, visible, scale=self.scale, window=self.window)
        return z.transpose(1, 2)
