"""A gated delta rule as data (arXiv:2412.06464): a recurrence that corrects what its state says of a key; by channel,
as in Kimi Linear (arXiv:2510.26692), too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, above_zero, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Recurrent, convolution


@dataclass(frozen=True)
class GatedDelta(Recurrent):
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
        channels: every channel of a head's keys has a decay of its own (Kimi Linear).
        floor: the least that the logarithm of a decay can be, which a sigmoid then keeps it above; None for a decay
            by softplus, without bound.
        rank: gate and decay are read through a vector of this width each; None for the stream itself.
        gate_activation: of the gate.
        beta_scale: the largest share of a correction; above 1 a state may turn over.
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
    channels: bool = False
    floor: float | None = None
    rank: int | None = None
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    beta_scale: float = 1.0

    def __post_init__(self) -> None:
        positive("gated_delta", n_heads=self.n_heads, n_key_heads=self.n_key_heads)
        positive("gated_delta", d_key=self.d_key, d_head=self.d_head, conv=self.conv)
        if self.n_heads % self.n_key_heads:
            raise ConfigError(f"{self.n_heads} value heads cannot share {self.n_key_heads} key heads evenly.")
        if self.rank is not None:
            positive("gated_delta", rank=self.rank)
        if self.floor is not None and not self.floor < 0:
            raise ConfigError(f"gated_delta.floor is the logarithm of a share, below 0; got {self.floor}.")
        if self.gate_activation not in ("silu", "sigmoid"):
            raise ConfigError(f"gated_delta.gate_activation is silu or sigmoid; got {self.gate_activation!r}.")
        above_zero("gated_delta", beta_scale=self.beta_scale)

    @property
    def decays(self) -> int:
        """How many decays there are: one for each head, or for each channel of its keys."""
        return self.n_heads * (self.d_key if self.channels else 1)

    @property
    def keeps(self) -> tuple[str, ...]:  # type: ignore[override]
        """The places, besides the outcome, that a trace keeps."""
        return ("q", "k", "v", "beta", self.decay_site)

    @property
    def decay_site(self) -> str:
        """The place of the decays: those of channels have an axis more."""
        return "decays" if self.channels else "decay"

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of queries, keys and values, which the convolution passes over side by side."""
        return self.n_key_heads * self.d_key, self.n_key_heads * self.d_key, self.out_size

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        query, key, value = self.widths
        sizes = {"q": query, "k": key, "v": value, "gate": value, "beta": self.n_heads, "decay": self.decays}
        lines = {"q": "query", "k": "key", "v": "value", "gate": "gate", "beta": "decay", "decay": "decay"}
        found: dict[str, Component] = {}
        for name, out in sizes.items():
            into = d_model
            if self.rank is not None and name in ("gate", "decay"):
                found[f"{name}_down.weight"] = Component((self.rank, d_model), lines[name])
                into = self.rank
            found[f"{name}.weight"] = Component((out, into), lines[name])
        found |= convolution(sum(self.widths), self.conv, False)
        found["dt_bias"] = Component((self.decays,), "biases")
        found["a_log"] = Component((self.n_heads,), "biases")
        found["norm"] = Component((self.d_head,), "norms")
        found["o.weight"] = Component((d_model, value), "output")
        return found

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.n_heads * self.d_key * self.d_head + sum(self.widths) * (self.conv - 1)

    def flops(self, seen: float) -> float:
        """FLOPs of one position's correction and reading, projections and convolution apart: the same at every
        length."""
        return 6 * self.n_heads * self.d_key * self.d_head
