"""Latent attention as data: keys and values made of a few numbers each position (arXiv:2405.04434)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.attention import Attention
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.index import Index
from glassformer.model.choices.norm import Norm


@dataclass(frozen=True)
class LatentAttention(Attention):
    """Softmax attention whose keys and values of all heads are read from one normed latent vector.

    A key is a part that all heads share, which alone is rotated (if anything is), and a part of each head's own that is
    read from the latent; queries may be read from a latent of their own. The shared dimensions stand first in a head.

    Args:
        kv_rank: dimensions of the latent that keys and values are read from.
        q_rank: dimensions of the latent that queries are read from, or None where they are read from the stream.
        latent_eps: of the rms norms of the latents.
        latent_scale: what the latents of queries and of keys and values are multiplied by after their norms, or None.
        shared_norm: an rms norm of the shared dimensions of keys, before rotation.
        index: chooses which keys a query attends to, or None.
        d_shared: dimensions of a key that heads share, where nothing is rotated; else the rotated ones.
    """

    kind: ClassVar[str] = "latent_attention"

    kv_rank: int = 1
    q_rank: int | None = None
    latent_eps: float = 1e-6
    d_shared: int | None = None
    latent_scale: tuple[float, float] | None = None
    shared_norm: bool = False
    index: Index | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("latent_attention", kv_rank=self.kv_rank)
        if self.q_rank is not None:
            positive("latent_attention", q_rank=self.q_rank)
        if self.n_kv_heads != self.n_heads:
            raise ConfigError("Every head of latent attention has keys of its own; n_kv_heads must be n_heads.")
        if (self.rotary is None) is (self.d_shared is None):
            raise ConfigError(
                "latent_attention.d_shared says what heads share where nothing is rotated, and only there."
            )
        if self.shared_size < 1 or self.own_size < 1:
            raise ConfigError("A head of latent attention has dimensions that are shared and dimensions of its own.")
        if self.qk_norm is not None or self.clip is not None or self.keys_from is not None:
            raise ConfigError("Latent attention has no norms of queries and keys, cuts or keys of other layers.")
        if self.index is not None and (self.q_rank is None or self.rotary is None):
            raise ConfigError("An index reads the latent of rotated queries; q_rank and rotary are needed.")
        if self.index is not None and self.index.d_head < self.rotary_dims:
            raise ConfigError(f"An index turns {self.rotary_dims} dimensions; its heads have {self.index.d_head}.")
        if self.latent_scale is not None and (len(self.latent_scale) != 2 or min(self.latent_scale) <= 0):
            raise ConfigError(
                "latent_attention.latent_scale is two numbers above 0: for queries, and for keys and values."
            )
        if self.value_scale is not None or self.value_norm or self.values_are_keys or self.gate_bias:
            raise ConfigError("Latent attention has no scale or norm of values, and no biases of gates.")

    @property
    def shared_size(self) -> int:
        """Dimensions of a key that all heads share: the rotated ones, where any are."""
        return self.rotary_dims if self.d_shared is None else self.d_shared

    @property
    def own_size(self) -> int:
        """Dimensions of a head's key that are its own, not shared and not rotated."""
        return self.d_head - self.shared_size

    @property
    def latent_norm(self) -> Norm:
        """The norm of the latents."""
        return Norm("rms", eps=self.latent_eps)

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found: dict[str, Component] = {}

        def matrix(name: str, out: int, into: int, counted: str, bias: bool = False) -> None:
            found[f"{name}.weight"] = Component((out, into), counted)
            if bias:
                found[f"{name}.bias"] = Component((out,), "biases")

        if self.q_rank is not None:
            matrix("q_down", self.q_rank, d_model, "query", self.bias)
            found |= self.latent_norm.components("q_latent", self.q_rank)
        width = self.n_heads * self.d_head
        if self.q_rank is None:
            matrix("q", width, d_model, "query")
        else:
            matrix("q_up", width, self.q_rank, "query")
        if self.index is not None and self.q_rank is not None:
            found |= self.index.components(d_model, self.q_rank)
        matrix("kv_down", self.kv_rank, d_model, "key", self.bias)
        matrix("k_shared", self.shared_size, d_model, "key", self.bias)
        found |= self.latent_norm.components("kv_latent", self.kv_rank)
        if self.shared_norm:
            found |= self.latent_norm.components("k_shared_norm", self.shared_size)
        matrix("k_own", self.n_heads * self.own_size, self.kv_rank, "key")
        matrix("v_up", self.n_heads * self.value_size, self.kv_rank, "value")
        if self.gate is not None:
            matrix("gate", self.out_size if self.gate == "element" else self.n_heads, d_model, "gate")
        if self.out_norm is not None:
            found |= self.out_norm.components("out_norm", self.out_size)
        matrix("o", d_model, self.out_size, "output", self.out_bias)
        if self.sink:
            found["sink"] = Component((self.n_heads,), "sinks")
        return found

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        found = super().sites()
        if self.index is None:
            return found
        at = found.index("scores")
        return (*found[:at], "index_q", "index_k", "index_weights", *found[at:])

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps; the others follow from them."""
        found = super().basis()
        return found if self.index is None else ("index_q", "index_k", "index_weights", *found)

    @property
    def cached_numbers(self) -> int:
        """Numbers that generation keeps for each token in this layer."""
        return super().cached_numbers + (0 if self.index is None else self.index.d_head)

    def seen(self, position: int) -> int:
        """How many keys the query at this position (from 0) sees."""
        seen = super().seen(position)
        return seen if self.index is None else min(seen, self.index.top)
