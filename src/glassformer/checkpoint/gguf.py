"""GGUF files: a design from the settings, and the stored blocks as they are, for engines that compute with them.

A GGUF means what llama.cpp computes from it. Weights in a data type of torch are `gguf_copy`'s.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.families import Family, GgufLayout, by_architecture
from glassformer.checkpoint.families.family import sound
from glassformer.checkpoint.families.settings import FACTORS, LONG, SHORT, named_factors, rotary_of, with_scaling
from glassformer.checkpoint.gguf_header import GgufHeader, read_gguf_header
from glassformer.checkpoint.gguf_tensors import Blocks, RawTensor
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Config, RopeScaling

if TYPE_CHECKING:
    pass

_NAMES = ("general.architecture", "general.name")
_IGNORED = (r"^rope_(freqs|factors_short|factors_long)\.weight$",)


@dataclass(frozen=True)
class Gguf:
    """A GGUF file understood: header, family, design, and the table of its tensors."""

    header: GgufHeader
    family: Family
    layout: GgufLayout
    config: Config
    table: Table
    numbers: Mapping[str, float]  # what settings hold in the place of tensors, by the names that the table has for it

    @property
    def metadata(self) -> dict[str, Any]:
        """The settings, without the long arrays of the tokenizer."""
        return {name: value for name, value in self.header.settings.items() if not isinstance(value, list)}


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The settings a tokenizer is built from: ``tokenizer.*``, ``general.sampling.*``, the architecture and
    the name; raises as `read_gguf`."""
    settings = read_gguf_header(path).settings
    return {k: v for k, v in settings.items() if k.startswith(("tokenizer.", "general.sampling.")) or k in _NAMES}


def read_gguf(path: Path) -> Gguf:
    """Understands a GGUF from its header alone: nothing is dequantised and torch is not imported.

    Raises:
        CheckpointError: it is broken or its tensors do not fit its settings.
        UnsupportedError: an architecture, a setting or a tensor type that Glassformer cannot express.
    """
    header = read_gguf_header(path)
    architecture = header.settings.get("general.architecture")
    family = by_architecture(architecture, str(path), header.settings)
    layout = family.gguf
    assert layout is not None
    attributes = Attributes(_uniform(header, layout.by_layer), str(path), f"{architecture}.")
    config = sound(lambda: _with_factors(layout.read(attributes, header.shapes), header), str(path))
    table, numbers = layout.table(config, header.shapes), _numbers(header, layout, config)
    further = header.settings.get(f"{architecture}.nextn_predict_layers", 0)
    beyond = range(config.n_layers, config.n_layers + (further if isinstance(further, int) else 0))
    found = {**header.shapes, **{name: table.places[name].shape for name in numbers}}
    table.check(found, (*_IGNORED, *layout.ignored, *(rf"^blk\.{i}\." for i in beyond)), str(path))
    return Gguf(header, family, layout, config, table, numbers)


def _numbers(header: GgufHeader, layout: GgufLayout, config: Config) -> dict[str, float]:
    """What settings hold layer by layer in the place of tensors; one number stands for all layers."""
    found = {}
    for row in layout.rows:
        said = header.settings.get(row.setting)
        values = said if isinstance(said, list) else [said] * config.n_layers
        for i, value in enumerate(values[: config.n_layers] if row.setting else ()):
            if isinstance(value, float):
                found[row.theirs.replace("{i}", str(i))] = value
    return found


def _uniform(header: GgufHeader, by_layer: tuple[str, ...]) -> dict[str, Any]:
    """The settings, with counts that are given layer by layer, and are the same in all, as one number."""
    settings = dict(header.settings)
    for name, value in settings.items():
        if isinstance(value, list) and name.endswith((".head_count", ".head_count_kv", ".feed_forward_length")):
            if not value or any(one != value[0] for one in value):
                if value and name.partition(".")[2] in by_layer:
                    continue
                raise UnsupportedError(f"{header.path} sets {name} layer by layer; Glassformer's layers are all alike.")
            settings[name] = value[0]
    return settings


def _with_factors(config: Config, header: GgufHeader) -> Config:
    """Adds the divisors of a ``rope_freqs`` tensor, which is how GGUF stores Llama 3's scaling."""
    there = [name for name in (FACTORS, SHORT, LONG) if name in header.tensors]
    if not there:
        return config
    scaling = _long(header, config) if SHORT in there or LONG in there else None
    if scaling is None:
        scaling = named_factors(config, _factors(header, FACTORS))
    if scaling is None:
        return config
    if rotary_of(config, window=False).scaling is not None:
        raise UnsupportedError(
            f"{header.path} holds {there[0]} and sets rope.scaling.type too; Glassformer expresses one of them."
        )
    return with_scaling(config, scaling)


def _factors(header: GgufHeader, name: str) -> tuple[float, ...]:
    """The divisors that a tensor holds."""
    stored = header.tensors.get(name)
    if stored is None:
        raise CheckpointError(f"{header.path} lacks {name}, which goes with {SHORT} and {LONG}; it is incomplete.")
    if stored.kind != "F32":
        raise UnsupportedError(f"{header.path} stores {name} as {stored.kind} instead of F32.")
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        data = file.read(stored.end - stored.start)
    factors = struct.unpack(f"<{len(data) // 4}f", data)
    if not all(0 < factor < math.inf for factor in factors):
        raise CheckpointError(f"{header.path} holds rotary divisors in {name} that are not positive numbers.")
    return factors


def _long(header: GgufHeader, config: Config) -> RopeScaling:
    """Divisors for short and for long texts (Phi-3)."""
    attributes = Attributes(header.settings, str(header.path), f"{header.settings.get('general.architecture')}.")
    original = attributes.integer("rope.scaling.original_context_length")
    return RopeScaling(
        "longrope",
        factor=config.context / original if original > 0 else 1.0,
        original_context=original,
        attention_factor=attributes.number("rope.scaling.attn_factor", 1.0),
        factors=_factors(header, SHORT),
        long_factors=_factors(header, LONG),
    )


def raw_blocks(path: str | Path) -> Mapping[str, RawTensor]:
    """Every parameter of a GGUF by native key, in the file's own blocks, mapped and made when asked for.

    Raises:
        CheckpointError: the GGUF is broken.
        UnsupportedError: it holds something Glassformer cannot express.
    """
    return Blocks(read_gguf(Path(path)))
