"""Whole next words: how probable each is, over every way to spell it in tokens.

The next word is the first segment between word boundaries (UAX #29, over the decoded text) that is not white
space, *given that a word starts where the text ends*. White space before it is not part of it, so " Paris"
and "\\nParis" are one word; a run of punctuation comes a mark at a time, as the annex cuts it. Any special
token ends the text: it closes the word before it, and where no word came first the outcome is the end.

When the text ends inside a word, two questions are answered: how does this word go on to its end
(`finish`), and what is the next word given that this one ends here.

    P(word) = sum over token paths that spell it of P(path) x P(a boundary comes next)

The sum is explored best first. What has not been explored is known exactly, so every word is an interval
[lower, lower + unexplored] that holds the true value for as long as the model's numbers are exact. A
boundary counts only once no further text can undo it: "can'" may still become "can't", "3." may become "3.5",
and bytes that are no character yet may become any.

This module knows text classes and a function that continues the text; it knows no model.
"""

from __future__ import annotations

import codecs
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from glassformer.errors import UsageError
from glassformer.generate.spellings import Spellings, shorten, spellings
from glassformer.text.words import SPACES, UNSETTLED, YES, classes, ends_in_word, statuses

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.generate.distribution import Continuations
    from glassformer.text.tokenizer import Tokenizer

# Where the text ended: not known yet, a word starts there, the last word goes on.
OPEN, NEW, FINISH = 0, 1, 2
# Children of one place that can be looked into; the others stay part of what is unexplored.
_MOST = 1024
# Characters of the text before that may matter; no word or flag sequence is longer.
_REACH = 2000


@dataclass(frozen=True)
class WordProbability:
    """One word that may come next, or one way the last word may end.

    Attributes:
        word: its text; "" for the end of the text.
        probability: at least this probable.
        upper: at most this probable.
    """

    word: str
    probability: float
    upper: float


class Words(Sequence[WordProbability]):
    """The next words, likeliest first.

    Attributes:
        finish: when the text ends inside a word: the words it may become, the word as it stands included.
        coverage: the explored part of the next words' probability; each `upper` is `probability + 1 - coverage`.
        finish_coverage: the same for `finish`.
        starts: the probability that a word starts where the text ends, as an interval.
        expansions: how many continuations of the text were computed.
    """

    def __init__(
        self,
        words: Sequence[WordProbability],
        finish: Sequence[WordProbability],
        *,
        coverage: float,
        finish_coverage: float,
        starts: tuple[float, float],
        expansions: int,
    ) -> None:
        self._words = tuple(words)
        self.finish = tuple(finish)
        self.coverage = coverage
        self.finish_coverage = finish_coverage
        self.starts = starts
        self.expansions = expansions

    @overload
    def __getitem__(self, index: int) -> WordProbability: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[WordProbability]: ...
    def __getitem__(self, index: int | slice) -> WordProbability | Sequence[WordProbability]:
        return self._words[index]

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[WordProbability]:
        return iter(self._words)

    def to_json(self) -> dict[str, Any]:
        """Plain data: `words`, `coverage`, and `finish` (empty when the text does not end inside a word)."""

        def listed(words: Sequence[WordProbability]) -> list[dict[str, Any]]:
            return [{"word": w.word, "probability": w.probability, "upper": w.upper} for w in words]

        return {"words": listed(self._words), "coverage": self.coverage, "finish": listed(self.finish)}

    def __repr__(self) -> str:
        listed = ", ".join(f"{w.word!r} {w.probability:.3f}" for w in self._words[:3])
        return f"Words({listed}, ... coverage {self.coverage:.3f})"


@dataclass(frozen=True)
class Reading:
    """What a beginning of the text settles.

    Attributes:
        status: OPEN, NEW or FINISH.
        start, end: of the word, in characters from the beginning of the context; end is -1 while it may go on,
            and start is -1 while no word has begun.
    """

    status: int
    start: int
    end: int


@lru_cache(maxsize=1 << 16)
def read(left: str, right: str, ended: bool = False) -> Reading:
    """What is settled when `right` follows `left` (both as classes).

    Args:
        left: the end of the text that was given, from a boundary on.
        right: what followed it so far.
        ended: whether nothing follows any more.
    """
    joint = len(left)
    known = left + right
    places = statuses(known)
    if ended:  # what waited for a letter will not get one
        places = tuple(YES if place == UNSETTLED else place for place in places)
    if not left or left[-1] in SPACES:
        status = NEW
    elif not right:
        status = NEW if ended else OPEN
    else:
        status = {YES: NEW, UNSETTLED: OPEN}.get(places[joint], FINISH)
    if status == OPEN:
        return Reading(OPEN, -1, -1)

    total = len(known)
    if status == FINISH:
        start = max(at for at in range(joint) if places[at] == YES)
        return Reading(FINISH, start, _end(places, joint + 1, total, ended))
    start = joint
    while start < total:
        end = _end(places, start + 1, total, ended)
        if end < 0 or not SPACES.issuperset(known[start:end]):
            blank = end < 0 and SPACES.issuperset(known[start:])
            return Reading(NEW, -1 if blank else start, end)
        start = end
    return Reading(NEW, -1, -1)


def _end(places: tuple[int, ...], at: int, total: int, ended: bool) -> int:
    """The first settled boundary from `at` on, or -1 when that is still open."""
    while at < total:
        if places[at] == YES:
            return at
        if places[at] == UNSETTLED:
            return -1
        at += 1
    return total if ended else -1


@dataclass
class _Queue:
    """The children of one expanded path that leave something open, all under one status, likeliest first."""

    path: tuple[int, ...]
    status: int
    masses: np.ndarray
    ids: np.ndarray
    reached: int = 0


def next_words(
    logprobs: Tensor,
    continuations: Continuations,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    k: int = 10,
    coverage: float = 0.95,
    max_expansions: int = 512,
    batch: int = 32,
    room: int | None = None,
) -> Words:
    """The `k` likeliest next words after a text.

    Args:
        logprobs: (vocab,) log-probabilities of the next token.
        continuations: see `glassformer.generate.distribution.Distribution`.
        tokenizer: gives each token's exact bytes.
        ids: the text, as ids.
        k: how many words to report, and how many ways to finish the last one.
        coverage: stop when this part of the probability is explored.
        max_expansions: stop after this many continuations.
        batch: how many continuations are computed together.
        room: the longest path that may be continued; what lies beyond stays unexplored.

    Raises:
        UsageError: options out of range.
    """
    if k < 1:
        raise UsageError(f"The number of words to show is 1 or more; {k} is not.")
    if not 0 < coverage <= 1:
        raise UsageError(f"The coverage to reach is above 0 and at most 1; {coverage} is not.")
    if max_expansions < 0 or batch < 1:
        raise UsageError("Words need max_expansions of 0 or more and a batch of 1 or more.")
    search = _Search(continuations, tokenizer, ids, int(logprobs.shape[-1]))
    search.expand((), 1.0, search.status, logprobs)
    while search.expansions < max_expansions and not search.done(coverage):
        chosen = search.choose(min(batch, max_expansions - search.expansions), room)
        if not chosen:
            break
        following = continuations([list(path) for path, _, _ in chosen])
        for row, (path, mass, status) in enumerate(chosen):
            search.expand(path, mass, status, following[row])
            search.expansions += 1
    return search.report(k)


class _Search:
    """Best-first search over token paths, with an account of all probability.

    At any time: words found + what is open under NEW, FINISH and OPEN = 1.
    """

    def __init__(self, continuations: Continuations, tokenizer: Tokenizer, ids: Sequence[int], vocab: int) -> None:
        self.spell: Spellings = spellings(tokenizer, vocab)
        self.expansions = 0
        last = max((at for at, id in enumerate(ids) if id in tokenizer.special_ids), default=-1)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(b"".join(tokenizer.token_bytes(id) for id in ids[last + 1 :]))[-_REACH:]
        self.pending: bytes = decoder.getstate()[0]
        self.left = text[_settled_start(classes(text)) :]
        self.status = read(classes(self.left), "").status
        self.inside = ends_in_word(text) and not self.pending
        self.found: dict[int, dict[str, float]] = {NEW: {}, FINISH: {}}
        self.open = {OPEN: 0.0, NEW: 0.0, FINISH: 0.0}
        self.open[self.status] = 1.0
        self.heap: list[tuple[float, int, _Queue]] = []
        self.count = 0

    # The account --------------------------------------------------------------------------------

    def starts(self) -> tuple[float, float]:
        """The probability that a word starts where the text ends: at least, at most."""
        lower = sum(self.found[NEW].values()) + self.open[NEW]
        return lower, lower + self.open[OPEN]

    def unexplored(self) -> tuple[float, float]:
        """What is open of the next words (of 1 = a word starts here), and of the ways to finish."""
        _, upper = self.starts()
        new = (self.open[NEW] + self.open[OPEN]) / upper if upper > 0 else 1.0
        return max(new, 0.0), max(self.open[FINISH] + self.open[OPEN], 0.0)

    def done(self, coverage: float) -> bool:
        new, finish = self.unexplored()
        return new <= 1 - coverage and (not self.inside or finish <= 1 - coverage)

    # The search ---------------------------------------------------------------------------------

    def choose(self, most: int, room: int | None = None) -> list[tuple[tuple[int, ...], float, int]]:
        """The likeliest paths still open, with their masses; words closed inside a token are booked on the way."""
        chosen: list[tuple[tuple[int, ...], float, int]] = []
        left = classes(self.left)
        while self.heap and len(chosen) < most:
            _, _, queue = heapq.heappop(self.heap)
            id, mass = int(queue.ids[queue.reached]), float(queue.masses[queue.reached])
            queue.reached += 1
            path = (*queue.path, id)
            text, _ = self._spelled(path)
            reading = read(left, classes(text))
            if reading.end >= 0:
                self.open[queue.status] -= mass
                self._book(reading, text, mass)
            elif room is None or len(path) <= room:
                chosen.append((path, mass, queue.status))
            self._push(queue)
        return chosen

    def expand(self, path: tuple[int, ...], mass: float, status: int, logits: Tensor) -> None:
        """Books what the next token settles after a path of probability `mass`, and queues the rest."""
        import torch

        text, pending = self._spelled(path)
        following = torch.log_softmax(logits.detach().double(), -1).exp().cpu().numpy() * mass
        left, right = classes(self.left), classes(text)
        short_left, short_right = shorten(left), shorten(right)
        self.open[status] -= mass

        # Tokens of one shape settle the same, so the vocabulary is read shape by shape.
        shapes, shape_of = self.spell.after(pending)
        weights = np.bincount(shape_of, weights=following, minlength=len(shapes))
        leaves = np.full(len(shapes), -1)  # the status under which a shape leaves something open
        closed: dict[Reading, tuple[str, float]] = {}
        for index in np.flatnonzero(weights > 0):
            shape, weight = shapes[index], float(weights[index])
            if shape is None:  # a special token: the text ends here
                final = text + ("\ufffd" if pending else "")
                self._book(read(left, classes(final), True), final, weight)
                continue
            reading = read(short_left, short_right + shape)
            if 0 <= reading.end <= len(short_left) + len(short_right):
                closed[reading] = (shape, closed.get(reading, ("", 0.0))[1] + weight)
            else:
                leaves[index] = reading.status
                self.open[reading.status] += weight
        for shape, weight in closed.values():
            self._book(read(left, right + shape), text, weight)

        leaves_of = leaves[shape_of]
        for kind in (OPEN, NEW, FINISH) if self.inside else (OPEN, NEW):
            ids = np.flatnonzero((leaves_of == kind) & (following > 0))
            if len(ids) > _MOST:
                ids = ids[np.argpartition(-following[ids], _MOST)[:_MOST]]
            ids = ids[np.argsort(-following[ids], kind="stable")]
            self._push(_Queue(path, kind, following[ids], ids))

    def _push(self, queue: _Queue) -> None:
        if queue.reached < len(queue.ids):
            weight = self._weight(float(queue.masses[queue.reached]), queue.status)
            self.count += 1
            heapq.heappush(self.heap, (-weight, self.count, queue))

    def _weight(self, mass: float, status: int) -> float:
        """How much of an answer a mass is; the next word's is relative to a word starting here."""
        upper = self.starts()[1]
        return mass if status == FINISH or upper <= 0 else mass / upper

    def _book(self, reading: Reading, text: str, mass: float) -> None:
        whole = self.left + text
        word = whole[reading.start : reading.end] if reading.start >= 0 and reading.end >= 0 else ""
        words = self.found[FINISH if reading.status == FINISH else NEW]
        words[word] = words.get(word, 0.0) + mass

    def _spelled(self, path: tuple[int, ...]) -> tuple[str, bytes]:
        """What a path adds to the text as far as characters are whole, and the bytes left over."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(self.pending + b"".join(self.spell.bytes[id] for id in path))
        return text, decoder.getstate()[0]

    # The answer ---------------------------------------------------------------------------------

    def report(self, k: int) -> Words:
        lower, upper = self.starts()
        new, finish = self.unexplored()

        def listed(found: dict[str, float], scale: float, width: float) -> list[WordProbability]:
            ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
            return [WordProbability(w, m / scale, min(1.0, m / scale + width)) for w, m in ranked[:k]]

        words = listed(self.found[NEW], upper, new) if upper > 0 else []
        ways: list[WordProbability] = []
        if self.inside:
            ways = listed(self.found[FINISH], 1.0, finish)
            # The word as it stands: known as soon as it is known that another one starts.
            ways.append(WordProbability(self.left, lower, min(1.0, upper)))
            ways = sorted(ways, key=lambda way: (-way.probability, way.word))[:k]
        return Words(
            words,
            ways,
            coverage=1 - new,
            finish_coverage=1 - finish if self.inside else 1.0,
            starts=(lower, min(1.0, upper)),
            expansions=self.expansions,
        )


def _settled_start(known: str) -> int:
    """Where the last segment begins that later text could still be part of."""
    places = statuses(known)
    start = 0
    for at, place in enumerate(places):
        if place == UNSETTLED:
            break
        if place == YES:
            start = at
    return start
