"""The header of a GGUF file: its settings and where its tensors lie, every size checked against the file.

Written out here because the header is read at every start: the `gguf` package takes two seconds
for a vocabulary of 50,000 and silently shortens what a truncated file lacks. The numbers inside
the tensors stay that package's business (`gguf.quants`).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Imports neither torch nor numpy.
"""

from __future__ import annotations

import functools
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Any

from glassformer.checkpoint.keys import Shape
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.fetch.gguf_parts import paths_of

_VERSIONS = (2, 3)
_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# ggml type: (name, values in a block, bytes of a block)
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor of a GGUF: its ggml type, its shape (rows first, as ours), its bytes' place, and in which file."""

    kind: str
    shape: Shape
    start: int
    end: int
    path: Path

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return (self.end - self.start) // max(rows, 1)


@dataclass(frozen=True)
class GgufHeader:
    """Settings by name (arrays as lists) and tensors by name."""

    path: Path
    version: int
    settings: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors by name, rows first."""
        return {name: stored.shape for name, stored in self.tensors.items()}


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file, versions 2 and 3; the last one read is remembered while its file does not change.

    Of a file that was split, any part stands for the whole: the settings of the first and the tensors of all.

    Raises:
        CheckpointError: the file is not a GGUF, is truncated, or lies about its sizes, or a part is missing.
        UnsupportedError: another version, the other byte order, or an unknown tensor type.
    """
    return _whole(tuple(_state(part) for part in paths_of(path)) if is_split(path) else (_state(path),))


def is_split(path: Path) -> bool:
    """Whether a file is one of several parts, by its name and by what it says."""
    return len(paths_of(path)) > 1 and _read(*_state(path)).settings.get("split.count", 1) not in (0, 1)


def _state(path: Path) -> tuple[Path, int, int]:
    """A file's name, its size and its time of change."""
    try:
        status = path.stat()
    except OSError as error:
        parts = len(paths_of(path)) if error.errno == ENOENT else 1
        beside = f" The model is split into {parts} files; fetch them all." if parts > 1 else ""
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).{beside}") from None
    return path, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _whole(states: tuple[tuple[Path, int, int], ...]) -> GgufHeader:
    """One header of one file or of all parts of one."""
    first, *others = [_read(*state) for state in states]
    count = first.settings.get("split.count", 1)
    if count not in (0, len(states)):
        raise CheckpointError(
            f"{first.path} is one of {count} parts, and its name does not say so: ...-00001-of-00002.gguf is the first "
            "of two. Give the parts the names that they were published under."
        )
    tensors = dict(first.tensors)
    for number, part in enumerate(others, 1):
        if (part.settings.get("split.no"), part.settings.get("split.count")) != (number, count):
            raise CheckpointError(f"{part.path} is not part {number + 1} of {count}, as its name says; fetch it again.")
        if doubled := tensors.keys() & part.tensors.keys():
            raise CheckpointError(f"{part.path} holds {min(doubled)}, which another part holds too.")
        tensors |= part.tensors
    said = first.settings.get("split.tensors.count", len(tensors))
    if said != len(tensors):
        raise CheckpointError(
            f"{first.path} and its parts hold {len(tensors)} tensors instead of {said}; fetch them again."
        )
    return GgufHeader(first.path, first.version, first.settings, tensors)


@functools.lru_cache(maxsize=8)  # a start asks for the design, the tokenizer and the tensors, in three places
def _read(path: Path, size: int, changed: int) -> GgufHeader:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] != b"GGUF":
                raise CheckpointError(f"{path} is not a GGUF file: it begins with {start[:4]!r} instead of b'GGUF'.")
            version = int.from_bytes(start[4:], "little")
            if version not in _VERSIONS:
                if version and version & 0xFFFF == 0:
                    raise UnsupportedError(
                        f"{path} is a GGUF for big-endian machines, which Glassformer does not read."
                    )
                raise UnsupportedError(f"{path} is a GGUF of version {version}; Glassformer reads versions 2 and 3.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header(version)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None


class _Reader:
    """Walks the header; every step knows how many bytes are left."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.size, self.at = path, data, len(data), 8

    def header(self, version: int) -> GgufHeader:
        n_tensors, n_settings = self.scalar("Q"), self.scalar("Q")
        if n_tensors * 24 + n_settings * 13 > self.size:
            raise self.truncated(f"{n_tensors:,} tensors and {n_settings:,} settings")
        settings: dict[str, Any] = {}
        for _ in range(n_settings):
            name = self.string()
            if name in settings:
                raise CheckpointError(f"{self.path} sets {name!r} twice; it is broken.")
            settings[name] = self.value(self.scalar("I"), 0)
        alignment = settings.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.path} sets general.alignment to {alignment!r}, which is no power of two.")
        found = [self.tensor() for _ in range(n_tensors)]
        base = (self.at + alignment - 1) // alignment * alignment
        tensors: dict[str, Stored] = {}
        for name, kind, shape, offset, size in found:
            if name in tensors:
                raise CheckpointError(f"{self.path} holds {name!r} twice; it is broken.")
            if base + offset + size > self.size:
                raise self.truncated(f"{name}, which ends at byte {base + offset + size:,}")
            tensors[name] = Stored(kind, shape, base + offset, base + offset + size, self.path)
        return GgufHeader(self.path, version, settings, tensors)

    def tensor(self) -> tuple[str, str, Shape, int, int]:
        name, n_dims = self.string(), self.scalar("I")
        if not 1 <= n_dims <= 4:
            raise CheckpointError(f"{self.path} gives {name!r} {n_dims} dimensions; it is broken.")
        shape = tuple(reversed([self.scalar("Q") for _ in range(n_dims)]))
        number, offset = self.scalar("I"), self.scalar("Q")
        if number not in TYPES:
            raise UnsupportedError(
                f"{self.path} stores {name!r} as ggml type {number}, which Glassformer does not know."
            )
        kind, block, width = TYPES[number]
        if shape[-1] % block:
            raise CheckpointError(
                f"{self.path} stores {name!r} as {kind} in rows of {shape[-1]}, no multiple of {block}."
            )
        values = 1
        for n in shape:
            values *= n
        return name, kind, shape, offset, values // block * width

    def value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            value = self.scalar(_SCALARS[kind])
            return _plain(value) if _SCALARS[kind] == "f" else value
        if kind != _ARRAY or depth > 2:
            raise CheckpointError(f"{self.path} holds a setting of unknown type {kind}; it is broken or too new.")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[inner])
            if count * width > self.size - self.at:
                raise self.truncated(f"an array of {count:,} numbers")
            values = list(struct.unpack_from(f"<{count}{_SCALARS[inner]}", self.data, self.at))
            self.at += count * width
            return values
        if count * 8 > self.size - self.at:
            raise self.truncated(f"an array of {count:,} items")
        return self.strings(count) if inner == _STRING else [self.value(inner, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """`string` many times: vocabularies are most of a header, so this loop is kept tight."""
        data, at, size, length = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        found: list[str] = []
        add: Callable[[str], None] = found.append
        try:
            for _ in range(count):
                end = at + 8 + length(data, at)[0]
                if end > size:
                    raise self.truncated("a text")
                add(data[at + 8 : end].decode())
                at = end
        except struct.error:
            raise self.truncated("an array of texts") from None
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path} holds a text that is not UTF-8; it is broken.") from None
        self.at = at
        return found

    def string(self) -> str:
        return self.strings(1)[0]

    def scalar(self, code: str) -> Any:
        try:
            (value,) = struct.unpack_from("<" + code, self.data, self.at)
        except struct.error:
            raise self.truncated("its header") from None
        self.at += struct.calcsize("<" + code)
        return value

    def truncated(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is truncated or lies about its sizes: {what} cannot fit in its {self.size:,} bytes. "
            "Fetch it again."
        )


def _plain(value: float) -> float:
    """The shortest decimal that is the same number in float32: 1e-05 rather than 9.999999747378752e-06."""
    stored = struct.pack("<f", value)
    for digits in range(6, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == stored:
            return short
    return value
