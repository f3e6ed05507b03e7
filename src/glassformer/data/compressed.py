"""Bytes of plain and compressed files, read as a stream."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any

from glassformer.errors import DataError


def open_bytes(path: Path, packed: str) -> IO[bytes]:
    """A file's bytes, decompressed when `packed` is ".gz" or ".zst"."""
    if packed == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if packed == ".zst":
        try:
            import zstandard
        except ModuleNotFoundError:
            raise DataError(
                f"{path.name} is compressed with Zstandard; install its reader with: pip install 'glassformer[data]'"
            ) from None
        raw = path.open("rb")
        return io.BufferedReader(_Zstandard(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)))
    return path.open("rb")


class _Zstandard(io.RawIOBase):
    """Zstandard's own errors as EOFError, which is what gzip raises for a file broken off."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        try:
            return int(self._reader.readinto(buffer))
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None

    def close(self) -> None:
        self._reader.close()
        super().close()
