"""Several copies of the residual stream of which a layer computes with one (AltUp, arXiv:2301.13310), as modules.

The copies stand one after another on the stream's last axis, (batch, query, copy · d_model).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import Copies, Norm
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer

LEAST = 1e-5  # of a copy's mean square, where it is divided by its root


class CopiesPart(nn.Module):
    """How one layer predicts its copies and corrects them."""

    def __init__(self, choice: Copies, d_model: int, norm: Norm) -> None:
        super().__init__()
        self.n = choice.n
        self.norm = NormLayer(d_model, norm)
        self.router = Linear(d_model, choice.n, False)
        self.predict = Linear(choice.n, choice.n * choice.n, False)
        self.correct = Linear(choice.n, choice.n, False)
        self.scale = nn.Parameter(torch.empty(d_model))

    def _routed(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch copy"]:
        return torch.tanh(self.router(self.norm(x) * x.shape[-1] ** -1.0))

    def mixing(self, first: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch copy copy"]:
        """What each copy's prediction takes of each copy (predicted, taken), from the first of them."""
        own = self.predict(self._routed(first)).unflatten(-1, (self.n, self.n))
        return own + torch.eye(self.n, dtype=own.dtype, device=own.device)

    def predicted(self, x: Float[Tensor, "*batch wide"]) -> Float[Tensor, "*batch copy d_model"]:
        """Every copy's prediction; the layer computes with the first."""
        copies = x.unflatten(-1, (self.n, -1))
        return self.mixing(copies[..., 0, :]) @ copies

    def shares(self, active: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch copy"]:
        """How much of what the layer changed in the first copy's prediction each copy takes."""
        return self.correct(self._routed(active)) + 1.0

    def corrected(
        self,
        predicted: Float[Tensor, "*batch copy d_model"],
        active: Float[Tensor, "*batch d_model"],
        shares: Float[Tensor, "*batch copy"] | None = None,
    ) -> Float[Tensor, "*batch wide"]:
        """All copies after the layer, from what it made of the first one's prediction; by these shares of its change
        where they are given."""
        shares = self.shares(active) if shares is None else shares
        change = (active - predicted[..., 0, :])[..., None, :]
        return (predicted + shares[..., None] * change).flatten(-2)

    def first(self, x: Float[Tensor, "*batch wide"]) -> Float[Tensor, "*batch d_model"]:
        """What the layer's own embedding of the token is gated by."""
        return x.unflatten(-1, (self.n, -1))[..., 0, :] * self.scale

    def beside(self, out: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch wide"]:
        """What all copies but the first take of the layer's own embedding of the token."""
        return torch.cat([torch.zeros_like(out), *[out] * (self.n - 1)], -1)


class LaurelPart(nn.Module):
    """The normed stream, and what a matrix of low rank makes of it, normed."""

    def __init__(self, choice: Copies, d_model: int, norm: Norm) -> None:
        super().__init__()
        self.down = Linear(d_model, choice.rank, False)
        self.up = Linear(choice.rank, d_model, False)
        self.norm = NormLayer(d_model, norm)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """x plus its norm of up(down(x))."""
        return x + self.norm(self.up(self.down(x)))


def spread(x: Float[Tensor, "*batch d_model"], matrices: nn.ModuleList) -> Float[Tensor, "*batch wide"]:
    """The embedding and its other copies: each the embedding through a matrix, made as long as it."""
    return torch.cat([x, *(matrix(x) * ratio(x, matrix(x)) for matrix in matrices)], -1)


def gathered(
    x: Float[Tensor, "*batch wide"], matrices: nn.ModuleList, held: bool = False
) -> Float[Tensor, "*batch d_model"]:
    """The mean of the first copy and the others, each through a matrix and made as long as it; where `held`, nothing
    goes back through the lengths."""
    first, *rest = x.chunk(len(matrices) + 1, dim=-1)
    turned = [matrix(copy) for matrix, copy in zip(matrices, rest, strict=True)]
    ratios = [ratio(first.detach(), y.detach()) if held else ratio(first, y) for y in turned]
    return torch.stack([first, *(y * times for y, times in zip(turned, ratios, strict=True))]).mean(0)


def ratio(like: Float[Tensor, "*batch d_model"], x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
    """How much longer than `x` a vector is."""
    wanted = like.square().mean(-1, keepdim=True).sqrt()
    return wanted / x.square().mean(-1, keepdim=True).clamp(min=LEAST).sqrt()
