"""Tokenising on all cores: pieces go out to worker processes and come back in order.

A worker is `python -m glassformer.data.parallel FOLDER` with the tokenizer saved in FOLDER; it reads frames
on standard input and answers on standard output, so nothing of the caller's program is run twice and
nothing is pickled. Few pieces are under way at any time, so memory stays the same however large the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING

import numpy as np

from glassformer.data.readers import Piece
from glassformer.errors import DataError, GlassformerError
from glassformer.system import files, hardware
from glassformer.tokenizer.encode import Encoded, Encoder

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

BATCH = 1 << 20  # characters of text that travel together
WORTH, WORTH_QUICK = 1 << 24, 1 << 26  # bytes of data from which starting processes pays; where tiktoken encodes
TEXT, CHAT = 0, 1
REFUSED, PLAIN, MASKED, FAILED = 0, 1, 2, 3
_ASKED = struct.Struct("<BII")
_ANSWERED = struct.Struct("<BII")


def encode_pieces(
    pieces: Iterable[Piece], encoder: Encoder, workers: int | None, total: int | None
) -> Iterator[tuple[Piece, Encoded]]:
    """Every piece with its ids, in order.

    Args:
        encoder: used in this process when no workers are.
        workers: processes; None starts one per core when the data is large enough, 0 none.
        total: bytes of data where known.
    """
    if workers is None:
        cores = hardware.cores()
        large = total is None or total >= (WORTH_QUICK if encoder.quick else WORTH)
        workers = min(cores, 32) if large and cores > 1 and not encoder.light else 0
    if workers < 1 or not hasattr(encoder.tokenizer, "save"):
        for batch in _batches(pieces):
            yield from zip(batch, encode_batch(batch, encoder), strict=True)
        return
    with files.scratch() as folder:
        encoder.tokenizer.save(folder)
        pool = _Pool(str(folder), workers, encoder.dtype)
        try:
            yield from pool.run(_batches(pieces))
        finally:
            pool.close()


def encode_batch(batch: list[Piece], encoder: Encoder) -> list[Encoded]:
    """The ids of each piece, in this process.

    Raises:
        GlassformerError: the encoder's, with the origin of the piece it is about.
    """
    try:
        ids = iter(encoder.encode([piece.text for piece in batch if piece.messages is None]))
    except GlassformerError:
        for piece in batch:  # which one?
            try:
                encoder.encode([piece.text])
            except GlassformerError as error:
                raise type(error)(f"{piece.origin}: {error}") from None
        raise
    return [
        Encoded(next(ids), None, piece.size) if piece.messages is None else encoder.conversation(piece.messages)
        for piece in batch
    ]


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH or len(batch) >= 1024:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Pool:
    def __init__(self, folder: str, workers: int, dtype: np.dtype[np.integer]) -> None:
        self._dtype = dtype
        environment = dict(os.environ, RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
        command = [sys.executable, "-m", "glassformer.data.parallel", folder]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(workers)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(workers)

    def run(self, batches: Iterable[list[Piece]]) -> Iterator[tuple[Piece, Encoded]]:
        waiting: deque[tuple[list[Piece], Future[list[Encoded]]]] = deque()
        for batch in batches:
            waiting.append((batch, self._threads.submit(self._ask, batch)))
            if len(waiting) > 2 * len(self._processes):
                first, answer = waiting.popleft()
                yield from zip(first, answer.result(), strict=True)
        while waiting:
            first, answer = waiting.popleft()
            yield from zip(first, answer.result(), strict=True)

    def _ask(self, batch: list[Piece]) -> list[Encoded]:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            frames = [struct.pack("<I", len(batch))]
            for piece in batch:
                chat = piece.messages is not None
                data = (json.dumps(piece.messages) if chat else piece.text).encode()
                origin = piece.origin.encode("utf-8", "backslashreplace")
                frames += [_ASKED.pack(CHAT if chat else TEXT, len(origin), len(data)), origin, data]
            process.stdin.write(b"".join(frames))
            process.stdin.flush()
            return [self._answer(process.stdout) for _ in batch]
        except (OSError, EOFError):
            code = process.wait()
            raise DataError(
                f"A tokenising process ended early (exit code {code}); is there enough memory? Fewer workers need less."
            ) from None
        finally:
            self._idle.put(process)

    def _answer(self, stream: IO[bytes]) -> Encoded:
        kind, count, text_bytes = _ANSWERED.unpack(_exactly(stream, _ANSWERED.size))
        if kind == FAILED:
            name, message = json.loads(_exactly(stream, count))
            import glassformer.errors

            raise getattr(glassformer.errors, name, DataError)(message)
        if kind == REFUSED:
            return Encoded.without(_exactly(stream, count).decode())
        ids = np.frombuffer(_exactly(stream, count * self._dtype.itemsize), dtype=self._dtype)
        if kind == PLAIN:
            return Encoded(ids, None, text_bytes)
        mask = np.frombuffer(_exactly(stream, count), dtype=bool)
        remark = _exactly(stream, struct.unpack("<I", _exactly(stream, 4))[0]).decode()
        return Encoded(ids, mask, text_bytes, remark=remark or None)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was still to be written to a process that is gone
                        stream.close()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve(tokenizer: Tokenizer, asked: IO[bytes], answered: IO[bytes]) -> None:
    """Answer frames until the input ends: the whole life of a worker."""
    encoder = Encoder(tokenizer)
    while head := asked.read(4):
        batch = []
        for _ in range(struct.unpack("<I", head)[0]):
            kind, named, size = _ASKED.unpack(_exactly(asked, _ASKED.size))
            origin, data = _exactly(asked, named).decode(), _exactly(asked, size).decode()
            batch.append(Piece(origin, "", messages=json.loads(data)) if kind == CHAT else Piece(origin, data))
        try:
            found = encode_batch(batch, encoder)
        except GlassformerError as error:
            message = json.dumps([type(error).__name__, str(error)]).encode()
            answered.write(_ANSWERED.pack(FAILED, len(message), 0) + message)
            answered.flush()
            return
        for encoded in found:
            if encoded.refused is not None:
                why = encoded.refused.encode()
                answered.write(_ANSWERED.pack(REFUSED, len(why), 0) + why)
                continue
            kind = PLAIN if encoded.mask is None else MASKED
            answered.write(_ANSWERED.pack(kind, len(encoded.ids), encoded.text_bytes))
            answered.write(encoded.ids.tobytes())
            if encoded.mask is not None:
                remark = (encoded.remark or "").encode()
                answered.write(encoded.mask.tobytes() + struct.pack("<I", len(remark)) + remark)
        answered.flush()


def main() -> None:
    """A worker process."""
    from glassformer.tokenizer.tokenizer import Tokenizer

    try:
        serve(Tokenizer.from_directory(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        sys.exit(1)


if __name__ == "__main__":
    main()
