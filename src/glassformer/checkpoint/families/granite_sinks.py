"""Granite with sinks: Granite's multipliers, a rotary base for each layer, and sinks of attention."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.layered import each_layer
from glassformer.checkpoint.families.llama_alike import LLAMA_ALIKE
from glassformer.errors import CheckpointError
from glassformer.model.config import Attention, Config

_GRANITE = next(family for family in LLAMA_ALIKE if family.name == "granite")


def _granite_sinks(config: Config, attributes: Attributes) -> Config:
    """Sinks, a rotary base for each layer (0 for none), and logits that are divided."""
    bases = attributes.sequence("layer_rope_theta")
    if bases is not None and len(bases) != config.n_layers:
        raise CheckpointError(f"{attributes.where} names {len(bases)} layer_rope_theta for {config.n_layers} layers.")

    def change(i: int, mixer: Attention) -> Attention:
        rotary = mixer.rotary
        if bases is not None and rotary is not None:
            rotary = dataclasses.replace(rotary, theta=float(bases[i])) if bases[i] else None
        return dataclasses.replace(mixer, sink=True, rotary=rotary)

    assert _GRANITE.read is not None
    return _GRANITE.read(each_layer(config, change), attributes)


def _granite_settings(config: Config) -> dict[str, Any]:
    assert _GRANITE.write is not None
    rotary = [config.attention(i).rotary for i in range(config.n_layers)]
    return {
        **_GRANITE.write(config),
        "layer_rope_theta": [0.0 if one is None else one.theta for one in rotary],
    }


GRANITE_SWA = Alike(
    "granite_swa",
    "GraniteSWA",
    keys=_GRANITE.keys,
    bare={"attn.sink": "self_attn.sinks"},
    slides=lambda i: bool(i % 4),
    defaults={**_GRANITE.defaults, "window": 128, "tied": True},
    read=_granite_sinks,
    write=_granite_settings,
)
