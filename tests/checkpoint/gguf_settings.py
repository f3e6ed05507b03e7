"""Tiny models of every family that GGUF has, with what llama.cpp computes of it: for `test_gguf_families` and the
benchmark beside llama.cpp.

They are those of `test_alike`, but for the settings that llama.cpp has no place for.
"""

from __future__ import annotations

from typing import Any

_FULL: dict[str, Any] = {"sliding_window": None, "layer_types": None, "use_sliding_window": False}
_FOUR = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
_EVEN = {"layer_types": ["linear_attention", "full_attention"] * 2, "linear_value_head_dim": 16}

_NEMOTRON = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "time_step_min": 1e-9,
    "n_group": 1,
    "topk_group": 1,
    "mlp_bias": False,
    "use_bias": False,
}

# Name in `test_alike` -> settings instead of its own; None takes one away.
GGUF: dict[str, dict[str, Any]] = {
    "afmoe": {"num_hidden_layers": 4, "layer_types": _FOUR},
    "apertus": {"attention_bias": False},
    "arcee": {"attention_bias": False, "mlp_bias": False},
    "bamba": {"time_step_limit": None},
    "bitnet": {"hidden_act": "silu", "tie_word_embeddings": True},
    "bloom": {},
    "cohere": {"use_qk_norm": False},
    "cohere2": {},
    "cohere2_moe": {},
    "dbrx": {},
    "deepseek_v2": {"q_lora_rank": 10, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 0.7,
            "mscale_all_dim": 0.7,
        },
        "attention_bias": False,
    },
    "dots1": {"sliding_window": None, "layer_types": None, "num_key_value_heads": 4},
    "ernie4_5": {"use_bias": False},
    "ernie4_5_moe": {},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 4},
    "exaone_moe": {},
    "falcon": {"bias": False},
    "falcon: two norms": {"bias": False},
    "falcon: one norm": {"bias": False},
    "falcon_h1": {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
    "falcon_h1: no norm": {"mamba_rms_norm": False},
    "falcon_mamba": {"use_bias": False, "mixer_rms_eps": 1e-5},
    "gemma": {},
    "gemma3n_text": {
        "num_hidden_layers": 22,
        "layer_types": None,
        "intermediate_size": 24,
        "activation_sparsity_pattern": None,
        "altup_num_inputs": 4,
        "laurel_rank": 64,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 96,
        "final_logit_softcapping": 30.0,
    },
    "gemma4_text": {},
    "gemma4_unified_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {"index_head_dim": 64},  # llama.cpp turns the index's heads by 64 dimensions at a time
    "gpt_bigcode": {},
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
    "granite": {},
    "granite_swa": {"layer_rope_theta": [500.0, 0.0, 500.0]},
    "granitemoe": {},
    "granitemoe_swa": {},
    "granitemoehybrid": {},
    "granitemoehybrid:dense": {},
    "granitemoeshared": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "jais2": {},
    "jamba": {"mamba_proj_bias": False},
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 8, "moe_renormalize": True},
    "laguna": {"moe_router_logit_softcapping": 0.0, "layer_types": ["full_attention", "sliding_attention"]},
    "lfm2": {"conv_bias": False},
    "lfm2_moe": {"routed_scaling_factor": 1.0, "tie_word_embeddings": True},
    "llama4_text": {
        "num_hidden_layers": 4,
        "layer_types": None,
        "no_rope_layers": None,
        "attention_chunk_size": 8192,
        "floor_scale": 8192,
        "interleave_moe_layer_step": 2,
        "moe_layers": None,
    },
    "mamba": {"use_bias": False},
    "mamba2": {},
    "mellum": {
        "mlp_layer_types": None,
        "norm_topk_prob": True,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
    "mimo_v2_flash": {},
    "minicpm3": {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    "minimax_m2": {},
    "ministral3": {
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mixtral": {"sliding_window": None},
    "mpt": {},
    "nemotron": {},
    "nemotron_h": {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"], "time_step_min": 1e-9},
    "nemotron_h:latent": _NEMOTRON,
    "nemotron_h: experts": _NEMOTRON,
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {"clip_qkv": None, "num_key_value_heads": 4},
    "phi": {"qk_layernorm": False},
    "phi3": {"sliding_window": None},
    "phi3: longrope": {"sliding_window": None},
    "qwen2_moe": {**_FULL, "norm_topk_prob": False, "mlp_only_layers": None},
    "qwen3_moe": {**_FULL, "norm_topk_prob": True, "mlp_only_layers": None},
    "qwen3_5_moe_text": _EVEN,
    "qwen3_5_text": _EVEN,
    "qwen3_next": {**_EVEN, "mlp_only_layers": None, "norm_topk_prob": True},
    "seed_oss": {},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": None},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
}


def settings_of(name: str, usual: dict[str, Any]) -> dict[str, Any]:
    """The settings of a tiny model, from those of `test_alike`."""
    kept = ("sliding_window",)  # None says something here
    changed = {**usual, **GGUF[name]}
    return {key: value for key, value in changed.items() if value is not None or key in kept}
