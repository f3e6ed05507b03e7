"""Weights in the formats they are run in: float32, bfloat16, and blocks of 32 numbers in 8 or 4 bits.

The block formats are GGUF's own Q8_0, Q4_0 and Q4_1, so a GGUF file's blocks run as they are, and "int8" and
"int4" of any other checkpoint are the same formats made here. Other GGUF formats have no kernel: they are
dequantised a matrix at a time and stored again as Q8_0 (`Weight.note` says so, and so does every answer's precision).

Float32 matrices whose numbers are all bfloat16 numbers (most checkpoints are stored so) are kept as bfloat16: the
kernels sum both in the same order against float32 activations, so answers are equal to the bit for half the bytes.

It knows numbers and layouts; it does not know models, files or threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from glassformer.errors import ShapeError, UsageError

BLOCK = 32
# The kernels' numbers for the formats.
FORMATS = {"F32": 0, "BF16": 1, "Q8_0": 2, "Q4_0": 3, "Q4_1": 4}
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}
# Numbers of a matrix that are looked at before all of them are.
_GLANCE = 4096
# What users call them, and the format that a float matrix is given.
PRECISIONS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_1"}


@dataclass(frozen=True)
class Weight:
    """One matrix (rows = outputs, cols = inputs) in a format a kernel reads.

    Attributes:
        format: a key of `FORMATS`.
        rows, cols: its shape.
        data: float32 or bfloat16 (rows, cols), or uint8 (rows, bytes of a row's blocks).
        note: what was done to it that its file did not do, or "".
    """

    format: str
    rows: int
    cols: int
    data: Tensor = field(repr=False)
    note: str = ""

    @property
    def bytes(self) -> int:
        """Bytes one product reads."""
        return self.data.numel() * self.data.element_size()

    def to_float(self) -> Tensor:
        """The float32 numbers it stands for, (rows, cols)."""
        if self.format in ("F32", "BF16"):
            return self.data.float()
        return dequantise(self.data, self.format)


def weight(tensor: Tensor, precision: str) -> Weight:
    """A float matrix in a precision.

    "float32" loses nothing, and takes bfloat16's half of the bytes where that loses nothing either. A matrix whose
    rows are not whole blocks of 32 stays bfloat16 where 8 or 4 bits were asked for.

    Raises:
        UsageError: for an unknown precision.
        ShapeError: for anything but a matrix.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"Precision {precision!r} is unknown; choose {', '.join(PRECISIONS)}.")
    if tensor.ndim != 2:
        raise ShapeError(f"Only matrices have a weight format; got shape {tuple(tensor.shape)}.")
    rows, cols = tensor.shape
    format_ = PRECISIONS[precision]
    tensor = tensor.detach().cpu()
    if format_ == "F32":
        return _whole(tensor)
    if format_ == "BF16" or cols % BLOCK:
        note = "" if format_ == "BF16" else f"kept in bfloat16: rows of {cols} are not whole blocks of {BLOCK}"
        return Weight("BF16", rows, cols, tensor.to(torch.bfloat16).contiguous(), note)
    return Weight(format_, rows, cols, quantise(tensor, format_))


def _whole(tensor: Tensor) -> Weight:
    """A matrix without loss: as bfloat16 where every number of it is one, else as float32."""
    rows, cols = tensor.shape
    few = tensor.reshape(-1)[:_GLANCE].float()
    if torch.equal(few.bfloat16().float(), few):
        narrow = tensor.to(torch.bfloat16)
        if tensor.dtype == torch.bfloat16 or torch.equal(narrow.float(), tensor.float()):
            return Weight("BF16", rows, cols, narrow.contiguous())
    return Weight("F32", rows, cols, tensor.float().contiguous())


class Raw(Protocol):
    """A parameter as a GGUF stores it, in native row order (`checkpoint.raw_blocks` gives these)."""

    @property
    def kind(self) -> str:
        """The ggml type of its blocks, such as "Q4_K"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its numbers along each axis, rows first."""

    @property
    def data(self) -> np.ndarray:
        """Its stored bytes, (rows, bytes of a row), or numbers."""

    def values(self) -> np.ndarray:
        """Its numbers in float32."""


def stored(raw: Raw, exact: bool = False) -> Weight | Tensor:
    """A GGUF's parameter as it is: a matrix in its own blocks, a vector in float32.

    A matrix in a format that has no kernel becomes Q8_0, or float32 with `exact` (bfloat16 where that is the same).
    Matrices of experts are one, their rows one below the other.
    """
    if len(raw.shape) == 1:
        return _tensor(raw.values().astype(np.float32))
    rows, cols = math.prod(raw.shape[:-1]), raw.shape[-1]
    data = np.ascontiguousarray(raw.data)
    if raw.kind in BLOCK_BYTES:
        return Weight(raw.kind, rows, cols, _tensor(data.reshape(rows, -1)))
    if raw.kind == "F32":
        floats = _tensor(data.view(np.float32).reshape(rows, cols))
        return _whole(floats) if exact else Weight("F32", rows, cols, floats)
    if raw.kind == "BF16":
        return Weight("BF16", rows, cols, _tensor(data.view(np.uint16).reshape(rows, cols)).view(torch.bfloat16))
    if exact:
        return _whole(_tensor(raw.values().astype(np.float32).reshape(rows, cols)))
    again = weight(_tensor(raw.values().astype(np.float32).reshape(rows, cols)), "int8")
    note = again.note or f"stored again as {again.format}"
    return Weight(again.format, rows, cols, again.data, f"{raw.kind} in the file, {note}")


def quantise(tensor: Tensor, kind: str) -> Tensor:
    """uint8 (rows, bytes) of a float (rows, cols) matrix's blocks, cols a multiple of 32.

    Q8_0 and Q4_0 keep one half-precision scale d per block and mean d·q; Q4_1 also keeps the block's minimum m and
    means d·q + m. Rounded to nearest.
    """
    x = tensor.float().reshape(tensor.shape[0], -1, BLOCK)
    if kind == "Q8_0":
        d = x.abs().amax(-1, keepdim=True) / 127
        q = _divide(x, d).round().to(torch.int8).view(torch.uint8)
        parts = [_half_bytes(d), q]
    elif kind == "Q4_0":
        extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
        d = extreme / -8
        q = (_divide(x, d) + 8.5).floor().clamp(0, 15).to(torch.uint8)
        parts = [_half_bytes(d), q[..., :16] | q[..., 16:] << 4]
    elif kind == "Q4_1":
        low = x.amin(-1, keepdim=True)
        d = (x.amax(-1, keepdim=True) - low) / 15
        q = (_divide(x - low, d) + 0.5).floor().clamp(0, 15).to(torch.uint8)
        parts = [_half_bytes(d), _half_bytes(low), q[..., :16] | q[..., 16:] << 4]
    else:
        raise UsageError(f"Block format {kind!r} is unknown; choose {', '.join(BLOCK_BYTES)}.")
    return torch.cat(parts, -1).reshape(tensor.shape[0], -1).contiguous()


def dequantise(data: Tensor, kind: str) -> Tensor:
    """The float32 (rows, cols) numbers that blocks stand for: the formats' definition."""
    raw = data.reshape(data.shape[0], -1, BLOCK_BYTES[kind])
    d = raw[..., :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        x = raw[..., 2:].contiguous().view(torch.int8).float() * d
    else:
        at = 4 if kind == "Q4_1" else 2
        q = torch.cat([raw[..., at:] & 15, raw[..., at:] >> 4], -1).float()
        if kind == "Q4_1":
            x = q * d + raw[..., 2:4].contiguous().view(torch.float16).float()
        else:
            x = (q - 8) * d
    return x.reshape(data.shape[0], -1)


def _divide(x: Tensor, d: Tensor) -> Tensor:
    return x * torch.where(d == 0, 0.0, 1.0 / d)


def _half_bytes(x: Tensor) -> Tensor:
    return x.to(torch.float16).view(torch.uint8)


def _tensor(array: np.ndarray) -> Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a read-only map: it is only read
        return torch.from_numpy(array)
