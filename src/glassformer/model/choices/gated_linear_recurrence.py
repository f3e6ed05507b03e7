"""A gated linear recurrence of single channels as data (RG-LRU, arXiv:2402.19427)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.feed_forward import Activation, known_activation
from glassformer.model.choices.norm import Norm


@dataclass(frozen=True)
class GatedLinearRecurrence:
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

    width: int
    blocks: int
    conv: int = 4
    activation: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        positive("gated_linear_recurrence", width=self.width, blocks=self.blocks, conv=self.conv)
        known_activation(self.activation)
        if self.width % self.blocks:
            raise ConfigError(f"{self.width} channels cannot stand in {self.blocks} equal blocks.")

    @property
    def n_heads(self) -> int:
        """One: its channels share nothing and are not told apart."""
        return 1

    @property
    def d_head(self) -> int:
        """Channels of its one head."""
        return self.width

    @property
    def value_size(self) -> int:
        """Channels of its one head."""
        return self.width

    @property
    def out_size(self) -> int:
        """Channels, as the output projection reads them."""
        return self.width

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found: dict[str, Component] = {}
        for name, line in (("gate", "gate"), ("x", "value")):
            found[f"{name}.weight"] = Component((self.width, d_model), line)
            found[f"{name}.bias"] = Component((self.width,), "biases")
        found["conv.weight"] = Component((self.width, self.conv), "convolution")
        found["conv.bias"] = Component((self.width,), "biases")
        size = self.width // self.blocks
        for name, line in (("gate_in", "gate"), ("keep", "decay")):
            found[f"{name}.weight"] = Component((self.blocks, size, size), line)
            found[f"{name}.bias"] = Component((self.blocks, size), "biases")
        found["rate"] = Component((self.width,), "biases")
        found["o.weight"] = Component((d_model, self.width), "output")
        found["o.bias"] = Component((d_model,), "biases")
        return found

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return ("gate", "gate_in", "decay", "v", "pattern", "mixed", "z")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps; the others follow from them."""
        return ("gate_in", "decay", "v", "z")

    @property
    def cached_numbers(self) -> int:
        """Numbers that generation keeps for each token in this layer: none."""
        return 0

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.width * self.conv

    def seen(self, position: int) -> int:
        """How many earlier positions the state stands for."""
        return position + 1

    def flops(self, seen: float) -> float:
        """FLOPs of one position's update, projections and convolution apart: the same at every length."""
        return 2 * self.width
