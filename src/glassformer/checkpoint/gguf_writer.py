"""GGUF files that llama.cpp runs, in floats or blocks of 4 to 8 bits, written with the `gguf` package tensor by tensor.

A design is written only when reading the settings back gives the same computation; what llama.cpp
would compute differently is refused by name.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.families import FAMILIES, Family, named
from glassformer.checkpoint.families.family import expressible
from glassformer.checkpoint.families.settings import (
    FACTORS,
    factor_tensors,
    float32,
    named_factors,
    rotary_of,
    with_scaling,
)
from glassformer.checkpoint.keys import Shape, native_shapes
from glassformer.checkpoint.native import check_shapes
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError, near
from glassformer.model.config import Config, RopeScaling
from glassformer.system import files

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from torch import Tensor

    from glassformer.tokenizer.tokenizer import Tokenizer


class UnlikeWarning(UserWarning):
    """What llama.cpp computes of a file is not quite what the design says."""


_UNUSED = 5  # the token type of a row that no text reaches


def write_gguf(
    file: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer | None = None,
    *,
    family: str | None = None,
    dtype: str = "float16",
    name: str | None = None,
) -> Path:
    """Writes a GGUF; it appears under its name only when it is whole.

    Args:
        tensors: by native key.
        tokenizer: written as the ``tokenizer.*`` settings; None writes a model without one.
        family: whose architecture; None for the first that expresses the design.
        dtype: of the matrices, one of `gguf_blocks.KINDS`: "float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_k" or
            "q6_k"; norms, biases, routers and positions are float32 always. Of four bits, embedding and unembedding
            have six; rows that no such blocks fit take the next larger kind.
        name: what the file calls the model.
    Raises:
        UnsupportedError: the design, or a matrix's values in float16, cannot be expressed; by name.
        CheckpointError: tensors do not fit the design, or the file cannot be written.
        TokenizerError: GGUF has no word for what the tokenizer does.
    """
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter
    from gguf.constants import GGML_QUANT_VERSION

    from glassformer.checkpoint.gguf_blocks import KINDS

    file = Path(file)
    if dtype not in KINDS:
        raise UnsupportedError(f"A GGUF is written in {', '.join(KINDS)}; not in {dtype!r}.{near(dtype, KINDS)}")
    chosen = named(family) if family else gguf_family(config)
    layout = chosen.gguf
    if layout is None:
        raise UnsupportedError(f"There is no GGUF architecture for {chosen.name} here; export it with --to hf.")
    folded = layout.fold(config)
    if folded.unlike:
        warnings.warn(folded.unlike, UnlikeWarning, stacklevel=2)
    config, tensors = folded.config, folded.tensors(tensors)
    table, settings = gguf_settings(chosen, config)
    check_shapes(
        native_shapes(config), {n: tuple(tensor.shape) for n, tensor in tensors.items()}, "The checkpoint to be written"
    )
    name = name or file.stem
    fields = _vocabulary(tokenizer, config.vocab_size, name)
    factors = factor_tensors(config)

    class Writer(GGUFWriter):
        def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
            if vtype is GGUFValueType.ARRAY and not val:  # a byte tokenizer has no merges, and must say so
                return struct.pack("<IIQ", GGUFValueType.ARRAY, GGUFValueType.STRING, 0)
            return super()._pack_val(val, vtype, add_vtype, sub_type)

    with files.atomic(file, raises=CheckpointError) as temporary:
        architecture = layout.name(config)
        writer = Writer(temporary, architecture)
        try:
            writer.add_string("general.type", "model")
            writer.add_string("general.name", name)
            writer.add_uint32("general.file_type", KINDS[dtype][2])
            writer.add_uint32("general.quantization_version", GGML_QUANT_VERSION)
            for key, value in settings.items():
                _add(writer, f"{architecture}.{key}", value)
            _add(writer, f"{architecture}.vocab_size", config.vocab_size)
            for key, value in fields.items():
                _add(writer, key, value)
            for row in layout.rows:
                if row.setting and (held := _numbers(row, config, tensors)):
                    _add(writer, row.setting, held)
            places = {name: place for name, place in table.places.items() if not place.row.setting}
            kinds = {name: _kind(name, place.shape, dtype) for name, place in places.items()}
            for factor_name, values in factors.items():
                writer.add_tensor_info(factor_name, (len(values),), np.dtype("float32"), 4 * len(values))
            for name, place in places.items():
                kind = GGMLQuantizationType[kinds[name]]
                width, size = GGML_QUANT_SIZES[kind]
                shape = (*place.shape[:-1], place.shape[-1] // width * size)
                plain = {"F32": "float32", "F16": "float16"}.get(kinds[name])
                if plain:
                    writer.add_tensor_info(name, place.shape, np.dtype(plain), math.prod(shape))
                else:
                    writer.add_tensor_info(name, shape, np.dtype("uint8"), math.prod(shape), kind)
            zeros = {} if layout.zeros is None else layout.zeros(config)
            for zero_name, shape in zeros.items():
                writer.add_tensor_info(zero_name, shape, np.dtype("float32"), 4 * math.prod(shape))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for values in factors.values():
                writer.write_tensor_data(np.array(values, np.float32))
            for name in places:
                writer.write_tensor_data(_stored(table, name, tensors, kinds[name]))
            for shape in zeros.values():
                writer.write_tensor_data(np.zeros(shape, np.float32))
        finally:
            writer.close()
    return file


def gguf_family(config: Config) -> Family:
    """The first family whose GGUF architecture expresses a design.

    Raises:
        UnsupportedError: none does; the message says what stands in the way of each.
    """
    reasons: dict[str, str] = {}
    for family in FAMILIES.values():
        if family.gguf is None or family.gguf.architecture in reasons:
            continue
        try:
            gguf_settings(family, family.gguf.fold(config).config)
            return family
        except UnsupportedError as error:
            reasons[family.gguf.architecture] = str(error)
    raise UnsupportedError("No GGUF architecture expresses this design. " + " ".join(reasons.values()))


def gguf_settings(family: Family, config: Config) -> tuple[Table, dict[str, Any]]:
    """The tensor table and the settings (without prefix) of a design in a family's architecture.

    Raises:
        UnsupportedError: naming what the architecture has no place for.
    """
    layout = family.gguf
    assert layout is not None
    architecture = layout.name(config)
    what = f"A GGUF of architecture {architecture}"
    tensors = factor_tensors(config)
    stored: RopeScaling | None = None
    if tensors:
        scaling = rotary_of(config, window=False).scaling
        assert scaling is not None
        if not layout.factors:
            raise UnsupportedError(f"{what} cannot express rotary scaling {scaling.kind!r}.")
        stored = RopeScaling("factors", factors=tensors[FACTORS]) if FACTORS in tensors else scaling
        if scaling.kind == "proportional":
            stored = named_factors(config, tensors[FACTORS]) or scaling
        if scaling.kind == "longrope" and not math.isclose(
            scaling.factor, config.context / scaling.original_context, rel_tol=1e-6
        ):
            raise UnsupportedError(f"{what} has no place for a stretch other than its context over the original one.")
    plain = config if stored is None else with_scaling(config, stored)
    table = Table(layout.rows, config)
    if table.unplaced():
        raise UnsupportedError(f"{what} has no tensor for {', '.join(table.unplaced()[:3])}.")
    settings: dict[str, Any] = {}

    def read_back() -> Config:
        settings.update({key: float32(value) for key, value in layout.write(config).items()})
        shapes: dict[str, Shape] = {name: place.shape for name, place in table.places.items()}
        prefixed = {f"{architecture}.{key}": value for key, value in settings.items()}
        back = layout.read(Attributes(prefixed, "its header", f"{architecture}."), shapes)
        return back if stored is None else with_scaling(back, stored)

    expressible(plain, read_back, what, tolerance=1e-6)
    return table, settings


def _numbers(row: Row, config: Config, tensors: Mapping[str, Tensor]) -> list[float]:
    """The numbers of all layers that a setting holds in the place of tensors."""
    keys = (row.ours[0].replace("{i}", str(i)) for i in range(config.n_layers))
    return [float(tensors[key]) for key in keys if key in tensors]


def _vocabulary(tokenizer: Tokenizer | None, vocab_size: int, name: str) -> dict[str, Any]:
    """The settings of the tokenizer and of sampling, with a name for every row of the embedding."""
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    fields = {
        key: value
        for key, value in tokenizer.gguf_fields(name).items()
        if key.startswith(("tokenizer.", "general.sampling."))
    }
    tokens = fields.get("tokenizer.ggml.tokens", [])
    missing = vocab_size - len(tokens)
    if missing < 0:
        raise CheckpointError(
            f"The tokenizer has {len(tokens):,} tokens and the model {vocab_size:,}; they do not belong together."
        )
    if missing:
        fields["tokenizer.ggml.tokens"] = [*tokens, *(f"[PAD{len(tokens) + i}]" for i in range(missing))]
        for key, filler in (("token_type", _UNUSED), ("scores", 0.0)):
            if (values := fields.get(f"tokenizer.ggml.{key}")) is not None:
                fields[f"tokenizer.ggml.{key}"] = [*values, *[filler] * missing]
    return fields


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    from gguf import GGUFValueType

    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int) and key.startswith("general.sampling."):
        writer.add_int32(key, value)  # llama.cpp looks for this type there
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, (list, tuple)):
        writer.add_key_value(key, list(value), GGUFValueType.ARRAY)
    else:
        raise CheckpointError(f"The setting {key} is a {type(value).__name__}, which GGUF does not hold.")


# What llama.cpp wants in float32 whatever the others are in, vectors apart.
_FULL = (
    *("_norm.weight", "position_embd.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight"),
    *("ssm_conv1d.weight", "ssm_conv1d_q.weight", "ssm_conv1d_k.weight", "ssm_conv1d_v.weight"),
    *("shortconv.conv.weight", "indexer.proj.weight"),
)


def _always_full(name: str, shape: Shape) -> bool:
    """Whether llama.cpp wants a tensor in float32 whatever the others are in."""
    return len(shape) == 1 or name.endswith(_FULL) or not name.endswith(".weight")


def _kind(name: str, shape: Shape, dtype: str) -> str:
    """The kind of block that a tensor is stored in."""
    from glassformer.checkpoint.gguf_blocks import KINDS, fitting

    if _always_full(name, shape):
        return "F32"
    matrices, outside, _ = KINDS[dtype]
    return fitting(outside if name in ("token_embd.weight", "output.weight") else matrices, shape[-1])


def _stored(table: Table, name: str, tensors: Mapping[str, Tensor], kind: str) -> np.ndarray:
    import torch

    from glassformer.checkpoint.gguf_blocks import packed

    with torch.no_grad():
        # float32 first: what is added to norms would be rounded away in half precision
        values = table.theirs(name, lambda key: tensors[key].detach().to("cpu", torch.float32)).contiguous()
        if kind == "F16":
            half = values.to(torch.float16)
            if not torch.isfinite(half).all() and torch.isfinite(values).all():
                raise UnsupportedError(f"{name} holds values beyond float16's 65,504; write the GGUF in float32.")
            return half.numpy()
    return packed(values.numpy(), kind)
