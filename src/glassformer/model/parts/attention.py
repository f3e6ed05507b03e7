"""Softmax attention as a module: from the normed stream to what is added to the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.model.attention import (
    EXPLICIT_QUERIES,
    TILE,
    Visible,
    attend_fused,
    distances,
    pattern,
    rounded_distances,
    scores,
    weighted_sum,
)
from glassformer.model.choices import Attention, Norm
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer, at_least_float32
from glassformer.model.parts.index import Indexed
from glassformer.model.parts.passing import Pass
from glassformer.model.positions import Angles, rotate
from glassformer.model.sites import View, see


def length_scale(choice: Attention, positions: Int[Tensor, "*batch slot"]) -> Float[Tensor, "*batch slot"]:
    """What queries are multiplied by at their positions."""
    assert choice.length_scale is not None
    beta, original = choice.length_scale
    if choice.length_rule == "power":
        return torch.exp(beta * torch.log1p((positions + 1) / original))
    at = positions + 1 if choice.length_rule == "log_next" else positions
    return 1 + beta * torch.log1p(torch.floor(at / original))


class AttentionPart(nn.Module):
    """One layer's attention.

    Args:
        choice: its design.
        d_model: width of the stream.
        norm: the model's norm, which norms of queries and keys follow.
        layer: its number, by which the cache knows it.
        table: which of the model's rotary tables turns its queries and keys, or None.
        donates: whether later layers use this one's keys and values.
    """

    def __init__(
        self, choice: Attention, d_model: int, norm: Norm, layer: int, table: int | None, donates: bool = False
    ) -> None:
        super().__init__()
        a = self.choice = choice
        self.layer, self.table, self.donates = layer, table, donates
        self.heads, self.kv_heads, self.d_head, self.d_value = a.n_heads, a.n_kv_heads, a.d_head, a.value_size
        self.scale, self.cap = a.score_scale, a.softcap
        self.q: Linear | None = Linear(d_model, a.n_heads * a.d_head, a.bias)
        own = a.keys_from is None
        self.k = Linear(d_model, a.n_kv_heads * a.d_head, a.bias) if own else None
        self.v = Linear(d_model, a.n_kv_heads * a.value_size, a.bias) if own and not a.values_are_keys else None
        self.v_norm = NormLayer(a.value_size, Norm("rms", norm.eps, weight=False)) if own and a.value_norm else None
        self.gate = None if a.gate is None else Linear(d_model, a.gates, False)
        self.gate_bias = nn.Parameter(torch.empty(a.n_heads)) if a.gate_bias else None
        self.out_norm = None if a.out_norm is None else NormLayer(a.out_size, a.out_norm)
        self.o = Linear(a.out_size, d_model, a.out_bias)
        self.sink = nn.Parameter(torch.empty(a.n_heads)) if a.sink else None
        self.q_norm = self._norm(norm, a.n_heads) if a.qk_norm else None
        self.k_norm = self._norm(norm, a.n_kv_heads) if a.qk_norm and own else None

    def _norm(self, norm: Norm, heads: int) -> NormLayer:
        kind = self.choice.qk_norm
        width = heads * self.d_head if kind == "whole" else self.d_head
        return NormLayer(width, self.choice.norm_of(norm), heads if kind == "each" else None)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What the mixer adds to the residual stream at each position."""
        return self.write(self.mix(self.ready(x, state, view), state, view))

    def ready(self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None) -> dict[str, Any]:
        """Queries, keys and values as the scores use them, and what was read: the first step of the forward."""
        q = see(view, "attn.q", self.queries(x))
        angles, at = None if self.table is None else state.angles[self.table], state.where.positions
        if self.choice.keys_from is None:
            k, v = self.keys_and_values(x)
            k, v = see(view, "attn.k", k), see(view, "attn.v", v)
            if self.rotates:
                q, k = (
                    see(view, "attn.rot_q", self.rotate(q, angles, "q", at)),
                    see(view, "attn.rot_k", self.rotate(k, angles, "k", at)),
                )
            if state.cache is None:
                keys, values = k.transpose(1, 2), v.transpose(1, 2)
            else:
                keys, values = state.cache.store(self.layer, k, v)
            if self.donates:
                state.shared[self.layer] = keys, values
        else:
            if self.rotates:
                q = see(view, "attn.rot_q", self.rotate(q, angles, "q", at))
            keys, values = state.shared[self.choice.keys_from]
        indexed = self.look(x, state, view)
        return {"x": x, "q": q.transpose(1, 2), "keys": keys, "values": values, "indexed": indexed}

    def grid(self, ready: Mapping[str, Any], state: Pass, view: View) -> Float[Tensor, "batch head query key"]:
        """Attention weights, as a tap sees and changes them and what they come from."""
        q, k = ready["q"], ready["keys"]
        grid = self.scores(q, k, state.visible, 0, q.shape[2], 0, k.shape[2], None, ready["indexed"])
        weights = self.pattern(view.visit("attn.scores", grid))
        if self.sink is not None:
            share = self.sink_share(weights)
            weights = self.with_sink_share(weights, share, view.visit("attn.sink", share))
        return view.visit("attn.pattern", weights)

    def mix(
        self, ready: Mapping[str, Any], state: Pass, view: View | None, grid: Tensor | None = None
    ) -> Float[Tensor, "batch query head d_value"]:
        """Each head's weighted sum of values, gated; by `grid` where that is given."""
        if grid is None and view is not None and view.wants("attn.scores", "attn.pattern", "attn.sink"):
            grid = self.grid(ready, state, view)
        if grid is None:
            z = self._attended(ready["q"], ready["keys"], ready["values"], state.visible, ready["indexed"])
        else:
            z = weighted_sum(grid, ready["values"])
        z = z.transpose(1, 2)
        return see(view, "attn.z", self.given(z, ready["x"], view))

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, indexed: Indexed | None) -> Tensor:
        """`attend`, of each document by itself where a row holds several."""
        if visible.lengths is None:
            return self.attend(q, k, v, visible, indexed)
        alone = Visible(0, None)
        parts = (x.split(visible.lengths, 2) for x in (q, k, v))
        return torch.cat([self.attend(q, k, v, alone) for q, k, v in zip(*parts, strict=True)], 2)

    def given(
        self, z: Float[Tensor, "batch query head d_value"], x: Float[Tensor, "batch query d_model"], view: View | None
    ) -> Float[Tensor, "batch query head d_value"]:
        """What the output projection reads of each head, from its sum of values: gated and normed by the design."""
        if self.gate is not None:
            z = z * see(view, "attn.gate", self.gates(x, view))
        if self.out_norm is not None:
            wide = z.flatten(-2)
            if view is None:
                z = self.out_norm(wide).view(z.shape)
            else:
                scale = view.visit("attn.z_scale", self.out_norm.scale(wide))
                z = self.out_norm.apply_scale(wide, scale).view(z.shape)
        return z

    def write(self, z: Float[Tensor, "batch query head d_value"]) -> Float[Tensor, "batch query d_model"]:
        """What the heads add to the stream."""
        return self.o(z.reshape(*z.shape[:2], -1))

    @property
    def head_columns(self) -> Float[Tensor, "head d_model d_value"]:
        """Each head's columns of the output projection."""
        return self.o.weight.view(-1, self.heads, self.d_value).transpose(0, 1)

    def look(self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None) -> Indexed | None:
        """Which keys each query may attend to, where the design chooses; None for all that are visible."""
        return None

    # The steps, each a function of its own so that what a trace kept can be taken from the middle

    def queries(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """Queries before rotation, normed where the norm comes first."""
        assert self.q is not None
        return self._ready(self.q(x).view(*x.shape[:-1], self.heads, self.d_head), self.q_norm)

    def keys_and_values(
        self, x: Float[Tensor, "batch key d_model"]
    ) -> tuple[Float[Tensor, "batch key kv_head d_head"], Float[Tensor, "batch key kv_head d_value"]]:
        """Keys before rotation, normed where the norm comes first, and values."""
        assert self.k is not None
        k = self.k(x).view(*x.shape[:-1], self.kv_heads, self.d_head)
        v = k if self.v is None else self.v(x).view(*x.shape[:-1], self.kv_heads, self.d_value)
        v = self._cut(v)
        if self.v_norm is not None:
            v = self.v_norm(v)
        if self.choice.value_scale is not None:
            v = v * self.choice.value_scale
        return self._ready(k, self.k_norm), v

    def _ready(self, x: Tensor, norm: NormLayer | None) -> Tensor:
        """Projected queries or keys cut, and normed where the norm comes before rotation."""
        norm = None if self.choice.qk_norm_after else norm
        if self.choice.clip_after:
            return self._cut(self._normed(x, norm))
        return self._normed(self._cut(x), norm)

    def gates(
        self, x: Float[Tensor, "batch query d_model"], view: View | None = None
    ) -> Float[Tensor, "batch query head d_gate"]:
        """What multiplies each head's sum of values; the last axis is 1 for one number per head."""
        assert self.gate is not None
        if self.choice.gate == "experts":
            return self.chosen(see(view, "attn.router", self.gate(x)))
        found = self.gate(x).view(*x.shape[:-1], self.heads, -1)
        if self.gate_bias is not None:
            found = found + self.gate_bias[:, None]
        return F.softplus(found) if self.choice.gate_activation == "softplus" else torch.sigmoid(found)

    def chosen(self, router: Float[Tensor, "batch query expert"]) -> Float[Tensor, "batch query head 1"]:
        """What multiplies each head where a router chooses: a softmax over the best scores, 0 for the others."""
        best = at_least_float32(router).topk(self.choice.gate_active, dim=-1)
        shares = torch.zeros_like(best.values.new_empty(router.shape)).scatter(
            -1, best.indices, best.values.softmax(-1)
        )
        return shares.to(router.dtype).repeat(1, 1, self.kv_heads)[..., None]

    def normed_times(self, scale: Float[Tensor, "batch query 1"]) -> Float[Tensor, "batch query head d_value"]:
        """What the norm of the heads' outputs multiplies each of them by, its divisor given."""
        assert self.out_norm is not None
        gain = self.out_norm.gain
        gain = torch.ones(self.heads * self.d_value, dtype=scale.dtype) if gain is None else gain
        return gain.view(self.heads, self.d_value) / scale[..., None]

    @property
    def value_matrix(self) -> Float[Tensor, "value d_model"]:
        """What reads values from the stream, all heads' rows."""
        matrix, scale = self.k if self.v is None else self.v, self.choice.value_scale
        assert matrix is not None
        return matrix.weight if scale is None else matrix.weight * scale

    @property
    def rotates(self) -> bool:
        """Whether anything happens to queries and keys between their sites and the scores."""
        return self.table is not None or self.choice.qk_norm_after or self.choice.length_scale is not None

    def rotate(
        self,
        x: Float[Tensor, "batch slot head d_head"],
        angles: Angles | None,
        side: str,
        positions: Int[Tensor, "batch slot"],
    ) -> Float[Tensor, "batch slot head d_head"]:
        """Queries or keys as the scores use them: rotated, normed where the norm comes after, and queries scaled by
        their position where the design does."""
        if angles is not None:
            x = rotate(x, *angles)
        if self.choice.qk_norm_after:
            x = self._normed(x, self.q_norm if side == "q" else self.k_norm)
        if side == "q" and self.choice.length_scale is not None:
            x = x * length_scale(self.choice, positions)[..., None, None].to(x.dtype)
        return x

    def _normed(self, x: Tensor, norm: NormLayer | None) -> Tensor:
        if norm is None:
            return x
        return norm(x) if self.choice.qk_norm != "whole" else norm(x.flatten(-2)).view(x.shape)

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.choice.clip is None else x.clamp(-self.choice.clip, self.choice.clip)

    def scores(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        visible: Visible,
        q0: int,
        q1: int,
        k0: int,
        k1: int,
        heads: list[int] | None = None,
        indexed: Indexed | None = None,
    ) -> Float[Tensor, "batch head query key"]:
        """Scores of queries q0 to q1 over keys k0 to k1, whose tensors hold just these (and just these heads)."""
        seen = min(visible.start + q0, k1)  # keys before it are seen by all of these queries, if nothing else hides any
        if indexed is None and k0 < seen and visible.everything(self.choice, k1) and not torch.is_grad_enabled():
            allowed = visible.grid(q0, q1, seen, k1, self.choice, q.device)
            bias = self._bias(visible, heads, q, (q0, q1, k0, k1))
            grid = scores(q, k, None, scale=self.scale, cap=self.cap, bias=bias)
            grid[..., seen - k0 :].masked_fill_(~allowed, float("-inf"))
            return grid
        allowed = visible.grid(q0, q1, k0, k1, self.choice, q.device)
        if indexed is not None:
            allowed = allowed & indexed.chosen(visible, self.choice, q0, q1, k0, k1)
        bias = self._bias(visible, heads, q, (q0, q1, k0, k1))
        return scores(q, k, allowed, scale=self.scale, cap=self.cap, bias=bias)

    def _bias(
        self, visible: Visible, heads: list[int] | None, like: Tensor, tile: tuple[int, int, int, int]
    ) -> Float[Tensor, "*rows head query_or_1 key"] | None:
        """What ALiBi adds to a tile (first and last query, first and last key) of some heads' scores."""
        if not self.choice.alibi:
            return None
        q0, q1, k0, k1 = tile
        slopes = torch.tensor(self.choice.alibi, dtype=like.dtype, device=like.device)
        slopes = slopes if heads is None else slopes[heads]
        if self.choice.alibi_rounded:
            return self.scale * rounded_distances(slopes, visible.key_positions(k0, k1, like.device))
        return distances(slopes, visible.start, q0, q1, k0, k1)

    def pattern(
        self, grid: Float[Tensor, "batch head query key"], heads: list[int] | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """Attention weights from scores of whole rows."""
        sink = self.sink
        return pattern(grid, sink if sink is None or heads is None else sink[heads])

    def sink_share(self, weights: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch query head"]:
        """What the sink takes: what is missing from each row of weights."""
        return (1 - weights.sum(-1)).transpose(1, 2)

    def with_sink_share(
        self,
        weights: Float[Tensor, "batch head query key"],
        share: Float[Tensor, "batch query head"],
        wanted: Float[Tensor, "batch query head"],
    ) -> Float[Tensor, "batch head query key"]:
        """Weights whose sink takes `wanted` instead of `share`, the keys dividing the rest as before."""
        if wanted is share:
            return weights
        return weights * ((1 - wanted) / (1 - share)).transpose(1, 2)[..., None]

    def attend(
        self,
        q: Float[Tensor, "batch head query d_head"],
        k: Float[Tensor, "batch kv_head key d_head"],
        v: Float[Tensor, "batch kv_head key d_value"],
        visible: Visible,
        indexed: Indexed | None = None,
    ) -> Float[Tensor, "batch head query d_value"]:
        """Each head's weighted sum of values, nobody looking at the grid: fused, or in tiles of a few queries for what
        the fused kernel does not know."""
        queries, keys = q.shape[2], k.shape[2]
        indexed = None if indexed is None or indexed.everything(keys) else indexed
        plain = self.cap is None and indexed is None and self.sink is None and not self.choice.alibi
        if plain and queries > EXPLICIT_QUERIES:
            return attend_fused(q, k, v, visible, scale=self.scale, reach=self.choice)
        out = []
        for q0 in range(0, queries, TILE):
            q1 = min(q0 + TILE, queries)
            k0, k1 = visible.keys_for(q0, q1, self.choice)
            grid = self.scores(q[:, :, q0:q1], k[:, :, k0:k1], visible, q0, q1, k0, k1, None, indexed)
            out.append(weighted_sum(self.pattern(grid), v[:, :, k0:k1]))
        return out[0] if len(out) == 1 else torch.cat(out, dim=2)
