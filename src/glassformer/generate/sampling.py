"""How the next token is chosen from its scores: pure functions of logits, settings and a random generator.

The order is fixed: bias, repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p,
typical-p; each filter sees what the one before left. It knows no model, no text and no loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.generate.settings import GREEDY as GREEDY
from glassformer.generate.settings import Sampling
from glassformer.kernels import ops

# Candidates looked at first where only the likeliest matter; sorting a whole vocabulary takes as long as a token.
_FIRST = 256
_LARGEST = torch.finfo(torch.float32).max


def generator(sampling: Sampling) -> torch.Generator:
    """A generator for one answer, seeded where a seed is given."""
    made = torch.Generator()
    if sampling.seed is None:
        made.seed()
    else:
        made.manual_seed(sampling.seed % 2**63)
    return made


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
    if sampling.counts and answer:
        ids, counts = torch.tensor(answer).unique(return_counts=True)
        out[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return out.clamp_(-_LARGEST, _LARGEST)  # an extreme penalty leaves no number that cannot be compared


def without(logits: Tensor, absent: Tensor | None) -> Tensor:
    """Adjusted logits (..., vocab) under which none of the `absent` ids can be chosen; None for no such id."""
    return logits if absent is None else logits.index_fill(-1, absent, -torch.inf)


def kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens that may be chosen, likeliest first, and their probabilities in float64, which sum to 1.

    `logits` are (vocab,), already adjusted; a tie is settled by the lower id.
    """
    if sampling.greedy:
        best = logits.argmax()[None]  # the first of the largest
        return best, torch.ones(1, dtype=torch.float64)
    top = logits.max()
    if sampling.unfiltered:
        return torch.arange(len(logits)), ((logits.double() - top) / sampling.temperature).softmax(0)
    count = len(logits) if sampling.top_k == 0 else min(sampling.top_k, len(logits))
    total = None if sampling.top_k else ops.weight_sum(logits, sampling.temperature)
    look = count if sampling.top_k else min(_FIRST, count)
    while True:
        ids = ops.largest(logits, look)
        weights = ((logits[ids].double() - top) / sampling.temperature).exp()  # the first is 1 however low that is
        probabilities = weights / (weights.sum() if total is None else total)
        before = probabilities.cumsum(0) - probabilities
        last = look if sampling.top_p == 1 else max(1, int((before < sampling.top_p).sum()))
        within = probabilities[:last]
        enough = last < look or look == count
        if sampling.min_p > 0:
            strong = int((within >= sampling.min_p * within[0]).sum())
            enough, last = enough or strong < last, strong
        if enough:
            chosen = probabilities[:last]
            return _typical(ids[:last], chosen / chosen.sum(), sampling.typical_p)
        look = min(8 * look, count)


def _typical(ids: Tensor, p: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The tokens whose surprise, -log p, lies closest to the distribution's mean surprise and that reach `share`."""
    if share == 1:
        return ids, p
    surprise = -p.clamp(min=torch.finfo(p.dtype).tiny).log()
    order = (surprise - (p * surprise).sum()).abs().argsort(stable=True)
    before = p[order].cumsum(0) - p[order]
    chosen = order[: max(1, int((before < share).sum()))].sort().values
    return ids[chosen], p[chosen] / p[chosen].sum()


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (vocab,) in float64 that a token is drawn from, 0 for tokens that are filtered out."""
    ids, p = kept(logits, sampling)
    out = torch.zeros(len(logits), dtype=torch.float64)
    out[ids] = p
    return out


def draw(p: Tensor, generator: torch.Generator) -> int:
    """One index of a distribution, by inverting its cumulative sum at one uniform number."""
    total = p.double().cumsum(0)
    u = _uniform(generator) * total[-1]
    at = int(torch.searchsorted(total, u, right=True))
    # Rounding can put u at the very end: then the last index that can be drawn at all.
    return at if at < len(p) else int(p.nonzero()[-1])


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token for adjusted logits (vocab,)."""
    if sampling.greedy:
        return int(logits.numpy().argmax())  # torch's takes twice as long
    if sampling.unfiltered:
        return ops.draw(logits, sampling.temperature, _uniform(generator))
    ids, p = kept(logits, sampling)
    return int(ids[draw(p, generator)])


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand(1, dtype=torch.float64, generator=generator))


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of the probability the model itself gave it."""

    id: int
    logprob: float


def logprobs(logits: Tensor, chosen: int, top: int = 0) -> tuple[TokenLogprob, tuple[TokenLogprob, ...]]:
    """The chosen token's log-probability and those of the `top` likeliest, from the model's own logits (vocab,)."""
    most = logits.max().double()
    total = most + math.log(ops.weight_sum(logits, 1.0))
    mine = TokenLogprob(chosen, float(logits[chosen].double() - total))
    if top < 1:
        return mine, ()
    ids = ops.largest(logits, min(top, len(logits)))
    likely = (logits[ids].double() - total).tolist()
    return mine, tuple(TokenLogprob(i, v) for i, v in zip(ids.tolist(), likely, strict=True))


def constrained(logits: Tensor, allowed: Tensor) -> tuple[float, TokenLogprob]:
    """How much of the model's own probability a constraint removes, and the token the model finds likeliest.

    `logits` and `allowed` (bool) are (vocab,).
    """
    p = (logits.float() - logits.max()).exp_()
    total = p.sum(dtype=torch.float64)
    removed = float(p[~allowed].sum(dtype=torch.float64) / total)
    best = int(logits.argmax())
    return removed, TokenLogprob(best, float(-total.log()))
