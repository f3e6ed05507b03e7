"""One part of a model over texts that are sent in pieces, as many requests as there are pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, FiniteFloat

from glassformer.errors import TextError, UsageError
from glassformer.views.asks import Strict, Text
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.interp.corpus import Part
    from glassformer.lm import Model
    from glassformer.views.session import Session

# Tokens read at once.
LONGEST = 512


class CorpusAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    kind: Literal["head", "neuron", "expert", "direction"] = Field(description="What is followed.")
    layer: int = Field(description="Its layer, from 0; negative from the last.")
    index: int = Field(default=0, ge=0, description="Which head, neuron or expert of the layer.")
    vector: list[FiniteFloat] = Field(
        default=[], max_length=65_536, description="The direction: as many numbers as the stream, when one is followed."
    )
    texts: Annotated[list[Text], Field(max_length=1000)] = Field(description="Texts that are read now, in order.")
    matching: str | None = Field(default=None, description="Only passages that hold this are read.")
    bos: bool | None = Field(
        default=None, description="Whether the beginning-of-text token is put first; by default as the tokenizer does."
    )
    top: int = Field(default=10, ge=1, le=200, description="Passages listed.")
    state: Json | None = Field(
        default=None, description="The state of the last answer, to go on from it; by default begun anew."
    )


@view("corpus", CorpusAsk)
def corpus(session: Session, ask: CorpusAsk, check: Check) -> Json:
    """One head, neuron, expert or direction over texts: the passages where it acts most, and by tenths of how strongly
    it acts the loss with and without it. `state`, given back with further texts, goes on to what all at once give."""
    from glassformer.interp.corpus import Survey

    model = session.model(ask.model)
    found = Survey(model.transformer, model.tokenizer, _part(model, ask), top=ask.top)
    if ask.state is not None:
        try:
            found.restore(ask.state)
        except (KeyError, TypeError, ValueError):
            raise UsageError("state: it is none that this view gave; leave it out to begin anew.") from None
    lead = model.encode("", ask.bos)
    longest = min(LONGEST, model.config.context) - len(lead)
    for text in ask.texts:
        ids = model.encode(text, False)
        for low in range(0, len(ids), longest):
            check()
            piece = ids[low : low + longest]
            spelt = "" if ask.matching is None else "".join(model.tokenizer.token_text(i) for i in piece)
            if len(piece) + len(lead) > 1 and (ask.matching is None or ask.matching in spelt):
                found.read([*lead, *piece])
    if not found.texts:
        said = "of two tokens or more" if ask.matching is None else f"with {ask.matching!r} in it"
        raise TextError(f"There is no passage {said} in the texts.")
    return found.to_dict() | {"state": found.state()}


def _part(model: Model, ask: CorpusAsk) -> Part:
    from glassformer.interp.corpus import Part
    from glassformer.interp.direction import Direction
    from glassformer.interp.fingerprint import design, fingerprint

    layer = ask.layer + model.config.n_layers if ask.layer < 0 else ask.layer
    if (ask.kind == "direction") is not bool(ask.vector):
        raise UsageError("vector: a direction is given as its vector, and only a direction is.")
    if ask.kind != "direction":
        return Part(ask.kind, layer, ask.index)
    if len(ask.vector) != model.config.d_model or not any(ask.vector):
        raise UsageError(f"vector: a direction of this model is {model.config.d_model} numbers that are not all 0.")
    from torch import tensor

    vector = tensor(ask.vector).to(model.transformer.embed.weight)
    of = design(model.config)
    made = Direction("direction", layer, vector, "mean", "last", model.name, fingerprint(model.transformer), of, {})
    return Part("direction", layer, direction=made)
