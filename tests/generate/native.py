"""What tests of the native engine share: its library in every form that this machine can run, and products by it."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from glassformer.generate.packed import Packed
from glassformer.generate.quantize import BLOCK, Weight
from glassformer.kernels import infer_abi

# Flags for the plain path, and for processors with AVX2 at most, where this one can run that.
PORTABLE = ("-DGLASSFORMER_PORTABLE",)
AVX2 = ("-mno-avx512f", "-mno-avxvnni")
# And without the tiles, where this one has them: the same numbers.
NO_TILES = ("-DGLASSFORMER_NO_AMX",)
PRECISIONS = ["float32", "bfloat16", "int8", "int4"]


@cache
def libraries() -> dict[str, ctypes.CDLL]:
    """One library per way of writing the kernels that this machine can run."""
    found = {"best": infer_abi.library(), "portable": infer_abi.library(*PORTABLE)}
    if infer_abi.instructions(found["best"]).startswith("AVX"):
        found["avx2"] = infer_abi.library(*AVX2)
    if infer_abi.instructions(found["best"]).endswith("AMX"):
        found["no tiles"] = infer_abi.library(*NO_TILES)
    return found


def lib_names() -> list[str]:
    return ["best", "portable", "avx2"]


def lib_of(name: str) -> ctypes.CDLL:
    found = libraries()
    return found.get(name, found["best"])


def multiply(lib: ctypes.CDLL, w: Weight, x: Tensor, bias: Tensor | None = None, exact: bool = False) -> Tensor:
    packed = Packed(lib, w, 1)
    packed.matrix.exact = exact
    out = torch.empty(x.shape[0], w.rows)
    x = x.contiguous()
    if bias is not None:
        held = torch.zeros(-(-w.rows // 32) * 32)
        held[: w.rows] = bias
        packed.matrix.bias = held.data_ptr()
    assert lib.gf_multiply(ctypes.byref(packed.matrix), x.data_ptr(), x.shape[0], out.data_ptr()) == 0
    return out


PROMPT = 64
"""So many tokens of one prompt in one call meet bfloat16 weights as bfloat16, and blocks with one scale an output."""


def narrows(lib: ctypes.CDLL, w: Weight, count: int = PROMPT) -> bool:
    """Whether so many rows are rounded to bfloat16 for a product with a weight."""
    return bool(lib.gf_narrows(ctypes.byref(Packed(lib, w, 1).matrix), count))


def rescales(lib: ctypes.CDLL, w: Weight, count: int = PROMPT) -> bool:
    """Whether so many rows meet a weight that is rounded to one scale an output."""
    return bool(lib.gf_rescales(ctypes.byref(Packed(lib, w, 1).matrix), count))


def _quants(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations in steps of their block's scale, and that, each (row, block, 32)."""
    parts = x.reshape(x.shape[0], -1, BLOCK).double()
    scale = (parts.abs().amax(-1, keepdim=True) / 127).expand_as(parts)
    return torch.where(scale > 0, parts / scale, 0.0), scale


def as_quantised(x: Tensor) -> Tensor:
    """Activations as the block formats' products see them: 8 bits, one scale per 32."""
    steps, scale = _quants(x)
    return (steps.round() * scale).reshape(x.shape).float()


def halves_apart(x: Tensor) -> Tensor:
    """One step where a number lies within float32's rounding of the middle between two quants, else 0."""
    steps, scale = _quants(x)
    near = ((steps.abs() % 1) - 0.5).abs() < 1e-4
    return torch.where(near, scale, 0.0).reshape(x.shape).float()
