"""Mellum: experts, and rotary settings of their own for layers with windows."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.settings import rope, rotary_of, scaling_settings
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, one
from glassformer.model.choices import Rotary
from glassformer.model.config import Attention, Config


def _mellum_bases(attributes: Attributes) -> dict[str, Any]:
    """Rotary settings by kind of layer."""
    kinds = attributes.table("rope_parameters")
    if "full_attention" not in kinds:
        return {}
    return {"rope_parameters": kinds["full_attention"], "local rope": kinds.get("sliding_attention")}


def _mellum_local(config: Config, attributes: Attributes) -> Config:
    local = attributes.table("local rope")
    if not local:
        return config
    theta, scaling = rope(attributes, config.context, 10_000.0, local)
    layers = []
    for layer in config.layers:
        if isinstance(layer.mixer, Attention) and layer.mixer.window is not None:
            layer = dataclasses.replace(
                layer, mixer=dataclasses.replace(layer.mixer, rotary=Rotary(theta, 1.0, scaling))
            )
        layers.append(layer)
    return dataclasses.replace(config, layers=tuple(layers))


def _mellum_nested(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for window, kind in ((False, "full_attention"), (True, "sliding_attention")):
        rotary = rotary_of(config, window=window)
        scaling = {"rope_type": "default"} if rotary.scaling is None else scaling_settings(rotary.scaling)
        found[kind] = {"rope_theta": rotary.theta, **scaling}
    return {"rope_parameters": found}


_MELLUM = Alike(
    "mellum",
    "Mellum",
    fixed={"mlp_bias": False, "qk_norm": "head"},
    slides=lambda i: False,
    defaults={"eps": 1e-6},
    read=_mellum_local,
)
MELLUM = Sparse(
    _MELLUM,
    (one("mlp.gate.weight", "router.weight"), *each()),
    keys={"renormalise": "norm_topk_prob"},
    layers=LISTED,
    before=_mellum_bases,
    more=_mellum_nested,
    no_effect=frozenset({"num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"}),
)
