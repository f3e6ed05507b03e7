"""A selective state space as data (Mamba 2, arXiv:2405.21060)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Recurrent, convolution, projections


@dataclass(frozen=True)
class StateSpace(Recurrent):
    """A recurrence whose state decays by a factor that the input chooses (Mamba 2).

    Every head keeps a state of (d_head, d_state). At each position the state decays by exp(dt · a),
    takes in dt · x bᵀ, and is read by c; x, b and c pass a short causal convolution before.

    Args:
        n_heads: heads, each with its own decay.
        d_head: values that a head carries (its x).
        d_state: numbers kept for each of them.
        n_groups: groups of heads that share b and c.
        conv: positions that the convolution spans, itself included.
        conv_bias: bias of the convolution.
        bias: biases on the projections.
        out_bias: bias on the output projection; None for as `bias` says.
        norm: an rms norm over the gated output, or none.
        norm_groups: into how many parts that norm cuts the width.
        norm_first: the norm comes before the gate instead of after.
        dt_limit: dt is kept within these bounds.
        scales: multiply what gate, x, b, c and dt are projected to (Falcon-H1); empty for none.
    """

    kind: ClassVar[str] = "state_space"
    prefix: ClassVar[str] = "ssm"
    handed: ClassVar[str] = "x"
    keeps: ClassVar[tuple[str, ...]] = ("x", "b", "c", "dt")

    n_heads: int
    d_head: int
    d_state: int
    n_groups: int = 1
    conv: int = 4
    conv_bias: bool = True
    bias: bool = False
    norm: bool = True
    norm_groups: int = 1
    norm_first: bool = False
    norm_eps: float = 1e-5
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    scales: tuple[float, ...] = ()
    out_bias: bool | None = None

    def __post_init__(self) -> None:
        positive("state_space", n_heads=self.n_heads, d_head=self.d_head, d_state=self.d_state)
        positive("state_space", n_groups=self.n_groups, conv=self.conv, norm_groups=self.norm_groups)
        if self.n_heads % self.n_groups:
            raise ConfigError(f"{self.n_heads} heads cannot share {self.n_groups} groups of b and c evenly.")
        if self.out_size % self.norm_groups:
            raise ConfigError(f"A width of {self.out_size} cannot be normed in {self.norm_groups} equal parts.")
        if len(self.dt_limit) != 2 or not 0 <= self.dt_limit[0] <= self.dt_limit[1]:
            raise ConfigError(f"state_space.dt_limit is a lower and an upper bound; got {self.dt_limit}.")

        if self.scales and (len(self.scales) != 5 or 0 in self.scales):
            raise ConfigError(f"state_space.scales holds five numbers other than 0, or none; got {self.scales}.")

    @property
    def writes_bias(self) -> bool:
        """Whether the output projection has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of x, b and c, which the convolution passes over side by side."""
        return self.out_size, self.n_groups * self.d_state, self.n_groups * self.d_state

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        inner, group, _ = self.widths
        lines = {"gate": (inner, "gate"), "x": (inner, "value"), "b": (group, "key"), "c": (group, "query")}
        found = projections({**lines, "dt": (self.n_heads, "decay")}, d_model, self.bias)
        found |= convolution(sum(self.widths), self.conv, self.conv_bias)
        for name in ("dt_bias", "a_log", "skip"):
            found[name] = Component((self.n_heads,), "biases")
        if self.norm:
            found["norm.weight"] = Component((inner,), "norms")
        return found | projections({"o": (d_model, "output")}, inner, self.writes_bias)

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.n_heads * self.d_head * self.d_state + sum(self.widths) * (self.conv - 1)

    def flops(self, seen: float) -> float:
        """FLOPs of one position's update and reading, projections and convolution apart: the same at every length."""
        return 4 * self.n_heads * self.d_head * self.d_state
