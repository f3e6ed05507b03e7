"""Experts as heads are shown: a grid of who was chosen where, and what each wrote for one token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from glassformer.model.choices import Experts as Choice
from glassformer.views.arrays import packed
from glassformer.views.asks import Against, At, Count, TokenChoice
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

# Characters of answers that a report holds at most.
HELD = 600_000


class ExpertsAsk(At):
    layer: int | None = Field(
        default=None, description="Layer, from 0; negative from the last; by default the first with experts."
    )
    token: TokenChoice = None
    against: Against = None
    words: Count = Field(default=5, description="Tokens that are listed for each expert.")


def _layers(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    """Layer by layer, as many as a report holds."""
    held = 0
    for layer, choice in enumerate(draft.session.model(draft.model).config.layers):
        if isinstance(choice.feed_forward, Choice) and held < HELD:
            for parameters, answer in draft.tried("experts", layer=layer, **draft.plain):
                held += len(json.dumps(answer))
                yield parameters, answer


@view(
    "experts",
    ExpertsAsk,
    room="facts",
    report=_layers,
    trims=("words",),
    python="model.trace({text!r}).experts({layer}, {token!r}, {against!r}, {position})",
)
def experts(session: Session, ask: ExpertsAsk, check: Check) -> Json:
    """Which experts of a layer were chosen, with what weight, and what each wrote at one position.

    `tile` is a grid as `attention` has it, positions by experts; `layers` are those that have experts, with the mean
    weight of each, a row a layer.
    """
    from glassformer.interp.experts import expert_layers

    have = expert_layers(session.model(ask.model).config)
    trace = session.trace(ask)
    found = trace.experts(
        have[0] if ask.layer is None else ask.layer, ask.token, ask.against, ask.position, words=ask.words
    )
    check()
    means = []
    for layer in have:
        weights = trace.tensor(f"blocks.{layer}.mlp.weights")[0].double()
        means.append({"layer": layer, "weights": weights.mean(0).tolist()})
    told = found.to_dict()
    del told["weights"]
    for one in told["experts"]:
        at = {"layer": found.layer, "expert": one["expert"]}
        one["edit"] = {"kind": "ablate_expert", **at, "position": found.position}
    rows, columns = found.weights.shape
    return {
        **told,
        "q0": 0,
        "q1": rows,
        "k0": 0,
        "k1": columns,
        "stride": 1,
        "tile": packed(found.weights),
        "layers": means,
    }
