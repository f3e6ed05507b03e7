"""Latent attention as a module: softmax attention whose queries, keys and values pass through latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices.latent import LatentAttention
from glassformer.model.choices.norm import Norm
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.index import Indexed
from glassformer.model.parts.passing import Pass
from glassformer.model.positions import rotate
from glassformer.model.sites import View, see


class LatentAttentionPart(AttentionPart):
    """One layer's latent attention; the cache holds the keys and values of all heads.

    Args:
        choice: its design.
        d_model: width of the stream.
        layer: its number, by which the cache knows it.
        table: which of the model's rotary tables turns its queries and keys.
    """

    def __init__(self, choice: LatentAttention, d_model: int, layer: int, table: int | None) -> None:
        nn.Module.__init__(self)
        a = self.choice = choice
        self.latent = choice
        self.layer, self.table, self.donates = layer, table, False
        self.heads, self.kv_heads, self.d_head, self.d_value = a.n_heads, a.n_heads, a.d_head, a.value_size
        self.scale, self.cap = a.score_scale, a.softcap
        self.k = self.v = self.q_norm = self.k_norm = None
        self.q_down = None if a.q_rank is None else Linear(d_model, a.q_rank, a.bias)
        self.q_latent = None if a.q_rank is None else NormLayer(a.q_rank, a.latent_norm)
        width = a.n_heads * a.d_head
        self.q_up = None if a.q_rank is None else Linear(a.q_rank, width, False)
        self.q = Linear(d_model, width, False) if a.q_rank is None else None
        index = a.index
        if index is not None:
            assert a.q_rank is not None
            self.index_q = Linear(a.q_rank, index.n_heads * index.d_head, False)
            self.index_k = Linear(d_model, index.d_head, False)
            self.index_norm = NormLayer(index.d_head, Norm("layer", eps=index.eps))
            self.index_weights = Linear(d_model, index.n_heads, False)
        self.kv_down = Linear(d_model, a.kv_rank, a.bias)
        self.k_shared = Linear(d_model, a.shared_size, a.bias)
        self.kv_latent = NormLayer(a.kv_rank, a.latent_norm)
        self.k_shared_norm = NormLayer(a.shared_size, a.latent_norm) if a.shared_norm else None
        self.k_own = Linear(a.kv_rank, a.n_heads * a.own_size, False)
        self.v_up = Linear(a.kv_rank, a.n_heads * a.value_size, False)
        gates = a.out_size if a.gate == "element" else a.n_heads
        self.gate = None if a.gate is None else Linear(d_model, gates, False)
        self.gate_bias = None
        self.out_norm = None if a.out_norm is None else NormLayer(a.out_size, a.out_norm)
        self.o = Linear(a.out_size, d_model, a.out_bias)
        self.sink = nn.Parameter(torch.empty(a.n_heads)) if a.sink else None

    def queries(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """Queries before rotation."""
        if self.q is None:
            assert self.q_up is not None
            q = self.q_up(self.query_latent(x))
        else:
            q = self.q(x)
        return q.view(*x.shape[:-1], self.heads, self.d_head)

    def query_latent(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch q_rank"]:
        """What queries are read from, where that is a latent."""
        assert self.q_down is not None
        assert self.q_latent is not None
        latent = self.q_latent(self.q_down(x))
        return latent if self.latent.latent_scale is None else latent * self.latent.latent_scale[0]

    def look(self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None) -> Indexed | None:
        index = self.latent.index
        if index is None:
            return None
        assert self.table is not None
        angles = state.angles[self.table]
        q = self.index_q(self.query_latent(x)).view(*x.shape[:-1], index.n_heads, index.d_head)
        k = self.index_norm(self.index_k(x))
        q = see(view, "attn.index_q", rotate(q, *angles))
        k = see(view, "attn.index_k", rotate(k[..., None, :], *angles)[..., 0, :])
        weights = see(view, "attn.index_weights", self.index_weights(x) * index.n_heads**-0.5)
        keys = k if state.cache is None else state.cache.store_index(self.layer, k)
        return Indexed(index, q, keys, weights)

    @property
    def value_matrix(self) -> Float[Tensor, "value d_model"]:
        """What reads values from the stream, all heads' rows, the latent's division left out."""
        gain = self.kv_latent.gain
        down = self.kv_down.weight if gain is None else gain[:, None] * self.kv_down.weight
        out = self.v_up.weight @ down
        return out if self.latent.latent_scale is None else out * self.latent.latent_scale[1]

    def keys_and_values(
        self, x: Float[Tensor, "batch key d_model"]
    ) -> tuple[Float[Tensor, "batch key head d_head"], Float[Tensor, "batch key head d_value"]]:
        """Keys before rotation, and values: read from the latent, the rotated dimensions of keys from the stream."""
        latent = self.kv_latent(self.kv_down(x))
        if self.latent.latent_scale is not None:
            latent = latent * self.latent.latent_scale[1]
        own = self.k_own(latent).view(*x.shape[:-1], self.heads, -1)
        once = self.k_shared(x)
        shared = (once if self.k_shared_norm is None else self.k_shared_norm(once))[..., None, :].expand(
            *x.shape[:-1], self.heads, -1
        )
        return torch.cat([shared, own], -1), self.v_up(latent).view(*x.shape[:-1], self.heads, self.d_value)
