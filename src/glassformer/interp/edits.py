"""Friendly ways to write taps: `gf.ablate(layer=3, head=5)`, `gf.steer(vector, layer=8)`, …

Arguments shared by all of them:

    site       a name or several (`"blocks.3.attn.z"`, `"blocks.*.mlp.out"`), instead of layer and part
    layer      one layer or several, negative from the last; None for all
    head       one query head or several
    positions  counted from the text's first token; a number, a slice, several numbers, or None for all
    rows       of the batch

Knows no tensors; what each tap does is in `edit_ops`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.direction import Direction
from glassformer.interp.edit_ops import Ablate, Apply, Freeze, Knockout, Replace, Steer
from glassformer.interp.select import Chosen, Places, Selection
from glassformer.interp.taps import Record, Recorded
from glassformer.model.sites import Where

Names = str | Sequence[str] | None

_PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("mixer.out",),
    "feed_forward": ("mlp.out",),
    "both": ("mixer.out", "mlp.out"),
}


def _sites(site: Names) -> tuple[str, ...]:
    if site is None:
        return ()
    return (site,) if isinstance(site, str) else tuple(site)


def _selection(
    positions: Chosen = None, head: Chosen = None, keys: Chosen = None, unit: Chosen = None, rows: Chosen = None
) -> Selection:
    return Selection(
        positions=Places.of(positions),
        heads=Places.of(head, "heads"),
        keys=Places.of(keys, "keys"),
        units=Places.of(unit, "units"),
        rows=Places.of(rows, "rows"),
    )


def _one_place(site: Names, layer: Chosen) -> None:
    if site is not None and layer is not None:
        raise UsageError("Give a tap either a site or a layer, not both: the site's name says the layer.")


def record(*sites: str) -> Record:
    """Keep what passes at the named sites: `kept = gf.record("blocks.3.attn.pattern")`, then `kept[site]`."""
    return Record(*sites)


def replace(
    site: Names,
    value: float | Tensor | Recorded,
    *,
    positions: Chosen = None,
    head: Chosen = None,
    unit: Chosen = None,
    rows: Chosen = None,
) -> Replace:
    """Put `value` in place of the chosen numbers.

    Args:
        value: a number; a tensor that broadcasts to the site, or, when several positions are listed,
            one with an entry per position; or a trace, whose numbers at the same positions are taken.
    """
    return Replace(_sites(site), None, (), _selection(positions, head, None, unit, rows), value)


def ablate(
    site: Names = None,
    *,
    layer: Chosen = None,
    head: Chosen = None,
    neuron: Chosen = None,
    expert: Chosen = None,
    part: Literal["attention", "feed_forward", "both"] = "both",
    method: Literal["zero", "mean", "resample"] = "zero",
    reference: object = None,
    positions: Chosen = None,
    keys: Chosen = None,
    rows: Chosen = None,
) -> Ablate:
    """Take something away.

    `layer` with `head` means those heads' output (`attn.z`, `ssm.z`), with `neuron` those neurons (`mlp.post`), with
    `expert` those experts' weights (`mlp.weights`, the others' not renormalised), with
    `keys` what comes from those positions (`attn.pattern`, not renormalised; `knockout` renormalises), and
    alone everything the layer adds to the residual stream, or one `part` of it.

    Args:
        method: "zero"; "mean" over the reference's positions; "resample", the reference's at the same position.
        reference: a trace of other text, or a tensor (batch, query, …), for "mean" and "resample".
    """
    _one_place(site, layer)
    if part not in _PARTS:
        raise UsageError(f"A layer has no part {part!r}; choose attention, feed_forward or both.")
    if site is None and layer is None and head is None and neuron is None and keys is None and expert is None:
        raise UsageError("Say what to ablate: a site, a layer, a head, a neuron or an expert.")
    parts = _PARTS[part]
    if site is None:
        if sum(x is not None for x in (neuron, head, expert)) > 1:
            raise UsageError("A head, a neuron and an expert are ablated by a tap each; give all of them to edited().")
        if keys is not None:
            parts = ("mixer.pattern",)
        elif head is not None:
            parts = ("mixer.z",)
        elif neuron is not None:
            parts = ("mlp.post",)
        elif expert is not None:
            parts = ("mlp.weights",)
    chosen = _selection(positions, head, keys, neuron if expert is None else expert, rows)
    return Ablate(_sites(site), layer, parts, chosen, method, reference)


def steer(
    vector: Tensor | Direction,
    site: Names = None,
    *,
    layer: Chosen = None,
    strength: float = 1.0,
    positions: Chosen = None,
    head: Chosen = None,
    rows: Chosen = None,
) -> Steer:
    """Add `strength` times a vector; with `layer`, to the residual stream as it leaves that layer.

    A direction that was found in a model (`model.direction(...)`) brings its layer with it, and is refused in a model
    of another design.
    """
    _one_place(site, layer)
    direction = vector if isinstance(vector, Direction) else None
    if direction is not None and site is None and layer is None:
        layer = direction.layer
    if site is None and layer is None:
        raise UsageError("Say where to steer: a layer, or a site.")
    if not math.isfinite(strength):
        raise UsageError(f"The strength of steering is a finite number; {strength} is not.")
    chosen = _selection(positions, head, None, None, rows)
    added = vector.vector if isinstance(vector, Direction) else vector
    return Steer(_sites(site), layer, ("resid_post",), chosen, added, strength, direction)


def knockout(
    *,
    keys: Chosen,
    queries: Chosen = None,
    layer: Chosen = None,
    head: Chosen = None,
    rows: Chosen = None,
) -> Knockout:
    """Forbid attention from the queries (None: all) to the keys, in the layers and heads named (None: all).

    The row's other weights are renormalised, and a position may always attend to itself. In a recurrence the grid
    that its gates imply is cut instead, and nothing is renormalised; nor where attention stands beside a recurrence.
    """
    return Knockout((), layer, ("mixer.scores",), _selection(queries, head, keys, None, rows))


def freeze(site: Names, reference: Recorded, *, positions: Chosen = None, head: Chosen = None) -> Freeze:
    """Hold sites to what they were in a trace; positions that the trace does not have run free."""
    return Freeze(_sites(site), None, (), _selection(positions, head), reference)


def tap(
    site: Names,
    function: Callable[[Tensor, Where], Tensor],
    *,
    positions: Chosen = None,
    head: Chosen = None,
    rows: Chosen = None,
) -> Apply:
    """Your own change: `function(x, where)` gives the site's new tensor, of the same shape."""
    return Apply(_sites(site), None, (), _selection(positions, head, None, None, rows), function)
