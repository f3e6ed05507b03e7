"""A direction from two sets of examples, as the page steers by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from glassformer.views.asks import Ask, Strict, Text
from glassformer.views.registry import Check, view

if TYPE_CHECKING:
    from glassformer.views.session import Session

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
def direction(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """The direction of a layer's stream from some texts to others, how far to trust it, and what it raises alone."""
    from glassformer.interp.circuits import unembedded
    from glassformer.interp.directions import direction as found

    def traces(texts: list[str]) -> Any:
        for text in texts:
            check()
            yield session.trace(Ask(model=ask.model, text=text))

    made = found(
        ask.name,
        traces(ask.positive),
        traces(ask.negative),
        ask.layer,
        method=ask.method,
        position=ask.position,
        dimensions=ask.dimensions,
    )
    model = session.model(ask.model)
    pushed = unembedded(model.transformer, made.vector.to(model.transformer.device))
    best = [pushed.topk(min(ask.top, len(pushed)), largest=up).indices.tolist() for up in (True, False)]
    return made.to_dict() | {
        "vector": made.vector.float().tolist(),
        "raises": [model.tokenizer.token_text(i) for i in best[0]],
        "lowers": [model.tokenizer.token_text(i) for i in best[1]],
    }
