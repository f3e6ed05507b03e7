"""Why a token: an additive account of one number, each part with what was claimed and what was measured.

The number is a token's score before any soft cap, less the vocabulary's mean, or the difference to another
token. It is split exactly into parts of the last residual stream (`parts`); each carries its claimed
share, its measured direct effect (taken from the last stream alone) and its measured total effect
(taken out where it enters, everything downstream run again); words are measured by replacing them and by
forbidding attention to them (`replacement`). What is said in the sentence is read off these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import UsageError
from glassformer.interp.decompose import KINDS, Parts, decompose
from glassformer.interp.effects import measure_totals, rank
from glassformer.interp.logit_target import Target, target
from glassformer.interp.replacement import RULE, Alternatives, Continuation, WordEffect, knocked_out, replaced
from glassformer.interp.token_words import Word
from glassformer.interp.vocabulary import shown
from glassformer.system.progress import Progress, quiet

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# Parts whose total effect is measured; beyond this, those that claim most.
PARTS = 5000
# Words that are replaced and knocked out; beyond this, those that heads read most from.
WORDS = 32
ALTERNATIVES = 24
# Tokens that may be run for replacing words; in long texts this leaves fewer words than `WORDS`.
TOKENS = 30_000


@dataclass(frozen=True)
class Why:
    """The account of one prediction.

    Attributes:
        token, against: texts; probability: of the token, as the model said.
        target: the number explained, with its unit.
        sum: of all parts; residual: (value − sum) relative to the sum of the parts' absolute shares.
        precision: in which the model ran (the account is added up in float64).
        parts: every part, with claimed, direct and total effects (NaN where a total was not measured).
        ranked_by: what the percentiles compare, "total" or "direct".
        agreement: of claimed and measured direct: correlation, and the part where they differ most.
        words: their effects, in the order of the text.
        sink: position 0 apart: its token, the attention it gets at the explained position averaged over heads
            and layers, and what heads read from it.
        seed, alternatives: how words were replaced.
        keys_from: layers whose heads read another layer's keys and values, and which.
    """

    token: str
    against: str | None
    target: Target
    sum: float
    residual: float
    precision: str
    parts: Parts
    ranked_by: str
    agreement: dict[str, Any]
    words: list[WordEffect]
    sink: dict[str, Any]
    tokens: list[str]
    seed: int
    alternatives: int
    keys_from: dict[int, int] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The number explained."""
        return self.target.value

    def ranked_words(self) -> list[WordEffect]:
        """Words by the size of their effect, the sink left out."""

        def size(effect: WordEffect) -> float:
            if effect.replaced is not None:
                return abs(effect.replaced["median"])
            return abs(effect.knocked_out) if effect.knocked_out is not None else abs(effect.claimed)

        return sorted((w for w in self.words if not w.sink), key=size, reverse=True)

    def ranked_parts(self, kind: str | None = None, *, sink: bool = True) -> list[dict[str, Any]]:
        """Parts by the size of their total effect (direct, where totals were not all measured)."""
        by = self.parts.total if self.ranked_by == "total" else self.parts.direct
        order = torch.nan_to_num(by.abs(), nan=-1.0).argsort(descending=True)
        if kind is not None:
            order = order[self.parts.kind[order] == KINDS.index(kind)]
        if not sink:
            order = order[self.parts.source[order] != 0]
        return [self.part(int(i)) for i in order[:200]]

    def part(self, index: int) -> dict[str, Any]:
        """One part as plain data."""
        p = self.parts
        total = float(p.total[index])
        expert = KINDS[int(p.kind[index])] == "expert"
        return {
            "layer": _or_none(int(p.layer[index])),
            "kind": KINDS[int(p.kind[index])],
            "head": None if expert else _or_none(int(p.head[index])),
            "expert": int(p.head[index]) if expert else None,
            "source": _or_none(int(p.source[index])),
            "claimed": float(p.claimed[index]),
            "direct": float(p.direct[index]),
            "total": None if math.isnan(total) else total,
            "percentile": float(p.percentile[index]),
        }

    def sentence(self) -> str:
        """What was found, and how far claim and measurement agree."""
        from glassformer.interp.explanation import sentence

        return sentence(self)

    def to_dict(self, parts: bool = True) -> dict[str, Any]:
        """Plain data for JSON, with or without the list of parts; the field names are public."""
        t = self.target
        return {
            "token": self.token,
            "unit": t.way.unit,
            "value": t.value,
            "sum": self.sum,
            "residual": self.residual,
            "precision": self.precision,
            "parts": [self.part(i) for i in range(len(self.parts))] if parts else [],
            "words": [effect.to_dict() for effect in self.words],
            "against": self.against,
            "position": t.position,
            "probability": t.probability,
            "logit": t.logit,
            "softcap": t.softcap,
            "ranked_by": self.ranked_by,
            "agreement": self.agreement,
            "sink": self.sink,
            "keys_from": [{"layer": layer, "from": donor} for layer, donor in self.keys_from.items()],
            "replacements": {"seed": self.seed, "count": self.alternatives, "rule": RULE},
            "sentence": self.sentence(),
        }


def _or_none(index: int) -> int | None:
    return None if index < 0 else index


def why(
    trace: Trace,
    token: str | int | None = None,
    against: str | int | None = None,
    position: int = -1,
    *,
    parts: int = PARTS,
    words: int = WORDS,
    alternatives: int = ALTERNATIVES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Why:
    """Account for a token's score after a position.

    Args:
        token: its exact text or id; None for the model's first choice.
        against: another token, to explain the difference.
        parts: how many parts' total effects are measured; when there are more, those that claim most.
        words: how many words are replaced and knocked out; when there are more, the last and those read from most,
            and in long texts no more than `TOKENS` tokens' work allows. 0 for none.
        alternatives: how many others each word is replaced by.
        seed: of the draw.
        progress: called with (done, total, what).

    Raises:
        TextError: for a token that is not one, saying how it splits.
        ShapeError: for a position that the text does not have.
    """
    if alternatives < 1 or words < 0 or parts < 0:
        raise UsageError("Give at least one alternative per word, and no negative number of words or parts.")
    say = progress or quiet
    goal = target(trace, token, against, position)
    found = decompose(trace, goal)
    say(0, 2, "measuring parts")
    if parts:
        measure_totals(trace, goal, found, _chosen(found, parts))
    ranked_by = rank(found)
    total = float(found.claimed.sum())
    absolute = float(found.claimed.abs().sum())
    shown_words = [w for w in trace.words if w.positions[0] <= goal.position]
    effects = _words(trace, goal, found, shown_words, words, alternatives, seed, say)
    text = trace.token_text
    return Why(
        token=text(goal.way.token),
        against=None if goal.way.against is None else text(goal.way.against),
        target=goal,
        sum=total,
        residual=abs(goal.value - total) / absolute if absolute else 0.0,
        precision=trace.precision,
        parts=found,
        ranked_by=ranked_by,
        agreement=_agreement(found),
        words=effects,
        sink=_sink(trace, goal, found),
        tokens=trace.tokens,
        seed=seed,
        alternatives=alternatives,
        keys_from=trace.config.keys_from,
    )


def _chosen(parts: Parts, most: int) -> torch.Tensor:
    """Which parts to measure: all, or every part but heads and the heads' readings that claim most."""
    if len(parts) <= most:
        return torch.arange(len(parts))
    heads = parts.of("head")
    others = (parts.kind != KINDS.index("head")).nonzero()[:, 0]
    best = parts.claimed[heads].abs().topk(min(most, len(heads))).indices
    return torch.cat([others, heads[best]])


def _agreement(parts: Parts) -> dict[str, Any]:
    both = torch.stack([parts.claimed, parts.direct])
    spread = both.std(dim=1)
    correlation = float(torch.corrcoef(both)[0, 1]) if len(parts) > 1 and bool((spread > 0).all()) else 1.0
    gap = (parts.claimed - parts.direct).abs()
    return {
        "correlation": correlation,
        "largest_gap": float(gap.max()),
        "part": int(gap.argmax()),
    }


def _words(
    trace: Trace,
    goal: Target,
    parts: Parts,
    shown_words: list[Word],
    most: int,
    count: int,
    seed: int,
    say: Progress,
) -> list[WordEffect]:
    """The effects of every word up to the explained position."""
    heads = parts.of("head")
    claimed = torch.zeros(goal.position + 1, dtype=torch.float64)
    claimed.index_add_(0, parts.source[heads], parts.claimed[heads])
    size = {w: float(claimed[[p for p in w.positions if p <= goal.position]].sum()) for w in shown_words}
    # The last word first, then by what heads read from them, as far as the work allows.
    order = sorted(shown_words[:-1], key=lambda w: abs(size[w]), reverse=True)
    chosen: set[Word] = set()
    work = 0
    for word in [*shown_words[-1:], *order][:most]:
        work += count * (goal.position + 1 - word.positions[0])
        if chosen and work > TOKENS:
            break
        chosen.add(word)
    draw = Alternatives(trace.vocabulary, trace.config.vocab_size, seed) if chosen else None
    run = Continuation(trace, goal) if chosen else None
    out = []
    done = 0
    for word in shown_words:
        new: dict[str, float] | None = None
        texts: list[str] = []
        cut: float | None = None
        if draw is not None and run is not None and word in chosen:
            say(done, len(chosen), "measuring words")
            done += 1
            if not word.special:
                new, texts = replaced(trace, goal, word, draw, count, run)
            cut = knocked_out(trace, goal, word, run)
        out.append(WordEffect(word, new, texts, cut, size[word], 0 in word.positions))
    return out


def _sink(trace: Trace, goal: Target, parts: Parts) -> dict[str, Any]:
    """Position 0 apart: how much attention it gets, and what is read from it."""
    c = trace.config
    weight = sum(
        float(trace.pattern(i, None, goal.position, slice(0, 1)).sum()) for i in range(c.n_layers) if c.n_heads(i)
    )
    heads = parts.of("head")
    mine = heads[parts.source[heads] == 0]
    totals = parts.total[mine]
    return {
        "position": 0,
        "token": shown(trace.tokens[0]),
        "attention": weight / max(1, sum(c.n_heads(i) for i in range(c.n_layers))),
        "claimed": float(parts.claimed[mine].sum()),
        "total": float(totals.sum()) if bool(totals.isfinite().all()) else None,
    }
