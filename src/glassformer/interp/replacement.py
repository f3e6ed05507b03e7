"""What a word does: other words in its place, and attention to it forbidden.

Replacing measures everything a word does; forbidding attention from all later positions measures what is
read from its own place. Both are total effects on one number. Alternatives are drawn by a stated rule from
a stated seed: token by token, other tokens of the same kind (with or without a space before them, and
lower-case, capitalised or upper-case letters, digits, or other signs), as many as the word has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edits import knockout
from glassformer.interp.logit_target import Target
from glassformer.interp.run_from import Context, finish, tap_of
from glassformer.interp.token_words import Word
from glassformer.interp.vocabulary import Vocabulary, known_ids
from glassformer.model.sites import Looking, Where

if TYPE_CHECKING:
    from glassformer.interp.taps import Bound
    from glassformer.interp.trace import Trace

RULE = (
    "each of the word's tokens replaced by others of its kind (space before it or not; lower-case, capitalised or "
    "upper-case letters, digits, or other signs), drawn evenly from the vocabulary"
)


@dataclass(frozen=True)
class WordEffect:
    """A word's total effects on the explained number.

    Attributes:
        replaced: median, low and high of (number as run − number with an alternative), or None when not measured.
        alternatives: the texts put in its place.
        knocked_out: number as run − number when no later position may attend to the word; None when no
            later position exists, or it was not measured.
        claimed: what heads at the explained position read from it directly, added up.
        sink: whether it stands at position 0, where attention goes that has nowhere else to go.
    """

    word: Word
    replaced: dict[str, float] | None
    alternatives: list[str]
    knocked_out: float | None
    claimed: float
    sink: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "word": self.word.text,
            "positions": list(self.word.positions),
            "replaced": self.replaced,
            "knocked_out": self.knocked_out,
            "claimed": self.claimed,
            "sink": self.sink,
        }


def _kind(piece: bytes) -> str:
    """What kind of token it is, for drawing others like it; "" for one that is never drawn."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes"
    body = text.lstrip(" ")
    lead = "space " if len(body) < len(text) else ""
    if not body:
        return "blank"
    if body.isalpha():
        if body.islower():
            return lead + "lower"
        if body.isupper() and len(body) > 1:
            return lead + "upper"
        return lead + ("capital" if body[0].isupper() else "letters")
    if body.isdigit():
        return lead + "digits"
    return lead + "signs"


class Alternatives:
    """Draws tokens in place of others, from a seed."""

    def __init__(self, vocabulary: Vocabulary | None, vocab_size: int, seed: int) -> None:
        self.seed = seed
        self._vocabulary = vocabulary
        self._all = known_ids(vocabulary, vocab_size)
        self._pools: dict[str, list[int]] = {}
        if vocabulary is not None:
            special = vocabulary.special_ids
            self._all = [i for i in self._all if i not in special]
            for i in self._all:
                kind = _kind(vocabulary.token_bytes(i))
                # Of the letters, single ones are names of letters more often than words.
                self._pools.setdefault(kind, []).append(i)

    def draw(self, ids: Sequence[int], count: int) -> list[list[int]]:
        """Up to `count` different sequences of as many tokens, each token another than the word's own."""
        chooser = random.Random(f"{self.seed}:{','.join(map(str, ids))}")
        columns = []
        for id in ids:
            kind = "" if self._vocabulary is None else _kind(self._vocabulary.token_bytes(id))
            pool = [i for i in self._pools.get(kind, []) if i != id]
            if len(pool) < count:
                pool = [i for i in self._all if i != id]
            columns.append([chooser.choice(pool) for _ in pool[:1] * count] if len(pool) < count else [])
            if not columns[-1]:
                columns[-1] = chooser.sample(pool, min(count, len(pool)))
        rows = list(zip(*columns, strict=True))
        return [list(row) for row in dict.fromkeys(rows)]


class Continuation:
    """The explained number of a text that is the trace's up to a position and then another."""

    def __init__(self, trace: Trace, goal: Target) -> None:
        self.trace, self.goal = trace, goal
        self._context = Context(trace.forward, goal.position + 1)

    def numbers(self, start: int, rows: list[list[int]], tap: Bound | None = None) -> Float[Tensor, " row"]:
        """The number for each row of tokens standing from `start` to the explained position.

        Each row runs on the trace's own keys and values before `start`.
        """
        trace, transformer = self.trace, self.trace.transformer
        tokens = torch.tensor(rows, device=transformer.device)
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand(tokens.shape)
        where = Where(positions, None, start)
        tap = tap_of(trace.forward.edit, tap)
        x = transformer.embedded(tokens, where, None if tap is None else Looking(tap, trace.config, where))
        context = self._context.cut(start, len(rows)) if start else None
        x = transformer.stream(x, positions, start=start, cache=context, tap=tap, inputs=transformer.inputs(tokens))
        normed = finish(transformer, x[:, -1:], Where(positions[:, -1:], None, start + tokens.shape[1] - 1), tap)
        return (normed[:, 0].double() @ self.goal.way.vector + self.goal.way.offset).cpu()


@torch.no_grad()
def replaced(
    trace: Trace, goal: Target, word: Word, alternatives: Alternatives, count: int, run: Continuation
) -> tuple[dict[str, float], list[str]]:
    """Median, low and high effect of a word against others in its place, and which."""
    ids = list(trace.ids[: goal.position + 1])
    inside = [p for p in word.positions if p <= goal.position]
    start = inside[0]
    drawn = alternatives.draw([ids[p] for p in inside], count)
    rest = ids[inside[-1] + 1 :]
    numbers = run.numbers(start, [ids[start:], *(row + rest for row in drawn)])
    effects = numbers[0] - numbers[1:]
    texts = ["".join(trace.token_text(i) for i in row) for row in drawn]
    return {
        "median": float(effects.quantile(0.5)),
        "low": float(effects.min()),
        "high": float(effects.max()),
    }, texts


@torch.no_grad()
def knocked_out(trace: Trace, goal: Target, word: Word, run: Continuation) -> float | None:
    """The effect of forbidding attention to a word from all later positions."""
    start = word.positions[-1] + 1
    if start > goal.position:
        return None
    row = list(trace.ids[start : goal.position + 1])
    tap = knockout(keys=list(word.positions), queries=slice(start, None), rows=1).bind(trace.config)
    numbers = run.numbers(start, [row, row], tap)
    return float(numbers[0] - numbers[1])
