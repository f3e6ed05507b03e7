"""Activation patching: which places carry what makes two prompts end differently.

Two prompts of equal length differ in a few tokens. One place of the corrupted run is given what the
clean run had there, everything downstream is computed anew, and the answer is measured: 1 means that
this place alone brings the clean answer back, 0 that it does nothing (arXiv:2202.05262). Attribution
patching estimates the same from one gradient (arXiv:2310.10348); its correlation with the measured
values is printed beside it, for it is an estimate. Knows traces, not models' names or files; how the variants are
run is `patch_sweep`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ShapeError, UsageError
from glassformer.interp.gradient import gradients
from glassformer.interp.logit_target import direction
from glassformer.interp.patch_sweep import Measure, Metric, Sweep
from glassformer.interp.select import site_in
from glassformer.interp.vocabulary import shown
from glassformer.system.progress import Progress, quiet

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.interp.traced import Traced

What = Literal["stream", "attention", "feed_forward", "heads"]
# The same places in a layer whose mixer may be another than attention.
PLACES = {"stream": "resid_pre", "attention": "mixer.out", "feed_forward": "mlp.out", "heads": "mixer.z"}
SITES: dict[str, str] = {"stream": "resid_pre", "attention": "attn.out", "feed_forward": "mlp.out", "heads": "attn.z"}
Tokens = str | int | Sequence[str | int | None] | None


@dataclass(frozen=True)
class Patching:
    """The grid of one or several pairs of prompts.

    Attributes:
        what: "stream" (before each layer), "attention", "feed_forward": layer × position; "heads": layer × head.
        answer, wrong: per pair, the token ids whose logits are compared (wrong None: the vocabulary's mean);
            both None under a metric of the caller's.
        unit: what the numbers are, in words.
        clean, corrupted: per pair, the number of the two runs.
        measured: (pair, layer, column) metric of the corrupted run with that place as in the clean run.
        attribution: the gradient's estimate of `measured` − `corrupted`; None when not asked for.
        columns: their labels: the tokens of the first pair's corrupted prompt, or head numbers.
        texts: token texts by id.
    """

    what: What
    answer: list[int | None]
    wrong: list[int | None]
    unit: str
    clean: list[float]
    corrupted: list[float]
    measured: Float[Tensor, "pair layer column"]
    attribution: Float[Tensor, "pair layer column"] | None
    columns: list[str]
    texts: dict[int, str]

    @property
    def restored(self) -> Float[Tensor, "pair layer column"]:
        """(measured − corrupted) / (clean − corrupted): 0 does nothing, 1 brings the clean answer back."""
        base = torch.tensor(self.corrupted, dtype=torch.float64).view(-1, 1, 1)
        span = torch.tensor(self.clean, dtype=torch.float64).view(-1, 1, 1) - base
        return (self.measured - base) / span

    @property
    def correlation(self) -> float | None:
        """Pearson's, of the attribution with what was measured, over all cells of all pairs."""
        if self.attribution is None:
            return None
        true = (self.measured - torch.tensor(self.corrupted, dtype=torch.float64).view(-1, 1, 1)).flatten()
        guess = self.attribution.flatten().double()
        if len(true) < 2 or true.std() == 0 or guess.std() == 0:
            return None
        return float(torch.corrcoef(torch.stack([true, guess]))[0, 1])

    def ranked(self, most: int = 20) -> list[dict[str, Any]]:
        """Cells by how much of the clean answer they bring back, averaged over pairs."""
        mean = self.restored.mean(0)
        order = mean.abs().flatten().argsort(descending=True)[:most].tolist()
        name = "head" if self.what == "heads" else "position"
        return [
            {"layer": i // mean.shape[1], name: i % mean.shape[1], "restored": float(mean.flatten()[i])} for i in order
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""

        def named(id: int | None) -> str | None:
            return None if id is None else self.texts[id]

        return {
            "what": self.what,
            "site": SITES[self.what],
            "unit": self.unit,
            "pairs": [
                {"answer": named(a), "wrong": named(w), "clean": c, "corrupted": k}
                for a, w, c, k in zip(self.answer, self.wrong, self.clean, self.corrupted, strict=True)
            ],
            "columns": self.columns,
            "restored": self.restored.mean(0).tolist(),
            "measured": self.measured.tolist(),
            "attribution": None if self.attribution is None else self.attribution.tolist(),
            "correlation": self.correlation,
            "ranked": self.ranked(),
        }


def patch(
    pairs: Sequence[tuple[Trace, Trace]],
    what: What = "stream",
    *,
    answer: Tokens = None,
    wrong: Tokens = None,
    position: int = -1,
    metric: Metric | None = None,
    attribution: bool = True,
    progress: Progress | None = None,
) -> Patching:
    """Patch every layer × position (or head) of the corrupted runs with the clean ones.

    Args:
        pairs: (clean, corrupted) traces of one text each; the two of a pair have as many tokens.
        answer, wrong: the tokens compared, for all pairs or a list with one for each; None takes what each clean
            and each corrupted run predicts.
        position: after which the answer is predicted; negative from the end.
        metric: instead of the two tokens, a function `metric(logits (row, vocab), pair) -> (row,)` of the
            predictions after `position`, differentiable unless `attribution` is off.
        attribution: also the gradient's estimate.
        progress: called with (done, total, what).

    Raises:
        ShapeError: when two prompts do not line up, or the metric gives no number per row.
        UsageError: when both runs predict the same token and none was named, when the two runs' numbers are
            equal, so that no part of the difference can be said, or when nothing was given.
    """
    if what not in SITES:
        raise UsageError(f"There is nothing called {what!r} to patch; choose {', '.join(SITES)}.")
    if metric is not None and (answer is not None or wrong is not None):
        raise UsageError("Give either a metric or the tokens to compare, not both.")
    pairs = list(pairs)
    if not pairs:
        raise UsageError("Patching needs at least one pair of prompts.")
    for clean, corrupted in pairs:
        aligned(clean, corrupted)
    lengths = {clean.length for clean, _ in pairs}
    if what != "heads" and len(lengths) > 1:
        raise ShapeError(
            f"The pairs are {', '.join(map(str, sorted(lengths)))} tokens long; a grid over positions needs pairs of "
            "one length (heads can be patched over pairs of several)."
        )
    named = zip(each(answer, len(pairs), "answers"), each(wrong, len(pairs), "wrong answers"), strict=True)
    compared = [
        (None, None) if metric else answers(clean, corrupted, right, other, position)
        for (clean, corrupted), (right, other) in zip(pairs, named, strict=True)
    ]
    layers = pairs[0][0].config.n_layers
    say = progress or quiet
    results, estimates, ends, unit = [], [], [], "the caller's metric"
    for number, ((clean, corrupted), (right, other)) in enumerate(zip(pairs, compared, strict=True)):
        at = corrupted.position(position)
        measure = Measure(None, metric, number)
        if metric is None:
            way = direction(corrupted, right, other, position)
            measure, unit = Measure(way.vector, None, number), way.unit
        base, goal = measure.run(corrupted, at), measure.run(clean, at)
        if base == goal:
            raise UsageError(
                f"Pair {number + 1} gives {goal:.4g} both ways ({unit}), so there is no difference to bring back; "
                "compare other tokens."
            )
        ends.append((goal, base))
        sweep = Sweep(clean, corrupted, PLACES[what], at, measure, heads=what == "heads")

        def tell(share: float, number: int = number) -> None:
            say(int((number + share) * layers), len(pairs) * layers, "patching")

        results.append(sweep.grid(base, tell))
        if attribution:
            estimates.append(_attributed(clean, corrupted, what, right, other, at, measure))
    first = pairs[0][1]
    heads = [str(h) for h in range(first.config.most_heads)]
    ids = {i for pair in compared for i in pair if i is not None}
    return Patching(
        what=what,
        answer=[a for a, _ in compared],
        wrong=[w for _, w in compared],
        unit=unit,
        clean=[c for c, _ in ends],
        corrupted=[c for _, c in ends],
        measured=torch.stack(results),
        attribution=torch.stack(estimates) if attribution else None,
        columns=heads if what == "heads" else first.tokens,
        texts={i: first.token_text(i) for i in ids},
    )


def each(tokens: Tokens, count: int, what: str) -> list[str | int | None]:
    """One token for each pair, from one for all or a list.

    Raises:
        UsageError: for a list of another length.
    """
    if tokens is None or isinstance(tokens, str | int):
        return [tokens] * count
    listed = list(tokens)
    if len(listed) != count:
        raise UsageError(f"There are {count} pairs and {len(listed)} {what}; give one for each, or one for all.")
    return listed


def aligned(clean: Traced, corrupted: Traced) -> None:
    """Refuse two traces that are no pair.

    Raises:
        UsageError: not of one text each, of one model, or without any difference.
        ShapeError: of different lengths.
    """
    if clean.batched or corrupted.batched:
        raise UsageError("Patching takes traces of one text each; take one of a batch with trace.row(i).")
    if clean.transformer is not corrupted.transformer:
        raise UsageError("Both prompts of a pair must be traced in the same model.")
    if len(clean) != len(corrupted):
        raise ShapeError(
            f"The prompts are {len(clean)} and {len(corrupted)} tokens long ({_short(clean)}; {_short(corrupted)}); "
            "to be patched they need as many tokens, place for place."
        )
    if clean.ids == corrupted.ids and clean.forward.edit is corrupted.forward.edit:
        raise UsageError("The two prompts are the same, so there is nothing to patch; change a word in one of them.")


def _short(trace: Traced, most: int = 40) -> str:
    tokens = trace.tokens if len(trace) <= most else [*trace.tokens[:most], "…"]
    return " | ".join(map(shown, tokens))


def answers(
    clean: Trace, corrupted: Trace, answer: str | int | None, wrong: str | int | None, position: int
) -> tuple[int, int | None]:
    """The two token ids compared: those named, or what each run predicts.

    Raises:
        UsageError: when both runs predict the same token and none was named.
    """
    right = int(clean.logits(position).argmax()) if answer is None else clean.token_id(answer)
    if wrong is not None:
        return right, clean.token_id(wrong)
    other = int(corrupted.logits(position).argmax())
    if other != right:
        return right, other
    if answer is None:
        raise UsageError(
            f"Both prompts are continued with {clean.token_text(right)!r}; name the answer and the wrong one."
        )
    return right, None


def _attributed(
    clean: Trace, corrupted: Trace, what: What, right: int | None, other: int | None, at: int, measure: Measure
) -> Float[Tensor, "layer column"]:
    """Gradient of the number at every place of the corrupted run, times what the clean run has there instead."""
    places = [site_in(PLACES[what], layer) for layer in clean.config.layers]
    names = [f"blocks.{i}.{place}" for i, place in enumerate(places) if place is not None]
    if measure.metric is None:
        slopes = gradients(corrupted, names, right, against=other, position=at)
    else:
        slopes = gradients(corrupted, names, lambda logits: measure.logits(logits[:, at]).sum())
    columns = clean.config.most_heads if what == "heads" else clean.length
    out = torch.zeros(clean.config.n_layers, columns, dtype=torch.float64)
    for i, place in enumerate(places):
        if place is None:
            continue
        name = f"blocks.{i}.{place}"
        change = clean.forward.get(name) - corrupted.forward.get(name)
        share = (slopes[name].double() * change.double())[0]
        row = share.sum((0, 2)) if what == "heads" else share.sum(-1)
        out[i, : len(row)] = row.cpu()
    return out
