"""Activation patching: which places carry what makes two prompts end differently.

Two prompts of equal length differ in a few tokens. One place of the corrupted run is given what the
clean run had there, everything downstream is computed anew, and the answer is measured: 1 means that
this place alone brings the clean answer back, 0 that it does nothing (arXiv:2202.05262). Attribution
patching estimates the same from one gradient (arXiv:2310.10348); its correlation with the measured
values is printed beside it, for it is an estimate. Knows traces, not models' names or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import ShapeError, UsageError
from glassformer.inspect.edits import tap
from glassformer.inspect.gradient import gradients
from glassformer.inspect.receipts import direction
from glassformer.inspect.resume import finish, run_blocks, tap_of

if TYPE_CHECKING:
    from glassformer.inspect.trace import Trace

What = Literal["stream", "attention", "feed_forward", "heads"]
SITES: dict[str, str] = {"stream": "resid_pre", "attention": "attn.out", "feed_forward": "mlp.out", "heads": "attn.z"}
Progress = Callable[[int, int, str], None]

# Tokens of one batch of variants.
_TOKENS = 4096


@dataclass(frozen=True)
class Patching:
    """The grid of one or several pairs of prompts.

    Attributes:
        what: "stream" (before each layer), "attention", "feed_forward": layer × position; "heads": layer × head.
        answer, wrong: per pair, the token ids whose logits are compared (wrong None: the vocabulary's mean).
        clean, corrupted: per pair, the metric of the two runs.
        measured: (pair, layer, column) metric of the corrupted run with that place as in the clean run.
        attribution: the gradient's estimate of `measured` − `corrupted`; None when not asked for.
        columns: their labels: the tokens of the first pair's corrupted prompt, or head numbers.
        texts: token texts by id.
    """

    what: What
    answer: list[int]
    wrong: list[int | None]
    clean: list[float]
    corrupted: list[float]
    measured: Float[Tensor, "pair layer column"]
    attribution: Float[Tensor, "pair layer column"] | None
    columns: list[str]
    texts: dict[int, str]

    @property
    def restored(self) -> Float[Tensor, "pair layer column"]:
        """(measured − corrupted) / (clean − corrupted): 0 does nothing, 1 brings the clean answer back."""
        base = torch.tensor(self.corrupted).view(-1, 1, 1)
        span = torch.tensor(self.clean).view(-1, 1, 1) - base
        return (self.measured - base) / span

    @property
    def correlation(self) -> float | None:
        """Pearson's, of the attribution with what was measured, over all cells of all pairs."""
        if self.attribution is None:
            return None
        true = (self.measured - torch.tensor(self.corrupted).view(-1, 1, 1)).flatten().double()
        guess = self.attribution.flatten().double()
        if true.std() == 0 or guess.std() == 0:
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
    answer: str | int | None = None,
    wrong: str | int | None = None,
    position: int = -1,
    attribution: bool = True,
    progress: Progress | None = None,
) -> Patching:
    """Patch every layer × position (or head) of the corrupted runs with the clean ones.

    Args:
        pairs: (clean, corrupted) traces of one text each; the two of a pair have as many tokens.
        answer, wrong: the tokens compared; None takes what each clean and each corrupted run predicts.
        position: after which the answer is predicted.
        attribution: also the gradient's estimate.
        progress: called with (done, total, what).

    Raises:
        ShapeError: when two prompts do not line up.
        UsageError: when both runs predict the same token and none was named, or nothing was given.
    """
    if what not in SITES:
        raise UsageError(f"There is nothing called {what!r} to patch; choose {', '.join(SITES)}.")
    if not pairs:
        raise UsageError("Patching needs at least one pair of prompts.")
    for clean, corrupted in pairs:
        _aligned(clean, corrupted)
    lengths = {clean.length for clean, _ in pairs}
    if what != "heads" and len(lengths) > 1:
        raise ShapeError(
            f"The pairs are {', '.join(map(str, sorted(lengths)))} tokens long; a grid over positions needs pairs of "
            "one length (heads can be patched over pairs of several)."
        )
    total, done = sum(clean.config.n_layers for clean, _ in pairs), 0
    say = progress or (lambda done, total, what: None)
    results: list[Tensor] = []
    estimates: list[Tensor] = []
    tokens: list[tuple[int, int | None]] = []
    ends: list[tuple[float, float]] = []
    for clean, corrupted in pairs:
        right, other = _answers(clean, corrupted, answer, wrong, position)
        vector = direction(corrupted, right, other, position).vector
        at = corrupted.position(position)
        ends.append((_metric(clean, vector, at), _metric(corrupted, vector, at)))
        tokens.append((right, other))
        rows = []
        for layer in range(clean.config.n_layers):
            rows.append(_layer(clean, corrupted, layer, what, vector, at))
            done += 1
            say(done, total, "patching")
        results.append(torch.stack(rows))
        if attribution:
            estimates.append(_attributed(clean, corrupted, what, right, other, position))
    first = pairs[0][1]
    heads = [str(h) for h in range(first.config.attention.n_heads)]
    ids = {i for pair in tokens for i in pair if i is not None}
    return Patching(
        what=what,
        answer=[a for a, _ in tokens],
        wrong=[w for _, w in tokens],
        clean=[c for c, _ in ends],
        corrupted=[c for _, c in ends],
        measured=torch.stack(results),
        attribution=torch.stack(estimates) if attribution else None,
        columns=heads if what == "heads" else first.tokens,
        texts={i: first.token_text(i) for i in ids},
    )


def _aligned(clean: Trace, corrupted: Trace) -> None:
    if clean.batched or corrupted.batched:
        raise UsageError("Patching takes traces of one text each; take one of a batch with trace.row(i).")
    if clean.transformer is not corrupted.transformer:
        raise UsageError("Both prompts of a pair must be traced in the same model.")
    if len(clean) != len(corrupted):
        raise ShapeError(
            f"The prompts are {len(clean)} and {len(corrupted)} tokens long ({' | '.join(clean.tokens)}; "
            f"{' | '.join(corrupted.tokens)}); to be patched they need as many tokens, place for place."
        )
    if clean.ids == corrupted.ids:
        raise UsageError("The two prompts are the same, so there is nothing to patch; change a word in one of them.")


def _answers(
    clean: Trace, corrupted: Trace, answer: str | int | None, wrong: str | int | None, position: int
) -> tuple[int, int | None]:
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


@torch.no_grad()
def _metric(trace: Trace, vector: Tensor, at: int) -> float:
    return float(trace.forward.get("final.normed", slice(at, at + 1))[0, 0].double() @ vector)


@torch.no_grad()
def _layer(clean: Trace, corrupted: Trace, layer: int, what: What, vector: Tensor, at: int) -> Float[Tensor, " column"]:
    """The metric with each position (or head) of one layer as in the clean run, all in one batch."""
    forward, site = corrupted.forward, f"blocks.{layer}.{SITES[what]}"
    wanted = clean.forward.get(site)
    # Later positions cannot change what is predicted at `at`.
    count = corrupted.config.attention.n_heads if what == "heads" else at + 1
    start = forward.entering(layer)[:, : at + 1]
    out = torch.full((corrupted.config.attention.n_heads if what == "heads" else corrupted.length,), float("nan"))
    step = max(1, _TOKENS // (at + 1))
    for low in range(0, count, step):
        rows = torch.arange(low, min(low + step, count))

        def put(x: Tensor, where: Any, rows: Tensor = rows) -> Tensor:
            x, each = x.clone(), torch.arange(len(rows))
            if what == "heads":
                x[each, :, rows] = wanted[0, : at + 1, rows].transpose(0, 1).to(x.dtype)
            else:
                x[each, rows] = wanted[0, rows].to(x.dtype)
            return x

        change = tap_of(forward.edit, tap(site, put).bind(corrupted.config))
        x = run_blocks(
            corrupted.transformer,
            start.expand(len(rows), -1, -1),
            forward.positions[:, : at + 1].expand(len(rows), -1),
            layers=range(layer, corrupted.config.n_layers),
            tap=change,
        )
        normed = finish(corrupted.transformer, x[:, -1:], forward.where)
        out[rows] = (normed[:, 0].double() @ vector).float().cpu()
    return out if what == "heads" else torch.where(torch.arange(len(out)) <= at, out, _metric(corrupted, vector, at))


def _attributed(
    clean: Trace, corrupted: Trace, what: What, right: int, other: int | None, position: int
) -> Float[Tensor, "layer column"]:
    """Gradient of the metric at every place of the corrupted run, times what the clean run has there instead."""
    names = [f"blocks.{layer}.{SITES[what]}" for layer in range(clean.config.n_layers)]
    slopes = gradients(corrupted, names, right, against=other, position=position)
    rows = []
    for name in names:
        change = clean.forward.get(name) - corrupted.forward.get(name)
        share = (slopes[name] * change)[0].double()
        rows.append(share.sum((0, 2)) if what == "heads" else share.sum(-1))
    return torch.stack(rows).float().cpu()
