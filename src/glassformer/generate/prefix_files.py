"""What prompts left in a slot, kept in files, so that another run of the same model need not read them again.

A file holds the tokens of a prefix, the bytes that a runner gave for them, and a checksum; it is written whole or not
at all, and read as plain numbers. It counts only for the very weights, and the way of computing, that wrote it. It
knows ids and bytes; it does not know what the bytes mean, nor slots or requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from glassformer.checkpoint import raw_blocks, read_config
from glassformer.errors import FileError
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.model.transformer import Transformer

# Tokens that a file must spare for it to be read, or written.
WORTH = 32
# Files that may wait to be written; what comes then is not kept.
_WAITING = 2
_MAGIC = b"gfprefix"
_HEAD = struct.Struct("<8sI")
_CHECK = hashlib.sha256().digest_size


class Prefix(NamedTuple):
    """A prefix from a file: `have` of its `length` tokens are those asked for, and `kept` is what they all left."""

    have: int
    length: int
    kept: bytes


class PrefixFiles:
    """A folder of prefixes.

    Args:
        folder: made when first written to; several models and servers may share it.
        budget: bytes of all files in it; the ones not used for longest go first.
        model: whose prefixes are meant, or the GGUF file that answers: every weight is read once, for the sum that its
            files carry.
    """

    def __init__(self, folder: str | Path, budget: int, model: Transformer | Path) -> None:
        self.folder, self.budget = Path(folder), budget
        self._model = _sum_of(model)
        self._known: dict[str, dict[Path, list[int]]] = {}  # tokens of each file, by what wrote it
        self._writer = ThreadPoolExecutor(1, "glassformer-prefixes")
        self._waiting: list[Future[None]] = []

    def load(self, kind: str, ids: Sequence[int], beyond: int, capacity: int) -> Prefix | None:
        """The file that spares the most tokens of a prompt; None where that is not worth it, beside `beyond` others.

        Args:
            kind: of the runner that asks. capacity: tokens that its slots hold.
        """
        known = self._files(kind)
        while known:
            fitting = {path: shared(held, ids) for path, held in known.items() if len(held) <= capacity}
            path = max(fitting, key=fitting.__getitem__, default=None)
            if path is None or min(fitting[path], len(ids) - 1) < beyond + WORTH:
                return None
            kept = self._read(path, kind, known[path])
            if kept is not None:
                return Prefix(min(fitting[path], len(ids) - 1), len(known[path]), kept)
            del known[path]  # gone, or not what was written
        return None

    def keep(self, kind: str, ids: Sequence[int], kept: Callable[[], bytes]) -> None:
        """Keep what these tokens left, unless a file has nearly all of it; written by a thread of its own."""
        known = self._files(kind)
        self._waiting = [one for one in self._waiting if not one.done()]
        if (
            len(self._waiting) >= _WAITING
            or len(ids) - max((shared(x, ids) for x in known.values()), default=0) < WORTH
        ):
            return
        within = [path for path, held in known.items() if shared(held, ids) == len(held)]
        path = self._place(kind) / f"{hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:32]}.prefix"
        for old in within:
            del known[old]
        known[path] = list(ids)
        self._waiting.append(self._writer.submit(self._write, path, kind, list(ids), kept(), within))

    def close(self) -> None:
        """Wait until what is to be kept is written."""
        self._writer.shutdown()

    def _place(self, kind: str) -> Path:
        return self.folder / hashlib.sha256(f"{self._model} {kind}".encode()).hexdigest()[:32]

    def _files(self, kind: str) -> dict[Path, list[int]]:
        if kind not in self._known:
            found = {path: self._ids(path, kind) for path in sorted(self._place(kind).glob("*.prefix"))}
            self._known[kind] = {path: ids for path, ids in found.items() if ids is not None}
        return self._known[kind]

    def _ids(self, path: Path, kind: str) -> list[int] | None:
        """The tokens that a file says it is of; None for a file of another model, or of no such form."""
        try:
            with path.open("rb") as file:
                magic, size = _HEAD.unpack(file.read(_HEAD.size))
                head = json.loads(file.read(size)) if magic == _MAGIC else {}
            return list(map(int, head["ids"])) if (head.get("model"), head.get("kind")) == (self._model, kind) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            return None

    def _read(self, path: Path, kind: str, ids: list[int]) -> bytes | None:
        """What a file keeps; None where it is not, byte for byte, what was written for these tokens."""
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if self._ids(path, kind) == ids and hashlib.sha256(data[:-_CHECK]).digest() == data[-_CHECK:]:
                path.touch()
                return data[_HEAD.size + _HEAD.unpack_from(data)[1] : -_CHECK]
            path.unlink()
        return None

    def _write(self, path: Path, kind: str, ids: list[int], kept: bytes, within: list[Path]) -> None:
        head = json.dumps({"model": self._model, "kind": kind, "ids": ids}).encode()
        data = _HEAD.pack(_MAGIC, len(head)) + head + kept
        data += hashlib.sha256(data).digest()
        if len(data) > self.budget:
            return
        with contextlib.suppress(FileError):  # a full disk keeps nothing, and no answer suffers from it
            files.write_bytes(path, data)
            for old in within:
                old.unlink(missing_ok=True)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        there = []
        for path in self.folder.glob("*/*.prefix"):
            with contextlib.suppress(OSError):
                there.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        left = sum(size for _, size, _ in there)
        for _, size, path in sorted(there):
            if left <= self.budget:
                return
            path.unlink(missing_ok=True)
            left -= size


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _sum_of(model: Transformer | Path) -> str:
    """A checksum of a model's design and every weight, or of the blocks in a GGUF file."""
    if isinstance(model, Path):
        digest, raw = hashlib.sha256(repr(read_config(model)).encode()), raw_blocks(model)
        for key in sorted(raw):
            digest.update(f"{key} {raw[key].kind} {raw[key].shape}".encode())
            digest.update(np.ascontiguousarray(raw[key].data).data)
        return digest.hexdigest()
    digest = hashlib.sha256(repr(model.config).encode())
    for name, one in sorted(model.named_parameters()):
        digest.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
        digest.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
