"""Laguna: experts, gated attention, and a number of heads of its own in every layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.layered import by_kind, each_layer, rotary_kinds, two_rotaries
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, experts_of, one, shared
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Attention, Config, Experts


def _laguna(config: Config, attributes: Attributes) -> Config:
    gating = attributes.values.get("gating", True)
    attributes.only("gating", True, "per-head", "per-element")
    heads = attributes.sequence("num_attention_heads_per_layer")
    if heads is not None and (len(heads) != config.n_layers or not all(type(n) is int for n in heads)):
        raise CheckpointError(
            f"{attributes.where} sets num_attention_heads_per_layer to {heads}; it must be {config.n_layers} numbers."
        )

    def change(i: int, mixer: Attention) -> Attention:
        return dataclasses.replace(
            mixer,
            n_heads=mixer.n_heads if heads is None else heads[i],
            gate="element" if gating == "per-element" else "head",
            gate_activation="softplus",
        )

    return two_rotaries(each_layer(config, change), attributes)


def _laguna_before(attributes: Attributes) -> dict[str, Any]:
    attributes.only("moe_apply_router_weight_on_input", False)
    layers = attributes.layers("num_hidden_layers")
    found: dict[str, Any] = {}
    if attributes.sequence("mlp_layer_types") is None:
        found["mlp_layer_types"] = ["dense", *["sparse"] * (layers - 1)]
    if not attributes.table("rope_parameters"):
        full = {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5}
        return {**found, "rope_parameters": full, "local rope": {"rope_type": "default", "rope_theta": 10_000.0}}
    return {**found, **by_kind(attributes)}


def _laguna_settings(config: Config) -> dict[str, Any]:
    first = config.attention(0)
    if first.gate is None:
        raise UnsupportedError("its attention has no gate")
    heads = [config.n_heads(i) for i in range(config.n_layers)]
    return {
        "gating": "per-head" if first.gate == "head" else "per-element",
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
    }


def _laguna_router(experts: Experts, attributes: Attributes) -> Experts:
    cap = attributes.number("moe_router_logit_softcapping", 0.0)
    return dataclasses.replace(experts, router_cap=cap or None)


def _laguna_more(config: Config) -> dict[str, Any]:
    return {**rotary_kinds(config), "moe_router_logit_softcapping": experts_of(config).router_cap or 0.0}


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """Layers with windows turn by numbers of their own and are never stretched; heads may differ by layer."""
    layers, d_head = attributes.layers("block_count"), attributes.integer("attention.key_length")
    heads = attributes.values[attributes.prefix + "attention.head_count"]
    heads = heads if isinstance(heads, list) else [heads] * layers
    base = found["rope_theta"]
    near = attributes.integer("rope.dimension_count_swa", attributes.integer("rope.dimension_count", d_head)) / d_head
    full = {"rope_type": "default", **(found["rope_scaling"] or {})}
    attributes.only("expert_weights_norm", True)
    return {
        "gating": "per-head" if shapes.get("blk.0.attn_gate.weight", (0,))[0] == heads[0] else "per-element",
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
        "rope_scaling": None,
        "rope_parameters": {
            "full_attention": {**full, "rope_theta": base, "partial_rotary_factor": found["partial_rotary_factor"]},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": attributes.number("rope.freq_base_swa", base),
                "partial_rotary_factor": near,
            },
        },
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    mixers = [config.attention(i) for i in range(config.n_layers)]
    near = next((m.rotary for m in mixers if m.window is not None and m.rotary is not None), None)
    if mixers[0].window is not None:  # it would take the rotated share of the first layer for all others
        raise UnsupportedError("llama.cpp expects a first layer without a window in architecture laguna.")
    return {
        "attention.head_count": [mixer.n_heads for mixer in mixers],
        **(
            {}
            if near is None
            else {"rope.freq_base_swa": near.theta, "rope.dimension_count_swa": near.dims(mixers[0].d_head)}
        ),
    }


_GGUF = GgufTable(
    "laguna",
    period=4,
    first=True,
    dense="first",
    by_layer=("attention.head_count",),
    read=_read_gguf,
    write=_write_gguf,
)

LAGUNA = Sparse(
    Alike(
        "laguna",
        "Laguna",
        fixed={"mlp_bias": False, "qk_norm": "head"},
        names={"attn.gate": "self_attn.g_proj"},
        slides=lambda i: False,
        defaults={"eps": 1e-6, "d_head": 128, "n_kv_heads": 8, "window": 512},
        read=_laguna,
        write=_laguna_settings,
    ),
    (
        one("mlp.gate.weight", "router.weight"),
        one("mlp.experts.e_score_correction_bias", "correction"),
        *each(),
        *shared("mlp.shared_expert."),
    ),
    n_experts=("num_experts",),
    shared="shared_expert_intermediate_size",
    fixed={"scores": "sigmoid", "correction": True},
    keys={"scale": "moe_routed_scaling_factor"},
    layers=LISTED,
    before=_laguna_before,
    read=_laguna_router,
    more=_laguna_more,
    defaults={"n_active": 8},
    gguf=_GGUF,
)
