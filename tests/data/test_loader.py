"""Batches: the same for the same seed and cursor, over any number of ranks, each window once an epoch."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.data.loader import _permute, batches, window_starts, windows
from glassformer.data.shards import Shards, StreamWriter
from glassformer.errors import DataError


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """A stream that counts, so that a token tells where it stood; every third token asks for no loss."""
    folder = tmp_path_factory.mktemp("numbers")
    writer = StreamWriter(folder, "x", np.dtype("<u2"))
    ids = np.arange(5000)
    writer.append(ids, ids % 3 != 0)
    return Shards(folder, writer.close(), 0, 5000, 0)


@pytest.fixture(scope="module")
def unmasked(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("unmasked")
    writer = StreamWriter(folder, "x", np.dtype("<u2"))
    writer.append(np.arange(100))
    return Shards(folder, writer.close(), 0, 100, 0)


def test_targets_are_the_next_tokens_and_carry_their_masks(numbers: Shards, unmasked: Shards) -> None:
    batch = next(batches(numbers, 4, 16, seed=3))
    assert batch.inputs.shape == batch.targets.shape == (4, 16)
    assert batch.inputs.dtype == np.int64
    assert np.array_equal(batch.targets, batch.inputs + 1)
    assert batch.mask is not None
    assert np.array_equal(batch.mask, batch.targets % 3 != 0)
    assert next(batches(unmasked, 4, 16)).mask is None


def test_a_run_resumes_at_its_cursor_to_the_bit(numbers: Shards) -> None:
    straight = list(itertools.islice(batches(numbers, 7, 33, seed=5), 60))
    for stop in (1, 20, 21, 22, 43):  # an epoch is 150 windows: these lie on both sides of its end
        resumed = itertools.islice(batches(numbers, 7, 33, seed=5, cursor=straight[stop - 1].cursor), 60 - stop)
        for one, other in zip(resumed, straight[stop:], strict=True):
            assert np.array_equal(one.inputs, other.inputs)
            assert one.cursor == other.cursor


def test_ranks_share_the_global_batch(numbers: Shards) -> None:
    alone = list(itertools.islice(batches(numbers, 8, 16, seed=1), 5))
    for world in (2, 4):
        ranks = [batches(numbers, 8 // world, 16, seed=1, rank=rank, world=world) for rank in range(world)]
        for step in alone:
            parts = [next(rank) for rank in ranks]
            assert np.array_equal(np.concatenate([p.inputs for p in parts]), step.inputs)
            assert {p.cursor for p in parts} == {step.cursor}


def test_seeds_and_epochs_differ(numbers: Shards) -> None:
    first = next(batches(numbers, 8, 16, seed=1)).inputs
    assert not np.array_equal(first, next(batches(numbers, 8, 16, seed=2)).inputs)
    count = (5000 - 16) // 16
    assert not np.array_equal(first, next(batches(numbers, 8, 16, seed=1, cursor=count)).inputs)


def test_an_epoch_reads_every_window_once(numbers: Shards) -> None:
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


@pytest.mark.parametrize("length", [1, 16, 4999, 6000])
def test_evaluation_meets_every_token_once(numbers: Shards, length: int) -> None:
    found = list(windows(numbers, 8, length))
    assert np.concatenate([b.targets.ravel() for b in found]).tolist() == list(range(1, 5000))
    for batch in found:
        assert np.array_equal(batch.targets, batch.inputs + 1)
        assert batch.inputs.shape[1] <= length


def test_what_cannot_be_meant_is_refused(numbers: Shards, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 2 of 2 cannot be meant"):
        next(batches(numbers, 1, 1, rank=2, world=2))
    writer = StreamWriter(tmp_path, "x", np.dtype("<u2"))
    writer.append(np.arange(1))
    with pytest.raises(DataError, match="at least 2 tokens; there are 1"):
        next(windows(Shards(tmp_path, writer.close(), 0, 1, 0), 1, 1))
