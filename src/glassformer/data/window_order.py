"""The order of training windows: the same for the same seed and number, whatever happened in between.

An epoch is one pass over all non-overlapping windows of the stream, shifted by a new offset and in a new
order each time. The order is a keyed permutation that is computed, not stored, so any place in any epoch
is reached at once, in constant memory. numpy only; this module knows nothing about models or devices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glassformer.errors import DataError

_ROUNDS = 4


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
