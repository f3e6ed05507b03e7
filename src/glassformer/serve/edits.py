"""Edits that come with a request: parts of the model that are off, or turned up, for its answer alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glassformer.errors import ShapeError, UsageError
from glassformer.views.edits import Edits, taps

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.serve.models import Served


def plain(edits: Sequence[Any]) -> list[dict[str, Any]]:
    """Edits as answers repeat them; of a vector or a circuit they only say that it was there."""
    return [edit.model_dump(exclude_none=True, exclude={"vector", "edges"}) for edit in edits]


def edited(served: Served, edits: Sequence[object]) -> Model:
    """The model with a request's edits put in.

    Raises:
        CheckpointError: a direction of another model.
        SiteError: a layer, head or neuron that it does not have.
        UsageError: a vector of another width, or a circuit without a counterfactual.
    """
    try:
        model = served.model
        return model.edited(*taps(edits, model, served.directions)) if edits else model
    except ShapeError as error:  # asked for, so not a fault of ours
        raise UsageError(str(error)) from None


__all__ = ["Edits", "edited", "plain"]
