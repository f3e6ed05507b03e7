"""A layer's own embedding of each token, as data (Gemma 3n and 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.feed_forward import Activation, known_activation


@dataclass(frozen=True)
class LayerEmbedding:
    """The token's own vector in this layer, gated by the stream and widened to it: up(act(gate(x)) · input).

    Args:
        d: dimensions of the vector, the same in all layers that have one.
        activation: of the gate.
    """

    prefix: ClassVar[str] = "ple"

    d: int
    activation: Activation = "gelu_tanh"

    def __post_init__(self) -> None:
        positive("layer_embedding", d=self.d)
        known_activation(self.activation)

    def components(self, d_model: int) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        return {
            "gate.weight": Component((self.d, d_model), "gate"),
            "up.weight": Component((d_model, self.d), "up"),
        }

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return ("input", "pre", "post")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps; the others follow from them and the stream."""
        return ("input",)
