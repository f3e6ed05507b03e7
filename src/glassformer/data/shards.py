"""Token shards: flat little-endian files that are mapped, never loaded, and checked as they are read.

A stream of tokens is written block by block, with a CRC-32 per block of 1 MiB, so that every byte is
verified once before it is used and nothing has to be read in advance. Documents are a file of int64
starts, loss masks a file of bits. This module knows nothing about texts or tokenizers.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import DataError
from glassformer.system import files

BLOCK = 1 << 20  # bytes per checksum
FILE = 1 << 27  # bytes per file
SMALL = 1 << 16  # bytes below which pieces are gathered before they are written
INDEX = "index.json"
"""What says how a folder's files are to be read; a folder without it is made anew."""


class BlockWriter:
    """Appends bytes to files `NAME-00000.bin`, … of a directory, with a checksum per block."""

    def __init__(self, directory: Path, name: str, file_bytes: int = FILE) -> None:
        self._directory, self._name, self._file_bytes = directory, name, file_bytes
        self._pending = bytearray()  # less than `SMALL`
        self._checks: list[int] = []
        self._size = 0
        self._file: Any = None

    def append(self, data: bytes | memoryview) -> None:
        """More bytes: large pieces go to the file as they are, small ones together."""
        if len(self._pending) + len(data) < SMALL:
            self._pending += data
            return
        self._write(self._pending)
        self._pending = bytearray()
        self._write(data)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                if self._size % self._file_bytes == 0:
                    self._close_file()
                    path = self._directory / f"{self._name}-{self._size // self._file_bytes:05}.bin"
                    self._file = path.open("wb", buffering=0)
                filled = self._size % BLOCK
                if filled == 0:
                    self._checks.append(0)
                with view[done : done + BLOCK - filled] as part:
                    written = self._file.write(part)
                    self._checks[-1] = zlib.crc32(part[:written], self._checks[-1])
                self._size += written
                done += written

    def _close_file(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def close(self) -> dict[str, Any]:
        """Write what is pending; returns the entry that `Blocks` opens."""
        self._write(self._pending)
        self._pending = bytearray()
        self._close_file()
        return {"name": self._name, "bytes": self._size, "file_bytes": self._file_bytes, "crc32": self._checks}

    def abandon(self) -> None:
        """Let go of the open file after a failure."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Blocks:
    """Bytes written by `BlockWriter`, mapped; a block is verified when it is first touched."""

    def __init__(self, directory: Path, entry: dict[str, Any]) -> None:
        self.bytes: int = int(entry["bytes"])
        self._file_bytes: int = int(entry["file_bytes"])
        self._paths: list[Path] = []
        self._maps: list[NDArray[np.uint8]] = []
        self._checks = np.array(entry["crc32"], dtype=np.uint32)
        self._sound = np.zeros(len(self._checks), dtype=bool)
        if len(self._checks) != -(-self.bytes // BLOCK):
            raise DataError(f"The index of {directory} does not fit its own sizes; delete that folder and run again.")
        for number, start in enumerate(range(0, self.bytes, self._file_bytes)):
            path = directory / f"{entry['name']}-{number:05}.bin"
            wanted = min(self._file_bytes, self.bytes - start)
            have = path.stat().st_size if path.exists() else -1
            if have != wanted:
                state = "is missing" if have < 0 else f"has {have} bytes instead of {wanted}"
                raise DataError(f"The token shard {path} {state}; delete its folder and run again to make it anew.")
            self._paths.append(path)
            self._maps.append(np.memmap(path, dtype=np.uint8, mode="r"))

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop), verified; a view of the map when they lie in one file.

        Raises:
            DataError: when a block's checksum is not the one it was written with.
        """
        if stop <= start:
            return np.empty(0, dtype=np.uint8)
        low, high = start // BLOCK, (stop - 1) // BLOCK + 1
        if not self._sound[low:high].all():
            self._verify(low, high)
        first, last = start // self._file_bytes, (stop - 1) // self._file_bytes
        if first == last:
            return self._maps[first][start - first * self._file_bytes : stop - first * self._file_bytes]
        parts = []
        for number in range(first, last + 1):
            base = number * self._file_bytes
            parts.append(self._maps[number][max(start - base, 0) : stop - base])
        return np.concatenate(parts)

    def _verify(self, low: int, high: int) -> None:
        for block in range(low, high):
            if self._sound[block]:
                continue
            number, offset = divmod(block * BLOCK, self._file_bytes)
            if zlib.crc32(self._maps[number][offset : offset + BLOCK].data) != self._checks[block]:
                files.remove(self._paths[number].with_name(INDEX))
                raise DataError(
                    f"The token shard {self._paths[number]} is damaged in its block at byte {offset}; run again, and "
                    "it is made anew from the data."
                )
            self._sound[block] = True

    def verify(self) -> None:
        """Check every block that has not been checked yet."""
        self._verify(0, len(self._checks))


class StreamWriter:
    """Writes one stream of tokens with its document starts and, once one is given, its loss mask."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype[np.integer], file_bytes: int = FILE) -> None:
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0
        self.name = name
        self._dtype = dtype
        self._directory, self._file_bytes = directory, file_bytes
        self._ids = BlockWriter(directory, name, file_bytes)
        self._starts = BlockWriter(directory, f"{name}-documents", file_bytes)
        self._origins = BlockWriter(directory, f"{name}-origins", file_bytes)
        self._mask: BlockWriter | None = None
        self._bits = np.empty(0, dtype=np.uint8)

    def open_document(self, source: int = 0, line: int = 0) -> None:
        """The next token begins a document: of the source with this number, at this line (0: all of it)."""
        self._origins.append(np.array([source << 40 | line], dtype="<i8").tobytes())
        self._starts.append(np.array([self.tokens], dtype="<i8").tobytes())
        self.documents += 1

    def append(self, ids: NDArray[np.integer], mask: NDArray[np.bool_] | None = None, text_bytes: int = 0) -> None:
        """More tokens of the open document; `mask` is False where no loss is asked for."""
        if mask is not None and self._mask is None:
            self._mask = BlockWriter(self._directory, f"{self.name}-mask", self._file_bytes)
            for done in range(0, self.tokens, 1 << 20):
                self._append_bits(np.ones(min(1 << 20, self.tokens - done), dtype=np.uint8))
        if self._mask is not None:
            self._append_bits(np.ones(len(ids), np.uint8) if mask is None else mask.astype(np.uint8))
        self._ids.append(np.ascontiguousarray(ids, dtype=self._dtype).view(np.uint8).data)
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def _append_bits(self, bits: NDArray[np.uint8]) -> None:
        assert self._mask is not None
        bits = np.concatenate([self._bits, bits])
        whole = len(bits) // 8 * 8
        self._mask.append(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._bits = bits[whole:]

    def close(self) -> dict[str, Any]:
        """Finish the files and return the entry of the manifest that describes them."""
        mask = None
        if self._mask is not None:
            self._mask.append(np.packbits(self._bits, bitorder="little").tobytes())
            mask = self._mask.close()
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "dtype": self._dtype.str,
            "ids": self._ids.close(),
            "starts": self._starts.close(),
            "origins": self._origins.close(),
            "mask": mask,
        }

    def abandon(self) -> None:
        """Close the files without finishing them."""
        for writer in (self._ids, self._starts, self._origins, self._mask):
            if writer is not None:
                writer.abandon()


class Shards:
    """A stretch [start, stop) of a stream of tokens: `len()`, `slice`, `documents`, `mask_slice`.

    Args:
        directory: where the files lie.
        entry: what `StreamWriter.close` returned.
        start, stop: the stretch, in tokens of the stream.
        text_bytes: bytes of original text in the stretch.
    """

    def __init__(self, directory: Path, entry: dict[str, Any], start: int, stop: int, text_bytes: int) -> None:
        self.text_bytes = text_bytes
        self.start, self.stop = start, stop
        self.dtype: np.dtype[np.integer] = np.dtype(entry["dtype"])
        self._tokens = int(entry["tokens"])
        self._ids = Blocks(directory, entry["ids"])
        self._starts = Blocks(directory, entry["starts"])
        self._origins = Blocks(directory, entry["origins"])
        self._mask = Blocks(directory, entry["mask"]) if entry["mask"] else None
        fits = (
            self._ids.bytes == self._tokens * self.dtype.itemsize
            and self._starts.bytes == self._origins.bytes == 8 * int(entry["documents"])
            and (self._mask is None or self._mask.bytes == -(-self._tokens // 8))
            and 0 <= start <= stop <= self._tokens
        )
        if not fits:
            raise DataError(f"The index of {directory} does not fit its own sizes; delete that folder and run again.")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def masked(self) -> bool:
        """Whether some tokens ask for no loss."""
        return self._mask is not None

    @property
    def bytes_per_token(self) -> float:
        """Bytes of original text per token."""
        return self.text_bytes / len(self) if len(self) else 0.0

    def _range(self, start: int, n: int) -> tuple[int, int]:
        if start < 0 or n < 0 or start + n > len(self):
            raise IndexError(f"tokens {start} to {start + n} were asked for, there are {len(self)}")
        return self.start + start, self.start + start + n

    def slice(self, start: int, n: int) -> NDArray[np.integer]:
        """Tokens start … start+n-1, shape (n,), uint16 or uint32, read-only.

        Raises:
            IndexError: outside the stretch.
            DataError: when the file behind it is damaged.
        """
        low, high = self._range(start, n)
        size = self.dtype.itemsize
        return self._ids.read(low * size, high * size).view(self.dtype)

    def mask_slice(self, start: int, n: int) -> NDArray[np.bool_]:
        """Whether each of those tokens asks for loss, shape (n,); all True in a stream without a mask."""
        low, high = self._range(start, n)
        if self._mask is None or n == 0:
            return np.ones(n, dtype=bool)
        first = low // 8
        bits = np.unpackbits(self._mask.read(first, -(-high // 8)), bitorder="little")
        return bits[low - first * 8 : high - first * 8].astype(bool)

    @property
    def documents(self) -> NDArray[np.int64]:
        """Where documents begin in this stretch, ascending, shape (documents + 1,); the last is `len(self)`.

        A stretch that begins inside a document begins with that document's rest at 0.
        """
        starts = self._starts.read(0, self._starts.bytes).view("<i8")
        inside = starts[np.searchsorted(starts, self.start, "right") : np.searchsorted(starts, self.stop, "left")]
        edges = ([0], inside - self.start, [len(self)]) if len(self) else ([0],)
        return np.concatenate(edges).astype(np.int64)

    def origin(self, number: int) -> tuple[int, int]:
        """Which source (by number) and line a document of this stretch is from; line 0 is a whole file."""
        starts = self._starts.read(0, self._starts.bytes).view("<i8")
        first = int(np.searchsorted(starts, self.start, "right")) - 1
        at = 8 * (max(first, 0) + number)
        found = int(self._origins.read(at, at + 8).view("<i8")[0])
        return found >> 40, found & ((1 << 40) - 1)

    def chunks(self, n: int = 1 << 20) -> Iterator[NDArray[np.integer]]:
        """The whole stretch in slices of at most n tokens."""
        for start in range(0, len(self), n):
            yield self.slice(start, min(n, len(self) - start))

    def verify(self) -> None:
        """Check every byte of the files behind this stretch against its checksum.

        Raises:
            DataError: naming the damaged file.
        """
        for blocks in (self._ids, self._starts, self._origins, self._mask):
            if blocks is not None:
                blocks.verify()
