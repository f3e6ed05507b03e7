"""Meaning: one word's vector in several texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field

from glassformer.views.asks import Edits, Strict, Text
from glassformer.views.registry import Check, view

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.views.report_data import Plan
    from glassformer.views.session import Session


def _meaning(plan: Plan) -> Any:
    word, texts = plan.options.word, list(plan.options.contexts)
    return plan.kept("meaning", word=word, texts=texts)


class MeaningAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    bos: bool | None = Field(default=None, description="Whether the beginning-of-text token is put first.")
    edits: Edits = Field(default=[])
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
    traces = [model.trace(text, ask.bos) for text in ask.texts]
    found = meant(ask.word, traces).to_dict()
    check()
    return found | _moves(found, traces)


def _moves(found: dict[str, Any], traces: list[Trace]) -> dict[str, Any]:
    """The word's vector in each text as a dot, place by place, in one plane.

    Vectors are brought to length 1 and centred over the texts at each place; the plane is that of the two principal
    axes at the last place, and `shown` is the share of the squared distances that it shows at each place.
    """
    at = [(trace, text["position"]) for trace, text in zip(traces, found["texts"], strict=True)]
    units = torch.stack(
        [torch.stack([F.normalize(t.at(place, p).double().cpu(), dim=0) for t, p in at]) for place in found["places"]]
    )
    apart = units - units.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd(apart[-1], full_matrices=False)
    dots = apart @ axes[:2].T
    shown = dots.pow(2).sum((1, 2)) / apart.pow(2).sum((1, 2)).clamp(min=1e-12)
    return {"dots": dots.tolist(), "shown": shown.tolist()}
