"""Depth: what each layer would say, and one token's way through the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from glassformer.views.asks import Ask, At, TokenChoice
from glassformer.views.registry import Check, view

if TYPE_CHECKING:
    from glassformer.views.report_data import Plan
    from glassformer.views.session import Session

# A text up to this many tokens has every position's journey in its report.
ALL_JOURNEYS = 12


def packed_lens(found: dict[str, Any]) -> dict[str, Any]:
    """The lens table with every token's text once: a third of its size; the page puts it together again."""
    texts: dict[int, str] = {}
    rows = []
    for row in found["rows"]:
        packed = []
        for cell in row["cells"]:
            texts.update((t["id"], t["token"]) for t in cell["top"])
            tops = [x for t in cell["top"] for x in (t["id"], t["probability"])]
            packed.append([cell["followed"], cell["rank"], cell["entropy"], *tops])
        rows.append({"place": row["place"], "cells": packed})
    return {**found, "rows": rows, "texts": {str(id): text for id, text in texts.items()}}


class LensAsk(Ask):
    top: int = Field(default=3, ge=1, le=20, description="Tokens listed in each cell.")
    start: int = Field(default=0, description="First position.")
    stop: int | None = Field(default=None, description="Position after the last.")


@view(
    "lens",
    LensAsk,
    room="depth",
    report=lambda plan: packed_lens(plan.ask("lens", top=3)),
    python="model.trace({text!r}).lens({top})",
)
def lens(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """The lens table over a stretch of positions."""
    trace = session.trace(ask)
    return trace.lens(ask.top, positions=range(*slice(ask.start, ask.stop).indices(trace.length))).to_dict()


def _journeys(plan: Plan) -> Any:
    at = range(plan.count) if plan.count <= ALL_JOURNEYS else sorted({plan.count - 1, plan.explained})
    for position in at:
        yield from plan.kept("journey", position=position)


class JourneyAsk(At):
    token: TokenChoice = None
    top: int = Field(default=5, ge=1, le=20, description="Tokens listed at each step.")


@view(
    "journey",
    JourneyAsk,
    room="depth",
    report=_journeys,
    trims=("top",),
    python="model.trace({text!r}).lens({top}, positions=[{position}])",
)
def journey(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """What every layer's attention and feed-forward added to the stream at one position, and what it then says."""
    trace = session.trace(ask)
    position = trace.position(ask.position)
    read = trace.lens(ask.top, positions=[position], follow=ask.token).to_dict()
    rows = {row["place"]: row["cells"][0] for row in read["rows"]}
    steps = [_step("embed", "embed", None, trace.at("embed", position), rows.get("embed"))]
    for site, added, before, stream in trace.forward.joins(slice(position, position + 1)):
        check()
        layer, kind = int(site.split(".")[1]), site.split(".")[2]
        place = "resid_post" if kind == trace.config.layers[layer].parts[-1] else "resid_mid"
        cell = rows.get(f"blocks.{layer}.{place}")
        steps.append(_step(site, kind, layer, added[0, 0], cell, stream[0, 0], before[0, 0]))
    return {"position": position, "followed": read["followed"][0], "steps": steps}


def _step(
    label: str,
    kind: str,
    layer: int | None,
    added: Tensor,
    cell: dict[str, Any] | None,
    stream: Tensor | None = None,
    before: Tensor | None = None,
) -> dict[str, Any]:
    stream = added if stream is None else stream
    return {
        "label": label,
        "kind": kind,
        "layer": layer,
        "added_norm": float(added.double().norm()),
        "norm": float(stream.double().norm()),
        "turned": float(F.cosine_similarity(stream.double(), before.double(), dim=0)) if before is not None else 1.0,
        "top": [] if cell is None else cell["top"],
        "followed": None if cell is None else cell["followed"],
        "rank": None if cell is None else cell["rank"],
        "entropy": None if cell is None else cell["entropy"],
    }
