"""How the next token is chosen from its scores: pure functions of logits, settings and a random generator.

The order is fixed: bias, repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p;
each filter sees what the one before left. It knows no model, no text and no loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glassformer.errors import UsageError

# Candidates looked at first where only the likeliest matter; sorting a whole vocabulary takes as long as a token.
_FIRST = 512
_LARGEST = torch.finfo(torch.float32).max
_STRETCH = 256  # tokens whose probabilities are summed together before one is drawn
_COLDEST = 1e-30  # temperatures below are drawn with in float64: float32 cannot divide by them


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens whose probabilities first reach p together (arXiv:1904.09751); 1 for all.
        min_p: only tokens at least min_p times as likely as the likeliest (arXiv:2407.01082); 0 for all.
        repetition_penalty: positive logits of tokens in the prompt or the answer are divided by it, negative ones
            multiplied (arXiv:1909.05858); 1 for none.
        presence_penalty: subtracted once from logits of tokens in the answer so far.
        frequency_penalty: subtracted as often as the token is in the answer so far.
        logit_bias: token id -> number added to its logit.
        seed: of this request's random numbers; None for fresh ones.

    Raises:
        UsageError: for a number out of its range, by its name.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, self.temperature >= 0, "at least 0")
        _require("top_k", self.top_k, self.top_k >= 0 and int(self.top_k) == self.top_k, "a whole number of at least 0")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _require("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0")
        _require("presence_penalty", self.presence_penalty, abs(self.presence_penalty) <= 100, "between -100 and 100")
        _require(
            "frequency_penalty", self.frequency_penalty, abs(self.frequency_penalty) <= 100, "between -100 and 100"
        )
        for token, bias in self.logit_bias.items():
            _require(f"logit_bias of token {token}", bias, abs(bias) <= 100, "between -100 and 100")
            if token < 0:
                raise UsageError(f"logit_bias names token {token}; ids begin at 0.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def unfiltered(self) -> bool:
        """Whether every token may be drawn."""
        return self.top_k == 0 and self.top_p == 1 and self.min_p == 0

    @property
    def plain(self) -> bool:
        """Whether logits are used as they are, before temperature and filters."""
        return not self.logit_bias and self.repetition_penalty == 1 and not self._counted

    @property
    def _counted(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    def generator(self) -> torch.Generator:
        """A generator of this request's own, seeded where a seed was given."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed % 2**63)
        return generator


def _require(name: str, value: float, sound: bool, range_: str) -> None:
    if not sound or not math.isfinite(value):
        raise UsageError(f"{name} must be {range_}; got {value}.")


GREEDY = Sampling(temperature=0.0)


def adjust(logits: Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits (vocab,) after bias and penalties; `prompt` and `answer` are the ids before.

    Raises:
        UsageError: for a bias on a token that the vocabulary lacks.
    """
    if sampling.plain:
        return logits
    out = logits.clone()
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias))
        if int(ids.max()) >= len(out):
            raise UsageError(f"logit_bias names token {int(ids.max())}; this vocabulary has {len(out)}.")
        out[ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=out.dtype)
    if sampling.repetition_penalty != 1:
        ids = torch.tensor(sorted({*prompt, *answer}), dtype=torch.long)
        said = out[ids]
        out[ids] = torch.where(said > 0, said / sampling.repetition_penalty, said * sampling.repetition_penalty)
    if sampling._counted and answer:
        ids, counts = torch.tensor(answer).unique(return_counts=True)
        out[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return out.clamp_(-_LARGEST, _LARGEST)  # an extreme penalty leaves no number that cannot be compared


def without(logits: Tensor, absent: Tensor | None) -> Tensor:
    """Adjusted logits (..., vocab) under which none of the `absent` ids can be chosen; None for no such id."""
    return logits if absent is None else logits.index_fill(-1, absent, -math.inf)


def kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens that may be chosen, likeliest first, and their probabilities in float64, which sum to 1.

    `logits` are (vocab,), already adjusted; a tie is settled by the lower id.
    """
    if sampling.greedy:
        best = logits.argmax()[None]  # the first of the largest
        return best, torch.ones(1, dtype=torch.float64)
    scores = logits.double()
    scaled = (scores - scores.max()) / sampling.temperature  # the largest is 0 however low the temperature
    if sampling.unfiltered:
        return torch.arange(len(scaled)), scaled.softmax(0)
    count = len(scaled) if sampling.top_k == 0 else min(sampling.top_k, len(scaled))
    total = None if sampling.top_k else scaled.logsumexp(0)
    look = count if sampling.top_k else min(_FIRST, count)
    while True:
        values, ids = _likeliest(scaled, look)
        probabilities = (values - (values.logsumexp(0) if total is None else total)).exp()
        before = probabilities.cumsum(0) - probabilities
        last = look if sampling.top_p == 1 else int((before < sampling.top_p).sum())
        within = probabilities[:last]
        enough = last < look or look == count
        if sampling.min_p > 0:
            strong = int((within >= sampling.min_p * within[0]).sum())
            enough, last = enough or strong < last, strong
        if enough:
            chosen = probabilities[:last]
            return ids[:last], chosen / chosen.sum()
        look = min(8 * look, count)


def _likeliest(scaled: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if count < len(scaled):
        edge = scaled.topk(count).values[-1]
        ids = (scaled >= edge).nonzero()[:, 0]
    else:
        ids = torch.arange(len(scaled))
    values, order = scaled[ids].sort(descending=True, stable=True)
    return values[:count], ids[order[:count]]


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (vocab,) in float64 that a token is drawn from, 0 for tokens that are filtered out."""
    ids, p = kept(logits, sampling)
    out = torch.zeros(len(logits), dtype=torch.float64)
    out[ids] = p
    return out


def draw(p: Tensor, generator: torch.Generator) -> int:
    """One index of a distribution, by inverting its cumulative sum at one uniform number."""
    total = p.double().cumsum(0)
    u = torch.rand(1, dtype=torch.float64, generator=generator) * total[-1]
    at = int(torch.searchsorted(total, u, right=True))
    # Rounding can put u at the very end: then the last index that can be drawn at all.
    return at if at < len(p) else int(p.nonzero()[-1])


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token for adjusted logits (vocab,)."""
    if sampling.greedy:
        return int(logits.argmax())
    if sampling.unfiltered and sampling.temperature > _COLDEST:
        return _draw_any(logits, sampling.temperature, generator)
    ids, p = kept(logits, sampling)
    return int(ids[draw(p, generator)])


def _draw_any(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """`draw` from all of a vocabulary, whose cumulative sum is only made where the number falls: a tenth of the time.

    Weights and their sums over a stretch are float32's, what is summed of those float64's.
    """
    scores = logits.float()
    weights = (scores - scores.max()).div_(temperature).exp_()
    whole = len(weights) // _STRETCH * _STRETCH
    sums = [weights[:whole].view(-1, _STRETCH).sum(1), weights[whole:].sum(0, True)]
    reached = torch.cat(sums).double().cumsum(0)
    u = float(torch.rand(1, dtype=torch.float64, generator=generator) * reached[-1])
    stretch = min(int(torch.searchsorted(reached, u, right=True)), len(reached) - 1)
    start = stretch * _STRETCH
    within = weights[start : start + _STRETCH].double()
    left = u - (float(reached[stretch - 1]) if stretch else 0.0)
    at = int(torch.searchsorted(within.cumsum(0), left, right=True))
    if at < len(within):
        return start + at
    return int(weights[: start + _STRETCH].nonzero()[-1])  # the end of a stretch, by rounding


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of the probability the model itself gave it."""

    id: int
    logprob: float


def logprobs(logits: Tensor, chosen: int, top: int = 0) -> tuple[TokenLogprob, tuple[TokenLogprob, ...]]:
    """The chosen token's log-probability and those of the `top` likeliest, from the model's own logits (vocab,)."""
    most = logits.max()
    # Exponentials in float32, which are right to its last digit where they count, and their sum in float64.
    total = most.double() + (logits.float() - most).exp_().sum(dtype=torch.float64).log()
    mine = TokenLogprob(chosen, float(logits[chosen].double() - total))
    if top < 1:
        return mine, ()
    values, ids = _likeliest(logits, min(top, len(logits)))
    return mine, tuple(
        TokenLogprob(i, v) for i, v in zip(ids.tolist(), (values.double() - total).tolist(), strict=True)
    )
