"""Which words, heads and neurons made a prediction, and by which ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from glassformer.errors import UsageError
from glassformer.views.asks import Against, At, TokenChoice
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.session import Session


class PredictionAsk(At):
    token: TokenChoice = None
    against: Against = None
    coverage: float = Field(default=0.8, gt=0, le=1, description="Share of all effects that the nodes shown have.")
    nodes: int = Field(default=60, ge=1, le=400, description="Nodes shown at most.")
    measure: bool = Field(default=True, description="Whether each is also taken away and its effect measured.")
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
    found = session.trace(ask).graph(
        ask.token,
        ask.against,
        ask.position,
        coverage=ask.coverage,
        most=ask.nodes,
        measure=ask.measure,
        lay=session.laid(ask.lay),
    )
    return found.to_dict()
