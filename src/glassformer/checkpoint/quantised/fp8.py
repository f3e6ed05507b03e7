"""FP8: 8-bit floats (E4M3 or E5M2) with one scale for the tensor, for each row, or for each block.

`NAME` beside `NAME_scale_inv` (one number per block of 128 × 128, as DeepSeek publishes) or `NAME_scale` (one number,
or one per row). A value is the stored one times its scale. Scales of activations belong to a computation in 8 bits,
which ours is not, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.quantised.method import Fetch, Found, Packed, fit, left_out, per_block, power_of_two
from glassformer.checkpoint.tensorfile import Entry
from glassformer.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = (".input_scale", ".activation_scale", "_activation_scale", ".output_scale", ".k_scale", ".v_scale")


# Names that a quantization_config may hold: read here, or of how the numbers were found and are multiplied.
KNOWN = frozenset(
    {
        "activation_scheme", "activation_scale_ub", "dequantize", "expert_dtype", "fmt", "ignored_layers",
        "kv_cache_scheme", "modules_to_convert", "scale_fmt", "weight_block_size",
    }
)  # fmt: skip


def method(settings: Mapping[str, Any], where: str) -> Fp8:
    """The method for a quantization_config."""
    block = settings.get("weight_block_size")
    if block is not None and not (isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)):
        raise CheckpointError(f"{where} sets weight_block_size to {block!r}; it must be two whole numbers or null.")
    return Fp8(None if block is None else (block[0], block[1]))


@dataclass(frozen=True)
class Fp8:
    """8-bit floats times scales; `block` is the size of a block where the settings name one."""

    block: tuple[int, int] | None = None

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """See `Method.find`."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            if entry.dtype not in FLOATS:
                continue
            scale = next((name + suffix for suffix in _SCALES if name + suffix in stored), None)
            if scale is None:
                raise CheckpointError(f"{where} holds {name} as {entry.dtype} and no scale for it ({name}_scale_inv).")
            grid = grid_of(stored[scale].shape, entry.shape, self.block)
            fit(grid is not None, where, scale, stored[scale].shape)
            assert grid is not None
            found[name] = Packed(entry.shape, (name, scale), scaled(name, scale, grid, self.block))
        return Found(found, left_out(stored, found, _ACTIVATIONS))


def grid_of(scales: Shape, shape: Shape, block: tuple[int, int] | None) -> Shape | None:
    """How scales lie over a matrix or a stack of them, one per block of the last two axes; None if they do not fit."""
    count = 1
    for n in scales:
        count *= n
    if count == 1:
        return (1,) * len(shape)
    rows = shape[-2] if len(shape) > 1 else shape[0]
    if scales in ((rows,), (rows, 1)) and len(shape) == 2:
        return (rows, 1)
    if len(scales) != len(shape) or (scales[:-2] != shape[:-2] and any(n != 1 for n in scales[:-2])):
        return None
    sizes = block or tuple(-(-whole // max(n, 1)) for whole, n in zip(shape[-2:], scales[-2:], strict=True))
    covered = tuple(-(-whole // size) for whole, size in zip(shape[-2:], sizes, strict=True))
    by_axis = zip(scales[-2:], covered, strict=True)
    return scales if all(n in (1, blocks) for n, blocks in by_axis) else None


def scaled(name: str, scale: str, grid: Shape, block: tuple[int, int] | None) -> Any:
    """The values of `Packed` for stored numbers times scales."""

    def values(fetch: Fetch) -> Tensor:
        stored = fetch(name).float()
        scales = power_of_two(fetch(scale)).reshape(grid)
        return stored * spread(scales, tuple(stored.shape), block)

    return values


def spread(scales: Tensor, shape: Shape, block: tuple[int, int] | None) -> Tensor:
    """Scales over the elements that they belong to."""
    if block is None:
        return per_block(scales, shape) if len(shape) > 1 else scales
    for axis, size in zip((-2, -1), block, strict=True):
        if scales.shape[axis] > 1:
            scales = scales.repeat_interleave(size, axis).narrow(axis, 0, shape[axis])
    return scales
