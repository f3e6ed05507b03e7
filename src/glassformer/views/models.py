"""Models as things: the catalogue, and where a design's parameters are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from glassformer.views.asks import Strict
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session


class SizeAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    name: str | None = Field(default=None, description="A known design instead, such as gpt3.")
    context: int | None = Field(default=None, ge=1, description="Length of the text that costs are counted for.")


def _sizes(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    yield from draft.kept("size")
    yield from draft.kept("size", name="gpt3")


@view("size", SizeAsk, room="size", report=_sizes)
def size(session: Session, ask: SizeAsk, check: Check) -> Json:
    """Where every parameter, FLOP and byte of a design goes; of the current model when none is named."""
    from glassformer.count import count

    model = None if ask.name is not None else session.model(ask.model)
    subject: Any = ask.name if model is None else model.config
    counted = count(subject) if ask.context is None else count(subject, context=ask.context)
    return {**counted.to_dict(), "name": ask.name if model is None else model.name}


class ModelsAsk(Strict):
    pass


@view("models", ModelsAsk)
def models(session: Session, ask: ModelsAsk, check: Check) -> Json:
    """The catalogue's models, which are here and open, and the lenses and dictionaries that were given at the start."""
    from glassformer.fetch.catalogue import CATALOGUE

    listed = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "licence": entry.licence,
            "bytes": entry.artifact.bytes if entry.artifact else None,
            "open": entry.name in session.opened,
        }
        for entry in CATALOGUE.values()
    ]
    others = [
        {"name": n, "summary": "", "licence": "", "bytes": None, "open": True}
        for n in session.opened
        if not n.startswith("run:")
    ]
    known = {entry["name"] for entry in listed}
    return {
        "current": session.current,
        "models": listed + [o for o in others if o["name"] not in known],
        "lenses": list(session.lenses),
        "dictionaries": list(session.dictionaries),
    }
