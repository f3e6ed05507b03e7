"""Batches from token shards: the same for the same seed and cursor, whatever happened in between.

An epoch is one pass over all non-overlapping windows of the stream, shifted by a new offset and in a new
order each time. The order is a keyed permutation that is computed, not stored, so any place in any epoch
is reached at once, in constant memory. numpy only; this module knows nothing about models or devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glassformer.data.shards import Shards
from glassformer.errors import DataError

_ROUNDS = 4


class Batch(NamedTuple):
    """Windows of a stream of tokens.

    inputs, targets: int64 (batch, query); targets are the inputs' next tokens.
    mask: bool (batch, query), True where the target asks for loss; None when all do.
    cursor: where the batch after this one begins.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    mask: NDArray[np.bool_] | None
    cursor: int


def batches(
    shards: Shards, batch: int, length: int, *, seed: int = 0, cursor: int = 0, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless training batches.

    The global batch of a step is the `world * batch` sequences from the cursor on, of which each rank
    gets `batch` neighbouring ones; so the same sequences are trained on whatever the number of ranks, as
    long as `world * batch` stays, and a run may resume on another number of ranks.

    Args:
        shards: the tokens.
        batch: sequences per batch on this rank.
        length: tokens per sequence.
        seed: chooses offsets and orders.
        cursor: sequences given so far by all ranks together; a batch's `cursor` resumes after it.
        rank, world: this process among how many.

    Raises:
        DataError: fewer than length + 1 tokens.
    """
    if batch < 1 or length < 1 or cursor < 0 or not 0 <= rank < world:
        raise ValueError(f"batch {batch}, length {length}, cursor {cursor}, rank {rank} of {world} cannot be meant")
    while True:
        first = cursor + rank * batch
        starts = window_starts(len(shards), length, np.arange(first, first + batch, dtype=np.uint64), seed)
        cursor += world * batch
        yield _gather(shards, starts, length, cursor)


def windows(shards: Shards, batch: int, length: int) -> Iterator[Batch]:
    """The whole stream once, in order, in windows that do not overlap: for evaluation.

    Every token but the first is a target exactly once; the shorter last window comes as a batch of one.

    Raises:
        DataError: fewer than 2 tokens.
    """
    total = len(shards) - 1
    if total < 1:
        raise DataError(f"Evaluation needs at least 2 tokens; there are {len(shards)}.")
    whole = total // length
    for first in range(0, whole, batch):
        count = min(batch, whole - first)
        starts = np.arange(first, first + count, dtype=np.int64) * length
        yield _gather(shards, starts, length, first + count)
    if total % length:
        yield _gather(shards, np.array([whole * length], dtype=np.int64), total % length, whole + 1)


def window_starts(tokens: int, length: int, numbers: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    """Where the sequences with these numbers (counted over all epochs) start in a stream of `tokens`.

    Raises:
        DataError: fewer than length + 1 tokens.
    """
    if tokens < length + 1:
        raise DataError(
            f"A sequence of {length} tokens and its next needs {length + 1}; the data has {tokens}. "
            "Use a shorter sequence or more text."
        )
    count = max(1, (tokens - length) // length)
    slack = min(length, tokens - count * length)  # offsets that leave every window inside, at least 1
    epochs, places = np.divmod(numbers, np.uint64(count))
    starts = np.empty(len(numbers), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        key = np.array([seed & 0xFFFFFFFFFFFFFFFF, epoch], dtype=np.uint64)
        keys = np.random.Philox(key=key).random_raw(_ROUNDS + 1)  # raw bits: the same in every version of numpy
        offset = int(keys[_ROUNDS] % np.uint64(slack))
        starts[here] = _permute(places[here], count, keys).astype(np.int64) * length + offset
    return starts


def _permute(places: NDArray[np.uint64], count: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A keyed permutation of 0 … count-1: a Feistel network on the next power of four, walked until inside."""
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    result = places.copy()
    todo = np.ones(len(places), dtype=bool)
    while todo.any():
        x = result[todo]
        left, right = x >> half, x & low
        for key in keys[:_ROUNDS]:
            left, right = right, left ^ (_mix(right ^ key) & low)
        result[todo] = (left << half) | right
        todo = result >= np.uint64(count)
    return result


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of MurmurHash3 on 64 bits."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def _gather(shards: Shards, starts: NDArray[np.int64], length: int, cursor: int) -> Batch:
    rows = np.empty((len(starts), length + 1), dtype=np.int64)
    for row, start in enumerate(starts):
        rows[row] = shards.slice(int(start), length + 1)
    mask = None
    if shards.masked:
        mask = np.stack([shards.mask_slice(int(start) + 1, length) for start in starts])
    return Batch(rows[:, :-1], rows[:, 1:], mask, cursor)
