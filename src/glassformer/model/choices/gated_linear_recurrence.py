"""A gated linear recurrence of single channels as data (RG-LRU, arXiv:2402.19427)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.feed_forward import Activation, known_activation
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.recurrent import Channels, convolution, projections


@dataclass(frozen=True)
class GatedLinearRecurrence(Channels):
    """Every channel keeps one number, which decays by a factor that the input chooses (RecurrentGemma, Griffin).

    At each position a channel's number is multiplied by a and takes in sqrt(1 − a²) times its gated input; x passes a
    short causal convolution before, and both gates come from it, block by block of channels. Every channel weighs
    positions in its own way, so there is one head, whose channels they are.

    Args:
        width: channels.
        blocks: equal blocks of channels whose gates are made from the block alone.
        conv: positions that the convolution spans, itself included.
        activation: of the gate on the output.
    """

    kind: ClassVar[str] = "gated_linear_recurrence"
    prefix: ClassVar[str] = "lru"
    handed: ClassVar[str] = "v"
    keeps: ClassVar[tuple[str, ...]] = ("gate_in", "decay", "v")

    width: int
    blocks: int
    conv: int = 4
    activation: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        positive("gated_linear_recurrence", width=self.width, blocks=self.blocks, conv=self.conv)
        known_activation(self.activation)
        if self.width % self.blocks:
            raise ConfigError(f"{self.width} channels cannot stand in {self.blocks} equal blocks.")

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found = projections({"gate": (self.width, "gate"), "x": (self.width, "value")}, d_model, True)
        found |= convolution(self.width, self.conv, True)
        size = self.width // self.blocks
        for name, line in (("gate_in", "gate"), ("keep", "decay")):
            found[f"{name}.weight"] = Component((self.blocks, size, size), line)
            found[f"{name}.bias"] = Component((self.blocks, size), "biases")
        found["rate"] = Component((self.width,), "biases")
        return found | projections({"o": (d_model, "output")}, self.width, True)

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.width * self.conv

    def flops(self, seen: float) -> float:
        """FLOPs of one position's update, projections and convolution apart: the same at every length."""
        return 2 * self.width
