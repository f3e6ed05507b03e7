"""Laguna: experts, gated attention, and a number of heads of its own in every layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
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
)
