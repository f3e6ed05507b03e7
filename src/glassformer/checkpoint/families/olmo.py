"""OLMo 1 to 3 and EXAONE 4: norms without weights, or after the parts alone, and queries and keys normed."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.settings import rope
from glassformer.model.config import Attention, Config, Norm, Rotary

_AFTER = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm", "ln2": "none"}


def _two_rotations(config: Config, attributes: Attributes) -> Config:
    """Layers with a window are turned by unstretched positions."""
    parameters = attributes.table("rope_parameters")
    wide = parameters.get("full_attention") or attributes.table("rope_scaling") or parameters
    near = parameters.get("sliding_attention") or {}
    theta, scaling = rope(attributes, config.context, attributes.number("rope_theta", 500_000.0), wide)
    local, _ = rope(attributes, config.context, theta, near or {"rope_theta": theta})
    layers = []
    for layer in config.layers:
        assert isinstance(layer.mixer, Attention)
        rotary = Rotary(theta, scaling=scaling) if layer.mixer.window is None else Rotary(local)
        layers.append(dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, rotary=rotary)))
    return dataclasses.replace(config, layers=tuple(layers))


def _rotations(config: Config) -> dict[str, Any]:
    from glassformer.checkpoint.families.settings import rotary_of, scaling_settings

    wide, local = rotary_of(config, window=False), rotary_of(config, window=True)
    scaling = {"rope_type": "default"} if wide.scaling is None else scaling_settings(wide.scaling)
    return {
        "rope_theta": wide.theta,
        "rope_scaling": None if wide.scaling is None else scaling,
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": wide.theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local.theta},
        },
    }


def _exaone_rotates(layer: int, window: int | None, attributes: Attributes) -> bool:
    """Layers that see everything rotate only where no layer has a window."""
    return window is not None or attributes.integer("sliding_window", 4096, null=True) is None


def _gguf_rotations(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp turns layers with a window by another base where the file names one, and never stretches them."""
    wide = {"rope_type": "default", **(found["rope_scaling"] or {}), "rope_theta": found["rope_theta"]}
    local = attributes.number("rope.freq_base_swa", found["rope_theta"])
    return {"rope_parameters": {"full_attention": wide, "sliding_attention": {"rope_theta": local}}}


def _gguf_local(config: Config) -> dict[str, Any]:
    from glassformer.checkpoint.families.settings import rotary_of

    return {"rope.freq_base_swa": rotary_of(config, window=True).theta}


def _gguf_windows(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp computes windows in the model of 64 layers, and in no other."""
    layers = attributes.layers("block_count")
    return {} if layers == 64 else {"sliding_window": None, "layer_types": ["full_attention"] * layers}


OLMO = (
    Alike(
        "olmo",
        "Olmo",
        gguf=GgufTable("olmo", pairs="neighbours"),
        norm=Norm("layer", eps=1e-5, weight=False),
        keys={"clip": "clip_qkv"},
        fixed={"mlp_bias": False, "eps": 1e-5},
    ),
    Alike(
        "olmo2",
        "Olmo2",
        gguf=GgufTable("olmo2"),
        norms="after",
        names=_AFTER,
        fixed={"mlp_bias": False, "qk_norm": "whole"},
    ),
    Alike(
        "olmo3",
        "Olmo3",
        gguf=GgufTable(
            "olmo2",
            period=4,
            read=_gguf_rotations,
            write=_gguf_local,
            chosen=lambda settings: bool(settings.get("olmo2.attention.sliding_window")),
        ),
        norms="after",
        names=_AFTER,
        fixed={"mlp_bias": False, "qk_norm": "whole"},
        slides=lambda i: bool((i + 1) % 4),
        defaults={"window": 4096},
        read=_two_rotations,
        write=_rotations,
    ),
    Alike(
        "exaone4",
        "Exaone4",
        gguf=GgufTable("exaone4", period=4, read=_gguf_windows),
        norms="after",
        names=_AFTER,
        fixed={"mlp_bias": False, "bias": False, "out_bias": False, "qk_norm": "head"},
        slides=lambda i: bool((i + 1) % 4),
        rotates_layer=_exaone_rotates,
        defaults={"window": 4096},
    ),
)
