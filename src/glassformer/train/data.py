"""From token shards to the rows of a batch, in an order that a resumed run continues exactly.

Which row comes at which place is a pure function of the seed and a small cursor, so nothing but the cursor is
stored, memory does not grow with the corpus, and any number of processes can share one order. Conversations come
as rows whose targets count on the answers only. A row holds several documents; `apart` takes them apart again, so that
none sees another and each has positions of its own, and `packed` lays them side by side without padding, for designs
that can compute them so. This module knows token arrays; texts and tokenizers are the floor
below.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glassformer.data.packing import groups
from glassformer.data.window_order import window_starts
from glassformer.errors import DataError
from glassformer.train.loss import IGNORE

Ints = NDArray[np.int64]
Borders = list[list[tuple[int, bool]]]
_NOISE = 0x6E6F697365
HELD_OUT_BATCHES = 16
"""Batches of held-out rows that are taken apart at once: more documents leave less padding."""


class TokenShards(Protocol):
    """What `glassformer.data.corpus` gives: a long sequence of token ids on disk."""

    def __len__(self) -> int: ...

    def slice(self, start: int, n: int) -> NDArray[np.integer]:
        """`n` tokens from `start`."""
        ...


class Rows(Protocol):
    """Rows of one length, each known by where it starts."""

    masked: bool
    """Whether some targets do not count."""

    def grid(self, length: int) -> Ints:
        """Where the rows start that cover everything once, in order."""
        ...

    def starts(self, numbers: Ints, length: int, seed: int, anywhere: bool) -> Ints:
        """Where the rows with these numbers start, in the order that `seed` draws anew for each epoch."""
        ...

    def epoch(self, number: int, length: int) -> int:
        """How often everything was shown before the row with this number."""
        ...

    def fetch(self, starts: Ints, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both (row, length) int64."""
        ...

    def borders(self, starts: Ints, length: int) -> Borders:
        """For each row, the inputs at which another document begins (never the first), and whether the target before
        is of that document and so has nothing to be foretold from."""
        ...


Rectangles = list[tuple[Tensor, Tensor]]
"""Inputs and targets, (row, query) int64 each, that are computed one after the other."""
Lengths = tuple[int, ...]
Passes = list[tuple[Tensor, Tensor, Lengths | None]]
"""The same, and the lengths of the documents that lie apart in a pass's one row, None where its rows are whole."""


def rows_of(shards: TokenShards, separator: int | None = None) -> Rows:
    """Rows as the shards want them: conversations with a loss mask are kept whole, text is one long stream.

    Args:
        shards: the tokens.
        separator: the token that ends each document and, for want of another, begins the next.
    """
    return Conversations(shards) if getattr(shards, "masked", False) else Stream(shards, separator)


def together(tokens: Tensor, targets: Tensor, micro_batch: int) -> Rectangles:
    """The rows as they are, so many at once."""
    return [(tokens[a : a + micro_batch], targets[a : a + micro_batch]) for a in range(0, len(tokens), micro_batch)]


def apart(tokens: Tensor, targets: Tensor, borders: Borders, micro_batch: int) -> Rectangles:
    """The documents of some rows, each a row of its own, those of like lengths together; padding counts nowhere.

    Args:
        tokens, targets: (row, length).
        borders: of these rows, as `Rows.borders` gives them.
        micro_batch: no pass has more tokens than so many rows.
    """
    length = tokens.shape[1]
    pieces = documents(tokens, targets, borders)
    passes = []
    for group in groups([len(x) for x, _ in pieces], micro_batch * length):
        longest = len(pieces[group[0]][0])
        x = torch.zeros(len(group), longest, dtype=torch.int64)
        y = torch.full((len(group), longest), IGNORE, dtype=torch.int64)
        for i, index in enumerate(group):
            piece, wanted = pieces[index]
            x[i, : len(piece)], y[i, : len(piece)] = piece, wanted
        passes.append((x, y))
    return passes


def packed(tokens: Tensor, targets: Tensor, borders: Borders, micro_batch: int) -> Passes:
    """The documents of so many rows at once, one after another in one row; arguments as of `apart`."""
    passes: Passes = []
    for a in range(0, len(tokens), micro_batch):
        some = slice(a, a + micro_batch)
        if pieces := documents(tokens[some], targets[some], borders[some]):
            lengths = tuple(len(x) for x, _ in pieces)
            x, y = (torch.cat(side) for side in zip(*pieces, strict=True))
            if len(set(lengths)) == 1:
                passes.append((x.view(-1, lengths[0]), y.view(-1, lengths[0]), None))
            else:
                passes.append((x[None], y[None], lengths))
    return passes


def documents(tokens: Tensor, targets: Tensor, borders: Borders) -> list[tuple[Tensor, Tensor]]:
    """The inputs and targets of each document of some rows, up to its last target that counts; those without are left
    out."""
    length = tokens.shape[1]
    pieces: list[tuple[Tensor, Tensor]] = []
    for row, cuts in enumerate(borders):
        edges = [0, *(at for at, _ in cuts), length]
        dropped = {at for at, alone in cuts if alone}
        for a, b in itertools.pairwise(edges):
            wanted = targets[row, a:b]
            if b in dropped:
                wanted = wanted.clone()
                wanted[-1] = IGNORE
            counted = (wanted != IGNORE).nonzero()
            if len(counted):  # what comes after the last target is read for nothing
                end = int(counted[-1]) + 1
                pieces.append((tokens[row, a : a + end], wanted[:end]))
    return pieces


class Stream:
    """Rows cut from one long stream of tokens; a row's targets are the tokens one further."""

    masked = False

    def __init__(self, shards: TokenShards, separator: int | None = None) -> None:
        self.shards, self.separator = shards, separator
        self._edges: Ints | None = None

    def grid(self, length: int) -> Ints:
        return np.arange(max(0, (len(self.shards) - 1) // length), dtype=np.int64) * length

    def starts(self, numbers: Ints, length: int, seed: int, anywhere: bool) -> Ints:
        total = len(self.shards)
        if total < length + 1:
            raise DataError(
                f"The training text has {total} tokens, fewer than one row of {length} and its next; give more text "
                "or a smaller context."
            )
        if anywhere:
            return scatter(numbers, seed) % (total - length)
        return window_starts(total, length, numbers.astype(np.uint64), seed)

    def epoch(self, number: int, length: int) -> int:
        return number // max(1, (len(self.shards) - length) // length)

    def fetch(self, starts: Ints, length: int) -> tuple[Tensor, Tensor]:
        block = np.stack([self.shards.slice(int(start), length + 1) for start in starts]).astype(np.int64)
        whole = torch.from_numpy(block)
        return whole[:, :-1].contiguous(), whole[:, 1:].contiguous()

    def borders(self, starts: Ints, length: int) -> Borders:
        if self._edges is None:
            self._edges = np.asarray(getattr(self.shards, "documents", [0]), dtype=np.int64)
        found = []
        for start in starts.tolist():
            low, high = np.searchsorted(self._edges, [start + 1, start + length + 1])
            row = []
            for edge in self._edges[low:high].tolist():
                # the separator that ended the document before is what this one begins with
                if self.separator is not None and int(self.shards.slice(edge - 1, 1)[0]) == self.separator:
                    row.append((edge - 1 - start, False))
                else:
                    row.append((edge - start, True))
            found.append([(at, alone) for at, alone in row if 0 < at <= length])
        return found


class Conversations:
    """Rows that hold whole conversations, packed in order until full; only the answers' tokens are targets.

    A conversation longer than a row is cut at its end, and left out where nothing of an answer is left then. A row is
    known by its index.
    """

    masked = True

    def __init__(self, shards: Any, pad: int = 0) -> None:
        self.shards, self.pad = shards, pad
        self._edges: list[int] = np.asarray(shards.documents, dtype=np.int64).tolist()
        self._packed: dict[int, list[tuple[int, int]]] = {}
        self._lost: dict[int, tuple[list[int], list[int]]] = {}

    def lost(self, length: int) -> tuple[list[int], list[int]]:
        """Conversations by number whose answers a row of this length cuts in part, and wholly."""
        self._rows(length)
        return self._lost[length]

    def borders(self, starts: Ints, length: int) -> Borders:
        rows = self._rows(length)
        found = []
        for index in starts.tolist():
            start, stop = rows[index]
            low, high = np.searchsorted(self._edges, [start + 1, min(stop, start + length + 1)])
            found.append([(edge - start, True) for edge in self._edges[low:high]])
        return found

    def grid(self, length: int) -> Ints:
        return np.arange(len(self._rows(length)), dtype=np.int64)

    def starts(self, numbers: Ints, length: int, seed: int, anywhere: bool) -> Ints:
        total = len(self._rows(length))
        if total == 0:
            raise DataError("No conversation with an answer is left to train on; give more data or hold out less.")
        # windows of one token over `total` + 1 tokens: each row once an epoch
        return window_starts(total + 1, 1, numbers.astype(np.uint64), seed)

    def epoch(self, number: int, length: int) -> int:
        return number // max(1, len(self._rows(length)))

    def fetch(self, starts: Ints, length: int) -> tuple[Tensor, Tensor]:
        tokens = np.full((len(starts), length), self.pad, dtype=np.int64)
        targets = np.full((len(starts), length), IGNORE, dtype=np.int64)
        rows = self._rows(length)
        for i, index in enumerate(starts):
            start, stop = rows[int(index)]
            ids = self.shards.slice(start, stop - start).astype(np.int64)
            wanted = np.where(self.shards.mask_slice(start, stop - start), ids, IGNORE)
            tokens[i, : len(ids) - 1] = ids[:-1]
            targets[i, : len(ids) - 1] = wanted[1:]
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    def _rows(self, length: int) -> list[tuple[int, int]]:
        """Where each row starts and stops in the stream."""
        if length not in self._packed:
            rows: list[tuple[int, int]] = []
            last = -1  # where the row that may still grow ends; one that was cut may not
            partly, wholly = [], []
            for number, (low, high) in enumerate(zip(self._edges[:-1], self._edges[1:], strict=True)):
                stop = min(high, low + length + 1)
                if stop < high:
                    counts = self.shards.mask_slice(low, high - low)
                    if not counts[1 : stop - low].any():
                        wholly.append(number)
                        continue
                    if counts[stop - low :].any():
                        partly.append(number)
                elif not self.shards.mask_slice(low, high - low)[1:].any():
                    wholly.append(number)
                    continue
                if rows and last == low and high - rows[-1][0] <= length + 1:
                    rows[-1] = (rows[-1][0], high)
                else:
                    rows.append((low, stop))
                last = stop if stop == high else -1
            self._packed[length], self._lost[length] = rows, (partly, wholly)
        return self._packed[length]


@dataclass
class Cursor:
    """Where in the order a run stands: everything that is stored about the data's order.

    Attributes:
        taken: rows of the present length given so far, over all epochs and processes.
        length: their length.
        stage: how often the length has changed.
    """

    taken: int = 0
    length: int = 0
    stage: int = 0

    def to_dict(self) -> dict[str, int]:
        """Plain data for JSON."""
        return asdict(self)


class Order:
    """The order in which rows are shown.

    With "epoch" sampling each row is shown once per epoch, in an order and with row borders drawn anew for each. A
    change of row length begins a new epoch. With "random" sampling rows start at any token. `noise` is the share of
    input tokens that `garble` replaces. `pack` says whether the documents of a row are "apart" or "together"; those
    apart lie side by side where they may be `packed`, and are padded to rectangles otherwise.
    """

    def __init__(
        self,
        rows: Rows,
        seed: int,
        sampling: str = "epoch",
        cursor: Cursor | None = None,
        noise: float = 0.0,
        pack: str = "together",
        packed: bool = False,
    ) -> None:
        self.rows, self.seed, self.sampling, self.noise, self.pack = rows, seed, sampling, noise, pack
        self.packed = packed
        self.cursor = cursor or Cursor()

    def next(self, batch: int, length: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """This process's share of the next global batch: inputs and targets, (row, length).

        Rows are dealt out in turn, so that the global batch is the same for any number of processes.
        """
        return self._next(batch, length, rank, world)[:2]

    def passes(self, batch: int, length: int, micro_batch: int, rank: int = 0, world: int = 1) -> Passes:
        """The same share as what is computed one after the other, about `micro_batch` rows' tokens at once."""
        tokens, targets, starts = self._next(batch, length, rank, world)
        if self.pack == "together":
            found = together(tokens, targets, micro_batch)
        elif self.packed:
            return packed(tokens, targets, self.rows.borders(starts, length), micro_batch)
        else:
            found = apart(tokens, targets, self.rows.borders(starts, length), micro_batch)
        return [(x, y, None) for x, y in found]

    def _next(self, batch: int, length: int, rank: int, world: int) -> tuple[Tensor, Tensor, Ints]:
        at = self.cursor
        if length != at.length:
            at = self.cursor = Cursor(0, length, at.stage + 1 if at.length else 0)
        numbers = np.arange(at.taken + rank, at.taken + batch, world, dtype=np.int64)
        at.taken += batch
        if not len(numbers):
            return torch.empty(0, length, dtype=torch.int64), torch.empty(0, length, dtype=torch.int64), numbers
        seed = self.seed + (at.stage << 32)
        starts = self.rows.starts(numbers, length, seed, self.sampling == "random")
        tokens, targets = self.rows.fetch(starts, length)
        return (garble(tokens, numbers, self.noise, seed) if self.noise else tokens), targets, starts

    @property
    def epoch(self) -> int:
        """How often everything has been shown in this stage."""
        return self.rows.epoch(self.cursor.taken, self.cursor.length) if self.cursor.length else 0


def garble(tokens: Tensor, numbers: Ints, share: float, seed: int) -> Tensor:
    """The rows with a share of their tokens replaced by others of the same row.

    A model cannot learn a text by heart whose contexts are never the same twice (data noising, arXiv:1703.02573). It
    is a pure function of the seed and of the rows' numbers, so a resumed run sees the same, in any number of processes.
    """
    length = tokens.shape[1]
    with np.errstate(over="ignore"):
        places = numbers.astype(np.uint64)[:, None] * np.uint64(length) + np.arange(length, dtype=np.uint64)
    bits = torch.from_numpy(scatter(places.view(np.int64), seed ^ _NOISE))
    hit = (bits >> 31) < round(share * 2**32)
    return torch.where(hit, tokens.gather(1, (bits & 0x7FFFFFFF) % length), tokens)


def scatter(numbers: Ints, seed: int) -> Ints:
    """63 well-mixed bits for each number (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = (numbers.astype(np.uint64) + np.uint64(seed) * np.uint64(0x632BE59BD9B4E019)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(1)).astype(np.int64)


def held_out_batches(
    rows: Rows, length: int, batch: int, tokens: int, pack: str = "together", rank: int = 0, world: int = 1
) -> Iterable[tuple[Tensor, Tensor]]:
    """The first rows of a held-out text, end to end without overlap, up to `tokens` tokens of them: this process's
    share, about `batch` rows' tokens at once."""
    starts = rows.grid(length)[: max(1, tokens // length)][rank::world]
    for i in range(0, len(starts), HELD_OUT_BATCHES * batch):
        some = starts[i : i + HELD_OUT_BATCHES * batch]
        x, y = rows.fetch(some, length)
        yield from together(x, y, batch) if pack == "together" else apart(x, y, rows.borders(some, length), batch)
