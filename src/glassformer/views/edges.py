"""Edges between two prompts' readings, and the circuit that carries what makes them end differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from glassformer.views.asks import Ask, Strict, Text
from glassformer.views.registry import Check, view

if TYPE_CHECKING:
    from glassformer.interp.edges import Edges
    from glassformer.views.session import Session

# Edges that a view measures at most, one run of the model each.
LIMIT = 5000


class EdgesAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    clean: Text = Field(description="Prompt whose answer the edges carry.")
    corrupted: Text = Field(description="Prompt with as many tokens whose values are carried instead.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    metric: Literal["logit_difference", "probability", "kl"] = Field(
        default="logit_difference", description="What is measured of the prediction."
    )
    answer: int | str | None = Field(
        default=None, description="Token of the clean answer; by default the clean run's first choice."
    )
    wrong: int | str | None = Field(
        default=None, description="Token that it is compared with; by default the corrupted run's first choice."
    )
    position: int = Field(default=-1, description="Token after which it is asked; negative counts from the end.")
    method: Literal["eap", "eap-ig", "eap-ig-activations", "relp"] = Field(
        default="eap-ig", description="How edges are estimated from gradients."
    )
    exact: Literal["unreliable", "strongest", "all", "none"] = Field(
        default="unreliable",
        description=f"Edges measured too: unreliable ones and the strongest, the strongest, all, or none; {LIMIT:,} at "
        "most.",
    )
    strongest: int = Field(default=300, ge=0, le=LIMIT, description="How many of the strongest edges are measured.")
    top: int = Field(default=20, ge=1, le=100_000, description="Edges listed, the strongest first.")


class ByPositionAsk(EdgesAsk):
    by_position: bool = Field(default=False, description="Whether positions are told apart.")


class CircuitAsk(EdgesAsk):
    faithfulness: float = Field(
        default=0.9, gt=0, le=1, description="Share of the difference, above 0, that the circuit is to bring back."
    )


_OPTIONS = (
    "answer={answer!r}, wrong={wrong!r}, position={position}, method={method!r}, exact={exact!r}, strongest={strongest}"
)


@view(
    "edges",
    ByPositionAsk,
    room="compare",
    trims=("top",),
    python="model.trace({clean!r}).edges({metric!r}, corrupted=model.trace({corrupted!r}), "
    + _OPTIONS
    + ", by_position={by_position})",
)
def edges(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """What every edge between two parts is worth: estimated, and where need be measured."""
    return _head(session, ask) | _found(session, ask, check, by_position=ask.by_position).to_dict(ask.top)


@view(
    "circuit",
    CircuitAsk,
    room="compare",
    trims=("top",),
    python="model.circuit([({clean!r}, {corrupted!r})], {faithfulness}, metric={metric!r}, " + _OPTIONS + ")",
)
def circuit(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """The smallest set of edges found that brings the difference of two prompts back, and how far to trust it."""
    from glassformer.interp.circuit_search import circuit as searched

    found = searched(_found(session, ask, check), ask.faithfulness, progress=lambda done, total, what: check())
    return _head(session, ask) | found.to_dict(ask.top)


def _head(session: Session, ask: Any) -> dict[str, Any]:
    """What an answer begins with, as that of `glassformer circuit --json` does."""
    model = session.model(ask.model)
    named = {"answer": ask.answer, "wrong": ask.wrong}
    prompt = {"clean": ask.clean, "corrupted": ask.corrupted} | {k: v for k, v in named.items() if v is not None}
    return {"model": model.name, "precision": model.precision, "task": None, "accuracy": None, "prompts": [prompt]}


def _found(session: Session, ask: Any, check: Check, **more: Any) -> Edges:
    from glassformer.interp.edges import edges as sought

    pair = tuple(session.trace(Ask(model=ask.model, text=text, bos=ask.bos)) for text in (ask.clean, ask.corrupted))
    return sought(
        [(pair[0], pair[1])],
        ask.metric,
        answer=ask.answer,
        wrong=ask.wrong,
        position=ask.position,
        method=ask.method,
        exact=ask.exact,
        strongest=ask.strongest,
        limit=LIMIT,
        progress=lambda done, total, what: check(),
        **more,
    )
