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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np

from glassformer.errors import UsageError
from glassformer.predict.token_outlines import Spellings, shorten, spellings
from glassformer.predict.word_state import FINISH, NEW, OPEN, Reading, WordOutcomes, read, settled_start, word_outcomes
from glassformer.tokenizer.word_breaks import classes, ends_in_word

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.tokenizer.tokenizer import Tokenizer

# Children of one place that can be looked into; the others stay part of what is unexplored.
_MOST = 1024
# Characters of the text before that may matter; no word or flag sequence is longer.
_REACH = 2000
# Log-probabilities (path, vocab) after each of several non-empty token paths that continue a text.
Continuations: TypeAlias = "Callable[[list[list[int]]], Tensor]"


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
    longest: int | None = None,
) -> Words:
    """The `k` likeliest next words after a text.

    Args:
        logprobs: (vocab,) log-probabilities of the next token.
        continuations: see `glassformer.predict.distribution.Distribution`.
        tokenizer: gives each token's exact bytes.
        ids: the text, as ids.
        k: how many words to report, and how many ways to finish the last one.
        coverage: stop when this part of the probability is explored.
        max_expansions: stop after this many continuations.
        batch: how many continuations are computed together.
        longest: the longest path that may be continued; what lies beyond stays unexplored.

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
        chosen = search.choose(min(batch, max_expansions - search.expansions), longest)
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
        self.left = text[settled_start(classes(text)) :]
        self.status = read(classes(self.left), "").status
        self.inside = ends_in_word(text) and not self.pending
        self.found: dict[int, dict[str, float]] = {NEW: {}, FINISH: {}}
        self.open = {OPEN: 0.0, NEW: 0.0, FINISH: 0.0}
        self.open[self.status] = 1.0
        self.heap: list[tuple[float, int, _Queue]] = []
        self.booked = 0.0  # of next words
        self.count = 0

    # The account --------------------------------------------------------------------------------

    def starts(self) -> tuple[float, float]:
        """The probability that a word starts where the text ends: at least, at most."""
        lower = min(1.0, self.booked + self.open[NEW])
        return lower, min(1.0, lower + self.open[OPEN])

    def unexplored(self) -> tuple[float, float]:
        """What is open of the next words (of 1 = a word starts here), and of the ways to finish."""
        _, upper = self.starts()
        new = (self.open[NEW] + self.open[OPEN]) / upper if upper > 0 else 1.0
        return max(new, 0.0), max(self.open[FINISH] + self.open[OPEN], 0.0)

    def done(self, coverage: float) -> bool:
        new, finish = self.unexplored()
        return new <= 1 - coverage and (not self.inside or finish <= 1 - coverage)

    # The search ---------------------------------------------------------------------------------

    def choose(self, most: int, longest: int | None = None) -> list[tuple[tuple[int, ...], float, int]]:
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
            elif longest is None or len(path) <= longest:
                chosen.append((path, mass, queue.status))
            self._push(queue)
        return chosen

    def expand(self, path: tuple[int, ...], mass: float, status: int, logits: Tensor) -> None:
        """Books what the next token settles after a path of probability `mass`, and queues the rest."""
        import torch

        text, pending = self._spelled(path)
        following = torch.log_softmax(logits.detach().double(), -1).exp().cpu().numpy() * mass
        left, right = classes(self.left), classes(text)
        self.open[status] -= mass
        outline_of, found = self._outcomes(left, right, pending)
        weights = np.bincount(outline_of, weights=following, minlength=len(found.leaves))
        if found.silent is not None:  # special tokens: the text ends here
            final = text + ("\ufffd" if pending else "")
            self._book(read(left, classes(final), True), final, float(weights[found.silent]))
        for members, outline in found.closed:
            self._book(read(left, right + outline), text, float(weights[members].sum()))
        leaves_of = found.leaves[outline_of]
        for kind in (OPEN, NEW, FINISH):
            self.open[kind] += float(weights[found.leaves == kind].sum())
            if kind == FINISH and not self.inside:
                continue
            ids = np.flatnonzero((leaves_of == kind) & (following > 0))
            if len(ids) > _MOST:
                ids = ids[np.argpartition(-following[ids], _MOST)[:_MOST]]
            ids = ids[np.argsort(-following[ids], kind="stable")]
            self._push(_Queue(path, kind, following[ids], ids))

    def _outcomes(self, left: str, right: str, pending: bytes) -> tuple[np.ndarray, WordOutcomes]:
        """What each outline of token settles here. Many paths look alike, so they are kept."""
        outlines, outline_of = self.spell.after(pending)
        key = (shorten(left), shorten(right), pending)
        found = self.spell.outcomes.get(key)
        if found is None:
            if len(self.spell.outcomes) > 4096:
                self.spell.outcomes.clear()
            found = self.spell.outcomes[key] = word_outcomes(key[0], key[1], outlines)
        return outline_of, found

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
        if words is self.found[NEW]:
            self.booked += mass

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
            ways.append(WordProbability(self.left, lower, upper))
            ways = sorted(ways, key=lambda way: (-way.probability, way.word))[:k]
        return Words(
            words,
            ways,
            coverage=1 - new,
            finish_coverage=1 - finish if self.inside else 1.0,
            starts=(lower, upper),
            expansions=self.expansions,
        )
