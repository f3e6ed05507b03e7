"""The small functions that parts share: matrix product, activation, soft cap.

Everything here is a function of tensors and the numbers in a `Config`; nothing knows about layers,
caches or families.

Shape suffixes: (batch, query, d_model) unless a signature says otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.kernels import ops

linear = ops.linear


class Linear(nn.Module):
    """A matrix product with its weight (d_out, d_in) and, where the design has one, a bias."""

    def __init__(self, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d_in) times the transposed weight, plus the bias: (…, d_out)."""
        return linear(x, self.weight, self.bias)


def gate(name: str, pre: Tensor, linear: Tensor | None = None) -> Tensor:
    """act(pre) × linear, or act(pre) alone."""
    return ops.gated(name, pre, linear)


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): squeezes numbers into (-cap, cap)."""
    return x if cap is None else cap * torch.tanh(x / cap)


class Embedding(nn.Module):
    """A row for each token (or position)."""

    def __init__(self, rows: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, d_model))

    def forward(self, ids: Int[Tensor, "batch query"]) -> Float[Tensor, "batch query d_model"]:
        """The row of each id."""
        return F.embedding(ids, self.weight)
