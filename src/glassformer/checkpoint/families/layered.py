"""What families share whose layers differ: attention changed layer by layer, rotary settings by kind of layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.settings import rope, scaling_settings
from glassformer.model.choices import Rotary
from glassformer.model.config import Attention, Config

# Whether a layer has a window -> its kind as settings name it.
KINDS = {False: "full_attention", True: "sliding_attention"}


def each_layer(config: Config, change: Callable[[int, Attention], Attention]) -> Config:
    """The design with every layer's attention changed."""
    layers = []
    for i, layer in enumerate(config.layers):
        assert isinstance(layer.mixer, Attention)
        layers.append(dataclasses.replace(layer, mixer=change(i, layer.mixer)))
    return dataclasses.replace(config, layers=tuple(layers))


def by_kind(attributes: Attributes) -> dict[str, Any]:
    """Rotary settings of the two kinds of layers apart, where they are: those of layers with a window as "local rope".

    A kind whose settings are null does not rotate: "still" names these kinds.
    """
    kinds = attributes.table("rope_parameters")
    if not any(kind in kinds for kind in KINDS.values()):
        return {}
    still = [kind for kind in KINDS.values() if kind in kinds and kinds[kind] is None]
    return {
        "rope_parameters": kinds.get("full_attention") or {},
        "local rope": kinds.get("sliding_attention") or {},
        "still": still,
    }


def two_rotaries(config: Config, attributes: Attributes, fraction: float = 1.0) -> Config:
    """What `by_kind` found, in the layers with a window and in those that do not rotate.

    Args:
        fraction: the rotated share of layers with a window, where no setting says so.
    """
    local, still = attributes.table("local rope"), attributes.sequence("still") or []
    if local:
        theta, scaling = rope(attributes, config.context, 10_000.0, local)
        share = attributes.inside(local, "rope_parameters").number("partial_rotary_factor", fraction)
        near = Rotary(theta, share, scaling)

    def change(i: int, mixer: Attention) -> Attention:
        windowed = mixer.window is not None
        if KINDS[windowed] in still:
            return dataclasses.replace(mixer, rotary=None)
        return dataclasses.replace(mixer, rotary=near) if windowed and local else mixer

    return each_layer(config, change)


def rotary_kinds(config: Config) -> dict[str, Any]:
    """`by_kind` the other way."""
    found: dict[str, Any] = {}
    for layer in config.layers:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            continue
        kind, rotary = KINDS[mixer.window is not None], mixer.rotary
        if rotary is None:
            found.setdefault(kind, None)
            continue
        scaling = {"rope_type": "default"} if rotary.scaling is None else scaling_settings(rotary.scaling)
        own = {"rope_theta": rotary.theta, "partial_rotary_factor": rotary.fraction, **scaling}
        found.setdefault(kind, own)
    missing = {"rope_theta": 10_000.0, "rope_type": "default"}
    return {"rope_parameters": {kind: found.get(kind, missing) for kind in KINDS.values()}}
