"""Writing on from a text, one step at a time, each with what else was possible."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from glassformer.errors import TextError
from glassformer.generate.constraints import Constraint

if TYPE_CHECKING:
    from glassformer.views.registry import Check, Json
    from glassformer.views.session import Session


def form(kind: str, text: str) -> Constraint:
    """The form of one of these kinds; choices stand between commas.

    Raises:
        UsageError: for a text that gives no such form.
    """
    if kind == "choice":
        return Constraint.choice([one.strip() for one in text.split(",") if one.strip()])
    return Constraint.json() if kind == "json" else getattr(Constraint, kind)(text)


def pieces(session: Session, ask: Any, check: Check) -> Iterator[Json]:
    """The pieces of `Model.generate` as plain data, under the request's edits and in its form.

    Raises:
        TextError: when the text leaves no room to write. UsageError: for a form that cannot be.
    """
    model, ids = session.edited(ask), session.ids(ask)
    left = model.config.context - len(ids)
    if left < 1:
        raise TextError(f"The text fills {model.name}'s {model.config.context} tokens; shorten it to write on.")
    made = model.generate(
        ids,
        max_tokens=min(ask.max_tokens, left),
        temperature=ask.temperature,
        top_k=ask.top_k,
        top_p=ask.top_p,
        min_p=ask.min_p,
        seed=ask.seed,
        alternatives=ask.alternatives,
        constraint=None if ask.form is None else form(ask.form.kind, ask.form.text),
    )
    with closing(made):  # whoever stops reading stops the computation
        for piece in made:
            check()
            yield piece.to_dict()
