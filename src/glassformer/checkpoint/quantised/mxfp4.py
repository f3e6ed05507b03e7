"""MXFP4 as gpt-oss publishes it: 32 values of 4 bits (E2M1) and one power of two to a block.

`NAME_blocks` (expert, row, block, 16), two values to a byte, the lower half first, and `NAME_scales` (expert, row,
block), exponents with a bias of 127. `NAME` is (expert, column, row): what multiplies from the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.quantised.method import Fetch, Found, Packed, e2m1, fit, nibbles, part, power_of_two
from glassformer.checkpoint.tensorfile import Entry

if TYPE_CHECKING:
    from torch import Tensor

_BLOCKS, _SCALES = "_blocks", "_scales"


# Names that a quantization_config may hold: read here, or of how the numbers were found and are multiplied.
KNOWN = frozenset(
    {
        "dequantize",
    }
)  # fmt: skip


def method(settings: Mapping[str, Any], where: str) -> Mxfp4:
    """The method for a quantization_config."""
    return Mxfp4()


class Mxfp4:
    """Blocks of 4-bit floats with a power of two each."""

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """See `Method.find`."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            if not name.endswith(_BLOCKS) or entry.dtype != "U8":
                continue
            stem = name.removesuffix(_BLOCKS)
            scales = part(stored, stem + _SCALES, where)
            fit(len(entry.shape) >= 3 and entry.shape[-1] == 16, where, name, entry.shape)
            fit(scales.shape == entry.shape[:-1] and scales.dtype == "U8", where, stem + _SCALES, scales.shape)
            *outer, rows, blocks, _ = entry.shape
            found[stem] = Packed((*outer, 32 * blocks, rows), (name, stem + _SCALES), _values(stem))
        return Found(found)


def _values(stem: str) -> Any:
    def values(fetch: Fetch) -> Tensor:
        codes = nibbles(fetch(stem + _BLOCKS))  # (..., row, block, 32)
        scaled = e2m1(codes) * power_of_two(fetch(stem + _SCALES))[..., None]
        return scaled.flatten(-2).transpose(-2, -1)

    return values
