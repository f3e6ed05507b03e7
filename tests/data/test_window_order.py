"""The order of windows: the same for the same seed, each window once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.data.window_order import _permute, window_starts
from glassformer.errors import DataError


def test_seeds_and_epochs_differ() -> None:
    first = window_starts(5000, 16, np.arange(8, dtype=np.uint64), seed=1)
    assert not np.array_equal(first, window_starts(5000, 16, np.arange(8, dtype=np.uint64), seed=2))
    count = np.uint64((5000 - 16) // 16)
    assert not np.array_equal(first, window_starts(5000, 16, np.arange(8, dtype=np.uint64) + count, seed=1))


def test_an_epoch_reads_every_window_once() -> None:
    count = (5000 - 16) // 16
    for epoch in range(3):
        places = np.arange(epoch * count, (epoch + 1) * count, dtype=np.uint64)
        starts = np.sort(window_starts(5000, 16, places, seed=9))
        assert (np.diff(starts) == 16).all()
        assert 0 <= starts[0] < 16
        assert starts[-1] + 17 <= 5000


@settings(deadline=None)
@given(
    tokens=st.integers(2, 3000), length=st.integers(1, 200), seed=st.integers(0, 2**64 - 1), at=st.integers(0, 10**9)
)
def test_windows_always_lie_inside(tokens: int, length: int, seed: int, at: int) -> None:
    places = np.arange(at, at + 50, dtype=np.uint64)
    if tokens < length + 1:
        with pytest.raises(DataError, match=f"needs {length + 1}; the data has {tokens}"):
            window_starts(tokens, length, places, seed)
        return
    starts = window_starts(tokens, length, places, seed)
    assert starts.min() >= 0
    assert starts.max() + length + 1 <= tokens


@settings(deadline=None)
@given(count=st.integers(1, 5000), seed=st.integers(0, 2**32))
def test_the_order_is_a_permutation(count: int, seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 1 << 64, size=5, dtype=np.uint64)
    found = _permute(np.arange(count, dtype=np.uint64), count, keys)
    assert np.array_equal(np.sort(found), np.arange(count))


def test_the_order_is_shuffled() -> None:
    """Neighbours in the order lie a third of the stream apart on average, as in a random order."""
    starts = window_starts(1_600_000, 16, np.arange(90_000, dtype=np.uint64), seed=4) / 1_600_000
    assert abs(np.abs(np.diff(starts)).mean() - 1 / 3) < 0.01
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.02
