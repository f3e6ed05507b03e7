"""Log-probabilities of a prompt's own tokens, for `echo`: one reading of it, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from glassformer.generate.sampling import logprobs
from glassformer.serve.answers import Entry, Offsets

if TYPE_CHECKING:
    from glassformer.lm import Model

_ROWS = 128  # positions at a time: rows × vocab scores


def prompt_entries(
    model: Model, ids: list[int], hidden: int, top: int, check: Callable[[], None] = lambda: None
) -> list[Entry]:
    """Every prompt token with its log-probability and those of the `top` likeliest at its place.

    They are computed exactly, whatever the engine's precision is.

    Args:
        hidden: how many of the first tokens are no part of the text (they were put before it).
        check: called between the pieces; ends the work by raising.
    """
    where = _Where(model, hidden)
    found = [Entry(ids[0], *where.push(ids[0]), None)]
    check()
    for number, scores in enumerate(model.reader(len(ids)).pieces(ids[:-1], _ROWS)):
        for row, token in zip(scores.float().cpu(), ids[number * _ROWS + 1 :], strict=False):
            mine, likeliest = logprobs(row, token, top)
            found.append(Entry(token, *where.push(token), mine.logprob, likeliest))
        check()
    return found


class _Where:
    def __init__(self, model: Model, hidden: int) -> None:
        self._offsets = Offsets(model.tokenizer, start=True, specials=True)
        self._hidden = hidden

    def push(self, id: int) -> tuple[str, int]:
        if self._hidden:
            self._hidden -= 1
            return "", 0
        return self._offsets.push(id)
