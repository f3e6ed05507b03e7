"""Directions from examples: what tells the texts of one kind from those of another in one layer's stream.

The difference of the two means, or the normal of a logistic probe (L2). Either is tried on held-out examples, and
the same procedure on the same examples with shuffled labels is the control: what it reaches there is what so many
dimensions let it reach with so few examples (arXiv:1909.03368). Or what alignment by exchanging trains (`alignment`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.errors import UsageError, near
from glassformer.interp.alignment import align
from glassformer.interp.direction import Direction
from glassformer.interp.fingerprint import design, fingerprint

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

METHODS = ("mean", "probe", "das")
POSITIONS = ("last", "mean")
FOLDS = 5
# Weight of the probe's L2 term, on examples scaled to a mean square of 1 per dimension of their span.
RIDGE = 0.1
# Means this share of the examples' length apart differ by rounding alone.
SAME = 1e-9


@torch.no_grad()
def direction(
    name: str,
    positive: Iterable[Trace],
    negative: Iterable[Trace],
    layer: int,
    *,
    method: str = "mean",
    position: str = "last",
    shuffles: int | None = None,
    dimensions: int = 1,
    seed: int = 0,
) -> Direction:
    """Find the direction from the negative examples to the positive ones.

    `facts` are the numbers of examples, `accuracy` on held-out ones (classes weigh the same; None with fewer than two
    of a class), `shuffled`, the same with shuffled labels, averaged, with its standard deviation, `selectivity`, their
    difference, and `separation`, the distance of the two means along the direction in standard deviations within; for
    "das" those of `alignment.align`.

    Args:
        method: "mean", the difference of means; "probe", a logistic probe's normal; or "das": examples pair up in
            order, and the direction moves the means inside a subspace whose exchange exchanges the answer.
        position: "last" token of each text, or the "mean" of all but the first, whose stream is often a hundred times
            as long as the others' and would drown them.
        shuffles: how often labels are shuffled; None for 20, or 3 for "das". seed: of shuffles and folds.
        dimensions: of the subspace, for "das".

    Raises:
        UsageError: an unknown method, no examples, or examples that do not differ.
        SiteError: for a layer that the model does not have.
    """
    if method not in METHODS:
        raise UsageError(
            f"A direction is found by {', '.join(METHODS[:-1])} or {METHODS[-1]}; {method!r} is none of them."
            f"{near(method, METHODS)}"
        )
    if position not in POSITIONS:
        raise UsageError(f"Texts are compared at their last token or in the mean; position {position!r} is neither.")
    if not name.strip():
        raise UsageError("A direction needs a name.")
    if method == "das" and position != "last":
        raise UsageError("Alignment exchanges streams at the last token; take position last.")
    if method != "das" and dimensions != 1:
        raise UsageError("Only alignment (das) finds a subspace of several dimensions; the others find one direction.")
    traces: list[Trace] = []
    rows: list[Tensor] = []
    labels: list[bool] = []
    for label, examples in ((True, positive), (False, negative)):
        for trace in examples:
            traces = [*traces, trace] if method == "das" else traces or [trace]
            rows.append(_state(trace, trace.layer(layer), position))
            labels.append(label)
    x, y = torch.stack(rows) if rows else torch.zeros(0, 1), torch.tensor(labels, dtype=torch.bool)
    if not bool(y.any()) or bool(y.all()):
        raise UsageError("A direction needs at least one positive and one negative example.")
    if method == "probe" and min(int(y.sum()), int((~y).sum())) < 2:
        raise UsageError("A probe needs at least two examples of each kind; take the difference of means.")
    gap = x[y].mean(0) - x[~y].mean(0)
    if float(gap.norm()) <= SAME * float(x.norm(dim=1).mean()):
        at = traces[0].layer(layer)
        raise UsageError(
            f"On average the examples do not differ in layer {at}, so there is no direction; give one kind of text as "
            "positive and another as negative."
        )
    subspace = None
    if method == "das":
        sides = traces[: int(y.sum())], traces[int(y.sum()) :]
        controls = 3 if shuffles is None else shuffles
        subspace, facts = align(*sides, traces[0].layer(layer), dimensions=dimensions, controls=controls, seed=seed)
        normal = gap @ subspace.double().cpu().T @ subspace.double().cpu()
        facts = {"positive": int(y.sum()), "negative": int((~y).sum())} | facts
    else:
        span, basis = _span(x)
        normal = _normal(span, y, method) @ basis
        facts = _facts(span, y, method, 20 if shuffles is None else shuffles, seed)
    unit = normal / normal.norm()
    if not bool(torch.isfinite(unit).all()):
        raise UsageError(f"The examples do not differ in layer {traces[0].layer(layer)}, so there is no direction.")
    of = traces[0].transformer
    return Direction(
        name=name,
        layer=traces[0].layer(layer),
        vector=(unit * (gap @ unit)).to(of.dtype),
        method=method,
        position=position,
        model=traces[0].model,
        weights=fingerprint(of),
        design=design(of.config),
        facts=facts | {"separation": _separation(x @ unit, y)},
        subspace=subspace,
    )


def _state(trace: Trace, layer: int, position: str) -> Float[Tensor, " d_model"]:
    """What of a text is compared, in float64."""
    site = f"blocks.{layer}.resid_post"
    if position == "last" or trace.length == 1:
        return trace.at(site, -1).double().cpu()
    return trace.at(site, slice(1, None)).double().mean(0).cpu()


def _span(x: Float[Tensor, "example d_model"]) -> tuple[Float[Tensor, "example rank"], Float[Tensor, "rank d_model"]]:
    """The examples about their mean in a basis of what they span, and that basis; a rotation, so nothing is lost."""
    u, s, v = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    keep = s > 1e-10 * s.max().clamp(min=1e-300)
    return u[:, keep] * s[keep], v[keep]


def _normal(z: Float[Tensor, "example rank"], y: Bool[Tensor, " example"], method: str) -> Float[Tensor, " rank"]:
    """The direction in the span."""
    if method == "mean":
        return z[y].mean(0) - z[~y].mean(0)
    return _logistic(z, y)[0]


def _logistic(z: Tensor, y: Tensor) -> tuple[Float[Tensor, " rank"], float]:
    """Weights and bias of an L2 logistic regression in which both classes weigh the same, by Newton's method."""
    size = z.square().mean().sqrt().clamp(min=1e-300)
    x = torch.cat([z / size, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    share = torch.where(y, 0.5 / y.sum(), 0.5 / (~y).sum()).to(z.dtype)
    ridge = torch.full((x.shape[1],), RIDGE, dtype=z.dtype)
    ridge[-1] = 1e-9
    w = torch.zeros(x.shape[1], dtype=z.dtype)
    for _ in range(50):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (share * (p - y.to(z.dtype))) + ridge * w
        curve = x.T @ (x * (share * p * (1 - p))[:, None]) + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        w = w - step
        if float(step.abs().max()) < 1e-10 * max(1.0, float(w.abs().max())):
            break
    return w[:-1] / size, float(w[-1])


def _held_out(z: Tensor, y: Tensor, method: str, generator: torch.Generator) -> float:
    """Balanced accuracy on examples that the direction was not made of, over folds with both classes in each."""
    folds = min(FOLDS, int(y.sum()), int((~y).sum()))
    fold = torch.empty(len(y), dtype=torch.long)
    for label in (True, False):
        mine = (y == label).nonzero()[:, 0]
        fold[mine[torch.randperm(len(mine), generator=generator)]] = torch.arange(len(mine)) % folds
    right = torch.empty(len(y), dtype=torch.bool)
    for i in range(folds):
        test, known = fold == i, fold != i
        normal = _normal(z[known], y[known], method)
        along = z @ normal
        middle = (along[known & y].mean() + along[known & ~y].mean()) / 2
        right[test] = (along[test] > middle) == y[test]
    return float((right[y].double().mean() + right[~y].double().mean()) / 2)


def _facts(z: Tensor, y: Tensor, method: str, shuffles: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"positive": int(y.sum()), "negative": int((~y).sum())}
    blank = {"accuracy": None, "shuffled": None, "shuffled_deviation": None, "selectivity": None, "shuffles": 0}
    if min(found["positive"], found["negative"]) < 2 or shuffles < 1:
        return found | blank
    generator = torch.Generator().manual_seed(seed)
    accuracy = _held_out(z, y, method, generator)
    control = [_held_out(z, y[torch.randperm(len(y), generator=generator)], method, generator) for _ in range(shuffles)]
    mean = sum(control) / shuffles
    return found | {
        "accuracy": accuracy,
        "shuffled": mean,
        "shuffled_deviation": math.sqrt(sum((c - mean) ** 2 for c in control) / shuffles),
        "selectivity": accuracy - mean,
        "shuffles": shuffles,
        "seed": seed,
    }


def _separation(along: Tensor, y: Tensor) -> float | None:
    """The distance of the means along a direction, in standard deviations within the classes."""
    within = torch.cat([along[y] - along[y].mean(), along[~y] - along[~y].mean()])
    freedom = len(along) - 2
    if freedom < 1 or float(within.abs().max()) == 0:
        return None
    return float((along[y].mean() - along[~y].mean()) / (within.square().sum() / freedom).sqrt())
