"""Beam: experts, gated attention, and a stream in which every part counts the same."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.grouped_experts import GROUPED, GROUPED_ROWS
from glassformer.checkpoint.families.layered import KINDS, by_kind, each_layer, rotary_kinds, two_rotaries
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, fused
from glassformer.model.config import Attention, Config

_REACH = (0.1, 2048.0)  # how queries grow in layers that do not rotate


def _beam_before(attributes: Attributes) -> dict[str, Any]:
    layers = attributes.layers("num_hidden_layers", 52)
    found: dict[str, Any] = {}
    if attributes.sequence("layer_types") is None:
        found["layer_types"] = [KINDS[bool((i + 1) % 6) and i < layers - 1] for i in range(layers)]
    if attributes.sequence("mlp_layer_types") is None:
        dense = min(3, layers)
        found["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * (layers - dense)
    kinds = attributes.table("rope_parameters") or {"sliding_attention": {}, "full_attention": None}
    return {**found, **by_kind(Attributes({"rope_parameters": kinds}, attributes.where))}


def _beam(config: Config, attributes: Attributes) -> Config:
    """Every part counts as much in the stream as those before it; layers that do not rotate grow their queries."""

    def change(i: int, mixer: Attention) -> Attention:
        mixer = dataclasses.replace(mixer, gate="element", gate_bias=True)
        if mixer.rotary is not None:
            return mixer
        return dataclasses.replace(mixer, length_scale=_REACH, length_rule="power")

    config = each_layer(two_rotaries(config, attributes), change)
    layers = [dataclasses.replace(layer, averaged=2 * i + 1) for i, layer in enumerate(config.layers)]
    return dataclasses.replace(config, layers=tuple(layers))


BEAM = Sparse(
    Alike(
        "beam",
        "Beam",
        norms="both",
        keys={"logit_softcap": "final_logit_softcapping"},
        fixed={"mlp_bias": False, "qk_norm": "head"},
        names={
            "attn.gate": "self_attn.gate_proj",
            "ln1_post": "post_attention_layernorm",
            "ln2": "pre_feedforward_layernorm",
            "ln2_post": "post_feedforward_layernorm",
        },
        bare={"attn.gate_bias": "self_attn.gate_bias"},
        slides=lambda i: False,
        defaults={"eps": 1e-6, "d_head": 128, "n_kv_heads": 8, "window": 512, "logit_softcap": 30.0},
        read=_beam,
    ),
    (*GROUPED_ROWS[:2], *each()),
    n_experts=("num_experts",),
    fixed={"scores": "sigmoid", "correction": True},
    keys=GROUPED["keys"],
    defaults={"renormalise": True, "scale": 2.5, "groups": 8, "top_groups": 4, "n_active": 8},
    layers=LISTED,
    stacked=((*GROUPED_ROWS[:2], *fused("mlp.experts.")),),
    before=_beam_before,
    more=rotary_kinds,
)
