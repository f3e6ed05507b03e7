"""Families whose experts are chosen DeepSeek 3's way: scores by sigmoid, a stored correction, groups."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_table import GgufTable, normed, sharing
from glassformer.checkpoint.families.sparse import EVERY, FIRST_DENSE, LISTED, Sparse, each, fused, one, shared
from glassformer.model.config import Config

GROUPED: dict[str, Any] = {
    "fixed": {"scores": "sigmoid", "correction": True},
    "keys": {
        "renormalise": "norm_topk_prob",
        "scale": "routed_scaling_factor",
        "groups": "n_group",
        "top_groups": "topk_group",
    },
    "defaults": {"renormalise": True, "scale": 1.0},
    "n_experts": ("n_routed_experts", "num_local_experts", "num_experts"),
    "shared": ("n_shared_experts", ""),
}
GROUPED_ROWS = (
    one("mlp.gate.weight", "router.weight"),
    one("mlp.gate.e_score_correction_bias", "correction"),
    *shared("mlp.shared_experts."),
)
_FUSED = fused("mlp.experts.")
_GLM = GgufTable("glm4moe", dense="first", names={"ln2": "post_attention_norm"}, read=normed("use_qk_norm"))


def where_sliding(layer: int, window: int | None, attributes: Attributes) -> bool:
    """Layers without a window do not rotate, in models that have windows."""
    return window is not None or attributes.integer("sliding_window", None, null=True) is None


def _dots_windows(attributes: Attributes) -> dict[str, Any]:
    if attributes.sequence("layer_types") or "sliding_window" not in attributes:
        return {}
    first, layers = attributes.integer("max_window_layers", 62), attributes.layers("num_hidden_layers")
    return {"layer_types": ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]}


def _glm_normed(config: Config, attributes: Attributes) -> Config:
    return each_attention(config, qk_norm="head") if attributes.flag("use_qk_norm", False) else config


GROUPED_EXPERTS = (
    Sparse(
        Alike(
            "glm4_moe",
            "Glm4Moe",
            keys={"out_bias": ""},
            fixed={"out_bias": False, "mlp_bias": False},
            fraction=0.5,
            defaults={"eps": 1e-5},
            read=_glm_normed,
            write=lambda config: {"use_qk_norm": config.attention(0).qk_norm is not None},
        ),
        (*GROUPED_ROWS, *each()),
        **GROUPED,
        layers=FIRST_DENSE,
        stacked=((*GROUPED_ROWS, *_FUSED),),
        no_effect=frozenset({"num_nextn_predict_layers"}),
        gguf=_GLM,
    ),
    Sparse(
        Alike(
            "dots1",
            "Dots1",
            fixed={"mlp_bias": False, "qk_norm": "head"},
            slides=lambda i: False,
            defaults={"eps": 1e-6},
        ),
        (*GROUPED_ROWS, *each()),
        **GROUPED | {"defaults": {"renormalise": False, "scale": 1.0}},
        layers=FIRST_DENSE,
        stacked=((*GROUPED_ROWS, *_FUSED),),
        before=_dots_windows,
        no_effect=frozenset({"max_window_layers"}),
        gguf=GgufTable("dots1", dense="first"),
    ),
    Sparse(
        Alike("solar_open", "SolarOpen", fixed={"out_bias": False, "mlp_bias": False}, defaults={"eps": 1e-5}),
        (*GROUPED_ROWS, *each()),
        **GROUPED,
        layers=EVERY,
        stacked=((*GROUPED_ROWS, *_FUSED),),
        no_effect=frozenset({"first_k_dense_replace"}),
        gguf=sharing(_GLM, chosen=lambda settings: False),
    ),
    Sparse(
        Alike(
            "exaone_moe",
            "ExaoneMoe",
            fixed={"bias": False, "out_bias": False, "mlp_bias": False, "qk_norm": "head"},
            slides=lambda i: bool((i + 1) % 4),
            rotates_layer=where_sliding,
            defaults={"eps": 1e-5},
        ),
        (
            one("mlp.gate.weight", "router.weight"),
            one("mlp.e_score_correction_bias", "correction"),
            *each(),
            *shared("mlp.shared_experts."),
        ),
        **GROUPED | {"n_experts": ("num_experts",), "shared": ("num_shared_experts", "")},
        layers=LISTED,
        no_effect=frozenset({"first_k_dense_replace"}),
        gguf=GgufTable("exaone-moe", dense="first", period=4),
    ),
)
