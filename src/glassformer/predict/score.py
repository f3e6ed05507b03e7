"""How well a model predicts given tokens: the strided log-likelihood of a whole text.

Every token after the first is predicted exactly once, from at least `context - stride` tokens before it
where the text has them. With a stride of 1 each sees a full context; with a stride of `context` the windows
do not overlap, which is cheapest and what training's held-out loss is. Knows tensors and ids, not texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from glassformer.errors import TextError, UsageError
from glassformer.model import Transformer

ROWS = 512  # logits at a time: rows × vocab floats


class Tokens(Protocol):
    """A long sequence of ids, such as token shards."""

    def __len__(self) -> int: ...

    def slice(self, start: int, n: int) -> NDArray[Any]:
        """`n` ids from `start`."""
        ...


@dataclass(frozen=True)
class Score:
    """What a text cost a model.

    Args:
        nats: minus the log-likelihood of the counted tokens, summed in float64.
        tokens: how many were counted.
        context, stride: how they were read.
    """

    nats: float
    tokens: int
    context: int
    stride: int

    @property
    def loss(self) -> float:
        """Nats per token; NaN when none was counted."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, text_bytes: int) -> float:
        """Bits per byte of the text that the counted tokens stand for."""
        return self.nats / math.log(2) / text_bytes if text_bytes else math.nan


def window_plan(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Which windows read a text of `tokens` ids: (first input, inputs, how many of the last targets are new)."""
    targets = tokens - 1
    if targets <= context:
        yield 0, targets, targets
        return
    yield 0, context, context
    done = context
    while done < targets:
        new = min(stride, targets - done)
        done += new
        yield done - context, context, new


@torch.inference_mode()
def score(
    transformer: Transformer,
    ids: Sequence[int] | Tokens,
    context: int | None = None,
    stride: int | None = None,
    *,
    counted: Callable[[int, int], NDArray[np.bool_]] | None = None,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """The strided log-likelihood of ids.

    Args:
        transformer: the model.
        ids: a list of ids, or shards.
        context: inputs per window; None for the model's own context.
        stride: new targets per window, 1 … context; None for half the context.
        counted: `counted(start, n)` says which of the targets start … start+n-1 count, (n,) bool; None counts all.
        batch: windows per forward.
        progress: called with (targets done, targets in all).

    Raises:
        TextError: fewer than 2 tokens.
        UsageError: a context or stride that cannot be meant.
    """
    longest = transformer.config.context
    context = longest if context is None else context
    if not 1 <= context <= longest:
        raise UsageError(f"The context must be 1 to {longest} tokens, which this model reads; got {context}.")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UsageError(f"The stride must be 1 to the context of {context}; got {stride}.")
    if len(ids) < 2:
        raise TextError(f"Scoring needs at least 2 tokens, for the first has nothing before it; got {len(ids)}.")
    read = ids.slice if hasattr(ids, "slice") else _reader(ids)
    nats, tokens, done, total = 0.0, 0, 0, len(ids) - 1
    for group in _groups(window_plan(len(ids), context, stride), batch):
        length = group[0][1]
        rows = np.stack([np.asarray(read(start, length + 1), dtype=np.int64) for start, _, _ in group])
        where = [
            (row, place) for row, (start, _, new) in enumerate(group) for place in _places(start, length, new, counted)
        ]
        found = torch.from_numpy(rows).to(transformer.device)
        if where:
            at = torch.tensor(where, device=transformer.device)
            hidden = transformer.hidden(found[:, :-1])[at[:, 0], at[:, 1]]
            targets = found[at[:, 0], at[:, 1] + 1]
            for first in range(0, len(where), ROWS):
                logits = transformer.unembed_hidden(hidden[None, first : first + ROWS])[0].float()
                losses = torch.nn.functional.cross_entropy(logits, targets[first : first + ROWS], reduction="none")
                nats += float(losses.double().sum())
        tokens += len(where)
        done += sum(new for _, _, new in group)
        if progress:
            progress(done, total)
    return Score(nats, tokens, context, stride)


def _reader(ids: Any) -> Callable[[int, int], NDArray[Any]]:
    array = np.asarray(ids, dtype=np.int64)
    return lambda start, n: array[start : start + n]


def _groups(plan: Iterator[tuple[int, int, int]], batch: int) -> Iterator[list[tuple[int, int, int]]]:
    group: list[tuple[int, int, int]] = []
    for window in plan:
        group.append(window)
        if len(group) == max(1, batch):
            yield group
            group = []
    if group:
        yield group


def _places(
    start: int, length: int, new: int, counted: Callable[[int, int], NDArray[np.bool_]] | None
) -> NDArray[np.int64]:
    """Inputs of a window whose targets are new and count."""
    places = np.arange(length - new, length)
    return places if counted is None else places[counted(start + 1 + length - new, new)]
