"""A gated delta rule as data (arXiv:2412.06464): a recurrence that corrects what its state says of a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.norm import Norm


@dataclass(frozen=True)
class GatedDelta:
    """A recurrence that forgets by a gate and writes what its state does not yet say (Gated DeltaNet).

    Every head keeps a matrix from keys to values. At each position it decays, is corrected towards
    this position's value at its key by a share beta, and is read at its query.

    Args:
        n_heads: value heads, each with its own decay.
        n_key_heads: heads of queries and keys, which value heads share evenly.
        d_key: dimensions of each query and key, normed to length one.
        d_head: dimensions of each value.
        conv: positions that the convolution over queries, keys and values spans, itself included.
        norm_eps: of the norm over each head's output, which comes before the gate.
    """

    kind: ClassVar[str] = "gated_delta"
    prefix: ClassVar[str] = "delta"
    handed: ClassVar[str] = "v"

    n_heads: int
    n_key_heads: int
    d_key: int
    d_head: int
    conv: int = 4
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        positive("gated_delta", n_heads=self.n_heads, n_key_heads=self.n_key_heads)
        positive("gated_delta", d_key=self.d_key, d_head=self.d_head, conv=self.conv)
        if self.n_heads % self.n_key_heads:
            raise ConfigError(f"{self.n_heads} value heads cannot share {self.n_key_heads} key heads evenly.")

    @property
    def value_size(self) -> int:
        """Dimensions of each value."""
        return self.d_head

    @property
    def out_size(self) -> int:
        """Width of all heads together, as the output projection reads them."""
        return self.n_heads * self.d_head

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of queries, keys and values, which the convolution passes over side by side."""
        return self.n_key_heads * self.d_key, self.n_key_heads * self.d_key, self.out_size

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        query, key, value = self.widths
        sizes = {"q": query, "k": key, "v": value, "gate": value, "beta": self.n_heads, "decay": self.n_heads}
        lines = {"q": "query", "k": "key", "v": "value", "gate": "gate", "beta": "decay", "decay": "decay"}
        found = {f"{name}.weight": Component((out, d_model), lines[name]) for name, out in sizes.items()}
        found["conv.weight"] = Component((sum(self.widths), self.conv), "convolution")
        found["dt_bias"] = Component((self.n_heads,), "biases")
        found["a_log"] = Component((self.n_heads,), "biases")
        found["norm"] = Component((self.d_head,), "norms")
        found["o.weight"] = Component((d_model, value), "output")
        return found

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return ("gate", "q", "k", "v", "beta", "decay", "pattern", "mixed", "z")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps; the others follow from them."""
        return ("q", "k", "v", "beta", "decay", "z")

    @property
    def cached_numbers(self) -> int:
        """Numbers that generation keeps for each token in this layer: none."""
        return 0

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.n_heads * self.d_key * self.d_head + sum(self.widths) * (self.conv - 1)

    def seen(self, position: int) -> int:
        """How many earlier positions the state stands for."""
        return position + 1

    def flops(self, seen: float) -> float:
        """FLOPs of one position's correction and reading, projections and convolution apart: the same at every
        length."""
        return 6 * self.n_heads * self.d_key * self.d_head
