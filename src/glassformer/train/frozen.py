"""Matrices that are not trained, as they compute or in blocks of 8 or 4 bits that are unpacked where they are used.

The blocks are those of GGUF's Q8_0 and Q4_0: 32 numbers of a row share a float16 scale, so a GGUF of these types keeps
its numbers. What a product needs is unpacked for it and forgotten, also for the gradient of its input. This module
knows tensors, no model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BITS = {"float": 0, "q8_0": 8, "q4_0": 4}
"""Forms of a base, and the bits of a number in it; 0 for the type that the run computes in."""
BLOCK = 32
ALL = slice(None)


class Frozen(nn.Module):
    """A matrix (d_out, d_in) without gradient.

    Args:
        weight: its numbers.
        compute: the type that it multiplies in.
        form: one of `BITS`; rows that do not divide into blocks stay as they compute.
    """

    def __init__(self, weight: Tensor, compute: torch.dtype, form: str) -> None:
        super().__init__()
        self.shape, self.compute = (int(weight.shape[0]), int(weight.shape[1])), compute
        self.bits = BITS[form] if weight.shape[1] % BLOCK == 0 else 0
        if self.bits == 0:
            self.register_buffer("plain", weight.to(compute, copy=True), persistent=False)
            return
        codes, scales = packed(weight.float(), self.bits)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    def matrix(self, rows: slice = ALL) -> Tensor:
        """The numbers, or some rows of them, in the type they multiply in."""
        if self.bits == 0:
            plain: Tensor = self.plain  # type: ignore[assignment]
            return plain[rows]
        return unpacked(self.codes[rows], self.scales[rows], self.bits, self.compute)  # type: ignore[index]

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x (…, d_in) times the transposed matrix: (…, d_out)."""
        if self.bits == 0:
            return F.linear(x, self.matrix(rows))
        product: Tensor = _Through.apply(x, self, rows)
        return product

    @torch.no_grad()
    def times(self, columns: Tensor) -> Tensor:
        """The matrix times some columns (d_in, n)."""
        return self.matrix() @ columns.to(self.compute)


class _Through(torch.autograd.Function):
    """x Wᵀ of a packed matrix, which is unpacked again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, rows: slice) -> Tensor:
        ctx.frozen, ctx.rows = frozen, rows
        return F.linear(x, frozen.matrix(rows))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0] @ ctx.frozen.matrix(ctx.rows), None, None


def packed(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (rows, bytes) and scales (rows, blocks) of a float32 matrix, rounded as GGUF's Q8_0 and Q4_0 are."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    if bits == 8:
        scale = blocks.abs().amax(-1) / 127
        codes = (blocks * _inverse(scale)[..., None]).round().to(torch.int8)
        return codes.flatten(1), scale.half()
    furthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]
    scale = furthest / -8
    codes = (blocks * _inverse(scale)[..., None] + 8.5).clamp(0, 15).to(torch.uint8)
    return (codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)).flatten(1), scale.half()


def unpacked(codes: Tensor, scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The matrix that codes and scales stand for."""
    if bits == 8:
        numbers = codes.unflatten(1, (-1, BLOCK)).float()
    else:
        pairs = codes.unflatten(1, (-1, BLOCK // 2))
        numbers = torch.cat([pairs & 15, pairs >> 4], -1).float() - 8
    return (numbers * scales[..., None].float()).flatten(1).to(dtype)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)
