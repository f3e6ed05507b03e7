"""Directions, from two sets of examples or a sum of words: found, kept, compared, and steered by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.tokenizer.spelling import spelled_alone
from glassformer.views.asks import Ask, Strict, Text
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views.session import Session

# How long a sum of words is made, beside the stream that it is added to: by itself it is as long as an embedding.
WORDS_SHARE = 0.1

Examples = Annotated[list[Text], Field(min_length=1, max_length=64)]


class DirectionAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    name: str = Field(default="direction", min_length=1, max_length=100, description="What it is called.")
    positive: Examples = Field(description="Texts that it points to.")
    negative: Examples = Field(description="Texts that it points away from.")
    layer: int = Field(description="Layer whose stream is compared, from 0; negative from the last.")
    method: Literal["mean", "probe", "das"] = Field(
        default="mean",
        description="Difference of means, the normal of a logistic probe, or alignment of texts that pair up in order.",
    )
    dimensions: int = Field(default=1, ge=1, le=64, description="Of the subspace, for das.")
    position: Literal["last", "mean"] = Field(
        default="last", description="Last token of each text, or the mean of all but the first."
    )
    top: int = Field(default=8, ge=1, le=50, description="Tokens that it raises and lowers most by itself.")


@view(
    "direction",
    DirectionAsk,
    room="why",
    python="model.direction({name!r}, {positive!r}, {negative!r}, {layer}, method={method!r}, position={position!r}, "
    "dimensions={dimensions})",
)
def direction(session: Session, ask: DirectionAsk, check: Check) -> Json:
    """The direction of a layer's stream from some texts to others, how far to trust it, and what it raises alone."""
    made = _found(session, ask, check)
    return made.to_dict() | {
        "vector": made.vector.float().tolist(),
        **_pushes(session.model(ask.model), made.vector, ask.top),
    }


def _found(session: Session, ask: DirectionAsk, check: Check) -> Any:
    from glassformer.interp.directions import direction as found

    def traces(texts: list[str]) -> Any:
        for text in texts:
            check()
            yield session.trace(Ask(model=ask.model, text=text))

    return found(
        ask.name,
        traces(ask.positive),
        traces(ask.negative),
        ask.layer,
        method=ask.method,
        position=ask.position,
        dimensions=ask.dimensions,
    )


def _pushes(model: Model, vector: Tensor, top: int) -> dict[str, list[str]]:
    """The tokens that a vector in the stream raises and lowers most by itself."""
    from glassformer.interp.circuits import unembedded

    pushed = unembedded(model.transformer, vector.to(model.transformer.device, model.transformer.dtype))
    best = [pushed.topk(min(top, len(pushed)), largest=up).indices.tolist() for up in (True, False)]
    return {name: spelled_alone(model.tokenizer, ids) for name, ids in zip(("raises", "lowers"), best, strict=True)}


class Kept(Strict):
    """A direction by what it is made from: a sum of words, or two sets of examples."""

    name: str = Field(min_length=1, max_length=100, description="What it is called.")
    words: str = Field(default="", max_length=300, description="Words with signs, as in woman - man.")
    positive: list[Text] = Field(default=[], max_length=64, description="Texts that it points to.")
    negative: list[Text] = Field(default=[], max_length=64, description="Texts that it points away from.")
    layer: int | None = Field(default=None, description="Layer of the examples' stream.")
    method: Literal["mean", "probe", "das"] = "mean"
    position: Literal["last", "mean"] = "last"


class DirectionsAsk(Ask):
    directions: list[Kept] = Field(min_length=1, max_length=12, description="What is compared.")
    layer: int | None = Field(
        default=None, description="Layer after which sums of words are added; by default at two fifths of the depth."
    )
    top: int = Field(default=5, ge=1, le=50, description="Tokens that each raises and lowers most by itself.")


@view("directions", DirectionsAsk, room="vectors")
def directions(session: Session, ask: DirectionsAsk, check: Check) -> Json:
    """Directions side by side: what each raises alone, the cosines between them, and the vectors to steer by.

    A sum of words is a sum of rows of the embedding table; to steer by, it is made a tenth as long as the stream of
    the text after the layer where it is added.
    """
    model, trace = session.model(ask.model), session.trace(ask)
    middle = int(model.config.n_layers * 0.4)
    out: list[Json] = []
    vectors: list[Tensor] = []
    for kept in ask.directions:
        check()
        if kept.words:
            layer = middle if ask.layer is None else ask.layer
            if not 0 <= layer < model.config.n_layers:
                raise UsageError(f"There is no layer {layer}; there are 0 to {model.config.n_layers - 1}.")
            vector = _sum_of(model, kept.words)
        elif kept.positive and kept.negative:
            layer = middle if kept.layer is None else kept.layer
            asked = {name: getattr(kept, name) for name in ("name", "positive", "negative", "method", "position")}
            found = _found(session, DirectionAsk(model=ask.model, layer=layer, **asked), check)
            layer, vector = found.layer, found.vector.double().cpu()
        else:
            raise UsageError(f"The direction {kept.name!r} is made of words, or of texts on both sides; give either.")
        stream = float(trace[f"blocks.{layer}.resid_post"].double().norm(dim=-1).mean())
        long = float(vector.norm())
        if long < 1e-9:
            raise UsageError(f"The direction {kept.name!r} is no direction: its words cancel out.")
        added = vector * (WORDS_SHARE * stream / long) if kept.words else vector
        vectors.append(vector / long)
        out.append(
            {
                "name": kept.name,
                "layer": layer,
                "norm": long,
                "share": float(added.norm()) / stream,
                "vector": [float(f"{x:.6g}") for x in added.tolist()],
                **_pushes(model, vector, ask.top),
            }
        )
    unit = torch.stack(vectors)
    return {"model": model.name, "directions": out, "cosines": (unit @ unit.T).tolist()}


def _sum_of(model: Model, expression: str) -> Tensor:
    """A sum of words as a vector in the stream, in float64."""
    from glassformer.predict.neighbours import parse, term

    table = model.transformer.embed.weight.detach()
    terms = [term(model.tokenizer, word, sign, len(table)) for word, sign in parse(expression)]
    rows = [one.sign * model.transformer.entering(table[list(one.ids)]).double().mean(0) for one in terms]
    return torch.stack(rows).sum(0).cpu()
