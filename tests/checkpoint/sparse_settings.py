"""Tiny models of the families with experts, their own features switched on, for `test_alike`."""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MANY: dict[str, Any] = {**_SMALL, "moe_intermediate_size": 12, "num_experts_per_tok": 2}
_QWEN = {**_MANY, "num_experts": 4, "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}
_LOCAL = {**_SMALL, "num_experts_per_tok": 2, "num_local_experts": 4}
_GROUPED = {**_MANY, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 2}
_TWO = ["sliding_attention", "full_attention"]
_LATENT = {
    **{k: v for k, v in _GROUPED.items() if k not in ("num_key_value_heads", "head_dim")},
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "first_k_dense_replace": 1,
}
_INDEXED = {**_LATENT, "index_n_heads": 12, "index_head_dim": 8, "index_topk": 5}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
_DENSE_LATENT = {k: v for k, v in _LATENT.items() if not k.startswith(("n_", "topk", "moe", "num_experts", "first"))}
_GRANITE = {
    **_LOCAL,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
}

_ROPE_OF = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
_BY_KIND = {"full_attention": _ROPE_OF, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}

SPARSE: dict[str, dict[str, Any]] = {
    "jetmoe": {
        **{k: v for k, v in _LOCAL.items() if k not in ("head_dim", "num_attention_heads")},
        "kv_channels": 8,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": False,
    },
    "afmoe": {
        **_MANY,
        "num_experts": 4,
        "num_shared_experts": 1,
        "route_scale": 1.5,
        "mup_enabled": True,
        "layer_types": _TWO,
        "sliding_window": 5,
    },
    "axk1": _LATENT,
    "aria_text": {**_SMALL, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 2},
    "beam": {
        **{k: v for k, v in _GROUPED.items() if k not in ("n_routed_experts", "n_shared_experts")},
        "num_experts": 8,
        "layer_types": _TWO,
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 5,
    },
    "cohere2_moe": {
        **_SMALL,
        "num_experts_per_tok": 2,
        "num_experts": 4,
        "num_shared_experts": 1,
        "logit_scale": 0.25,
        "layer_types": _TWO,
    },
    "dbrx": {
        "vocab_size": 96,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "max_seq_len": 64,
        "pad_token_id": 0,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 0.5},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "deepseek_v2": {**_LATENT, "topk_method": "group_limited_greedy", "q_lora_rank": None},
    "deepseek_v3": {**_LATENT, "rope_parameters": _YARN, "attention_bias": True},
    "deepseek_v32": {**_INDEXED, "rope_parameters": _YARN},
    "dots3_note_text": {
        **_INDEXED,
        "num_hidden_layers": 3,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "sliding_window": 5,
        "shared_experts_intermediate_size": 10,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 5,
        "swa_head_dim": 12,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 6,
    },
    "dots1": {**_GROUPED, "first_k_dense_replace": 1, "layer_types": _TWO, "sliding_window": 5},
    "ernie4_5_moe": {**_MANY, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 2},
    "exaone_moe": {
        **{k: v for k, v in _MANY.items() if k != "head_dim"},
        "num_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_shared_experts": 1,
        "layer_types": _TWO,
        "mlp_layer_types": ["dense", "sparse"],
        "sliding_window": 5,
    },
    "flex_olmo": {**_SMALL, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": None},
    "flint": {
        **_MANY,
        "num_experts": 4,
        "shared_expert_intermediate_size": 10,
        "layer_types": _TWO,
        "mlp_only_layers": [0],
        "sliding_window": 5,
    },
    "glm4_moe": {**_GROUPED, "use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 1},
    "glm_moe_dsa": _INDEXED,
    "glm4_moe_lite": {k: v for k, v in _LATENT.items() if k != "first_k_dense_replace"},
    "gpt_oss": {**_LOCAL, "sliding_window": 5},
    "granitemoe": {**_GRANITE, "head_dim": None},
    "granitemoe_swa": {
        **_GRANITE,
        "head_dim": None,
        "shared_intermediate_size": 10,
        "sliding_window": 5,
        "layer_types": _TWO,
        "layer_rope_theta": [0.0, 500.0],
    },
    "granitemoeshared": {**_GRANITE, "head_dim": None, "shared_intermediate_size": 10},
    "hunyuan_v1_moe": {**_SMALL, "num_experts": 4, "moe_topk": 2, "num_shared_expert": 1},
    "hy_v3": {**_MANY, "num_experts": 4, "num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse"]},
    "kolibri1": {
        **_MANY,
        "num_experts": 4,
        "shared_expert_intermediate_size": 10,
        "layer_types": _TWO,
        "sliding_window": 5,
    },
    "laguna": {
        **_MANY,
        "num_experts": 4,
        "shared_expert_intermediate_size": 10,
        "num_attention_heads_per_layer": [4, 2],
        "moe_routed_scaling_factor": 1.5,
        "moe_router_logit_softcapping": 2.0,
        "layer_types": _TWO,
        "sliding_window": 5,
        "rope_parameters": _BY_KIND,
    },
    "llama4_text": {
        **_LOCAL,
        "num_hidden_layers": 3,
        "intermediate_size_mlp": 40,
        "no_rope_layers": [1, 0, 1],
        "attention_chunk_size": 7,
        "floor_scale": 4,
        "interleave_moe_layer_step": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "mellum": {
        **_LOCAL,
        "moe_intermediate_size": 12,
        "layer_types": _TWO,
        "sliding_window": 5,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "minicpm3": {**_DENSE_LATENT, "dim_model_base": 16},
    "mimo_v2_flash": {
        **{k: v for k, v in _GROUPED.items() if k != "n_shared_experts"},
        "v_head_dim": 6,
        "layer_types": _TWO,
        "sliding_window": 5,
        "rope_parameters": {kind: {**own, "partial_rotary_factor": 0.334} for kind, own in _BY_KIND.items()},
    },
    "minimax_m2": {**_LOCAL, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    "minimax_m3_vl_text": {
        **_LOCAL,
        "dense_intermediate_size": 20,
        "shared_intermediate_size": 10,
        "swiglu_limit": 0.8,
        "mlp_layer_types": ["dense", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
    "mixtral": {**_LOCAL, "sliding_window": 5},
    "olmoe": {**_SMALL, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": None, "clip_qkv": 0.5},
    "phimoe": {**_LOCAL, "head_dim": None, "sliding_window": 5, "lm_head_bias": True, "attention_bias": True},
    "qwen2_moe": {**_QWEN, "head_dim": None, "shared_expert_intermediate_size": 10, "norm_topk_prob": True},
    "qwen3_moe": {**_QWEN, "mlp_only_layers": [0]},
    "solar_open": _GROUPED,
    "youtu": _DENSE_LATENT,
}
for settings in SPARSE.values():
    if settings.get("head_dim", 0) is None:
        del settings["head_dim"]
