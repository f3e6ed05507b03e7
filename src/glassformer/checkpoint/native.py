"""The native layout: a folder with ``glassformer.json`` and ``model.safetensors``, for any valid design.

``glassformer.json`` holds the format's version and the Config; the tensors have native keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.keys import Shape, native_shapes
from glassformer.checkpoint.tensorfile import (
    SIZES,
    Header,
    TensorFile,
    read_header,
    refuse_types,
    write_tensors,
)
from glassformer.errors import CheckpointError, ConfigError, UnsupportedError
from glassformer.model.config import Config
from glassformer.system import files

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.tokenizer.tokenizer import Tokenizer

CONFIG = "glassformer.json"
TENSORS = "model.safetensors"
VERSION = 2  # 2: a list of layers; 1 had one kind of layer, and is still read


def read_native_config(directory: Path) -> tuple[Config, dict[str, Any]]:
    """The design in a native folder, and everything else its ``glassformer.json`` says.

    Raises:
        CheckpointError: the file is missing, broken, or of a later version.
    """
    note = read_json(directory / CONFIG)
    version = note.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{directory / CONFIG} names no format version; it is not a native checkpoint.")
    if version > VERSION:
        raise UnsupportedError(
            f"{directory / CONFIG} has format {version}; this Glassformer reads up to {VERSION}. Install a newer one."
        )
    try:
        config = Config.from_dict(note.get("config"))  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"{directory / CONFIG} describes a model that cannot be built: {error}") from None
    return config, {key: value for key, value in note.items() if key not in ("format", "config")}


def native_header(directory: Path, config: Config) -> Header:
    """The header of a native folder's tensors, its names and shapes checked.

    Raises:
        CheckpointError: the file is missing or broken, or does not hold what the design calls for.
    """
    header = read_header(directory / TENSORS)
    shapes = native_shapes(config)
    check_shapes(shapes, {name: entry.shape for name, entry in header.tensors.items()}, str(directory / TENSORS))
    refuse_types(header, shapes)
    return header


def native_tensors(directory: Path, config: Config) -> Mapping[str, Tensor]:
    """The tensors of a native folder, mapped; raises as `native_header`."""
    file = TensorFile(native_header(directory, config))
    return LazyTensors(native_shapes(config), file.__getitem__)


def check_shapes(wanted: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Compares native keys and shapes with what a design calls for."""
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{where} lacks {name}, which its config calls for.")
        if tuple(found[name]) != shape:
            raise CheckpointError(
                f"{where} holds {name} with shape {tuple(found[name])}; its config calls for {shape}."
            )
    for name in found:
        if name not in wanted:
            raise CheckpointError(f"{where} holds {name}, which its config has no place for.")


def write_native(
    directory: str | Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: Tokenizer | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a native checkpoint; the config comes last, so a folder that has one is whole.

    Args:
        tensors: by native key, in float32, float16, bfloat16 or float64, written as they are.
        tokenizer: saved beside the weights; None for none.
        metadata: further entries of ``glassformer.json``.
    Raises:
        CheckpointError: tensors do not fit the design, or the folder cannot be written.
    """
    directory = Path(directory)
    shapes = native_shapes(config)
    check_shapes(
        shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "The checkpoint to be written"
    )
    write_tensors(directory / TENSORS, shapes, tensors.__getitem__, stored_types(tensors), {"layout": "glassformer"})
    if tokenizer is not None:
        tokenizer.save(directory)
    write_json(directory / CONFIG, {"format": VERSION, **(metadata or {}), "config": config.to_dict()})
    return directory


def stored_types(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The safetensors type that holds each tensor as it is.

    Raises:
        CheckpointError: a tensor is of another type.
    """
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    types = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise CheckpointError(f"{name} is of type {tensor.dtype}; checkpoints hold {', '.join(SIZES)}.")
        types[name] = names[tensor.dtype]
    return types


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON; the file is broken.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__} where a JSON object belongs; the file is broken.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    files.write_json(path, value, raises=CheckpointError)


class LazyTensors(Mapping[str, Any]):
    """Tensors by name, each made when asked for and kept by nobody."""

    def __init__(self, names: Iterable[str], fetch: Callable[[str], object]) -> None:
        self._names = dict.fromkeys(names)
        self._fetch = fetch

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._fetch(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
