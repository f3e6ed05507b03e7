"""Tiny models of the families whose layers differ in kind, their own features switched on, for `test_alike`.

What stands behind a colon is a further design of the same family.
"""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_chunk_size": 8,
}
_GRANITE: dict[str, Any] = {
    **_SMALL,
    **_MAMBA,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.0,
    "shared_intermediate_size": 10,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

_NEMOTRON: dict[str, Any] = {
    **{k: v for k, v in _SMALL.items() if k != "num_hidden_layers"},
    "head_dim": 8,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
    "mamba_num_heads": 4,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "ssm_state_size": 6,
    "chunk_size": 8,
    "time_step_min": 0.3,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 12,
    "moe_shared_expert_intermediate_size": 10,
    "routed_scaling_factor": 2.5,
}
_FALCON: dict[str, Any] = {
    **_SMALL,
    **_MAMBA,
    "num_hidden_layers": 2,
    "mamba_d_ssm": 64,
    "embedding_multiplier": 3.0,
    "lm_head_multiplier": 0.5,
    "key_multiplier": 0.11048543456039804,
    "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.6,
    "mlp_multipliers": [0.7, 0.4],
    "ssm_multipliers": [0.5, 1.5, 0.7, 1.2, 0.9],
}
_KIMI: dict[str, Any] = {
    **_SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 5,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}

HYBRID: dict[str, dict[str, Any]] = {
    "minimax": {
        **_SMALL,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 8,
        "sliding_window": 5,
        "full_attn_alpha_factor": 1.5,
        "full_attn_beta_factor": 0.8,
        "linear_attn_alpha_factor": 3.5,
        "linear_attn_beta_factor": 0.7,
        "mlp_alpha_factor": 2.5,
        "mlp_beta_factor": 1.2,
    },
    "bamba": {**_SMALL, **_MAMBA, "attn_layer_indices": [1], "time_step_limit": (0.3, 0.9)},
    "granitemoehybrid": {
        **_GRANITE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "position_embedding_type": "nope",
    },
    "granitemoehybrid:dense": {**_GRANITE, "num_local_experts": 0, "position_embedding_type": "rope"},
    "nemotron_h": _NEMOTRON,
    "falcon_h1": _FALCON,
    "falcon_h1:normed": {
        **_FALCON,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "projectors_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "nemotron_h:latent": {**_NEMOTRON, "moe_latent_size": 8, "mlp_bias": True, "use_bias": True},
    "olmo_hybrid": {
        **_SMALL,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 16,  # wide enough that no output is divided by a length near zero
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "kimi_linear": {**_KIMI, "linear_head_dim": 8, "linear_num_heads": 3, "q_lora_rank": None},
    "bailing_hybrid": {**_KIMI, "head_dim": 8},
}
