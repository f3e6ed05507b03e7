"""Views of models as things: their size, the catalogue, training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glassformer.errors import SourceError

if TYPE_CHECKING:
    from glassformer.studio.studio import Check, Studio


def size(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """Where every parameter, FLOP and byte of a design goes; of the current model when none is named."""
    from glassformer.count import count

    subject: Any = ask.name if ask.name is not None else studio.model().config
    counted = count(subject) if ask.context is None else count(subject, context=ask.context)
    return {"name": ask.name or studio.current, **counted.to_dict()}


def models(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The catalogue's models, and which are here and open."""
    from glassformer.checkpoint.catalogue import CATALOGUE

    listed = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "licence": entry.licence,
            "bytes": entry.artifact.bytes if entry.artifact else None,
            "open": entry.name in studio.opened,
        }
        for entry in CATALOGUE.values()
    ]
    others = [{"name": n, "summary": "", "licence": "", "bytes": None, "open": True} for n in studio.opened]
    known = {entry["name"] for entry in listed}
    return {"current": studio.current, "models": listed + [o for o in others if o["name"] not in known]}


def runs(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The training runs in the runs folder."""
    from glassformer.train.reading import list_runs

    return {"runs": [run.summary() for run in list_runs(studio.runs)]}


def run(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """One run: its recipe, curves, samples, probes and checkpoints."""
    from glassformer.train.reading import read_run

    return read_run(studio.runs, ask.name).to_dict()


def run_step(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """One gradient step of a run on one sentence, before and after; the run is not changed."""
    from glassformer.train.one_step import one_step

    if not ask.text.strip():
        raise SourceError("The sentence is empty; give at least two words.")
    return one_step(studio.model(f"run:{ask.name}"), ask.text).to_dict()
