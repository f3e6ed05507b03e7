"""Differential attention as data: the difference of two softmaxes (arXiv:2410.05258)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.attention import Attention
from glassformer.model.choices.common import Component
from glassformer.model.choices.norm import Norm

LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@dataclass(frozen=True)
class DifferentialAttention(Attention):
    """Heads stand in two halves; what a head of the second half gives is taken, times λ, from what its partner gives.

    Partners weigh the same values, which are twice as wide as keys: those of two key-value heads side by side. Their
    difference is normed without a learned scale and multiplied by 1 − start. λ is one learned number for all pairs:
    exp(q1 · k1) − exp(q2 · k2) + start.

    Args:
        start: what λ begins at, by layer.
        pair_eps: of the norm of the differences.
    """

    kind: ClassVar[str] = "differential_attention"

    start: float = 0.8
    pair_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_heads % 2 or self.n_kv_heads % 2:
            raise ConfigError("Differential attention needs an even number of heads, of queries and of keys.")
        if not 0 < self.start < 1 or not self.pair_eps > 0:
            raise ConfigError("differential_attention.start is between 0 and 1, and pair_eps above 0.")
        if self.d_value is not None or self.gate is not None or self.out_norm is not None or self.keys_from is not None:
            raise ConfigError("Differential attention has no d_value, gates, norm of its outputs or shared keys.")
        if self.value_scale is not None or self.value_norm or self.values_are_keys or self.clip is not None:
            raise ConfigError("Differential attention has values of its own, without norm, scale or cut.")

    @property
    def value_size(self) -> int:
        """Dimensions of each value: those of two key-value heads."""
        return 2 * self.d_head

    @property
    def out_size(self) -> int:
        """Width of all differences together, as the output projection reads them."""
        return self.n_heads * self.d_head

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found = super().components(d_model, norm)
        width = self.n_kv_heads * self.d_head
        found["v.weight"] = Component((width, d_model), "value")
        if self.bias:
            found["v.bias"] = Component((width,), "biases")
        return found | {name: Component((self.d_head,), "biases") for name in LAMBDAS}

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return (*super().sites()[:-1], "pair_scale", "z")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps; the others follow from them."""
        return (*super().basis()[:-1], "pair_scale", "z")
