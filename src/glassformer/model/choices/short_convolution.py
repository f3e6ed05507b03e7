"""A short convolution with gates on both sides as data (LFM2, arXiv:2511.23404)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Channels, convolution, projections


@dataclass(frozen=True)
class ShortConvolution(Channels):
    """Each channel is gated, convolved over its last few positions, and gated again.

    Every channel weighs positions in its own way, so there is one head, whose channels they are.

    Args:
        width: channels.
        conv: positions that the convolution spans, itself included.
        conv_bias: bias of the convolution.
        bias: biases on the projections.
    """

    kind: ClassVar[str] = "short_convolution"
    prefix: ClassVar[str] = "conv"
    handed: ClassVar[str] = "v"
    keeps: ClassVar[tuple[str, ...]] = ("v",)

    width: int
    conv: int = 3
    conv_bias: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        positive("short_convolution", width=self.width, conv=self.conv)

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        lines = {"gate_in": (self.width, "gate"), "gate": (self.width, "gate"), "v": (self.width, "value")}
        return {
            **projections(lines, d_model, self.bias),
            **convolution(self.width, self.conv, self.conv_bias),
            **projections({"o": (d_model, "output")}, self.width, self.bias),
        }

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return ("gate", "gate_in", "v", "pattern", "mixed", "z")

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.width * (self.conv - 1)

    def seen(self, position: int) -> int:
        """How many positions are within reach."""
        return min(position + 1, self.conv)

    def flops(self, seen: float) -> float:
        """FLOPs of one position between positions, projections and convolution apart: none."""
        return 0.0
