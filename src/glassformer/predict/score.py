"""How well a model predicts given tokens: the strided log-likelihood of a whole text.

Every token after the first is predicted exactly once, from at least `context - stride` tokens before it
where the text has them. With a stride of 1 each sees a full context; with a stride of `context` the windows
do not overlap, which is cheapest and what training's held-out loss is. Documents are read apart: none sees
another. Knows tensors and ids, not texts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glassformer.data.packing import groups
from glassformer.errors import TextError, UsageError
from glassformer.model import Config, Transformer
from glassformer.system.progress import Progress

ROWS = 512  # logits at a time: rows × vocab floats
SORTED_PASSES = 16  # forward passes whose windows are sorted by length: the more, the less padding
_ACTIVATIONS = 64 << 20  # bytes of a layer's activations at once: more leaves the caches, less wastes the products


class Tokens(Protocol):
    """A long sequence of ids, such as token shards."""

    def __len__(self) -> int: ...

    def slice(self, start: int, n: int) -> NDArray[np.integer]:
        """`n` ids from `start`."""
        ...


class Reading(Protocol):
    """Anything besides the transformer that gives scores of texts."""

    config: Config

    def logits_at(self, tokens: Tensor, rows: Tensor, places: Tensor) -> Iterator[Tensor]:
        """Scores (some, vocab) of the tokens after these places of some texts (row, query), a few places at a time."""
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


class Window(NamedTuple):
    """A stretch of tokens that is read at once: `inputs` of them from `start` (after a begin-of-text token of its own
    with `begins`), and how many of its last targets are new."""

    start: int
    inputs: int
    new: int
    begins: bool = False

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return self.inputs + self.begins


def context_windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
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


def document_windows(
    spans: Iterable[tuple[int, int]], context: int, stride: int, begins: bool = False
) -> Iterator[Window]:
    """The windows of documents that are read apart.

    Args:
        spans: where each document begins and ends.
        context, stride: see `score`.
        begins: whether a window inside a document is read after a begin-of-text token, which takes one place.
    """
    for low, high in spans:
        inner = begins and high - low - 1 > context and context > 1
        found = context_windows(high - low, context, stride) if high - low > 1 else ()
        for number, (start, inputs, new) in enumerate(found):
            if inner and number:
                kept = min(inputs, context - 1)  # the new targets are the last ones, so what goes is at the front
                yield Window(low + start + inputs - kept, kept, min(new, kept), True)
            else:
                yield Window(low + start, inputs, new)


def tokens_at_once(config: Config, device: str) -> int:
    """Tokens of a forward pass for the quickest pass over a text, by about the width of a layer's activations."""
    a_token = 4 * 24 * config.d_model
    return max(1024, min(16_384, _ACTIVATIONS // a_token)) if device == "cpu" else 32_768


@torch.inference_mode()
def score(
    model: Transformer | Reading,
    ids: Sequence[int] | Tokens,
    context: int | None = None,
    stride: int | None = None,
    *,
    counted: Callable[[int, int], NDArray[np.bool_]] | None = None,
    documents: Sequence[tuple[int, int]] | None = None,
    bos: int | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Score:
    """The strided log-likelihood of ids.

    Args:
        model: the transformer, or what reads texts as it does.
        ids: a list of ids, or shards.
        context: inputs per window; None for the model's own context.
        stride: new targets per window, 1 … context; None for half the context.
        counted: `counted(start, n)` says which of the targets start … start+n-1 count, (n,) bool; None counts all.
        documents: where each document begins and ends: none is read with another before it, and the first token of
            each is not counted. None for one document.
        bos: a token that begins windows inside a document, for models that ask for one.
        batch: windows of `context` tokens per forward; None for a choice by the model.
        progress: called with targets done, targets in all and "tokens".

    Raises:
        TextError: fewer than 2 tokens.
        UsageError: a context or stride that cannot be meant.
    """
    longest = model.config.context
    context = longest if context is None else context
    if not 1 <= context <= longest:
        raise UsageError(f"The context must be 1 to {longest} tokens, which this model reads; got {context}.")
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise UsageError(f"The stride must be 1 to the context of {context}; got {stride}.")
    if len(ids) < 2:
        raise TextError(f"Scoring needs at least 2 tokens, for the first has nothing before it; got {len(ids)}.")
    read = ids.slice if hasattr(ids, "slice") else _reader(ids)
    spans = [(0, len(ids))] if documents is None else documents
    device = model.device if isinstance(model, Transformer) else torch.device("cpu")
    budget = tokens_at_once(model.config, device.type) if batch is None else batch * context
    nats, tokens, done = 0.0, 0, 0
    total = sum(max(0, high - low - 1) for low, high in spans)
    # a window inside a document gives one place to its begin-of-text token, so it has no more new targets than that
    step = min(stride, context - 1) if bos is not None and context > 1 else stride
    windows = document_windows(spans, context, step, bos is not None)
    while some := list(itertools.islice(windows, max(64, SORTED_PASSES * budget // context))):
        kept = []
        for window in some:
            places = _places(window, counted)
            if len(places):  # what comes after the last target that counts is read for nothing
                kept.append((window, places, int(places[-1]) + 1))
        for group in groups([length for _, _, length in kept], budget):
            rows = [(kept[i][0], kept[i][1], kept[i][2]) for i in group]
            nats += _cost(model, device, rows, read, bos)
            tokens += sum(len(places) for _, places, _ in rows)
        done += sum(window.new for window in some)
        if progress:
            progress(done, total, "tokens")
    return Score(nats, tokens, context, stride)


def _cost(
    model: Transformer | Reading,
    device: torch.device,
    rows: Sequence[tuple[Window, NDArray[np.int64], int]],
    read: Callable[[int, int], NDArray[np.integer]],
    bos: int | None,
) -> float:
    """Minus the log-likelihood of the counted targets of some windows, the longest first."""
    longest = rows[0][2]
    found = np.zeros((len(rows), longest + 1), dtype=np.int64)
    for row, (window, _, length) in enumerate(rows):
        ids = np.asarray(read(window.start, length + 1 - window.begins), dtype=np.int64)
        found[row, : length + 1] = np.concatenate([[bos], ids]) if window.begins else ids
    numbers = np.concatenate([np.full(len(places), row) for row, (_, places, _) in enumerate(rows)])
    at = np.concatenate([places for _, places, _ in rows])
    tokens = torch.from_numpy(found).to(device)
    which, place = torch.from_numpy(numbers).to(device), torch.from_numpy(at).to(device)
    targets = tokens[which, place + 1]
    nats, done = 0.0, 0
    asked = tokens[:, :-1], which, place
    for logits in _logits_at(model, *asked) if isinstance(model, Transformer) else model.logits_at(*asked):
        losses = torch.nn.functional.cross_entropy(logits, targets[done : done + len(logits)], reduction="none")
        nats, done = nats + float(losses.double().sum()), done + len(logits)
    return nats


def _logits_at(transformer: Transformer, tokens: Tensor, rows: Tensor, places: Tensor) -> Iterator[Tensor]:
    """As `Reading.logits_at`, by the transformer: all texts in one forward."""
    hidden = transformer.hidden(tokens)[rows, places]
    for first in range(0, len(hidden), ROWS):
        yield transformer.unembed_hidden(hidden[None, first : first + ROWS])[0].float()


def _reader(ids: object) -> Callable[[int, int], NDArray[np.integer]]:
    array = np.asarray(ids, dtype=np.int64)
    return lambda start, n: array[start : start + n]


def _places(window: Window, counted: Callable[[int, int], NDArray[np.bool_]] | None) -> NDArray[np.int64]:
    """Inputs of a window whose targets are new and count."""
    places = np.arange(window.length - window.new, window.length)
    if counted is None:
        return places
    return places[counted(window.start + 1 + window.inputs - window.new, window.new)]
