"""compressed-tensors, the layout of llm-compressor and vLLM: integers and floats of 4 to 8 bits with scales and zeros.

`NAME` in int8 or an 8-bit float beside `NAME_scale` (and `NAME_zero_point`); or `NAME_packed` (row, word of int32)
beside `NAME_shape`, `NAME_scale` and, where they are used, `NAME_zero_point` (packed along rows) and `NAME_g_idx`;
or, for NVFP4, `NAME_packed` (bytes), `NAME_scale` (8-bit floats) and `NAME_global_scale`; or, for MXFP4,
`NAME_packed` (bytes) and `NAME_scale` (exponents). Scales are one for the tensor, a row, a group of a row, or a
block. A value is (q − z) · scale. Of 3, 5, 6 or 7 bits, older versions packed as many as fit whole into a word, newer
ones (0.20) all bits without gaps; the width of a row says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.quantised.fp8 import FLOATS, Fp8, grid_of, spread
from glassformer.checkpoint.quantised.method import (
    Fetch,
    Found,
    Packed,
    e2m1,
    fit,
    left_out,
    nibbles,
    only,
    part,
    per_block,
    power_of_two,
    unpacked,
)
from glassformer.checkpoint.tensorfile import Entry
from glassformer.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

_FORMATS = (
    "dense", "naive-quantized", "int-quantized", "float-quantized", "pack-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
)  # fmt: skip
_SPARE = ("_observer", ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".k_scale",
          ".v_scale", ".output_zero_point")  # fmt: skip


# Names that a quantization_config may hold: read here, or of how the numbers were found and are multiplied.
KNOWN = frozenset(
    {
        "config_groups.*.format", "config_groups.*.input_activations", "config_groups.*.output_activations",
        "config_groups.*.targets", "config_groups.*.weights.actorder", "config_groups.*.weights.block_structure",
        "config_groups.*.weights.dynamic", "config_groups.*.weights.group_size", "config_groups.*.weights.num_bits",
        "config_groups.*.weights.observer", "config_groups.*.weights.observer_kwargs",
        "config_groups.*.weights.scale_dtype", "config_groups.*.weights.strategy",
        "config_groups.*.weights.symmetric", "config_groups.*.weights.type", "config_groups.*.weights.zp_dtype",
        "format", "global_compression_ratio", "ignore", "kv_cache_scheme", "quantization_status",
        "sparsity_config.format", "sparsity_config.global_sparsity", "sparsity_config.ignore",
        "sparsity_config.registry_requires_subclass", "sparsity_config.sparsity_structure", "sparsity_config.targets",
        "version",
    }
)  # fmt: skip


def method(settings: Mapping[str, Any], where: str) -> Compressed:
    """The method for a quantization_config."""
    only(settings, where, "format", *_FORMATS)
    sparse = settings.get("sparsity_config") or {}
    only(sparse, f"{where}, sparsity_config", "format", "dense")
    groups = settings.get("config_groups") or {}
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise CheckpointError(f"{where} sets config_groups to something else than objects by name.")
    bits = set()
    for name, group in groups.items():
        only(group, f"{where}, {name}", "format", *_FORMATS)
        weights = group.get("weights") or {}
        bits.add(weights.get("num_bits"))
    bits.discard(None)
    return Compressed(bits.pop() if len(bits) == 1 else None)


@dataclass(frozen=True)
class Compressed:
    """Tensors told apart by what stands beside them; `bits` of packed integers, where all have the same."""

    bits: int | None

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """See `Method.find`."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            if name.endswith("_packed"):
                stem = name.removesuffix("_packed")
                fours = entry.dtype == "U8"
                found[stem] = self._fours(stem, stored, where) if fours else self._packed(stem, stored, where)
            elif entry.dtype == "I8" and f"{name}_scale" in stored:
                found[name] = self._bytes(name, stored, where)
            elif entry.dtype in FLOATS and not name.endswith("_scale"):
                scale = f"{name}_scale"
                found |= Fp8().find({name: entry, scale: part(stored, scale, where)}, where).tensors
        return Found(found, left_out(stored, found, _SPARE))

    def _bytes(self, name: str, stored: Mapping[str, Entry], where: str) -> Packed:
        shape, scale, zero = stored[name].shape, f"{name}_scale", f"{name}_zero_point"
        grid = grid_of(stored[scale].shape, shape, None)
        fit(grid is not None, where, scale, stored[scale].shape)
        assert grid is not None
        if zero in stored:
            fit(stored[zero].shape == stored[scale].shape, where, zero, stored[zero].shape)

        def values(fetch: Fetch) -> Tensor:
            numbers = fetch(name).float()
            if zero in stored:
                numbers = numbers - spread(fetch(zero).float().reshape(grid), shape, None)
            return numbers * spread(fetch(scale).float().reshape(grid), shape, None)

        return Packed(shape, (name, scale, *((zero,) if zero in stored else ())), values)

    def _packed(self, stem: str, stored: Mapping[str, Entry], where: str) -> Packed:
        packed, scale = stored[f"{stem}_packed"], part(stored, f"{stem}_scale", where)
        said, zero, order = f"{stem}_shape", f"{stem}_zero_point", f"{stem}_g_idx"
        fit(len(packed.shape) == 2 and packed.dtype == "I32", where, f"{stem}_packed", packed.shape)
        rows, columns = _shape(part(stored, said, where), where)
        bits = self.bits or _bits(columns, packed.shape[1])
        widths = {_words_in(columns, bits, whole): whole for whole in (True, False)}
        fit(packed.shape[0] == rows and packed.shape[1] in widths, where, f"{stem}_packed", packed.shape)
        whole = widths[packed.shape[1]]
        grid = scale.shape if len(scale.shape) == 2 else (math.prod(scale.shape), 1)
        fit(grid[0] in (1, rows) and 0 < grid[1] <= columns, where, f"{stem}_scale", scale.shape)
        ordered = order in stored and grid[1] > 1

        def values(fetch: Fetch) -> Tensor:
            numbers = _words(fetch(f"{stem}_packed"), bits, columns, whole) - (1 << bits - 1)
            scales = fetch(f"{stem}_scale").float().reshape(grid)
            zeros = scales.new_zeros(grid)
            if zero in stored:
                kept = fetch(zero)
                if stored[zero].dtype == "I32" and stored[zero].shape != grid:  # packed along the rows
                    kept = _words(kept.T, bits, grid[0], whole).T - (1 << bits - 1)
                zeros = kept.float().reshape(grid)
            if ordered and int((group := fetch(order).long()).min()) >= 0:
                return (numbers.float() - zeros[:, group]) * scales[:, group]
            shape = (rows, columns)
            return (numbers.float() - per_block(zeros, shape)) * per_block(scales, shape)

        more = tuple(name for name in (zero, order) if name in stored)
        return Packed((rows, columns), (f"{stem}_packed", f"{stem}_scale", said, *more), values)

    def _fours(self, stem: str, stored: Mapping[str, Entry], where: str) -> Packed:
        packed, scale, whole = stored[f"{stem}_packed"], f"{stem}_scale", f"{stem}_global_scale"
        fit(len(packed.shape) == 2, where, f"{stem}_packed", packed.shape)
        shape = (packed.shape[0], 2 * packed.shape[1])
        entry = part(stored, scale, where)
        size = 32 if entry.dtype == "U8" else 16
        fit(entry.shape == (shape[0], -(-shape[1] // size)), where, scale, entry.shape)
        if size == 16:
            part(stored, whole, where)

        def values(fetch: Fetch) -> Tensor:
            scales = power_of_two(fetch(scale))
            if whole in stored:
                scales = scales / fetch(whole).float()
            return e2m1(nibbles(fetch(f"{stem}_packed"))) * per_block(scales, shape)

        return Packed(shape, (f"{stem}_packed", scale, *((whole,) if whole in stored else ())), values)


def _words_in(count: int, bits: int, whole: bool) -> int:
    """How many int32 hold so many values, each whole in one of them or one bit after the other."""
    return -(-count // (32 // bits)) if whole else -(-count * bits // 32)


def _words(words: Tensor, bits: int, count: int, whole: bool) -> Tensor:
    """The unsigned values of every row of int32, lowest bits first; a word's last are empty where they are whole."""
    if not whole or 32 % bits == 0:
        return unpacked(words, bits, count)
    import torch

    shifts = torch.arange(32 // bits) * bits
    values = ((words.long() & 0xFFFFFFFF)[..., None] >> shifts) & ((1 << bits) - 1)
    return values.flatten(-2)[:, :count]


def _bits(columns: int, words: int) -> int:
    """How many bits a value has whose row of so many columns takes so many words."""
    fitting = [
        bits for whole in (True, False) for bits in (4, 8, 2, 3, 5, 6, 7) if _words_in(columns, bits, whole) == words
    ]
    if not fitting:
        raise UnsupportedError(f"Rows of {columns} values in {words} words of 32 bits are packed in no known way.")
    return fitting[0]


def _shape(entry: Entry, where: str) -> tuple[int, int]:
    """The two numbers that a tensor of integers holds."""
    width = {"I64": 8, "I32": 4}.get(entry.dtype, 0)
    data = b""
    if entry.path is not None and width and math.prod(entry.shape) == 2:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            data = file.read(entry.end - entry.start)
    if len(data) != 2 * width or not width:
        raise CheckpointError(f"{where} holds a weight_shape that is not two whole numbers.")
    rows, columns = (int.from_bytes(data[at : at + width], "little", signed=True) for at in (0, width))
    if rows < 1 or columns < 1:
        raise CheckpointError(f"{where} holds a weight_shape of {rows} × {columns}.")
    return rows, columns
