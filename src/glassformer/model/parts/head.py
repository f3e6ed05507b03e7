"""A layer of its own between the last block and the final norm: norm, square matrix, activation."""

from __future__ import annotations

import functools

from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import Head, Norm
from glassformer.model.layers import Linear, gate
from glassformer.model.norms import NormLayer
from glassformer.model.sites import View, see


class HeadPart(nn.Module):
    """act(dense(norm(x))), which takes the place of the residual stream."""

    def __init__(self, choice: Head, d_model: int, norm: Norm) -> None:
        super().__init__()
        self.norm = NormLayer(d_model, norm)
        self.dense = Linear(d_model, d_model, choice.bias)
        self.activation = functools.partial(gate, choice.activation)

    def forward(self, x: Float[Tensor, "*batch d_model"], view: View | None = None) -> Float[Tensor, "*batch d_model"]:
        """What the unembedding reads."""
        return self.activation(see(view, "head.pre", self.dense(self.norm(x, view, "head"))))
