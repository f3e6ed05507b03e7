"""Linear attention with a fixed decay for each head as data (retention, arXiv:2307.08621; Lightning Attention,
arXiv:2401.04658)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.model.choices.common import Component, above_zero, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Recurrent, projections


@dataclass(frozen=True)
class LinearAttention(Recurrent):
    """Attention without a softmax: a sum of key-value products that fades by the same factor at every position.

    Queries, keys and values pass SiLU. Every head keeps a matrix from keys to values; at each position it is multiplied
    by e^−rate, takes in k vᵀ, and is read at q. What is read is normed over all heads and multiplied by the sigmoid of
    a gate.

    Args:
        n_heads: heads, each with a rate of its own: `rate` · 2^(−8 (head + 1) / n_heads).
        d_head: dimensions of each query, key and value.
        rate: what multiplies these rates.
        norm_eps: of the norm over what all heads read.
    """

    kind: ClassVar[str] = "linear_attention"
    prefix: ClassVar[str] = "linear"
    handed: ClassVar[str] = "v"
    keeps: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    n_heads: int
    d_head: int
    rate: float = 1.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        positive("linear_attention", n_heads=self.n_heads, d_head=self.d_head)
        above_zero("linear_attention", rate=self.rate, norm_eps=self.norm_eps)

    @property
    def n_key_heads(self) -> int:
        """Heads of queries and keys: as many as of values."""
        return self.n_heads

    @property
    def d_key(self) -> int:
        """Dimensions of each query and key: those of a value."""
        return self.d_head

    @property
    def rates(self) -> tuple[float, ...]:
        """How fast each head's state fades."""
        return tuple(self.rate * 2 ** (-8 * (head + 1) / self.n_heads) for head in range(self.n_heads))

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        lines = {"q": "query", "k": "key", "v": "value", "gate": "gate"}
        found = projections({name: (self.out_size, counted) for name, counted in lines.items()}, d_model, False)
        found["norm.weight"] = Component((self.out_size,), "norms")
        return found | projections({"o": (d_model, "output")}, self.out_size, False)

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.n_heads * self.d_head * self.d_head

    def flops(self, seen: float) -> float:
        """FLOPs of one position's update and reading, projections apart: the same at every length."""
        return 4 * self.n_heads * self.d_head * self.d_head
