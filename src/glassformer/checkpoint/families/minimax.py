"""MiniMax-M3 (its text part, where every layer attends to all keys): cut and shifted neurons, dense and in experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.sparse import LISTED, Sparse, experts_of, fused, one
from glassformer.checkpoint.tables import Row
from glassformer.model.config import Config, Experts, FeedForward, Norm

_MLP = "blocks.{i}.mlp."


def _dense(config: Config, attributes: Attributes) -> Config:
    """Dense parts are cut and shifted as experts are."""
    attributes.only("swiglu_alpha", 1.702)
    clamp = attributes.number("swiglu_limit", 7.0)
    kinds = attributes.sequence("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):  # keys chosen block by block
        raise attributes.unsupported("layer_types", kinds)
    layers = []
    for layer in config.layers:
        assert isinstance(layer.feed_forward, FeedForward)
        feed = dataclasses.replace(layer.feed_forward, activation="quick_gelu", clamp=clamp, linear_shift=1.0)
        layers.append(dataclasses.replace(layer, feed_forward=feed))
    return dataclasses.replace(config, layers=tuple(layers))


def _cut(experts: Experts, attributes: Attributes) -> Experts:
    if experts.shared is None:
        return experts
    shared = dataclasses.replace(experts.shared, clamp=experts.clamp, linear_shift=1.0)
    return dataclasses.replace(experts, shared=shared)


def _settings(config: Config) -> dict[str, Any]:
    clamp = experts_of(config).clamp
    return {
        "hidden_act": "silu",  # what its class says; the gate is computed from the two settings that follow
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0 if clamp is None else clamp,
        "layer_types": ["full_attention"] * config.n_layers,
    }


MINIMAX_M3 = Sparse(
    Alike(
        "minimax_m3_vl_text",
        "MiniMaxM3VL",
        base="MiniMaxM3VLTextModel",
        norm=Norm("rms", one_plus=True),
        keys={"d_ff": "dense_intermediate_size"},
        fixed={"bias": False, "out_bias": False, "mlp_bias": False, "qk_norm": "head"},
        joined={"mlp.gate_up_proj": ("mlp.gate", "mlp.up")},
        names={"mlp.down": "mlp.down_proj"},
        defaults={"eps": 1e-6, "theta": 5_000_000.0, "d_head": 128, "n_kv_heads": 4},
        read=_dense,
    ),
    (
        one("mlp.gate.weight", "router.weight"),
        one("mlp.gate.e_score_correction_bias", "correction"),
        *fused("mlp.experts."),
        Row("mlp.shared_experts.gate_up_proj.weight", (f"{_MLP}shared.gate.weight", f"{_MLP}shared.up.weight")),
        one("mlp.shared_experts.down_proj.weight", "shared.down.weight"),
    ),
    n_experts=("num_local_experts",),
    d_ff=("intermediate_size",),
    shared="shared_intermediate_size",
    fixed={"scores": "sigmoid", "correction": True, "activation": "quick_gelu", "linear_shift": 1.0},
    keys={"scale": "routed_scaling_factor", "clamp": "swiglu_limit"},
    defaults={"scale": 2.0, "clamp": 7.0, "n_active": 4},
    layers=LISTED,
    read=_cut,
    more=_settings,
    no_effect=frozenset(
        {
            "rotary_dim",  # the class reads the share from rope_parameters
            "router_jitter_noise",
            "index_n_heads",
            "index_head_dim",
            "index_block_size",
            "index_topk_blocks",
            "index_local_blocks",
            "hidden_act",
        }
    ),
)
