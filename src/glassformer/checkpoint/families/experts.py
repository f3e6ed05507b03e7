"""Mixtral, Qwen's, GLM's, Granite's and other families with experts, each an `Alike` and its experts' table."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.cohere import COHERE
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.grouped_experts import where_sliding
from glassformer.checkpoint.families.llama_alike import LLAMA_ALIKE
from glassformer.checkpoint.families.sparse import (
    BETWEEN,
    LISTED,
    STEPPED,
    Sparse,
    each,
    experts_of,
    fused,
    one,
    shared,
)
from glassformer.checkpoint.tables import Row
from glassformer.model.config import Config, Experts, Norm

_PLAIN: dict[str, Any] = {"bias": False, "out_bias": False, "mlp_bias": False}
_W = ("w1", "w3", "w2")
_FUSED = fused("mlp.experts.")
_QK = {**_PLAIN, "qk_norm": "head"}
_BY_NAME = {family.name: family for family in (*LLAMA_ALIKE, *COHERE)}


def _only_sliding(layer: int, window: int | None, attributes: Attributes) -> bool:
    return window is not None


def _qwen_windows(attributes: Attributes) -> dict[str, Any]:
    """Windows are off unless a flag says so, and begin at a layer where no list says otherwise."""
    if not attributes.flag("use_sliding_window", False):
        return {"sliding_window": None, "layer_types": None}
    first = attributes.integer("max_window_layers", 28)
    kinds = [
        "sliding_attention" if i >= first else "full_attention" for i in range(attributes.layers("num_hidden_layers"))
    ]
    return {"layer_types": attributes.sequence("layer_types") or kinds}


def _says_windows(config: Config) -> dict[str, Any]:
    return {"use_sliding_window": any(config.window(i) is not None for i in range(config.n_layers))}


def _all_windows(attributes: Attributes) -> dict[str, Any]:
    on = attributes.flag("use_sliding_window", False)
    return {"layer_types": None, **({} if on else {"sliding_window": None})}


def _partial(attributes: Attributes) -> dict[str, Any]:
    """MiniMax's files say how many dimensions rotate."""
    rotated, d_head = attributes.integer("rotary_dim", None), attributes.integer("head_dim", None)
    return {} if rotated is None or not d_head else {"partial_rotary_factor": rotated / d_head}


def _swish(attributes: Attributes) -> dict[str, Any]:
    attributes.only("swiglu_alpha", 1.702)
    return {}


def _sinks(config: Config, attributes: Attributes) -> Config:
    return each_attention(config, sink=True)


def _cut_normed(config: Config, attributes: Attributes) -> Config:
    """Queries and keys are cut after their norm."""
    return each_attention(config, clip_after=True)


_MIXTRAL: dict[str, Any] = {
    "n_experts": ("num_local_experts",),
    "d_ff": ("intermediate_size",),
    "stacked": ((one("mlp.gate.weight", "router.weight"), *_FUSED),),
}


def _cohere_norms(attributes: Attributes) -> dict[str, Any]:
    attributes.only("expert_selection_fn", "softmax", "sigmoid")
    attributes.only("prefix_dense_intermediate_size")
    attributes.only("prefix_dense_sliding_window_pattern", 1)
    attributes.only("rms_norm_eps")
    return {}


def _cohere_experts(experts: Experts, attributes: Attributes) -> Experts:
    """The two outputs may be averaged instead of added."""
    how = attributes.text("shared_expert_combination_strategy", "average")
    scores: Any = attributes.text("expert_selection_fn", "softmax")
    half = 0.5 if how == "average" and experts.shared is not None else 1.0
    whole = scores == "softmax" or experts.renormalise  # a softmax is over the chosen alone
    return dataclasses.replace(experts, scores=scores, renormalise=whole, scale=half, shared_scale=half)


def _cohere_settings(config: Config) -> dict[str, Any]:
    experts = experts_of(config)
    return {
        "expert_selection_fn": experts.scores,
        "shared_expert_combination_strategy": "sum" if experts.scale == 1 else "average",
    }


def _untruncated(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """All of these models stretch without rounding to whole pairs; GGUF does not say so, and llama.cpp rounds."""
    scaling = found["rope_scaling"]
    return {"rope_scaling": {**scaling, "truncate": False}} if scaling else {}


EXPERTS = (
    Sparse(
        Alike(
            "mixtral",
            "Mixtral",
            fixed=_PLAIN,
            slides=lambda i: True,
            defaults={"n_kv_heads": 8, "theta": 1_000_000.0, "eps": 1e-5},
        ),
        (one("block_sparse_moe.gate.weight", "router.weight"), *each("block_sparse_moe.experts.{e}.", _W)),
        **_MIXTRAL,
        before=lambda attributes: {"layer_types": None},
        no_effect=frozenset({"router_jitter_noise"}),
        gguf=GgufTable(
            "llama", pairs="neighbours", factors=True, chosen=lambda settings: bool(settings.get("llama.expert_count"))
        ),
    ),
    Sparse(
        Alike(
            "qwen2_moe",
            "Qwen2Moe",
            keys={"bias": "qkv_bias"},
            fixed={"out_bias": False, "mlp_bias": False},
            slides=lambda i: False,
            defaults={"bias": True, "eps": 1e-6},
        ),
        (
            one("mlp.gate.weight", "router.weight"),
            *each(),
            *shared("mlp.shared_expert."),
            one("mlp.shared_expert_gate.weight", "shared_gate.weight"),
        ),
        shared="shared_expert_intermediate_size",
        fixed={"shared_gate": True},
        keys={"renormalise": "norm_topk_prob"},
        defaults={"renormalise": False},
        layers=STEPPED,
        before=_qwen_windows,
        more=_says_windows,
        no_effect=frozenset({"max_window_layers"}),
        gguf=GgufTable("qwen2moe", implied={"norm_topk_prob": False}),
    ),
    Sparse(
        Alike(
            "qwen3_moe",
            "Qwen3Moe",
            fixed={"mlp_bias": False, "qk_norm": "head"},
            slides=lambda i: True,
            defaults={"eps": 1e-6},
        ),
        (one("mlp.gate.weight", "router.weight"), *each()),
        keys={"renormalise": "norm_topk_prob"},
        defaults={"renormalise": False},
        layers=STEPPED,
        stacked=((one("mlp.gate.weight", "router.weight"), *_FUSED),),
        before=_all_windows,
        more=_says_windows,
        no_effect=frozenset({"max_window_layers"}),
        gguf=GgufTable("qwen3moe", implied={"norm_topk_prob": True}),
    ),
    Sparse(
        Alike(
            "ernie4_5_moe",
            "Ernie4_5_Moe",
            pairs="neighbours",
            fixed=_PLAIN,
            only={"use_bias": (False,)},
            defaults={"tied": True, "theta": 500_000.0, "eps": 1e-5},
        ),
        (
            one("mlp.gate.weight", "router.weight"),
            one("mlp.moe_statics.e_score_correction_bias", "correction", squeezed=0),
            *each(),
            *shared("mlp.shared_experts."),
        ),
        n_experts=("moe_num_experts",),
        n_active="moe_k",
        shared=("moe_num_shared_experts", ""),
        fixed={"correction": True},
        layers=BETWEEN,
        no_effect=frozenset({"moe_norm_min"}),
        gguf=GgufTable(
            "ernie4_5-moe",
            dense="first",
            pairs="neighbours",
            rows=(Row("blk.{i}.exp_probs_b.bias", ("blocks.{i}.mlp.correction",), squeezed=0),),
            says={"interleave_moe_layer_step": 1},
        ),
    ),
    Sparse(
        Alike("hy_v3", "HYV3", fixed={"qk_norm": "head"}, defaults={"eps": 1e-5}),
        (
            one("mlp.router.gate.weight", "router.weight"),
            one("mlp.expert_bias", "correction"),
            *each(),
            *shared("mlp.shared_mlp."),
        ),
        shared=("num_shared_experts", ""),
        fixed={"scores": "sigmoid", "correction": True},
        keys={"scale": "router_scaling_factor"},
        layers=LISTED,
        no_effect=frozenset({"enable_moe_fp32_combine"}),
        gguf=GgufTable("hy_v3", dense="any", names={"mlp.correction": "exp_probs_b"}),
    ),
    Sparse(
        Alike("aria_text", "AriaText", defaults={"eps": 1e-6}),
        (
            one("mlp.router.weight", "router.weight"),
            *fused("mlp.experts.", "fc1.weight", "fc2.weight", transposed=True),
            *shared("mlp.shared_experts."),
        ),
        n_experts=("moe_num_experts",),
        n_active="moe_topk",
        d_ff=("intermediate_size",),
        shared=("moe_num_shared_experts", "intermediate_size"),
    ),
    Sparse(
        Alike(
            "olmoe",
            "Olmoe",
            keys={"clip": "clip_qkv"},
            fixed={"mlp_bias": False, "qk_norm": "whole"},
            defaults={"eps": 1e-5},
            read=_cut_normed,
        ),
        (one("mlp.gate.weight", "router.weight"), *each()),
        d_ff=("intermediate_size",),
        keys={"renormalise": "norm_topk_prob"},
        defaults={"renormalise": False},
        stacked=((one("mlp.gate.weight", "router.weight"), *_FUSED),),
        gguf=GgufTable("olmoe", implied={"norm_topk_prob": False, "clip_qkv": None}),
    ),
    Sparse(
        Alike("minimax_m2", "MiniMaxM2", fixed={**_PLAIN, "qk_norm": "whole"}, defaults={"eps": 1e-6}),
        (
            one("block_sparse_moe.gate.weight", "router.weight"),
            one("block_sparse_moe.e_score_correction_bias", "correction"),
            *each("block_sparse_moe.experts.{e}.", _W),
        ),
        n_experts=("num_local_experts",),
        d_ff=("intermediate_size",),
        fixed={"scores": "sigmoid", "correction": True},
        before=_partial,
        no_effect=frozenset({"router_jitter_noise"}),
        gguf=GgufTable("minimax-m2"),
    ),
    Sparse(
        Alike(
            "phimoe",
            "Phimoe",
            norm=Norm("layer"),
            keys={"unembed_bias": "lm_head_bias"},
            fixed={"mlp_bias": False},
            slides=lambda i: True,
            defaults={"eps": 1e-5, "n_kv_heads": 8},
        ),
        (one("block_sparse_moe.gate.weight", "router.weight"), *each("block_sparse_moe.experts.{e}.", _W)),
        n_experts=("num_local_experts",),
        d_ff=("intermediate_size",),
        fixed={"scores": "sparse_mixer", "renormalise": False},
        keys={"jitter": "router_jitter_noise"},
        defaults={"jitter": 0.01},
        before=lambda attributes: {"layer_types": None},
        no_effect=frozenset({"input_jitter_noise"}),
    ),
    Sparse(
        dataclasses.replace(_BY_NAME["hunyuan_v1_dense"], name="hunyuan_v1_moe", stem="HunYuanMoEV1"),
        (
            one("mlp.gate.wg.weight", "router.weight"),
            *each(),
            *shared("mlp.shared_mlp."),
        ),
        n_active="moe_topk",
        d_ff=("intermediate_size",),
        shared=("num_shared_expert", "intermediate_size"),
        no_effect=frozenset({"eod_token_id"}),
        gguf=GgufTable("hunyuan-moe"),
    ),
    Sparse(
        Alike(
            "kolibri1",
            "Kolibri1",
            fixed=_QK,
            norms="both",
            names={"ln1_post": "post_attn_norm", "ln2_post": "post_ffn_norm"},
            slides=lambda i: True,
            rotates_layer=where_sliding,
            defaults={"eps": 1e-6},
        ),
        (
            one("mlp.gate.weight", "router.weight"),
            one("moe.router.expert_bias", "correction"),
            *each(),
            *shared("mlp.shared_experts."),
        ),
        shared="shared_expert_intermediate_size",
        fixed={"scores": "sigmoid", "correction": True, "correction_of": "before"},
        keys={"renormalise": "norm_topk_prob"},
    ),
    Sparse(
        Alike(
            "flex_olmo",
            "FlexOlmo",
            norms="after",
            fixed={"mlp_bias": False, "qk_norm": "whole"},
            names={"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"},
            defaults={"eps": 1e-6, "theta": 500_000.0},
        ),
        (one("mlp.gate.weight", "router.weight"), *each()),
        d_ff=("intermediate_size",),
        keys={"renormalise": "norm_topk_prob"},
        defaults={"renormalise": False},
    ),
    Sparse(
        Alike(
            "gpt_oss",
            "GptOss",
            fixed={"mlp_bias": False},
            slides=lambda i: i % 2 == 0,
            defaults={"eps": 1e-5, "theta": 150_000.0, "bias": True, "out_bias": True, "window": 128},
            read=_sinks,
        ),
        (
            Row("self_attn.sinks", ("blocks.{i}.attn.sink",)),
            one("mlp.router.weight", "router.weight"),
            one("mlp.router.bias", "router.bias"),
            *fused("mlp.experts.", transposed=True, alternating=True),
            Row(
                "mlp.experts.gate_up_proj_bias",
                ("blocks.{i}.mlp.experts.gate.bias", "blocks.{i}.mlp.experts.up.bias"),
                axis=1,
                alternating=True,
            ),
            one("mlp.experts.down_proj_bias", "experts.down.bias"),
        ),
        n_experts=("num_local_experts", "num_experts"),
        n_active="num_experts_per_tok",
        d_ff=("intermediate_size",),
        fixed={"router_bias": True, "bias": True, "activation": "quick_gelu", "linear_shift": 1.0},
        keys={"clamp": "swiglu_limit"},
        defaults={"clamp": 7.0, "n_active": 4},
        before=_swish,
        no_effect=frozenset({"initial_context_length", "experts_per_token"}),
        gguf=GgufTable("gpt-oss", names={"ln2": "post_attention_norm"}, period=2, read=_untruncated),
    ),
    Sparse(
        Alike(
            "flint",
            "Flint",
            fixed={"mlp_bias": False, "qk_norm": "head"},
            slides=lambda i: bool((i + 1) % 4),
            rotates_layer=_only_sliding,
            defaults={"eps": 1e-6},
            read=_sinks,
        ),
        (
            Row("self_attn.softmax_offset", ("blocks.{i}.attn.sink",)),
            one("mlp.gate.weight", "router.weight"),
            *each(),
            *shared("mlp.shared_expert."),
        ),
        shared="shared_expert_intermediate_size",
        fixed={"scores": "sigmoid"},
        keys={"renormalise": "norm_topk_prob"},
        layers=STEPPED,
    ),
    Sparse(
        dataclasses.replace(
            _BY_NAME["cohere2"],
            name="cohere2_moe",
            stem="Cohere2Moe",
            more={"rms_norm_eps": None, "prefix_dense_sliding_window_pattern": 1},
        ),
        (
            one("mlp.gate.weight", "router.weight"),
            *each(),
            *shared("mlp.shared_experts."),
        ),
        d_ff=("intermediate_size",),
        shared=("num_shared_experts", "intermediate_size"),
        keys={"renormalise": "norm_topk_prob"},
        layers=LISTED,
        read=_cohere_experts,
        before=_cohere_norms,
        more=_cohere_settings,
        gguf=GgufTable("cohere2moe", dense="first", pairs="neighbours", period=4, first=True),
    ),
)
