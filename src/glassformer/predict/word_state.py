"""What a beginning of text settles about the word it is in.

Text is read as classes of characters (`glassformer.tokenizer.word_breaks`). A reading is final: no further text changes
what it says. This module knows neither tokens nor probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from glassformer.tokenizer.word_breaks import SPACES, UNSETTLED, YES, statuses

# Where the given text ended: not known yet, a word starts there, the last word goes on.
OPEN, NEW, FINISH = 0, 1, 2


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
class WordOutcomes:
    """What the next token settles, by outline.

    Attributes:
        leaves: (outline,) the status under which an outline leaves the word open, or -1.
        closed: outlines that close the word no later than where they begin, with one of them as example.
        silent: the outline without text.
    """

    leaves: np.ndarray
    closed: list[tuple[np.ndarray, str]]
    silent: int | None


def word_outcomes(left: str, right: str, outlines: Sequence[str | None]) -> WordOutcomes:
    """What each outline, added to a text of these two halves, does to the word that is open at its end."""
    leaves = np.full(len(outlines), -1)
    closed: dict[Reading, list[int]] = {}
    silent = None
    for index, outline in enumerate(outlines):
        if outline is None:
            silent = index
            continue
        reading = read(left, right + outline)
        if 0 <= reading.end <= len(left) + len(right):
            closed.setdefault(reading, []).append(index)
        else:
            leaves[index] = reading.status
    return WordOutcomes(leaves, [(np.array(members), str(outlines[members[0]])) for members in closed.values()], silent)


def settled_start(known: str) -> int:
    """Where the last segment begins that later text could still be part of."""
    places = statuses(known)
    start = 0
    for at, place in enumerate(places):
        if place == UNSETTLED:
            break
        if place == YES:
            start = at
    return start
