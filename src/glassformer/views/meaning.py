"""Meaning: one word's vector in several texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from glassformer.views.asks import Edit, Strict, Text
from glassformer.views.registry import Check, view

if TYPE_CHECKING:
    from glassformer.views.report_data import Plan
    from glassformer.views.session import Session


def _meaning(plan: Plan) -> Any:
    word, texts = plan.options.word, list(plan.options.contexts)
    return plan.kept("meaning", word=word, texts=texts)


class MeaningAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    edits: list[Edit] = Field(default=[], max_length=200, description="What is switched off or changed in the model.")
    word: str = Field(min_length=1, max_length=200, description="The word.")
    texts: list[Text] = Field(min_length=2, max_length=12, description="Texts that contain it.")


@view(
    "meaning",
    MeaningAsk,
    room="meaning",
    report=_meaning,
    python="model.meaning({word!r}, {texts!r})",
)
def meaning(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """One word's vector in several texts, layer by layer."""
    from glassformer.interp.meaning import meaning as meant

    model = session.edited(ask)
    return meant(ask.word, [model.trace(text, ask.bos) for text in ask.texts]).to_dict()
