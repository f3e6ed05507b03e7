"""Weights in and out: Hugging Face folders, GGUF files, and the native layout, as one `Checkpoint`.

Opening reads headers only; tensors are mapped when asked for, under native keys. Nothing here
builds a model or a tokenizer, and importing it does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassformer.errors import CheckpointError, TokenizerError
from glassformer.model.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.checkpoint.design_table import Table
    from glassformer.checkpoint.gguf_copy import Dtype
    from glassformer.checkpoint.gguf_tensors import RawTensor
    from glassformer.checkpoint.gguf_writer import write_gguf
    from glassformer.checkpoint.hf import write_hf
    from glassformer.checkpoint.keys import Shape
    from glassformer.checkpoint.native import write_native
    from glassformer.tokenizer.tokenizer import Tokenizer

Format = Literal["hf", "gguf", "native"]

__all__ = [
    "Checkpoint",
    "open_checkpoint",
    "raw_blocks",
    "read_config",
    "tensor_shapes",
    "tokenizer_of",
    "write_gguf",
    "write_hf",
    "write_native",
]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Args:
        path: the folder or file.
        format: "hf", "gguf" or "native".
        family: the family whose layout it has, "native" for the native layout.
        config: the design.
        tensors: every parameter by native key, in its stored type, mapped when asked for.
        metadata: what the checkpoint says of itself besides: config.json, GGUF settings, or glassformer.json.
        ignored: keys of its config.json that were taken for absent, though they may change what it computes.
        adapters, changed: folders of the adapters in its weights, and the keys that they changed.
        at_hand: False of a GGUF whose tensors are dequantised when the first is asked for.
    """

    path: Path
    format: Format
    family: str
    config: Config
    tensors: Mapping[str, Tensor] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    adapters: tuple[Path, ...] = ()
    changed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    at_hand: bool = True

    def adapted(self, folders: Sequence[Path]) -> Checkpoint:
        """This checkpoint with adapters in PEFT's layout in its weights, one after another; itself without any.

        Raises:
            CheckpointError, UnsupportedError, UnsafeFileError: an adapter that is broken, of another kind, or for
                another model.
        """
        if not folders:
            return self
        from glassformer.checkpoint.adapter import adapted

        return adapted(self, folders)

    @property
    def tokenizer_source(self) -> tuple[Literal["directory"], Path] | tuple[Literal["gguf"], Mapping[str, Any]]:
        """What a tokenizer is built from: the folder, or the settings of a GGUF."""
        if self.format != "gguf":
            return "directory", self.path
        from glassformer.checkpoint.gguf import tokenizer_fields

        return "gguf", tokenizer_fields(self.path)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that comes with a checkpoint; the last adapter's, where one brought its own.

    Raises:
        TokenizerError: there is none, it is broken, or an adapter's has more tokens than the model.
    """
    from glassformer.tokenizer.tokenizer import Tokenizer

    place = checkpoint.tokenizer_source
    tokenizer = Tokenizer.from_gguf(place[1]) if place[0] == "gguf" else Tokenizer.from_directory(place[1])
    for folder in checkpoint.adapters:
        if not (folder / "tokenizer.json").is_file():
            continue
        own = Tokenizer.from_directory(folder)
        if own.vocab_size > checkpoint.config.vocab_size:
            raise TokenizerError(
                f"The adapter {folder} has a tokenizer of {own.vocab_size:,} tokens and the model has "
                f"{checkpoint.config.vocab_size:,}; it was trained for one with a larger vocabulary."
            )
        own.stop_ids |= tokenizer.stop_ids  # an adapter's folder has no generation_config.json
        if not own.generation.settings:
            own.generation = tokenizer.generation
        tokenizer = own
    return tokenizer


def open_checkpoint(
    path: str | Path,
    *,
    adapters: Sequence[Path] = (),
    ignore: Collection[str] = (),
    cache: Path | None = None,
    dtype: Dtype = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Opens a Hugging Face folder, a native folder (also a training run), or a .gguf file.

    Args:
        adapters: folders of adapters in PEFT's layout, which are put into the weights one after another.
        ignore: keys of a config.json that are read as if they were not there (`--ignore-key`).
        cache: where a GGUF's dequantised copy goes; None for the user's cache.
        dtype: what a GGUF is dequantised to.
        progress: called with (bytes written, bytes in all) while a GGUF is dequantised, which is when its first
            tensor is asked for.
    Raises:
        CheckpointError: the checkpoint is missing, broken, or lies about itself.
        UnsupportedError: it is sound and Glassformer cannot express it; what stands in the way is named.
        UnsafeFileError: its weights could only be read by unpickling.
    """
    if adapters:
        return open_checkpoint(path, ignore=ignore, cache=cache, dtype=dtype, progress=progress).adapted(adapters)
    path = Path(path)
    kind = format_of(path)
    if kind == "gguf":
        from glassformer.checkpoint.gguf_copy import opened

        copy = opened(path, cache, dtype, progress)
        return Checkpoint(path, kind, copy.family, copy.config, copy.tensors, copy.metadata, at_hand=copy.at_hand)
    if kind == "native":
        from glassformer.checkpoint.native import native_tensors, read_native_config

        config, metadata = read_native_config(path)
        return Checkpoint(path, kind, "native", config, native_tensors(path, config), metadata)
    from glassformer.checkpoint.hf import read_hf

    folder = read_hf(path, ignore=ignore)
    family = folder.family.name
    return Checkpoint(path, kind, family, folder.config, folder.tensors(), folder.settings, ignored=folder.ignored)


def read_config(path: str | Path) -> Config:
    """The design of a checkpoint, or of a bare config.json or glassformer.json; torch is not imported.

    Raises:
        CheckpointError, UnsupportedError: as `open_checkpoint`.
    """
    path = Path(path)
    if path.name in ("config.json", "glassformer.json"):
        path = path.parent
    kind = format_of(path)
    if kind == "gguf":
        from glassformer.checkpoint.gguf import read_gguf

        return read_gguf(path).config
    if kind == "native":
        from glassformer.checkpoint.native import read_native_config

        return read_native_config(path)[0]
    from glassformer.checkpoint.hf import read_hf

    return read_hf(path, weights=False).config


def tensor_shapes(path: str | Path) -> dict[str, Shape]:
    """Shapes of every parameter by native key, taken from the headers and checked against the design; no torch.

    Raises:
        CheckpointError, UnsupportedError, UnsafeFileError: as `open_checkpoint`.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "native":
        from glassformer.checkpoint.native import native_header, read_native_config

        header = native_header(path, read_native_config(path)[0])
        return {name: entry.shape for name, entry in header.tensors.items()}
    if kind == "gguf":
        from glassformer.checkpoint.gguf import read_gguf

        return _native(read_gguf(path).table)
    from glassformer.checkpoint.hf import read_hf

    table = read_hf(path).table
    assert table is not None  # weights were asked for
    return _native(table)


def _native(table: Table) -> dict[str, Shape]:
    from glassformer.checkpoint.keys import native_shapes

    shapes = native_shapes(table.config)
    return {key: shapes[key] for key in table.homes}


def format_of(path: Path) -> Format:
    """Which of the three formats lies at a path.

    Raises:
        CheckpointError: none.
        UnsafeFileError: a pickled file.
    """
    from glassformer.checkpoint.hf import refuse_pickled

    if path.is_dir():
        if (path / "glassformer.json").exists():
            return "native"
        if (path / "config.json").exists():
            return "hf"
        ggufs = sorted(path.glob("*.gguf"))
        hint = f" It holds {ggufs[0].name}: name that file instead." if ggufs else ""
        raise CheckpointError(f"{path} is a folder with neither config.json nor glassformer.json.{hint}")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    refuse_pickled(path)
    if path.suffix == ".gguf" or _begins(path, b"GGUF"):
        return "gguf"
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is weights without a config; name the folder that holds it and its config.json.")
    raise CheckpointError(
        f"{path} is no model Glassformer knows: a Hugging Face folder, a native folder or a .gguf file."
    )


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None


def raw_blocks(path: str | Path) -> Mapping[str, RawTensor]:
    """Every parameter of a GGUF by native key in the file's own blocks: see `gguf.raw_blocks`."""
    from glassformer.checkpoint.gguf import raw_blocks

    return raw_blocks(path)


_WRITERS = {"write_gguf": "gguf_writer", "write_hf": "hf", "write_native": "native"}


def __getattr__(name: str) -> Any:
    """The writers, imported when first used."""
    if name in _WRITERS:
        return getattr(importlib.import_module(f"glassformer.checkpoint.{_WRITERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
