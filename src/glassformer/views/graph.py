"""The drawing of a circuit: few enough parts to be looked at, what each edge between them carries, and how much of the
difference between two prompts the drawn edges bring back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from glassformer.tokenizer.spelling import spelled_alone
from glassformer.views.edges import PairAsk, connected, head_of, into, named, sought
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

# Edges that one drawing by position holds at most, and sets of them whose faithfulness is measured.
PLACED, SETS = 48, 24


class GraphAsk(PairAsk):
    nodes: int = Field(default=25, ge=3, le=200, description="Parts drawn at most, the prediction among them.")
    measure: bool = Field(
        default=True, description="Whether the edges, and what they bring back, are measured by runs of the model."
    )
    by_position: bool = Field(
        default=False, description=f"Whether positions are told apart; then the first {PLACED} edges are drawn."
    )


def _graphed(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """The circuit to the text that stands beside the report's, in the same model as it is."""
    other = draft.options.other or {}
    if other.get("text") and not (other.get("model") or draft.edits or draft.options.light):
        yield from draft.tried("graph", clean=draft.text, corrupted=other["text"])


@view("graph", GraphAsk, room="why", report=_graphed)
def graph(session: Session, ask: GraphAsk, check: Check) -> Json:
    """The strongest connected edges among a few parts, estimated and measured, and what their first so many bring
    back."""
    from glassformer.interp.circuit_search import Runs, greedy, prefixes
    from glassformer.interp.edge_exact import Exact

    apart = ask.by_position
    found = sought(session, ask, check, exact="none", strongest=0, by_position=apart)
    whole, pair, wide = found.graph, found.pairs[0], found.wide
    if apart:
        order = greedy(whole, found.value, PLACED).tolist()
    else:
        order = connected(found, ask.nodes)
    edges = torch.tensor(order, dtype=torch.long)
    exact: list[float | None] = [None] * len(order)
    kept: list[Json] = []
    if ask.measure and order:
        places = edges % wide if apart else None
        exact = [float(x) for x in Exact(pair)(edges // wide, places, lambda done: check())]
        step = max(1, -(-len(order) // SETS))
        counts = sorted({*range(step, len(order) + 1, step), len(order)})
        runs = Runs(found.pairs, lambda done, total, what: check())
        f = runs.faithfulness(prefixes(whole.total * wide, edges, counts))
        kept = [{"edges": n, "f": float(x)} for n, x in zip(counts, f, strict=True)]
    rows = [
        row | {"into": into(whole, edge // wide), "exact": value}
        for row, edge, value in zip(found.rows(order), order, exact, strict=True)
    ]
    return head_of(session, ask) | {
        "metric": found.metric,
        "unit": found.unit,
        "clean": found.clean,
        "corrupted": found.corrupted,
        "answer": None if pair.answer is None else spelled_alone(pair.clean.vocabulary, [pair.answer])[0],
        "wrong": None if pair.wrong is None else spelled_alone(pair.clean.vocabulary, [pair.wrong])[0],
        "total_edges": whole.total * wide,
        "nodes": named(whole, rows),
        "edges": rows,
        "kept": kept,
    }
