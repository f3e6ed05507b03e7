"""A layer's own embedding of each token, as modules (Gemma 3n and 4)."""

from __future__ import annotations

import functools
import math

from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.model.choices import LayerEmbedding, Norm
from glassformer.model.layers import Embedding, Linear, gate
from glassformer.model.norms import NormLayer
from glassformer.model.sites import View, see


class LayerEmbeddingPart(nn.Module):
    """up(act(gate(x)) · input), where the input is the token's own vector in this layer."""

    def __init__(self, choice: LayerEmbedding, d_model: int) -> None:
        super().__init__()
        self.choice = choice
        self.gate = Linear(d_model, choice.d, False)
        self.up = Linear(choice.d, d_model, False)
        self.activation = functools.partial(gate, choice.activation)

    def forward(
        self, x: Float[Tensor, "*batch d_model"], own: Float[Tensor, "*batch d_ple"], view: View | None = None
    ) -> Float[Tensor, "*batch d_model"]:
        """What the part adds to the residual stream, from the token's own vector in this layer."""
        own = see(view, "ple.input", own)
        pre = see(view, "ple.pre", self.gate(x))
        return self.up(see(view, "ple.post", self.activation(pre, own)))


class LayerInputs(nn.Module):
    """Every layer's own vector of each token: a row of a table, and a reading of the token's embedding.

    Args:
        layers: how many layers; d: dimensions of each vector; rows: tokens that the table knows (others have row 0).
    """

    def __init__(self, layers: int, d: int, rows: int, d_model: int, norm: Norm) -> None:
        super().__init__()
        self.layers, self.d, self.rows, self.scale = layers, d, rows, d_model**-0.5
        self.embed = Embedding(rows, layers * d)
        self.project = Linear(d_model, layers * d, False)
        self.norm = NormLayer(d, norm)

    def forward(
        self, tokens: Int[Tensor, "batch query"], embedded: Float[Tensor, "batch query d_model"]
    ) -> dict[int, Float[Tensor, "batch query d_ple"]]:
        """Each layer's vectors of the tokens, by layer."""
        shape = (self.layers, self.d)
        read = self.norm((self.project(embedded) * self.scale).unflatten(-1, shape))
        rows = self.embed(tokens.where(tokens < self.rows, 0)).unflatten(-1, shape) * math.sqrt(self.d)
        return dict(enumerate(((read + rows) * 2**-0.5).unbind(-2)))
