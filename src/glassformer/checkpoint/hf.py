"""Hugging Face folders: config.json and one or many safetensors files, read and written.

Weights are mapped in the type they are stored in. Pickled weights (.bin, .pt, .pth, .ckpt) are refused:
reading them runs code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.families import Family, by_model_type, for_config, named
from glassformer.checkpoint.hf_tensors import StoredTensors
from glassformer.checkpoint.keys import Shape, native_shapes
from glassformer.checkpoint.native import LazyTensors, check_shapes, read_json, write_json
from glassformer.checkpoint.quantised import Method, method_for
from glassformer.checkpoint.tensorfile import SIZES, Header, read_header, write_tensors
from glassformer.checkpoint.unread import without
from glassformer.errors import CheckpointError, UnsafeFileError, UnsupportedError
from glassformer.model.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SHARD = 5_000_000_000


@dataclass(frozen=True)
class HuggingFace:
    """A Hugging Face folder understood: settings, family, design, table, and which file holds what."""

    directory: Path
    settings: dict[str, Any]
    family: Family
    config: Config
    table: Table | None
    stored: StoredTensors | None
    ignored: tuple[str, ...] = ()

    def tensors(self) -> Mapping[str, Tensor]:
        """Every parameter by native key, mapped when asked for."""
        table, stored = self.table, self.stored
        assert table is not None  # only a folder read without weights has none
        assert stored is not None
        return LazyTensors(table.homes, lambda key: table.ours(key, stored.fetch))


def refuse_pickled(path: Path) -> None:
    """Refuses a weights file that only unpickling could read.

    Raises:
        UnsafeFileError: with the way to convert it.
    """
    if path.suffix.lower() in PICKLED:
        raise UnsafeFileError(
            f"{path} is a pickled file, and reading one can run any code it carries, so Glassformer never does. "
            "If you trust it, load it once with transformers and save it again: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder, safe_serialization=True)."
        )


def read_hf(directory: Path, *, weights: bool = True, ignore: Collection[str] = ()) -> HuggingFace:
    """Understands a Hugging Face folder from config.json and the headers of its safetensors files.

    Args:
        weights: False for the design alone; the folder then needs no weights.
        ignore: keys of config.json that are taken for absent.
    Raises:
        CheckpointError: files are missing, broken, or do not fit one another.
        UnsupportedError: the model is of a family, or has a setting, that Glassformer cannot express.
        UnsafeFileError: the weights are there only as a pickled file.
    """
    settings, ignored = without(read_json(directory / CONFIG), ignore, str(directory / CONFIG))
    family = by_model_type(settings, str(directory / CONFIG))
    method = method_for(settings, str(directory / CONFIG)) if weights else None
    config = family.from_hf(_floats(settings), str(directory / CONFIG))
    if not weights:
        # Weights that are not all there, or not sound, say nothing about the design.
        with contextlib.suppress(CheckpointError):
            config = _truly_tied(family, config, _stored(directory, None)) if config.tied else config
        return HuggingFace(directory, settings, family, config, None, None, ignored)
    stored = _stored(directory, method)
    config = _truly_tied(family, config, stored)
    table = family.table(config, stored)
    spare = [*family.ignored, *([r"(^|\.)(lm_head|embed_out)\.weight$"] if config.tied else [])]
    table.check(stored, spare, str(directory))
    stored.refuse_types(table.places)
    if family.implied is not None:
        _check_implied(family, config, stored, table, directory)
    return HuggingFace(directory, settings, family, config, table, stored, ignored)


def _check_implied(family: Family, config: Config, stored: StoredTensors, table: Table, directory: Path) -> None:
    """Compares stored buffers that are computed again with what they must hold, within what storing may round.

    Raises:
        UnsupportedError: one holds something else, with which the model would answer otherwise.
    """
    import torch

    assert family.implied is not None
    for name, shape in stored.items():
        if name in table.places or (wanted := family.implied(config, name, shape)) is None:
            continue
        found = stored.fetch(name).double()
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=2**-8, atol=1e-6):
            raise UnsupportedError(
                f"{directory} stores other numbers in {name} than its config.json implies, and Glassformer computes "
                f"with those that it implies; of {family.name} only such files are read."
            )


def _floats(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the same model before it was quantised, which is all that a family knows of."""
    plain = {k: v for k, v in settings.items() if k not in ("quantization_config", "compression_config")}
    inner = plain.get("text_config")
    return plain | {"text_config": _floats(inner)} if isinstance(inner, dict) else plain


def _stored(directory: Path, method: Method | None) -> StoredTensors:
    """The tensors of a folder, whichever of its files holds them."""
    files: dict[str, Header] = {}
    for header in _headers(directory):
        for name in header.tensors:
            if name in files:
                raise CheckpointError(
                    f"{directory} holds {name} in both {files[name].path.name} and {header.path.name}."
                )
            files[name] = header
    return StoredTensors(files, method, str(directory))


def _headers(directory: Path) -> list[Header]:
    if (directory / SINGLE).exists():
        return [read_header(directory / SINGLE)]
    if not (directory / INDEX).exists():
        for path in sorted(directory.iterdir(), key=lambda path: ("model" not in path.name, path.name)):
            refuse_pickled(path)
        raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}; there are no weights to read.")
    places = read_json(directory / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{directory / INDEX} has no weight_map from tensor names to files.")
    headers = []
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{directory / INDEX} names the file {name!r}, which is outside its folder.")
        refuse_pickled(directory / name)
        headers.append(read_header(directory / name))
    held = {name: header.path.name for header in headers for name in header.tensors}
    for name, file in places.items():
        if held.get(name) != file:
            raise CheckpointError(
                f"{directory / INDEX} says {name} is in {file}, and it is not; fetch the model again."
            )
    return headers


def _truly_tied(family: Family, config: Config, stored: StoredTensors) -> Config:
    """Where a config says tied and the file holds a different output matrix, the file is right, as in transformers."""
    if not config.tied:
        return config
    untied = dataclasses.replace(config, tied=False)
    homes = family.table(untied, stored).homes
    (embed, _), (unembed, _) = homes["embed.weight"], homes["unembed.weight"]
    if embed.theirs not in stored or unembed.theirs not in stored:
        return config
    return config if _same_bytes(stored, embed.theirs, unembed.theirs) else untied


def _same_bytes(stored: StoredTensors, one: str, other: str) -> bool:
    if one in stored.packed or other in stored.packed:
        return False
    a, b = stored.entries[one], stored.entries[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape) or a.path is None or b.path is None:
        return False
    with a.path.open("rb") as first, b.path.open("rb") as second:
        first.seek(a.start), second.seek(b.start)
        left = a.end - a.start
        while left:
            size = min(left, 1 << 22)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def write_hf(
    directory: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    tokenizer: Tokenizer | None = None,
    *,
    family: str | None = None,
    dtype: str | None = None,
    shard: int = _SHARD,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder that transformers, vLLM and their friends load as it is.

    Args:
        tensors: by native key.
        tokenizer: saved beside the weights; None for none.
        family: which family's layout; None for the first that expresses the design.
        dtype: "float32", "float16" or "bfloat16"; None keeps the type of the embedding.
        shard: bytes above which the weights are split over several files.
        generation: settings of generation_config.json over those that come with the tokenizer.
    Raises:
        UnsupportedError: no family's layout, or not this one's, expresses the design; by name.
        CheckpointError: tensors do not fit the design, or the folder cannot be written.
    """
    import torch

    directory = Path(directory)
    chosen = named(family) if family else for_config(config)
    settings = chosen.to_hf(config)
    check_shapes(
        native_shapes(config), {n: tuple(tensor.shape) for n, tensor in tensors.items()}, "The checkpoint to be written"
    )
    types = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    dtype = dtype or str(tensors["embed.weight"].dtype).removeprefix("torch.")
    if dtype not in types:
        raise UnsupportedError(f"A Hugging Face folder is written in {', '.join(types)}; not in {dtype}.")
    table = chosen.table(config)
    shapes = {name: place.shape for name, place in table.places.items()}
    if table.unplaced():
        raise UnsupportedError(f"The layout of {chosen.name} has no tensor for {', '.join(table.unplaced()[:3])}.")
    # Said even when unknown: the defaults of transformers' classes belong to other models' vocabularies.
    unknown = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    ends = {"bos_token_id": getattr(tokenizer, "bos_id", None), "eos_token_id": getattr(tokenizer, "end_ids", None)}
    known = {name: ids for name, ids in ends.items() if ids is not None}
    files = _split(shapes, SIZES[types[dtype]], shard)
    with torch.no_grad():
        for file, names in files.items():
            write_tensors(
                directory / file,
                {name: shapes[name] for name in names},
                lambda name: table.theirs(name, tensors.__getitem__),
                types[dtype],
            )
    if len(files) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * SIZES[types[dtype]]
        places = {name: file for file, names in files.items() for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    if tokenizer is not None:
        tokenizer.save(directory)
    if generation is not None:
        said = directory / "generation_config.json"
        write_json(said, {**(read_json(said) if said.exists() else {}), **generation})
    write_json(directory / CONFIG, {**unknown, **settings, **known, "torch_dtype": dtype, "use_cache": True})
    return directory


def _split(shapes: Mapping[str, Shape], width: int, limit: int) -> dict[str, list[str]]:
    """Tensors by file, in order, each file at most ``limit`` bytes unless one tensor alone is more."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        more = math.prod(shape) * width
        if groups[-1] and size + more > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}
