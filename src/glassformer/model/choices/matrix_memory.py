"""A matrix memory with exponential gates as data (mLSTM of xLSTM, arXiv:2405.04517)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.model.choices.common import Component, above_zero, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Recurrent, projections


@dataclass(frozen=True)
class MatrixMemory(Recurrent):
    """A recurrence that adds each position's value at its key, weighed by an exponential gate (mLSTM).

    Every head keeps a matrix from keys to values and a sum of keys. At each position both decay by sigmoid(f) and take
    in exp(i) times the key (and its value); what is read at the query is divided by the size of the query's product
    with the sum of keys, but by no less than 1.

    Args:
        n_heads: heads, each with its own gates.
        d_key: dimensions of each query and key.
        d_head: dimensions of each value.
        softcap: gates become softcap · tanh(gates / softcap) before their activation, or None.
        eps: added to what is divided by, in units of the largest weight.
        norm_eps: of the norm over each head's output, which comes before the output gate.
    """

    kind: ClassVar[str] = "matrix_memory"
    prefix: ClassVar[str] = "mlstm"
    handed: ClassVar[str] = "v"
    keeps: ClassVar[tuple[str, ...]] = ("q", "k", "v", "input", "decay")

    n_heads: int
    d_key: int
    d_head: int
    softcap: float | None = 15.0
    eps: float = 1e-6
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        positive("matrix_memory", n_heads=self.n_heads, d_key=self.d_key, d_head=self.d_head)
        above_zero("matrix_memory", softcap=self.softcap, eps=self.eps, norm_eps=self.norm_eps)

    @property
    def n_key_heads(self) -> int:
        """Heads of queries and keys: as many as of values."""
        return self.n_heads

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        keys, values = self.n_heads * self.d_key, self.out_size
        sizes = {"q": (keys, "query"), "k": (keys, "key"), "v": (values, "value"), "gate": (values, "gate")}
        found = projections(sizes, d_model, False)
        found |= projections(dict.fromkeys(("input", "forget"), (self.n_heads, "decay")), d_model, True)
        found["norm"] = Component((self.n_heads, self.d_head), "norms")
        found["o.weight"] = Component((d_model, values), "output")
        return found

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.n_heads * (self.d_key * (self.d_head + 1) + 1)

    def flops(self, seen: float) -> float:
        """FLOPs of one position's update and reading, projections apart: the same at every length."""
        return 4 * self.n_heads * self.d_key * (self.d_head + 1)
