"""Depth: what each layer would say, and one token's way through the layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.nn.functional as F
from pydantic import Field, FiniteFloat
from torch import Tensor

from glassformer.errors import ShapeError, UsageError
from glassformer.views.asks import Ask, At, TokenChoice
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

# A text up to this many tokens has every position's journey in its report.
ALL_JOURNEYS = 12


class Lensed(Ask):
    """A text, read through a lens."""

    through: str | None = Field(
        default=None,
        description="Fitted lens, by the name it was given at the start (--lens); by default the plain one.",
    )


def packed_lens(found: Json) -> Json:
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


class LensAsk(Lensed):
    top: int = Field(default=3, ge=1, le=20, description="Tokens listed in each cell.")
    start: int = Field(default=0, description="First position.")
    stop: int | None = Field(default=None, description="Position after the last.")


@view(
    "lens",
    LensAsk,
    room="depth",
    report=lambda draft: packed_lens(draft.ask("lens", top=3)),
    python="model.trace({text!r}).lens({top})",
)
def lens(session: Session, ask: LensAsk, check: Check) -> Json:
    """The lens table over a stretch of positions."""
    n = len(session.ids(ask))
    at = range(*slice(ask.start, ask.stop).indices(n))
    if not at:
        raise ShapeError(f"The stretch is empty; the text has positions 0 to {n - 1}.")
    return session.trace(ask).lens(ask.top, positions=at, through=session.lens(ask)).to_dict()


class LensEditAsk(Lensed):
    layer: int = Field(description="Layer after which the stream is moved, from 0; negative from the last.")
    token: int | str = Field(description="Token that is put in, as its id or its text.")
    swap: int | str | None = Field(default=None, description="Token that it changes places with; by default none.")
    position: int = Field(default=-1, description="Token whose stream is moved; negative counts from the end.")
    strength: FiniteFloat = Field(default=0.5, description="How far it is put in, in lengths of the stream.")
    top: int = Field(default=5, ge=1, le=50, description="Tokens listed that are likeliest afterwards.")


@view(
    "lens_edit",
    LensEditAsk,
    room="depth",
    python="model.trace({text!r}).lens_edit({layer}, {token!r}, {swap!r}, position={position}, strength={strength})",
)
def lens_edit(session: Session, ask: LensEditAsk, check: Check) -> Json:
    """A token put into a layer's stream along what a lens reads, or swapped with another: the probabilities that the
    lens claims, and those that the model gives."""
    if ask.edits:
        raise UsageError("A lens is tried on the model as it is; ask for it without edits.")
    trace = session.trace(ask)
    options = {"through": session.lens(ask), "position": ask.position, "strength": ask.strength}
    return trace.lens_edit(ask.layer, ask.token, ask.swap, **options).to_dict(ask.top)


class LensAgreementAsk(Lensed):
    layer: int | None = Field(default=None, description="Layer, from 0; by default all but the last.")
    samples: int = Field(default=16, ge=1, le=256, description="Positions at which the stream is moved, by layer.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the draw.")


@view("lens_agreement", LensAgreementAsk, room="depth")
def lens_agreement(session: Session, ask: LensAgreementAsk, check: Check) -> Json:
    """Which lens is right: how well the claims of the plain lens and of a fitted one about small edits of the stream
    agree with what the edits do, by layer."""
    from glassformer.interp.agreement import agreement

    if ask.edits:
        raise UsageError("Lenses are compared in the model as it is; ask for it without edits.")
    trace, lens = session.trace(ask), session.lens(ask)
    lenses = {"plain": None} | ({} if lens is None else {str(ask.through): lens})
    rows = []
    for layer in range(trace.config.n_layers - 1) if ask.layer is None else [ask.layer]:
        check()
        rows += agreement(trace, layer, lenses, samples=ask.samples, seed=ask.seed).rows()
    return {"rows": rows}


def _journeys(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    at = range(draft.count) if draft.count <= ALL_JOURNEYS else sorted({draft.count - 1, draft.explained})
    for position in at:
        yield from draft.kept("journey", position=position)


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
def journey(session: Session, ask: JourneyAsk, check: Check) -> Json:
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
    cell: Json | None,
    stream: Tensor | None = None,
    before: Tensor | None = None,
) -> Json:
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
