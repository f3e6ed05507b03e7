"""How many decoder-only architectures of `transformers` does Glassformer load, and compute as they do?

    python census.py [--out OUT.json] [--only llama,gemma2] [--no-variants] [--timeout 120] [--keep DIR] [--save]

For every model type in transformers' table of causal language models a tiny random model is built with the
architecture's own features switched on, saved as safetensors with a small byte-level tokenizer, loaded again with
transformers (the reference: eager attention, float32, no cache) and with `glassformer.load`, and the logits of 12
and of 60 tokens are compared. One forked process per model, each with its own time limit. `timm`, without which
transformers does not build Gemma 3n's wrapper, lies beside the peers' environment (make peers), which also has TransformerLens's list.

Outcomes: OK, WRONG (loaded, and the logits differ), REFUSED (one sentence that names what stands in the way),
CRASH (any other exception, a signal, or a time-out in Glassformer), SKIPPED (no tiny reference could be built; what
Glassformer says of the config alone is then noted), EXCLUDED (not a decoder-only language model).
"""

# ruff: noqa: C405, E501  tables of settings, a row each
from __future__ import annotations

import collections
import copy
import dataclasses
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from common import arguments, report
from common import table as markdown

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

VOCAB, SHORT, LONG, TOLERANCE, WINDOW = 288, 12, 60, 1e-5, 16

# Encoders and encoder-decoders that only lend their class to the table, and models of speech, music or images whose
# text part has a row of its own or reads more than token ids.
EXCLUDED = set(
    [
        "bart",
        "bert",
        "bert-generation",
        "big_bird",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "camembert",
        "data2vec-text",
        "electra",
        "ernie",
        "git",
        "marian",
        "mbart",
        "megatron-bert",
        "moshi",
        "moss_transcribe_diarize",
        "musicgen",
        "musicgen_melody",
        "mvp",
        "pegasus",
        "plbart",
        "prophetnet",
        "reformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roc_bert",
        "roformer",
        "trocr",
        "whisper",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xlnet",
        "xmod",
        "blt",
        "cpmant",
        "emu3",
        "fuyu",
        "got_ocr2",
        "mllama",
        "gemma4_assistant",
        "gemma4_unified_assistant",
        "phi4_multimodal",
        "cohere_compass_text",
        "dots3_note",
    ]
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


# Building


def tiny_settings(cls, vision=False, drop=(), **more):
    """The generic settings a config class has fields for, nested configs included."""
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set(cls().to_dict())
    small = SMALL_VISION if vision else SMALL
    settings = {k: v for k, v in small.items() if k in fields and k not in drop}
    if "use_qk_norm" in settings and cls.model_type == "llama4_text":
        settings["use_qk_norm"] = True
    for name, sub in (getattr(cls, "sub_configs", None) or {}).items():
        if name not in fields:
            continue
        seeing = not name.startswith(("text", "decoder", "llm", "thinker"))
        try:
            if sub.__name__ == "AutoConfig":
                sub = type(getattr(cls(), name))
            mine = {} if seeing else SPECIAL.get(getattr(sub, "model_type", ""), {})
            settings[name] = clean({**tiny_settings(sub, vision=seeing), **mine})
        except Exception:
            continue
    settings.update(more)
    return settings


def clean(settings):
    return {k: v for k, v in settings.items() if v is not None}


def attempts(cls, special):
    """Settings to try, from the most to the least demanding."""
    for drop in ((), ("num_key_value_heads",), ("head_dim", "swa_head_dim"), ("head_dim", "num_key_value_heads", "num_kv_heads"),
                 ("num_experts", "n_group", "topk_group"), ("layer_types", "num_kv_shared_layers", "pad_token_id")):  # fmt: skip
        settings = tiny_settings(cls, drop=drop)
        for name, value in special.items():
            settings.pop(name, None)
            # None takes the generic setting away, except where the field has no generic one: there it is a value.
            if value is not None or name not in SMALL or name == "sliding_window":
                settings[name] = value
        yield settings
    settings = tiny_settings(cls)
    settings = {k: v for k, v in settings.items() if k not in ("head_dim", "num_key_value_heads")}
    yield {**settings, **clean(special), "num_key_value_heads": 4} if hasattr(cls, "num_key_value_heads") else settings


def randomise(model, seed=0):
    """Every stored number random, so that none can be lost unseen; sizes such that logits stay of order one."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noise(x):
        return torch.randn(x.shape, generator=generator).to(x.dtype)

    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            if p.dim() < 2 or re.search(r"A_log|dt_bias|conv1d|decay|time_|sinks|\.D$|lambda", name):
                p.add_(0.2 * noise(p))
            elif id(p) in embeddings:
                p.copy_(0.7 * noise(p))
            else:
                fan = p.shape[-1] if p.dim() == 2 else min(p.shape[-1], p.shape[-2])
                p.copy_(noise(p) / math.sqrt(max(fan, 1)))
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is None or not buffer.is_floating_point() or name in module._non_persistent_buffers_set:
                    continue
                if re.search(r"inv_freq|mean|std|position|mask|alpha|softcap|scale_base", name):
                    continue
                buffer.add_(0.1 * noise(buffer))


def tokenizer_file(directory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocab = {t: i for i, t in enumerate(special + letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "<pad>",
            }
        )
    )


def rows(seed=1):
    import torch

    generator = torch.Generator().manual_seed(seed)
    top = 259
    return [torch.randint(3, top, (n,), generator=generator).tolist() for n in (SHORT, LONG)]


def run(model, ids):
    import torch

    with torch.no_grad():
        try:
            out = model(input_ids=torch.tensor([ids]), use_cache=False)
        except TypeError:
            out = model(input_ids=torch.tensor([ids]))
    return out.logits[0].float()


def build(model_type, extra, directory):
    """Saves a tiny model; returns (settings used, reference logits, parameter count, notes)."""
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    cls = CONFIG_MAPPING[model_type]
    after = extra.pop("+json", None)
    shard, kept, body = extra.pop("+shard", "5GB"), extra.pop("+dtype", None), extra.pop("+body", False)
    special = {**SPECIAL.get(model_type, {}), **extra}
    errors, notes = [], []
    for settings in attempts(cls, special):
        try:
            config = cls(**copy.deepcopy(settings))
            torch.manual_seed(0)
            model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            if isinstance(model_class, (tuple, list)):
                model_class = model_class[0]
            if "text_config" in (getattr(cls, "sub_configs", None) or {}) and model_class.config_class is not cls:
                # What such a checkpoint really holds: the text part inside a model that also sees.
                model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[cls]
            try:
                config._attn_implementation = "eager"
                model = model_class(config)
            except ValueError:
                config._attn_implementation = None
                model = model_class(config)
            model = model.float().eval()
            count = sum(p.numel() for p in model.parameters())
            if count > 60_000_000:
                raise ValueError(f"{count:,} parameters is not tiny")
            randomise(model)
            memory = [run(model, ids) for ids in rows()]
            break
        except Exception as error:
            errors.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
                          + where(error))  # fmt: skip
    else:
        raise RuntimeError(" | ".join(dict.fromkeys(errors)))
    if kept:
        model = model.to(getattr(torch, kept))
        memory = [run(copy.deepcopy(model).float(), ids) for ids in rows()]
    (model.base_model if body else model).save_pretrained(directory, max_shard_size=shard)
    tokenizer_file(directory)
    if after:
        path = directory / "config.json"
        stored = json.loads(path.read_text())
        stored.update(after)
        path.write_text(json.dumps({k: v for k, v in stored.items() if v is not None or k not in after}, indent=1))
    try:
        again = model_class.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    except ValueError:
        again = model_class.from_pretrained(directory, dtype=torch.float32)
    again = again.float().eval()
    reference = [run(again, ids) for ids in rows()]
    drift = max(difference(a, b) for a, b in zip(memory, reference, strict=True))
    if drift > TOLERANCE and not after:
        notes.append(f"saved and loaded again by transformers it differs by {drift:.1e}")
    if not all(torch.isfinite(r).all() for r in reference):
        raise RuntimeError("the reference's logits are not finite")
    torch.save(reference, directory / "reference.pt")
    return settings, reference, count, notes


def where(error):
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def difference(ours, theirs):
    if ours.shape != theirs.shape:
        return math.inf
    return float((ours - theirs).abs().max() / theirs.abs().max())


# One model


def examine(model_type, extra, keep):
    import torch

    torch.set_num_threads(1)
    directory = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="census-"))
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    try:
        try:
            settings, reference, count, notes = build(model_type, dict(extra), directory)
            found |= {"settings": settings, "parameters": count, "notes": notes,
                      "largest": round(float(reference[1].abs().max()), 3)}  # fmt: skip
        except BaseException as error:
            found |= {"outcome": "SKIPPED", "reason": f"{type(error).__name__}: {error}"[:900]}
            found["trace"] = traceback.format_exc()[-1500:]
            if not (directory / "config.json").exists():
                (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
            found["says"] = glassformer_says(directory)[1]
            return found
        outcome, said, model = glassformer_says(directory, load=True)
        found |= {"outcome": outcome, "reason": said}
        if model is None:
            return found
        try:
            ours = [model.logits(ids).float().reshape(len(ids), -1) for ids in rows()]
        except BaseException as error:
            found |= {"outcome": "CRASH", "reason": f"logits: {type(error).__name__}: {error}"[:900]}
            found["trace"] = traceback.format_exc()[-1500:]
            if type(error).__module__ == "glassformer.errors":
                found["outcome"] = "REFUSED"
            return found
        off = [difference(a, b) for a, b in zip(ours, reference, strict=True)]
        found |= {"outcome": "OK" if max(off) <= TOLERANCE else "WRONG", "difference": off, "reason": ""}
        if found["outcome"] == "WRONG":
            found["reason"] = f"12 tokens {off[0]:.1e}, 60 tokens {off[1]:.1e}"
        return found
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def glassformer_says(directory, load=False):
    """(outcome, what it said, model or None)"""
    import glassformer as gf
    from glassformer.errors import GlassformerError

    try:
        model = gf.load(directory, device="cpu", dtype="float32")
        return "LOADED", "", model
    except GlassformerError as error:
        return "REFUSED", f"{type(error).__name__}: {str(error).replace(str(directory), 'DIR')}", None
    except BaseException as error:
        return "CRASH", f"{type(error).__name__}: {error}"[:900] + "\n" + traceback.format_exc()[-1200:], None


def child(queue, model_type, extra, keep):
    os.setpgid(0, 0)
    sys.stdout.flush()
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    queue.put(examine(model_type, extra, keep))


def guarded(context, model_type, extra, timeout, keep):
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue, model_type, extra, keep))
    start = time.monotonic()
    process.start()
    while process.is_alive() and queue.empty() and time.monotonic() - start < timeout:
        time.sleep(0.02)
    found = queue.get() if not queue.empty() else None
    if found is None:
        late = process.is_alive()
        if late:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        what = f"not done after {timeout} s" if late else f"the process ended with {process.exitcode}"
        found = {"outcome": "SKIPPED" if late else "CRASH", "reason": what}
    process.join()
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def table(results):
    order = ["OK", "WRONG", "CRASH", "REFUSED", "SKIPPED", "EXCLUDED"]
    for group, what in (("arch", "Architectures"), ("variant", "Variants")):
        mine = [r for r in results if r["group"] == group]
        if not mine:
            continue
        counts = collections.Counter(r["outcome"] for r in mine)
        print(f"\n{what}: " + ", ".join(f"{counts[o]} {o}" for o in order if counts[o]) + f" of {len(mine)}")
        for r in sorted(mine, key=lambda r: (order.index(r["outcome"]), r["name"])):
            said = " ".join(str(r.get("reason", "")).split())
            if "difference" in r and r["outcome"] == "OK":
                said = f"max {max(r['difference']):.1e}"
            if r.get("says"):
                said += f" || on the config alone: {r['says']}"
            print(f"  {r['outcome']:8} {r['name']:48} {said[:230]}")


def images_of(peers):
    """Makes the `timm` that lies beside the peers importable here; its kernels for images, which no text needs, may be built
    for another torch than ours: then they are named, and none of them can be called."""
    import importlib.util

    import torch

    sys.path.append(str(Path(peers).parent.parent / "images"))
    found = importlib.util.find_spec("torchvision")
    if found is None or importlib.util.find_spec("timm") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        text = Path(found.origin).with_name("_meta_registrations.py").read_text("utf-8")
        library = torch.library.Library("torchvision", "DEF")
        for name in {a or b for a, b in re.findall(r'register_meta\("(\w+)"\)|torchvision::(\w+)', text)}:
            library.define(f"{name}(Tensor x) -> Tensor")
        images_of.library = library  # which takes its names away when it goes


def bridged(peers):
    """The classes that TransformerLens's bridge reads; None where the peers do not have it."""
    code = "from transformer_lens.tools.model_registry import HF_SUPPORTED_ARCHITECTURES as h; print(*sorted(h))"
    try:
        done = subprocess.run([peers, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return set(done.stdout.split())


def kept(results, options, version, classes):
    """The result as a section of docs/benchmarks.md."""
    order = ["OK", "REFUSED", "WRONG", "CRASH", "SKIPPED"]
    rows, listed = [], []
    for group, what in (("arch", "types of model"), ("variant", "variants of ten families")):
        counts = collections.Counter(r["outcome"] for r in results if r["group"] == group)
        rows.append((what, sum(counts[o] for o in order), *(counts[o] for o in order)))
    types = [r for r in results if r["group"] == "arch" and r["outcome"] != "EXCLUDED"]
    for r in results:
        if r["outcome"] not in ("OK", "EXCLUDED"):
            said = str(r.get("reason", "")).partition(": ")[2].replace("DIR/config.json", "config.json")
            listed.append((r["name"], r["outcome"], " ".join(said.split())[:400]))
    theirs = bridged(options.peers)
    beside = ""
    if theirs is not None:
        both = sum(classes.get(r["model_type"]) in theirs for r in types)
        beside = f" TransformerLens's bridge lists the classes of {both} of these types."
    report(
        "census",
        "Which types of model open",
        markdown(("", "in all", *order), rows)
        + "\n\nWhat is not OK:\n\n"
        + markdown(("", "outcome", "it says"), listed),
        options,
        f"Every decoder-only type that transformers {version} lists: a tiny random model with its features switched on, "
        f"logits of {SHORT} and of {LONG} tokens compared, max|Δ| ≤ {TOLERANCE:g} · max|logit|.{beside}",
    )


def main():
    parser = arguments(__doc__)
    parser.add_argument("--out", help="write everything that was found into this JSON file")
    parser.add_argument("--only", default="")
    parser.add_argument("--no-variants", action="store_true")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--keep", help="keep the tiny models under this folder")
    options = parser.parse_args()
    images_of(options.peers)  # before transformers looks what there is
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    import glassformer
    import glassformer.lm
    import glassformer.tokenizer.tokenizer

    torch.set_num_threads(1)
    examine("llama", {}, None)  # what every child would import is imported once, here
    context = multiprocessing.get_context("fork")
    only = set(filter(None, options.only.split(",")))
    work = [("arch", t, t, {}) for t in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if not options.no_variants:
        work += [("variant", f"{t}: {name}", t, extra) for t, name, extra in VARIANTS]
    results = []
    for group, name, model_type, extra in work:
        if only and model_type not in only:
            continue
        if model_type in EXCLUDED and not only:
            result = {"outcome": "EXCLUDED", "reason": "not a decoder-only language model"}
        else:
            keep = str(Path(options.keep) / re.sub(r"\W+", "-", name)) if options.keep else None
            result = guarded(context, model_type, copy.deepcopy(extra), options.timeout, keep)
        results.append({"group": group, "name": name, "model_type": model_type, **result})
        print(
            f"{len(results):3} {result['outcome']:8} {name:44} {result.get('seconds', 0):5} s  {str(result.get('reason', ''))[:110]}".replace(
                "\n", " "
            ),
            file=sys.stderr,
            flush=True,
        )
        if options.out:
            Path(options.out).write_text(json.dumps(
                {"transformers": transformers.__version__, "torch": torch.__version__, "glassformer": glassformer.__version__,
                 "tolerance": TOLERANCE, "results": results}, indent=1, default=str))  # fmt: skip
    table(results)
    kept(results, options, transformers.__version__, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


if __name__ == "__main__":
    main()
