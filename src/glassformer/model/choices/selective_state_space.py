"""A selective state space of single channels as data (Mamba 1, arXiv:2312.00752)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, above_zero, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Channels, convolution, projections


@dataclass(frozen=True)
class SelectiveStateSpace(Channels):
    """A recurrence in which every channel has decays and a time step of its own (Mamba 1).

    Every channel keeps d_state numbers. At each position number n decays by exp(dt · a_n), takes in dt · b_n · x, and
    the channel reads their sum weighed by c; x passes a short causal convolution before, and b, c and dt come from it.
    Every channel weighs positions in its own way, so there is one head, whose channels they are.

    Args:
        width: channels.
        d_state: numbers kept for each of them.
        dt_rank: width of what the channels' time steps are made from.
        conv: positions that the convolution spans, itself included.
        conv_bias: bias of the convolution.
        bias: biases on the projections in and out.
        inner_norm: rms norms of b, c and of what dt is made from: "plain", "weighted" or none.
        inner_eps: their epsilon.
    """

    kind: ClassVar[str] = "selective_state_space"
    prefix: ClassVar[str] = "mamba"
    handed: ClassVar[str] = "x"
    keeps: ClassVar[tuple[str, ...]] = ("x", "b", "c", "dt")

    width: int
    d_state: int
    dt_rank: int
    conv: int = 4
    conv_bias: bool = True
    bias: bool = False
    inner_norm: Literal["plain", "weighted"] | None = None
    inner_eps: float = 1e-6

    def __post_init__(self) -> None:
        positive("selective_state_space", width=self.width, d_state=self.d_state, dt_rank=self.dt_rank, conv=self.conv)
        if self.inner_norm not in (None, "plain", "weighted"):
            raise ConfigError(f"selective_state_space.inner_norm is plain, weighted or none; got {self.inner_norm!r}.")
        above_zero("selective_state_space", inner_eps=self.inner_eps)

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found = projections({"gate": (self.width, "gate"), "x": (self.width, "value")}, d_model, self.bias)
        found |= convolution(self.width, self.conv, self.conv_bias)
        sizes = {"dt_in": (self.dt_rank, "decay"), "b": (self.d_state, "key"), "c": (self.d_state, "query")}
        found |= projections(sizes, self.width, False)
        if self.inner_norm == "weighted":
            found |= {f"{name}_norm.weight": Component((size,), "norms") for name, (size, _) in sizes.items()}
        found |= projections({"dt": (self.width, "decay")}, self.dt_rank, True)
        found["a_log"] = Component((self.width, self.d_state), "decay")
        found["skip"] = Component((self.width,), "biases")
        return found | projections({"o": (d_model, "output")}, self.width, self.bias)

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.width * (self.d_state + self.conv - 1)

    def flops(self, seen: float) -> float:
        """FLOPs of one position's update and reading, projections and convolution apart: the same at every length."""
        return 4 * self.width * self.d_state
