"""bitsandbytes: LLM.int8() (arXiv:2208.07339), and 4-bit NF4 and FP4 (arXiv:2305.14314), as transformers saves them.

8 bits: `NAME` (int8) and `NAME`'s `SCB`, one number per row; a weight is q · SCB / 127, multiplied in that order. 4
bits: `NAME` (bytes, two values to each, the upper half first), `NAME.quant_map` (the 16 values that codes stand for),
`NAME.absmax` (one number per block of values in a row-major stream), itself quantised where `NAME.nested_absmax` is
there, and the block size, shape and kind as JSON in `NAME.quant_state.bitsandbytes__KIND`. Values are float32
products, not rounded afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.quantised.method import Fetch, Found, Packed, fit, nibbles, only, part
from glassformer.checkpoint.tensorfile import Entry
from glassformer.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")


# Names that a quantization_config may hold: read here, or of how the numbers were found and are multiplied.
KNOWN = frozenset(
    {
        "_load_in_4bit", "_load_in_8bit", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight",
        "llm_int8_skip_modules", "llm_int8_threshold", "load_in_4bit", "load_in_8bit",
    }
)  # fmt: skip


def method(settings: Mapping[str, Any], where: str) -> BitsAndBytes:
    """The method for a quantization_config."""
    only(settings, where, "bnb_4bit_quant_storage", "uint8")
    return BitsAndBytes()


@dataclass(frozen=True)
class BitsAndBytes:
    """Rows of int8, or blocks of 4-bit codes for 16 values."""

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """See `Method.find`."""
        found: dict[str, Packed] = {}
        for name, entry in stored.items():
            stem = name.removesuffix("weight")
            if entry.dtype == "I8" and name.endswith("weight"):
                scales = part(stored, stem + "SCB", where)
                fit(len(entry.shape) == 2 and scales.shape in (entry.shape[:1],), where, stem + "SCB", scales.shape)
                spare = [extra for extra in (stem + "weight_format",) if extra in stored]
                found[name] = Packed(entry.shape, (name, stem + "SCB", *spare), _eight_bits(name, stem + "SCB"))
            elif entry.dtype == "U8" and f"{name}.quant_map" in stored:
                found[name] = self._four_bits(name, entry, stored, where)
        return Found(found)

    def _four_bits(self, name: str, entry: Entry, stored: Mapping[str, Entry], where: str) -> Packed:
        members = tuple(other for other in stored if other == name or other.startswith(f"{name}."))
        kind = next((kind for kind in _KINDS if f"{name}{_STATE}{kind}" in stored), None)
        if kind is None:
            raise CheckpointError(f"{where} holds {name} in 4 bits without its {name}{_STATE}nf4, which has its shape.")
        state = stored[f"{name}{_STATE}{kind}"]
        said = _state(state, where)
        shape: Shape = tuple(said["shape"])
        fit(math.prod(entry.shape) == -(-math.prod(shape) // 2), where, name, entry.shape)
        blocks = -(-math.prod(shape) // said["blocksize"])
        counts = {"absmax": blocks, "quant_map": 16}
        if "nested_blocksize" in said:
            counts |= {"nested_absmax": -(-blocks // said["nested_blocksize"]), "nested_quant_map": 256}
        for needed, count in counts.items():
            found = part(stored, f"{name}.{needed}", where)
            fit(math.prod(found.shape) == count, where, f"{name}.{needed}", found.shape)
        return Packed(shape, members, _four_bit_values(name, said))


def _state(entry: Entry, where: str) -> dict[str, Any]:
    """The JSON that lies in a tensor of bytes; small, and needed for shapes before anything else is read."""
    try:
        assert entry.path is not None
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            found = json.loads(file.read(entry.end - entry.start))
        sizes = [found["blocksize"], found.get("nested_blocksize", 1), *found["shape"]]
        if all(type(n) is int and n > 0 for n in sizes):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        pass
    raise CheckpointError(f"{where} holds a broken quant_state of bitsandbytes; fetch the model again.")


def _eight_bits(name: str, scales: str) -> Any:
    def values(fetch: Fetch) -> Tensor:
        return fetch(name).float() * fetch(scales).float()[:, None] * (1 / 127)

    return values


def _four_bit_values(name: str, said: Mapping[str, Any]) -> Any:
    def values(fetch: Fetch) -> Tensor:
        absmax = fetch(f"{name}.absmax")
        if "nested_blocksize" in said:
            outer = fetch(f"{name}.nested_absmax").float().repeat_interleave(said["nested_blocksize"])[: len(absmax)]
            inner = fetch(f"{name}.nested_quant_map").float()[absmax.long()]
            absmax = inner * outer + float(said.get("nested_offset", 0.0))
        shape = tuple(said["shape"])
        codes = nibbles(fetch(name).flatten(), high_first=True)[: math.prod(shape)]
        scales = absmax.float().repeat_interleave(said["blocksize"])[: len(codes)]
        return (fetch(f"{name}.quant_map").float()[codes.long()] * scales).reshape(shape)

    return values
