"""AFMoE: experts, gated attention, and rotary positions only in layers with a window."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.layered import KINDS
from glassformer.checkpoint.families.sparse import Layers, Sparse, each, one, shared
from glassformer.model.config import Config


def _afmoe_kinds(attributes: Attributes) -> dict[str, Any]:
    every = attributes.integer("global_attn_every_n_layers", 4)
    if attributes.sequence("layer_types") is not None or every < 1:
        return {}
    layers = attributes.layers("num_hidden_layers")
    return {"layer_types": [KINDS[bool((i + 1) % every)] for i in range(layers)]}


def _afmoe(config: Config, attributes: Attributes) -> Config:
    config = each_attention(config, gate="element")
    if not attributes.flag("mup_enabled", False):
        return config
    return dataclasses.replace(config, embedding_scale=math.sqrt(config.d_model))


_NUM_DENSE = Layers(
    lambda attributes, layers: [i >= attributes.integer("num_dense_layers", 1) for i in range(layers)],
    lambda flags: {"num_dense_layers": flags.index(True) if True in flags else len(flags)},
)
AFMOE = Sparse(
    Alike(
        "afmoe",
        "Afmoe",
        norms="both",
        fixed={"mlp_bias": False, "qk_norm": "head"},
        names={
            "attn.gate": "self_attn.gate_proj",
            "ln1_post": "post_attention_layernorm",
            "ln2": "pre_mlp_layernorm",
            "ln2_post": "post_mlp_layernorm",
        },
        slides=lambda i: bool((i + 1) % 4),
        rotates_layer=lambda layer, window, attributes: window is not None,
        defaults={"eps": 1e-5, "d_head": 128, "window": 1024},
        read=_afmoe,
        write=lambda config: {"mup_enabled": config.embedding_scale is not None},
    ),
    (
        one("mlp.router.gate.weight", "router.weight"),
        one("mlp.expert_bias", "correction"),
        *each(),
        *shared("mlp.shared_experts."),
    ),
    n_experts=("num_experts",),
    shared=("num_shared_experts", ""),
    fixed={"scores": "sigmoid", "correction": True},
    keys={"scale": "route_scale"},
    layers=_NUM_DENSE,
    before=_afmoe_kinds,
    gguf=GgufTable("afmoe", dense="first", period=4, listed=False, implied={"mup_enabled": True}),
    defaults={"n_active": 6},
)
