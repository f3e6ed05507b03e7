"""At once against word by word: one passage read three ways, timed against its length.

A transformer reads all positions in one forward; fed token by token with a key-value cache it gives the same
answer and does the same arithmetic, one position at a time. A recurrent network has no other way: each state
needs the one before. Reading means the hidden state of every position and the prediction after the last.
Knows tensors and ids, not texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glassformer.errors import TextError, UsageError
from glassformer.model import Cache, Config, Transformer

LARGEST = 200_000_000  # parameters of the recurrent network at most
LONG = 0.5  # seconds from which one timing is enough


class Recurrent(nn.Module):
    """A GRU language model (arXiv:1406.1078) with random weights: the shape of the work, not an answer.

    As wide as the transformer, with its vocabulary, and with as many layers as bring its parameters nearest
    to the transformer's. torch's GRU computes each layer's input gates for all positions at once; only what
    needs the state before runs step by step.
    """

    def __init__(self, config: Config, parameters: int) -> None:
        super().__init__()
        width = config.d_model
        self.embed = nn.Embedding(config.vocab_size, width)
        a_layer = 6 * width * width + 6 * width
        layers = max(1, round((min(parameters, LARGEST) - self.embed.weight.numel()) / a_layer))
        self.gru = nn.GRU(width, width, num_layers=layers, batch_first=True)

    @property
    def parameters_in_all(self) -> int:
        """How many numbers it holds; the embedding is also the output matrix."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after the last of (1, query) tokens: (1, vocab)."""
        hidden, _ = self.gru(self.embed(tokens))
        return hidden[:, -1] @ self.embed.weight.T


@dataclass(frozen=True)
class Lap:
    """Seconds that each took to read the first `tokens` tokens, and how far the transformer's two answers lie apart.

    `gap` is max|Δ| of the last position's logits over the largest of them.
    """

    tokens: int
    at_once: float
    word_by_word: float
    recurrent: float
    gap: float


@dataclass(frozen=True)
class Race:
    """The laps, and who ran: parameters, layers and width of both, dtype and threads."""

    laps: list[Lap]
    parameters: int
    layers: int
    width: int
    recurrent_parameters: int
    recurrent_layers: int
    dtype: str
    device: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with tokens per second."""
        data = asdict(self)
        for lap in data["laps"]:
            for name in ("at_once", "word_by_word", "recurrent"):
                lap[f"{name}_tokens_per_second"] = lap["tokens"] / lap[name]
        return data


def lengths(tokens: int, shortest: int = 8) -> list[int]:
    """Powers of two from `shortest` below `tokens`, and `tokens` itself."""
    found = []
    while shortest < tokens:
        found.append(shortest)
        shortest *= 2
    return [*found, tokens]


@torch.inference_mode()
def race(
    transformer: Transformer,
    ids: Sequence[int],
    at: Sequence[int] | None = None,
    *,
    repeats: int = 3,
    progress: Callable[[str, int], None] | None = None,
) -> Race:
    """Time the three ways of reading the beginning of `ids`.

    Args:
        transformer: the model.
        ids: the passage.
        at: lengths to time; None for powers of two and the whole.
        repeats: timings of each, of which the shortest counts; one suffices above half a second.
        progress: called with (who, length) before each.

    Raises:
        TextError: a passage that is empty or longer than the model's context.
        UsageError: lengths beyond the passage.
    """
    if not ids:
        raise TextError("The passage holds no token; give at least one word.")
    if len(ids) > transformer.config.context:
        raise TextError(f"The passage has {len(ids)} tokens and the model reads at most {transformer.config.context}.")
    at = sorted(set(lengths(len(ids)) if at is None else at))
    if not at or at[0] < 1 or at[-1] > len(ids):
        raise UsageError(f"Lengths must lie between 1 and the passage's {len(ids)} tokens; got {list(at)}.")
    if repeats < 1:
        raise UsageError(f"At least one timing is needed; got {repeats} repeats.")
    device = transformer.device
    size = sum(p.numel() for p in transformer.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recurrent = Recurrent(transformer.config, size).eval().to(device)
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=device)
    _at_once(transformer, tokens[:, : at[0]])  # what is only done once is no part of the race
    _word_by_word(transformer, tokens[:, :2], [min(2, len(ids))], device)
    recurrent(tokens[:, : at[0]])
    if progress:
        progress("word by word", at[-1])
    by_word, last = _word_by_word(transformer, tokens, at, device)
    for _ in range(repeats - 1 if by_word[-1] < LONG else 0):
        again, _ = _word_by_word(transformer, tokens, at, device)
        by_word = [min(pair) for pair in zip(by_word, again, strict=True)]
    laps = []
    for place, length in enumerate(at):
        passage = tokens[:, :length]
        if progress:
            progress("at once", length)
        at_once, whole = _best(partial(_at_once, transformer, passage), repeats, device)
        if progress:
            progress("recurrent", length)
        stepped, _ = _best(partial(recurrent, passage), repeats, device)
        gap = float((whole - last[place]).abs().max() / whole.abs().max())
        laps.append(Lap(length, at_once, by_word[place], stepped, gap))
    return Race(
        laps,
        parameters=size,
        layers=transformer.config.n_layers,
        width=transformer.config.d_model,
        recurrent_parameters=recurrent.parameters_in_all,
        recurrent_layers=recurrent.gru.num_layers,
        dtype=str(transformer.dtype).removeprefix("torch."),
        device=device.type,
        threads=torch.get_num_threads(),
    )


def _at_once(transformer: Transformer, tokens: Tensor) -> Tensor:
    return transformer.unembed_hidden(transformer.hidden(tokens)[:, -1:])[:, -1].float()


def _word_by_word(
    transformer: Transformer, tokens: Tensor, at: Sequence[int], device: torch.device
) -> tuple[list[float], list[Tensor]]:
    """One pass gives every length: seconds up to it with its prediction, without those of the lengths before."""
    cache = Cache(transformer.config, 1, at[-1], transformer.dtype, transformer.device)
    times, found = [], []
    predicting = 0.0
    start = time.perf_counter()
    for place in range(at[-1]):
        hidden = transformer.hidden(tokens[:, place : place + 1], cache)
        if place + 1 in at:
            _wait(device)
            before = time.perf_counter()
            found.append(transformer.unembed_hidden(hidden)[:, -1].float())
            _wait(device)
            times.append(time.perf_counter() - start - predicting)
            predicting += time.perf_counter() - before
    return times, found


def _best(read: Callable[[], Tensor], repeats: int, device: torch.device) -> tuple[float, Tensor]:
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        found = read()
        _wait(device)
        times.append(time.perf_counter() - start)
        if times[-1] > LONG:
            break
    return min(times), found


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
