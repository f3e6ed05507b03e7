"""What the census sets: which types it leaves out, what makes each tiny, and the variants of families.

Tables and nothing else; `census_models` builds from them and `census` runs.
"""

# ruff: noqa: E501, SIM905  tables of settings, a row each
from __future__ import annotations

VOCAB, WINDOW = 288, 16

# Encoders and encoder-decoders that only lend their class to the table, and models of speech, music or images whose
# text part has a row of its own or reads more than token ids.
EXCLUDED = frozenset(
    """
    bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert data2vec-text electra ernie
    git marian mbart megatron-bert moshi moss_transcribe_diarize musicgen musicgen_melody mvp pegasus plbart prophetnet
    reformer rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl xlnet
    xmod blt cpmant emu3 fuyu got_ocr2 mllama gemma4_assistant gemma4_unified_assistant phi4_multimodal
    cohere_compass_text dots3_note
    """.split()
)

# What is set wherever the config has such a field.
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim_model": 64, "embedding_size": 64,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 32, "kv_channels": 16,
    "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96, "dff": 96, "ffn_hidden_size": 96, "intermediate_size_mlp": 112,
    "dense_intermediate_size": 112,
    "moe_intermediate_size": 48, "shared_expert_intermediate_size": 40, "expert_ffn_hidden_size": 48,
    "shared_experts_intermediate_size": 40,
    "shared_intermediate_size": 40, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8,
    "moe_num_experts": 8, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "first_k_dense_replace": 1,
    "num_dense_layers": 1, "zero_expert_num": 2,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "sliding_window": WINDOW, "local_attention": WINDOW, "sliding_window_size": WINDOW, "window_size": WINDOW,
    "attention_chunk_size": WINDOW, "max_window_layers": 2, "use_sliding_window": True,
    "attention_window_size": WINDOW,
    "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "max_seq_len": 128, "rel_extent": 64,
    "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.3, "logits_scaling": 2.0,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_head_dim": 16, "linear_num_heads": 4,
    "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2,
    "laurel_rank": 8, "use_qk_norm": True, "qk_layernorm": True, "chunk_size": 8, "mamba_chunk_size": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unpadded_vocab_size": VOCAB,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 32,
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_dt_rank": 4, "state_size": 8, "time_step_rank": 4,
}  # fmt: skip
SMALL_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "depth": 1, "num_heads": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 16,
    "out_hidden_size": 64, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64,
}  # fmt: skip

# What one model type wants besides; None removes a generic setting.
SPECIAL: dict[str, dict] = {
    "gemma3_text": {"num_hidden_layers": 7, "query_pre_attn_scalar": 24},
    "gemma2": {"query_pre_attn_scalar": 24},
    "vaultgemma": {"query_pre_attn_scalar": 24},
    "gemma": {"num_key_value_heads": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "intermediate_size": 96},
    "bloom": {},
    "falcon": {"num_kv_heads": 1},
    "mpt": {"max_seq_len": 128, "expansion_ratio": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 0.5},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "mamba": {"expand": 2}, "falcon_mamba": {"expand": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 2, "state_size": 16},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "attn_layer_indices": [1, 3]},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_n_groups": 2,
                  "lm_head_multiplier": 0.5, "key_multiplier": 0.7, "attention_out_multiplier": 0.8,
                  "attention_in_multiplier": 1.2, "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.6},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1,
                         "layer_types": ["mamba", "attention", "mamba", "attention"], "position_embedding_type": "nope"},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16,
                   "layers_block_type": ["mamba", "attention", "mlp", "moe"], "hybrid_override_pattern": None},
    "zamba": {"mamba_expand": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 2,
              "num_key_value_heads": 4, "head_dim": None, "num_hidden_layers": 6},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 3, "mamba_ngroups": 1, "n_mamba_heads": 8, "num_mem_blocks": 1, "adapter_rank": 8, "num_key_value_heads": 4,
               "num_hidden_layers": 6, "head_dim": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "recurrent_gemma": {"lru_width": 64, "num_hidden_layers": 6},
    "lfm2": {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]},
    "rwkv": {"attention_hidden_size": 64, "context_length": 128},
    "xlstm": {"num_heads": 4},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0], "attn_temperature_tuning": True, "floor_scale": 16,
                    "interleave_moe_layer_step": 2, "moe_layers": None},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0], "layer_types": ["full_attention"] * 4, "use_sliding_window": False},
    "glm4_moe": {"use_qk_norm": True}, "cohere": {"use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25}, "cohere2_moe": {"logit_scale": 0.25},
    "phi": {"qk_layernorm": True, "num_key_value_heads": 4}, "persimmon": {"num_key_value_heads": 4},
    "olmo": {"clip_qkv": 0.5}, "olmoe": {"clip_qkv": 0.5},
    "gpt_bigcode": {"multi_query": True},
    "stablelm": {"use_qkv_bias": True, "use_parallel_residual": False, "qk_layernorm": True},
    "opt": {"word_embed_proj_dim": 32, "do_layer_norm_before": True},
    "xglm": {"d_model": 64, "attention_heads": 4, "ffn_dim": 96},
    "biogpt": {}, "ctrl": {"n_embd": 64},
    "openai-gpt": {"afn": "gelu"},
    "gptj": {"rotary_dim": 8}, "codegen": {"rotary_dim": 8},
    "gpt_neox": {"rotary_pct": 0.25},
    "ernie4_5_moe": {"moe_num_shared_experts": 1},
    "minicpm3": {"dim_model_base": 16},
    "longcat_flash": {"num_layers": 2, "num_hidden_layers": None, "head_dim": 8},
    "helium": {"num_key_value_heads": 4, "head_dim": 16},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 16,
                       "indexer_compress_ratio": 4, "hc_lowrank": 8, "ple_layer_ids": [1], "ngram_vocab_size_base": 50,
                       "heads_per_ngram": 2, "split_ngram_parts": 2, "make_ngram_vocab_size_divisible_by": 8},
    "dots3_note_text": {"index_n_heads": 12, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 24,
                        "swa_kv_lora_rank": 16, "swa_head_dim": 24, "swa_qk_nope_head_dim": 16,
                        "swa_qk_rope_head_dim": 8, "swa_v_head_dim": 16, "num_key_value_heads": 4},
    "gemma3n": {"vision_config": {"architecture": "test_resnet", "hidden_size": 32}},
    "gemma3n_text": {"num_hidden_layers": 6, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0],
                     "intermediate_size": [96] * 6,
                     "layer_types": ["sliding_attention", "full_attention"] * 3, "num_kv_shared_layers": 2},
    "gemma4_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3,
                    "num_kv_shared_layers": 2, "global_head_dim": 48, "enable_moe_block": True, "num_experts": 8},
    "gemma4_unified_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3,
                            "num_kv_shared_layers": 2, "global_head_dim": 48},
    "granite_swa": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    # Keys that no head of an index scores are equal, and which of equals are chosen is its library's affair.
    **{name: {"index_n_heads": 12} for name in ("deepseek_v32", "glm_moe_dsa", "axk2")},
    # Where it names a padding token, transformers 5.23 loads that row of the embedding as zeros whatever the file holds.
    "youtu": {"pad_token_id": None, "num_key_value_heads": 4},
    "apertus": {}, "diffllama": {}, "hunyuan_v1_moe": {"num_experts": 8, "num_shared_expert": 1},
}  # fmt: skip


# Further designs of the families Glassformer reads, and of its first candidates: (model type, name, settings).
# "+json" is laid over the config.json after saving (older spellings); "+shard" splits the weights.
def _yarn(**more):
    return {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32, **more}


_LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + i / 10 for i in range(16)],
         "long_factor": [2.0 + i / 5 for i in range(16)], "original_max_position_embeddings": 32, "factor": 4.0}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}  # fmt: skip
VARIANTS: list[tuple[str, str, dict]] = [
    ("llama", "biases", {"attention_bias": True, "mlp_bias": True}),
    ("llama", "multi-query, tied", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("llama", "three heads of 40", {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 40, "hidden_size": 66}),
    ("llama", "rope linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}}),
    ("llama", "rope dynamic", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    ("llama", "rope dynamic, past the trained length", {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    ("llama", "rope llama3", {"rope_parameters": _LLAMA3}),
    ("llama", "rope yarn", {"rope_parameters": _yarn()}),
    ("llama", "rope yarn betas", {"rope_parameters": _yarn(beta_fast=16.0, beta_slow=2.0)}),
    ("llama", "rope yarn attention_factor", {"rope_parameters": _yarn(attention_factor=0.9)}),
    ("llama", "rope yarn mscale", {"rope_parameters": _yarn(mscale=0.7, mscale_all_dim=1.3)}),
    ("llama", "rope yarn mscale alone", {"rope_parameters": _yarn(mscale=0.7)}),
    ("llama", "rope yarn not truncated", {"rope_parameters": _yarn(truncate=False)}),
    ("llama", "rope yarn without factor", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": 32, "factor": None}}),
    ("llama", "rope longrope", {"rope_parameters": _LONG}),
    ("llama", "rope partial", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    ("llama", "rope proportional", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
    ("llama", "gelu", {"hidden_act": "gelu"}),
    ("llama", "gelu_new", {"hidden_act": "gelu_new"}),
    ("llama", "gelu_fast", {"hidden_act": "gelu_fast"}),
    ("llama", "quick_gelu", {"hidden_act": "quick_gelu"}),
    ("llama", "relu2", {"hidden_act": "relu2"}),
    ("llama", "pretraining_tp", {"pretraining_tp": 2}),
    ("llama", "sharded", {"+shard": "100KB"}),
    ("llama", "old spelling, rope_theta", {"+json": {"rope_parameters": None, "rope_theta": 500.0}}),
    ("llama", "old spelling, rope_scaling llama3", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {k: v for k, v in _LLAMA3.items() if k != "rope_theta"}}}),
    ("llama", "old spelling, rope_scaling type linear", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}}),
    ("llama", "old spelling, yarn", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}}),
    ("llama", "both spellings disagree", {"+json": {"rope_theta": 500.0}}),
    ("llama", "partial_rotary_factor at top", {"+json": {"partial_rotary_factor": 0.5}}),
    ("llama", "untied said tied", {"+json": {"tie_word_embeddings": True}}),
    ("llama", "window that Llama ignores", {"+json": {"sliding_window": 8}}),
    ("llama", "no head_dim in config", {"head_dim": None, "+json": {"head_dim": None}}),
    ("llama", "bfloat16 weights", {"+dtype": "bfloat16"}),
    ("llama", "body without head", {"tie_word_embeddings": True, "+body": True}),
    ("llama", "num_key_value_heads null", {"num_key_value_heads": 4, "+json": {"num_key_value_heads": None}}),
    ("llama", "yarn without original length", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}}),
    ("llama", "yarn, longer context said", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "max_position_embeddings": 512, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}}}),
    ("llama", "old spelling, default", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"rope_type": "default"}}}),
    ("llama", "rope_theta and rope_scaling null", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": None}}),
    ("llama", "rope by layer type", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
    ("phi3", "longrope", {"head_dim": None, "original_max_position_embeddings": 32, "rope_parameters": {k: v[:8] if isinstance(v, list) else v for k, v in _LONG.items() if k != "factor"}}),
    ("phi3", "longrope, partial, as su", {"head_dim": None, "original_max_position_embeddings": 32, "rope_parameters": {**{k: v[:4] if isinstance(v, list) else v for k, v in _LONG.items() if k != "factor"}, "rope_type": "su", "partial_rotary_factor": 0.5}}),
    ("gpt_neox", "old spelling", {"+json": {"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500}}),
    ("gpt_neox", "old spelling, rope_theta", {"+json": {"rope_parameters": None, "rotary_pct": 0.25, "rope_theta": 500}}),
    ("gemma3_text", "old spelling", {"+json": {"rope_parameters": None, "rope_theta": 50000.0, "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "layer_types": None, "sliding_window_pattern": 3}}),
    ("gemma2", "old spelling", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "layer_types": None}}),
    ("qwen2", "old spelling, window", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "layer_types": None}}),
    ("qwen3", "old spelling, yarn", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}}),
    ("mistral", "old spelling", {"+json": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": None}}),
    ("mistral", "no window", {"sliding_window": None}),
    ("mistral", "head_dim null", {"head_dim": None, "+json": {"head_dim": None}}),
    ("mistral", "rope yarn", {"rope_parameters": _yarn(), "sliding_window": None}),
    ("mistral", "window 1", {"sliding_window": 1}),
    ("qwen2", "no window", {"use_sliding_window": False}),
    ("qwen2", "tied, yarn", {"tie_word_embeddings": True, "use_sliding_window": False, "rope_parameters": _yarn()}),
    ("qwen2", "layer_types", {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}),
    ("qwen3", "biases", {"attention_bias": True}),
    ("qwen3", "no window", {"use_sliding_window": False}),
    ("qwen3", "layer_types", {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]}),
    ("gemma2", "no caps", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", "untied", {"tie_word_embeddings": False}),
    ("gemma2", "bidirectional", {"use_bidirectional_attention": True}),
    ("gemma3_text", "caps", {"final_logit_softcapping": 20.0}),
    ("gemma3_text", "attn_logit_softcapping", {"attn_logit_softcapping": 20.0}),
    ("gemma3_text", "linear on full layers", {"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    ("gemma3_text", "linear on sliding layers", {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}}),
    ("gemma3_text", "odd layer_types", {"num_hidden_layers": 4, "layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]}),
    ("gemma3_text", "bidirectional", {"use_bidirectional_attention": True}),
    ("gpt2", "scaled by layer", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", "upcast", {"reorder_and_upcast_attn": True}),
    ("gpt2", "not scaled", {"scale_attn_weights": False}),
    ("gpt2", "relu, inner 4d", {"activation_function": "relu", "n_inner": None}),
    ("gpt2", "untied", {"tie_word_embeddings": False}),
    ("gpt_neox", "serial, all rotated", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    ("gpt_neox", "no attention bias", {"attention_bias": False}),
    ("gpt_neox", "gelu_fast, tied", {"hidden_act": "gelu_fast", "tie_word_embeddings": True}),
    ("gpt_neox", "rope linear", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, "partial_rotary_factor": 0.25}}),
]  # fmt: skip
