"""Safetensors files: the header read and checked without torch, tensors mapped, files written as they come.

The header is checked here before any library maps the file, so that a truncated or lying file is
one sentence. Writing is a stream of one tensor at a time, so that a model larger than memory can
be converted; a file appears under its name only when it is whole. It knows no key and no config.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.keys import Shape
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.system import files, sealed

if TYPE_CHECKING:
    from torch import Tensor

# Bytes of one value; the types a parameter of ours may be stored in.
SIZES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_OTHER = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_OTHER |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_ALIGNMENT = 64  # of the first value, for vector loads straight from the mapping
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: stored type, shape, where its bytes begin and end, and in which file."""

    dtype: str
    shape: Shape
    start: int
    end: int
    path: Path | None = None


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds, checked against its size."""

    path: Path
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        CheckpointError: the file is not one, is truncated, or its header contradicts it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
                raise CheckpointError(
                    f"{path} is not a whole safetensors file: its header would be {length:,} bytes of {size:,}. "
                    "Fetch it again."
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file: its header is not a JSON object.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a safetensors header whose __metadata__ is not an object of texts.")
    entries = {name: _entry(path, name, item, 8 + length, size) for name, item in header.items()}
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise CheckpointError(f"{path} has a lying header: {name} does not begin where the tensor before it ends.")
        end = entry.end
    if end != size:
        raise CheckpointError(f"{path} has {size:,} bytes where its header describes {end:,}; fetch it again.")
    return Header(path, entries, metadata)


def _entry(path: Path, name: str, item: Any, base: int, size: int) -> Entry:
    try:
        dtype, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        sound = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, start, end)) and start <= end
    except (TypeError, KeyError, ValueError):
        sound, dtype, shape, start, end = False, None, (), 0, 0
    width = SIZES.get(dtype) or _OTHER.get(dtype) if isinstance(dtype, str) else None
    if not sound:
        raise CheckpointError(f"{path} has a broken header: {name} has no sound dtype, shape and data_offsets.")
    if width is None:
        raise UnsupportedError(f"{path} stores {name} as {dtype!r}; Glassformer reads {', '.join(SIZES)}.")
    if math.prod(shape) * width != end - start:
        raise CheckpointError(
            f"{path} has a lying header: {name} of shape {shape} in {dtype} takes {math.prod(shape) * width:,} bytes, "
            f"not {end - start:,}."
        )
    if base + end > size:
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {base + end:,} of a file of {size:,} bytes. Fetch it again."
        )
    return Entry(dtype, shape, base + start, base + end, path)


class TensorFile:
    """A safetensors file whose tensors are mapped when asked for: nothing is read before it is used."""

    def __init__(self, header: Header):
        self.header = header
        self._handle: Any = None

    def __getitem__(self, name: str) -> Tensor:
        if self._handle is None:
            from safetensors import SafetensorError, safe_open

            try:
                self._handle = safe_open(self.header.path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{self.header.path} cannot be mapped: {error}.") from None
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


def packed(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> bytes:
    """A safetensors file of tensors and what is told of them, with a checksum of both, for `unpacked`."""
    from safetensors.torch import save

    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(here, {"told": json.dumps({**told, "sha256": _checksum(save(here), told)}, ensure_ascii=False)})


def unpacked(path: str | Path, form: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is told, and the tensors, of a file that `packed` made.

    Args:
        form: the `format` that must be told.
        what: it is, for messages.

    Raises:
        CheckpointError: it is none, of another format, or not as it was saved.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = Path(path).read_bytes()
        tensors, metadata = load(data), read_header(Path(path)).metadata
        told = json.loads(metadata.get("told", "{}"))
    except (OSError, ValueError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"{path} is no readable {what} ({files.reason(error)}).") from None
    if not isinstance(told, dict) or told.get("format") != form:
        raise CheckpointError(f"{path} is not of the format {form}.")
    if told.pop("sha256", None) != _checksum(data, told):
        raise CheckpointError(f"{path} does not match the checksum it was saved with.")
    return told, tensors


def _checksum(file: bytes, told: Mapping[str, Any]) -> str:
    """Of the values in a safetensors file and what is told of them."""
    return files.sha256_of(file[8 + int.from_bytes(file[:8], "little") :] + sealed.checksum(told).encode())


def refuse_types(header: Header, names: Iterable[str]) -> None:
    """Refuses tensors stored in a type no parameter of ours has, such as packed integers."""
    for name in names:
        entry = header.tensors.get(name)
        if entry is not None and entry.dtype not in SIZES:
            raise UnsupportedError(
                f"{header.path} stores {name} as {entry.dtype}, a quantised form Glassformer does not read; "
                "use the model's float release, or a .gguf of it."
            )


def write_tensors(
    path: Path,
    shapes: Mapping[str, Shape],
    fetch: Callable[[str], Tensor],
    dtype: str | Mapping[str, str] = "F32",
    metadata: Mapping[str, str] | None = None,
    step: Callable[[int], None] | None = None,
) -> None:
    """Writes a safetensors file one tensor at a time; it appears under ``path`` only when whole.

    Args:
        shapes: every tensor's name and shape, in the order they are written.
        fetch: gives each tensor, in any float type; it is converted to ``dtype``.
        dtype: "F32", "F16", "BF16" or "F64" for all, or by name.
        step: called with the bytes written after each tensor.
    """
    import torch

    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, shape in shapes.items():
        kind = dtype if isinstance(dtype, str) else dtype[name]
        size = math.prod(shape) * SIZES[kind]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with files.atomic(path, raises=CheckpointError) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = fetch(name)
            if tuple(tensor.shape) != tuple(shape):
                raise CheckpointError(f"{name} has shape {tuple(tensor.shape)} where {tuple(shape)} was to be written.")
            values = tensor.detach().to(device="cpu", dtype=types[header[name]["dtype"]]).contiguous()
            data = values.reshape(-1).view(torch.uint8).numpy()
            file.write(data.data)
            if step is not None:
                step(data.nbytes)
