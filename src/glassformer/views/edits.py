"""What may be switched off or turned up in a model, as the page names it, and the taps that do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor

from glassformer.errors import UsageError, near

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.model.sites import Where

Position = Annotated[int | None, Field(default=None, description="The only token where it is so; by default all.")]


class Strict(BaseModel):
    """Plain data with known fields only."""

    model_config = ConfigDict(extra="forbid")


class AblateHead(Strict):
    """One attention head writes nothing."""

    kind: Literal["ablate_head"]
    layer: int
    head: int
    position: Position


class AblateRead(Strict):
    """One head carries nothing from one token to another; its other weights stay as they are."""

    kind: Literal["ablate_read"]
    layer: int
    head: int
    source: int = Field(ge=0)
    position: int = Field(ge=0)


class AblateAttention(Strict):
    """One layer's attention writes nothing."""

    kind: Literal["ablate_attn"]
    layer: int
    position: Position


class AblateFeedForward(Strict):
    """One layer's feed-forward writes nothing."""

    kind: Literal["ablate_mlp"]
    layer: int
    position: Position


class AblateNeuron(Strict):
    """One feed-forward neuron is zero."""

    kind: Literal["ablate_neuron"]
    layer: int
    neuron: int
    position: Position


class AblateExpert(Strict):
    """One expert's weight is zero; the others' are not renormalised."""

    kind: Literal["ablate_expert"]
    layer: int
    expert: int
    position: Position


class Knockout(Strict):
    """No later token attends to these positions; each row's other weights are renormalised."""

    kind: Literal["knockout"]
    source: list[int] = Field(min_length=1, max_length=10_000)
    queries: list[int] | None = Field(
        default=None, max_length=10_000, description="The only tokens that do not attend to them; by default all."
    )
    layer: int | None = None
    head: int | None = None


class Scale(Strict):
    """A layer or one half of it, a head, a neuron or an expert writes more or less, or a word is read so."""

    kind: Literal["scale"]
    part: Literal["layer", "head", "attention", "feed_forward", "neuron", "expert", "word", "read"]
    layer: int | None = None
    unit: int | None = Field(default=None, description="Head, neuron or expert.")
    source: list[int] = Field(
        default=[], max_length=10_000, description="Positions of a word, or of what a head reads."
    )
    position: Position
    by: float = Field(ge=0, le=4)


class Steer(Strict):
    """A vector, or a saved direction, is added to the stream as it leaves a layer."""

    kind: Literal["steer"]
    layer: int | None = Field(default=None, description="By default the direction's own.")
    vector: list[FiniteFloat] | None = Field(
        default=None, min_length=1, max_length=65_536, description="As many numbers as the stream."
    )
    direction: str | None = Field(
        default=None, description="Saved direction, by the name it was given at the start (--direction)."
    )
    strength: FiniteFloat = Field(default=1.0, description="How many times it is added.")
    position: Position

    @model_validator(mode="after")
    def _one_vector(self) -> Steer:
        if (self.vector is None) == (self.direction is None):
            raise ValueError("steering takes either a vector or the name of a direction")
        if self.vector is not None and self.layer is None:
            raise ValueError("a vector is added after a layer; name it")
        return self


class RunOnly(Strict):
    """The model runs only a circuit: every edge outside it carries what a counterfactual text has there."""

    kind: Literal["circuit"]
    edges: list[tuple[str, str]] = Field(
        max_length=1_000_000, description="Its edges, each [from, to] as the view circuit names them."
    )
    counterfactual: str | list[int] = Field(
        description="Text, or token ids, whose values all other edges carry; beyond it, the answer's own tokens."
    )


Edit = Annotated[
    AblateHead
    | AblateRead
    | AblateAttention
    | AblateFeedForward
    | AblateNeuron
    | AblateExpert
    | Knockout
    | Scale
    | Steer
    | RunOnly,
    Field(discriminator="kind"),
]

_NAMES = ("ablate", "knockout", "scale", "steer", "circuit")
_PARTS = {"attention": "ablate_attn", "feed_forward": "ablate_mlp"}


def _named(value: object) -> Any:
    """`{"ablate": {"layer": 3, "head": 1}}` as `{"kind": "ablate_head", "layer": 3, "head": 1}`, and so on."""
    if not isinstance(value, list):
        return value
    return [_one(edit) for edit in value]


def _one(edit: object) -> Any:
    if not isinstance(edit, Mapping) or "kind" in edit:
        return edit
    name, inner = next(iter(edit.items()), ("", None))
    if len(edit) != 1 or name not in _NAMES or not isinstance(inner, Mapping):
        raise ValueError(f'an edit is such as {{"ablate": {{"layer": 3, "head": 1}}}}, and one of {", ".join(_NAMES)}')
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
    if "keys" in told:
        told["source"] = told.pop("keys")
    return {"kind": name, **told}


Edits = Annotated[
    list[Edit],
    BeforeValidator(_named),
    Field(max_length=200, description="What is switched off or changed in the model for this answer."),
]


def taps(edits: Sequence[Any], model: Model, directions: Mapping[str, Path] = MappingProxyType({})) -> list[Any]:
    """The taps that a request's edits mean in a model.

    Args:
        directions: files of saved directions, by the names that steering calls them by.

    Raises:
        UsageError: there is no direction of a name. CheckpointError: it is of another model.
    """
    from glassformer.interp.circuit_edit import RunCircuit
    from glassformer.interp.edits import ablate, knockout, steer

    out: list[Any] = []
    for e in edits:
        if e.kind == "ablate_head":
            out.append(ablate(layer=e.layer, head=e.head, positions=e.position))
        elif e.kind == "ablate_read":
            out.append(ablate(layer=e.layer, head=e.head, keys=[e.source], positions=[e.position]))
        elif e.kind == "ablate_attn":
            out.append(ablate(layer=e.layer, part="attention", positions=e.position))
        elif e.kind == "ablate_mlp":
            out.append(ablate(layer=e.layer, part="feed_forward", positions=e.position))
        elif e.kind == "ablate_neuron":
            out.append(ablate(layer=e.layer, neuron=e.neuron, positions=e.position))
        elif e.kind == "ablate_expert":
            out.append(ablate(layer=e.layer, expert=e.expert, positions=e.position))
        elif e.kind == "knockout":
            out.append(knockout(keys=e.source, queries=e.queries, layer=e.layer, head=e.head))
        elif e.kind == "steer":
            vector: Any = torch.tensor(e.vector or (), dtype=torch.float64)
            if e.direction is not None:
                vector = model.load_direction(of_name(directions, e.direction, "direction"))
            out.append(steer(vector, layer=e.layer, strength=e.strength, positions=e.position))
        elif e.kind == "circuit":
            out.append(RunCircuit(model.transformer, tuple(e.edges), tuple(model.ids(e.counterfactual))))
        else:
            out.append(_scaled(e))
    return out


def of_name(known: Mapping[str, Path], name: str, what: str) -> Path:
    """A file that was given a name at the start.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "none was named when this was started"
        raise UsageError(f"There is no {what} {name!r}; {there}.{near(name, known)}")
    return known[name]


def _scaled(e: Scale) -> Any:
    from glassformer.interp.edit_ops import Apply
    from glassformer.interp.select import Places, Selection, key_positions

    def times(x: Tensor, where: object) -> Tensor:
        return x * e.by

    def read(x: Tensor, where: Where) -> Tensor:
        own = where.positions[:, None, :, None] == key_positions(where, x.shape[-1])[:, None, None, :]
        return torch.where(own, x, x * e.by)

    if e.part in ("word", "read") and not e.source:
        raise UsageError(f"A {e.part} that is scaled needs the positions of what is read, as source.")
    if e.part == "word":
        return Apply((), None, ("mixer.pattern",), Selection(keys=Places.of(e.source, "keys")), read)
    if e.layer is None or (e.part in ("head", "neuron", "expert", "read")) != (e.unit is not None):
        part = e.part.replace("_", "-")
        raise UsageError(f"To scale a {part}, give its layer and, of a head, neuron or expert, its number as unit.")
    sites = {
        "layer": ("mixer.out", "laurel.out", "mlp.out", "ple.out"),  # those that it has
        "head": ("mixer.z",),
        "read": ("mixer.pattern",),
        "attention": ("mixer.out",),
        "feed_forward": ("mlp.out",),
        "neuron": ("mlp.post",),
        "expert": ("mlp.weights",),
    }
    chosen = Selection(
        positions=Places.of(e.position),
        heads=Places.of(e.unit if e.part in ("head", "read") else None, "heads"),
        keys=Places.of(e.source if e.part == "read" else None, "keys"),
        units=Places.of(e.unit if e.part in ("neuron", "expert") else None, "units"),
    )
    return Apply((), e.layer, sites[e.part], chosen, times)
