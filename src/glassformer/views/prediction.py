"""Which words, heads and neurons made a prediction, and by which ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from glassformer.errors import UsageError
from glassformer.views.asks import Against, At, Strict, TokenChoice
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.prediction_graph import PredictionGraph
    from glassformer.views.session import Session


class Turn(Strict):
    """Nodes that are turned together."""

    nodes: list[str] = Field(min_length=1, max_length=400, description="Nodes, by name.")
    by: float = Field(ge=0, le=4, description="What each writes is multiplied by this.")


class PredictionAsk(At):
    token: TokenChoice = None
    against: Against = None
    coverage: float = Field(default=0.8, gt=0, le=1, description="Share of all effects that the nodes shown have.")
    nodes: int = Field(default=60, ge=1, le=400, description="Nodes shown at most.")
    measure: bool = Field(default=True, description="Whether each is also taken away and its effect measured.")
    turn: list[Turn] | None = Field(
        default=None, max_length=16, description="Nodes that are turned together and the number measured, set by set."
    )
    lay: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Dictionaries whose features stand for neurons, by the names they were given at the start (--lay).",
    )


@view(
    "prediction",
    PredictionAsk,
    room="why",
    python="model.trace({text!r}).graph({token!r}, {against!r}, {position}, coverage={coverage}, most={nodes}, "
    "measure={measure})",
)
def prediction(session: Session, ask: PredictionAsk, check: Check) -> Json:
    """Which words, heads and neurons made a prediction, each at a layer and a position, with what each hands to which,
    and what was measured without it."""
    check()
    if ask.edits:
        raise UsageError("A graph is of the model as it is; ask for it without edits.")
    found = _graph(session, ask)
    turned: list[Json] = []
    for one in ask.turn or ():
        check()
        turned.append({"what": one.nodes, "by": one.by, "value": found.turned(one.nodes, one.by)})
    return found.to_dict() | {"turned": turned}


def _graph(session: Session, ask: PredictionAsk) -> PredictionGraph:
    """The graph that a request means; the last one is kept, so that turning its nodes does not make it anew."""
    trace, wanted, held = session.trace(ask), ask.model_dump(exclude={"turn"}), session.graph
    if held is not None and held[0] == wanted and held[1].trace is trace:
        return held[1]
    found = trace.graph(
        ask.token,
        ask.against,
        ask.position,
        coverage=ask.coverage,
        most=ask.nodes,
        measure=ask.measure,
        lay=session.laid(ask.lay),
    )
    session.graph = wanted, found
    return found
