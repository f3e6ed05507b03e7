"""Distributed alignment search: a subspace of one layer's stream, trained so that exchanging it exchanges the answer.

Texts come in pairs that the model continues differently. At the last token of one, the part of the stream inside the
subspace is put in from the other, the rest of the model runs on, and the other's answer is to win (arXiv:2303.02536).
Controls on the same held-out pairs: the same training towards answers that a coin chose, subspaces drawn at random, and
the whole stream exchanged. Knows traces, not names or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.run_from import Context

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# Radians that a direction may turn in the first step of training; less in each later one.
RATE = 0.05
# Random subspaces beside it, and the share of pairs that are held out.
RANDOM, HELD_OUT = 20, 0.25


class Bases:
    """Last tokens of texts, run on from a layer's stream in one batch for each length."""

    def __init__(self, texts: Sequence[Trace], sources: Sequence[Trace], layer: int) -> None:
        first = texts[0]
        self.transformer, self.layer = first.transformer, layer
        site = f"blocks.{layer}.resid_post"
        self.own, self.other = (torch.stack([t.at(site, -1) for t in side]) for side in (texts, sources))
        ids = [[int(t.logits(-1).argmax()) for t in side] for side in (texts, sources)]
        w, b = self.transformer.unembedding, self.transformer.unembed_bias
        self.ways = w[ids[1]] - w[ids[0]]
        self.offset = 0.0 if b is None else b[ids[1]] - b[ids[0]]
        self.groups: list[tuple[list[int], dict[str, Any]]] = []
        for length in sorted({len(t) for t in texts}):
            rows = [i for i, t in enumerate(texts) if len(t) == length]
            self.groups.append((rows, _held([texts[i] for i in rows], layer, length - 1)))

    def gaps(self, x: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """By how much the source's answer stands above the text's own when the layer leaves `x` at the last token."""
        last = torch.empty_like(x)
        for rows, held in self.groups:
            layers = range(self.layer + 1, self.transformer.config.n_layers)
            last = last.index_copy(
                0,
                torch.tensor(rows, device=x.device),
                self.transformer.stream(x[rows, None], layers=layers, **held)[:, 0],
            )
        return (self.transformer.normed(last[:, None])[:, 0] * self.ways).sum(-1) + self.offset

    def exchanged(self, basis: Float[Tensor, "k d_model"]) -> Float[Tensor, " row"]:
        """The gaps with the part inside a subspace of orthonormal rows put in from the source."""
        return self.gaps(self.own + (self.other - self.own) @ basis.T @ basis)


def _held(texts: Sequence[Trace], layer: int, at: int) -> dict[str, Any]:
    """What the last tokens of texts of one length run on: keys, values, positions."""
    forwards = [t.forward for t in texts]
    shared = [f.shared(layer + 1) for f in forwards]
    inputs = [f.inputs(slice(at, at + 1)) for f in forwards]
    context = Context.beside([Context(f, at) for f in forwards])
    return {
        "positions": torch.full((len(texts), 1), at, device=forwards[0].positions.device),
        "start": at,
        "cache": context if at else None,
        "shared": {k: tuple(torch.cat([s[k][side] for s in shared]) for side in (0, 1)) for k in shared[0]},
        "inputs": {i: torch.cat([x[i] for x in inputs]) for i in inputs[0]},
    }


@torch.no_grad()
def align(
    positive: Sequence[Trace],
    negative: Sequence[Trace],
    layer: int,
    *,
    dimensions: int = 1,
    steps: int = 60,
    controls: int = 3,
    seed: int = 0,
) -> tuple[Float[Tensor, "k d_model"], dict[str, Any]]:
    """An orthonormal basis of the subspace, and how far to trust it.

    The facts are, on held-out pairs both ways, the share of exchanges after which the source's answer wins: `accuracy`
    of the subspace, `shuffled` of the same training towards answers that a coin chose (own or source's; the share that
    end as the coin said) with its standard deviation, `random` of random subspaces, and `whole` of the whole stream;
    and `trained`, the subspace's on the pairs that it was trained on.

    Args:
        positive, negative: texts that pair up in order. dimensions: of the subspace.
        steps: of training; controls: trainings towards a coin's answers; seed: of all draws.

    Raises:
        UsageError: sides of different sizes, too few pairs that are continued differently, or counts out of range.
    """
    if len(positive) != len(negative):
        raise UsageError(
            f"Alignment takes texts in pairs; there are {len(positive)} positive and {len(negative)} negative ones."
        )
    width = positive[0].config.d_model if positive else 0
    if not 1 <= dimensions <= max(width, 1) or steps < 1 or controls < 0:
        raise UsageError(
            f"Alignment takes 1 to {width} dimensions, a step or more, and no negative number of controls."
        )
    pairs = [
        pair
        for pair in zip(positive, negative, strict=True)
        if int(pair[0].logits(-1).argmax()) != int(pair[1].logits(-1).argmax())
    ]
    if len(pairs) < 4:
        raise UsageError(
            f"Alignment needs four pairs whose two texts are continued differently; of {len(positive)} pairs "
            f"{len(pairs)} are."
        )
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pairs), generator=g).tolist()
    apart = max(1, int(HELD_OUT * len(pairs)))
    held, known = (
        Bases([t for p in some for t in p], [t for p in some for t in reversed(p)], layer)
        for some in ([pairs[i] for i in order[:apart]], [pairs[i] for i in order[apart:]])
    )

    def drawn() -> Tensor:
        return torch.randn(dimensions, width, generator=g, dtype=torch.float64).to(held.own)

    start = drawn()
    start[0] = (known.own[::2] - known.own[1::2]).mean(0)  # positives less negatives
    ones = torch.ones(len(known.own), dtype=torch.bool)
    basis = _trained(known, ones, start, steps)
    wins = held.exchanged(basis) > 0
    control = []
    for _ in range(controls):
        coins = [torch.rand(len(b.own), generator=g) < 0.5 for b in (known, held)]
        other = _trained(known, coins[0], start, steps)
        control.append(float(((held.exchanged(other) > 0).cpu() == coins[1]).double().mean()))
    mean = sum(control) / len(control) if control else None
    return basis, {
        "pairs": len(pairs),
        "held_out": apart,
        "dimensions": dimensions,
        "accuracy": float(wins.double().mean()),
        "trained": float((known.exchanged(basis) > 0).double().mean()),
        "shuffled": mean,
        "shuffled_deviation": None if mean is None else math.sqrt(sum((c - mean) ** 2 for c in control) / len(control)),
        "selectivity": None if mean is None else float(wins.double().mean()) - mean,
        "shuffles": controls,
        "random": sum(float((held.exchanged(_rows(drawn())) > 0).double().mean()) for _ in range(RANDOM)) / RANDOM,
        "whole": float((held.gaps(held.other) > 0).double().mean()),
        "steps": steps,
        "seed": seed,
    }


def _rows(w: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_model"]:
    """An orthonormal basis of what some vectors span."""
    return torch.linalg.qr(w.T).Q.T


def _trained(bases: Bases, wanted: Bool[Tensor, " row"], start: Tensor, steps: int) -> Float[Tensor, "k d_model"]:
    """The subspace after training: where wanted the source's answer is to win, elsewhere the text's own is to stay."""
    sign = torch.where(wanted, 1.0, -1.0).to(bases.own)
    w = torch.nn.functional.normalize(start, dim=-1).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE / w.shape[1] ** 0.5 * (1 - step / steps)
        with torch.enable_grad():
            loss = torch.nn.functional.softplus(-sign * bases.exchanged(_rows(w))).mean()
            [w.grad] = torch.autograd.grad(loss, [w])
        optimizer.step()
    return _rows(w.detach())
