"""Edits that come with a request: parts of the model that are off, or turned up, for its answer alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from glassformer.errors import ShapeError, UsageError
from glassformer.views.edits import Edit, taps

if TYPE_CHECKING:
    from glassformer.lm import Model

_PARTS = {"attention": "ablate_attn", "feed_forward": "ablate_mlp"}


def _named(value: Any) -> Any:
    """`{"ablate": {"layer": 3, "head": 1}}` as `{"kind": "ablate_head", "layer": 3, "head": 1}`, and so on."""
    if not isinstance(value, list):
        return value
    return [_one(edit) for edit in value]


def _one(edit: Any) -> Any:
    if not (isinstance(edit, Mapping) and len(edit) == 1):
        return edit
    [(name, inner)] = edit.items()
    if not isinstance(inner, Mapping):
        return edit
    told = dict(inner)
    if name == "ablate":
        part = told.pop("part", None)
        if "head" in told:
            return {"kind": "ablate_head", **told}
        if "neuron" in told:
            return {"kind": "ablate_neuron", **told}
        if "expert" in told:
            return {"kind": "ablate_expert", **told}
        if part not in _PARTS:
            raise ValueError(
                'an ablation names a head, a neuron, an expert, or the part "attention" or "feed_forward" of a layer'
            )
        return {"kind": _PARTS[part], **told}
    if name in ("knockout", "scale", "steer", "circuit"):
        if "keys" in told:
            told["source"] = told.pop("keys")
        return {"kind": name, **told}
    return edit


Edits = Annotated[
    list[Edit],
    BeforeValidator(_named),
    Field(max_length=200, description="Parts of the model that are off or turned up for this answer."),
]


def plain(edits: Sequence[Any]) -> list[dict[str, Any]]:
    """Edits as answers repeat them; of a vector or a circuit they only say that it was there."""
    return [edit.model_dump(exclude_none=True, exclude={"vector", "edges"}) for edit in edits]


def edited(model: Model, edits: Sequence[Any]) -> Model:
    """The model with a request's edits put in.

    Raises:
        SiteError: a layer, head or neuron that it does not have.
        UsageError: a vector of another width, or a circuit without a counterfactual.
    """
    try:
        return model.edited(*taps(edits, model)) if edits else model
    except ShapeError as error:  # asked for, so not a fault of ours
        raise UsageError(str(error)) from None
