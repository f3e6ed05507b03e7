"""A layer of its own between the last block and the final norm, as data."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.model.choices.common import Component
from glassformer.model.choices.feed_forward import Activation, known_activation
from glassformer.model.choices.norm import Norm


@dataclass(frozen=True)
class Head:
    """The last residual stream is normed, multiplied by a square matrix and activated before the final norm; what comes
    out does not add to the stream but takes its place (ModernBERT).

    Args:
        activation: of each dimension.
        bias: a bias beside the matrix.
    """

    activation: Activation = "gelu"
    bias: bool = False

    def __post_init__(self) -> None:
        known_activation(self.activation)

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by native key."""
        found = norm.components("head.norm", d_model)
        found["head.dense.weight"] = Component((d_model, d_model), "unembedding")
        if self.bias:
            found["head.dense.bias"] = Component((d_model,), "biases")
        return found
