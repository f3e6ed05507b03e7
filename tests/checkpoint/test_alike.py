"""Families that are a row in a table: each computes what transformers computes, in every way of running and looking.

One tiny random model a family, its own features switched on, and everything is asked of it at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glassformer.checkpoint import open_checkpoint, read_config, write_hf
from glassformer.checkpoint.families import FAMILIES
from glassformer.count import count
from glassformer.generate.native_layers import refusal
from glassformer.generate.native_model import NativeModel
from glassformer.interp.trace import Trace
from glassformer.model import Cache, Transformer
from tests.checkpoint import internals
from tests.checkpoint.hybrid_settings import HYBRID
from tests.checkpoint.sparse_settings import SPARSE
from tests.tiny import gap

VOCAB = 96
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WITHOUT_HEAD_DIM = {k: v for k, v in _SMALL.items() if k != "head_dim"}
_MANY_HEADS = {k: v for k, v in _WITHOUT_HEAD_DIM.items() if k != "num_key_value_heads"}
_GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "n_inner": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SLIDING: dict[str, Any] = {**_SMALL, "sliding_window": 5}
_FOUR = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_FALCON: dict[str, Any] = {
    **{k: v for k, v in _MANY_HEADS.items() if k != "intermediate_size"},
    "num_attention_heads": 4,
    "ffn_hidden_size": 40,
    "bias": True,
}
_DELTA: dict[str, Any] = {
    **_SMALL,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
_MANY_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 10,
}
_CONVOLVED = {**_WITHOUT_HEAD_DIM, "layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": False}
_MAMBA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 6,
    "time_step_rank": 3,
    "use_bias": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA4: dict[str, Any] = {
    **_SLIDING,
    "num_hidden_layers": 4,
    "layer_types": _FOUR,
    "global_head_dim": 12,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 5.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "apertus": {**_WITHOUT_HEAD_DIM, "hidden_act": "xielu"},
    "stablelm": {**_WITHOUT_HEAD_DIM, "qk_layernorm": True, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "arcee": {**_SMALL, "attention_bias": True, "mlp_bias": True},
    "biogpt": _MANY_HEADS,
    "bitnet": _WITHOUT_HEAD_DIM,
    "bloom": {"vocab_size": VOCAB, "hidden_size": 48, "n_layer": 2, "n_head": 6, "pad_token_id": 0},
    "codegen": {**_GPT, "rotary_dim": 4},
    "cohere": {**_WITHOUT_HEAD_DIM, "use_qk_norm": True, "logit_scale": 0.25},
    "cohere2": {**_SLIDING, "num_hidden_layers": 4, "layer_types": _FOUR, "logit_scale": 0.25},
    "cwm": {**_SLIDING, "layer_types": _FOUR[1:]},
    "diffllama": {**_SMALL, "num_attention_heads": 8, "num_key_value_heads": 4, "attention_bias": True},
    "ernie4_5": {**_SMALL, "use_bias": True},
    "exaone4": {**_WITHOUT_HEAD_DIM, "sliding_window": 5, "num_hidden_layers": 4, "layer_types": _FOUR},
    "ctrl": {**{k: v for k, v in _GPT.items() if k != "n_inner"}, "dff": 40},
    "falcon": {**_FALCON, "new_decoder_architecture": False},
    "falcon: ALiBi, one after the other": {**_FALCON, "alibi": True, "parallel_attn": False, "multi_query": False},
    "falcon: two norms": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon: one norm": {
        **_FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "gemma": {**_SMALL, "num_key_value_heads": 1},
    "gemma4_unified_text": {**_GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "gemma3n_text": {
        **{k: v for k, v in _GEMMA4.items() if k not in ("global_head_dim", "use_double_wide_mlp")},
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": VOCAB - 2,
        "intermediate_size": [40, 24, 40, 40],
        "activation_sparsity_pattern": [0.9, 0.0, 0.5, 0.0],
        "altup_num_inputs": 3,
        "laurel_rank": 4,
    },
    "gemma4_text": {
        **_GEMMA4,
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": VOCAB,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 12,
    },
    "glm": _SMALL,
    "glm4": _SMALL,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": 40,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 5,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox_japanese": {
        **{k: v for k, v in _MANY_HEADS.items() if k != "intermediate_size"},
        "intermediate_multiple_size": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    },
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite": {
        **_WITHOUT_HEAD_DIM,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
    },
    "granite_swa": {
        **_WITHOUT_HEAD_DIM,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
        "sliding_window": 5,
        "layer_types": _FOUR[:3],
        "layer_rope_theta": [500.0, 0.0, 10000.0],
    },
    "helium": {**_SMALL, "num_key_value_heads": 4},
    "hunyuan_v1_dense": _SMALL,
    "hyperclovax": {
        **_SMALL,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
        "use_post_norm": True,
    },
    "jais2": _SMALL,
    "falcon_mamba": {**_MAMBA, "mixer_rms_eps": 1e-4},
    "jamba": {
        **_WITHOUT_HEAD_DIM,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 3,
        "expert_layer_offset": 0,
        "num_experts": 4,
        "mamba_d_state": 5,
        "mamba_dt_rank": 3,
        "mamba_proj_bias": True,
    },
    "lfm2": {**_CONVOLVED, "block_multiple_of": 8, "conv_bias": True},
    "lfm2_moe": {
        **_CONVOLVED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "num_dense_layers": 1,
        "routed_scaling_factor": 1.5,
    },
    "lfm3": {
        **_SLIDING,
        "layer_types": ["conv", "full_attention", "sliding_attention"],
        "conv_L_cache": 4,
        "attention_bias": True,
    },
    "mamba": _MAMBA,
    "mamba2": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 6,
        "n_groups": 2,
        "chunk_size": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "ministral": {**_SLIDING, "layer_types": _FOUR[:3]},
    "ministral3": _SLIDING,
    "modernbert-decoder": {
        **_MANY_HEADS,
        "local_attention": 10,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "norm_bias": True,
        "classifier_bias": True,
    },
    "mpt": {"vocab_size": VOCAB, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64},
    "nanochat": _WITHOUT_HEAD_DIM,
    "nemotron": {**_SMALL, "attention_bias": True},
    "olmo": {**_WITHOUT_HEAD_DIM, "clip_qkv": 0.5},
    "olmo2": _WITHOUT_HEAD_DIM,
    "olmo3": {**_WITHOUT_HEAD_DIM, "sliding_window": 5, "num_hidden_layers": 4, "layer_types": _FOUR},
    "openai-gpt": {k: v for k, v in _GPT.items() if k != "n_inner"},
    "opt": {
        **{k: v for k, v in _MANY_HEADS.items() if k != "intermediate_size"},
        "ffn_dim": 40,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "persimmon": {**_MANY_HEADS, "qk_layernorm": True},
    "phi": {**_WITHOUT_HEAD_DIM, "qk_layernorm": True},
    "phi3: longrope": {
        **_WITHOUT_HEAD_DIM,
        "original_max_position_embeddings": 8,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1],
            "long_factor": [1.5, 4.0],
        },
    },
    "phi3": {**_WITHOUT_HEAD_DIM, "sliding_window": 5},
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": {**_DELTA, **_MANY_EXPERTS},
    "qwen3_next": {**_DELTA, **_MANY_EXPERTS, "mlp_only_layers": [1]},
    "recurrent_gemma": {
        **_WITHOUT_HEAD_DIM,
        "attention_window_size": 5,
        "block_types": ["recurrent", "attention"],
        "lru_width": 32,
        "attention_bias": True,
    },
    "seed_oss": _SMALL,
    "smollm3": {**_WITHOUT_HEAD_DIM, "no_rope_layers": [1, 0, 1]},
    "starcoder2": {**_WITHOUT_HEAD_DIM, "sliding_window": 5},
    "vaultgemma": {**_SLIDING, "query_pre_attn_scalar": 24},
    "xglm": {
        "vocab_size": VOCAB,
        "d_model": 32,
        "num_layers": 2,
        "attention_heads": 4,
        "ffn_dim": 40,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    },
    "xlstm": {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_heads": 2,
        "qk_dim_factor": 0.5,
        "ffn_round_up_to_multiple_of": 10,
        "gate_soft_cap": 5.0,
    },
    **SPARSE,
    **HYBRID,
}
# Norms whose weight is one more than what is stored.
ONE_PLUS = ("gemma", "recurrent_gemma", "nemotron", "qwen3_5", "qwen3_next", "minimax_m3")


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8").splitlines()


def kind(name: str) -> str:
    """The model type of a row, whose name may say after a colon what is special about it."""
    return name.partition(":")[0]


def computed(name: str) -> str:
    """How transformers computes attention: Falcon's explicit form adds what ALiBi adds twice."""
    return "sdpa" if "ALiBi" in name else "eager"


def reference(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind(name), **SETTINGS[name])
    torch.manual_seed(3)  # of what is drawn when a model is made
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=computed(name)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("A_log", "dt_bias", "dt_proj.bias", "alpha_p", "alpha_n")):
                if "linear_attn.A_log" in key or "forget_gate.A_log" in key:
                    parameter.sub_(3.0)  # longer memories: what is read is not divided by a length near zero
                continue  # decays of their own making, or the state grows beyond all numbers
            parameter.normal_(0.0, 0.3 if parameter.dim() > 1 else 0.2, generator=generator)
            if parameter.dim() == 1 and key.endswith("weight") and not any(part in name for part in ONE_PLUS):
                parameter.add_(1.0)
        for key, buffer in model.named_buffers():
            if key.endswith("correction_bias"):
                buffer.normal_(0.0, 0.3, generator=generator)
            if key.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_it_computes_what_transformers_computes(tmp_path: Path, name: str) -> None:
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "hf")
    opened = open_checkpoint(tmp_path / "hf")
    config = opened.config
    ours = Transformer.empty(config).load(opened.tensors, dtype=torch.float32)
    ids = torch.randint(3, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, whole = theirs(ids).logits, ours(ids)
        assert gap(whole, wanted) <= 1e-5
        cache = Cache(config, 2, 32)
        pieces = torch.cat([ours(ids[:, :9], cache), ours(ids[:, 9:10], cache), ours(ids[:, 10:], cache)], 1)
        assert gap(pieces, wanted) <= 1e-5
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
        assert gap(ours(padded, mask=torch.arange(27).expand(2, 27) >= 3)[:, 3:], wanted) <= 1e-5
    # The documentation says who answers, and where that is the native engine, it computes the same.
    words = next(line for line in DOCUMENTED if line.startswith(f"| `{kind(name)}` |"))
    reason = refusal(config)
    assert ("torch" in words) if reason is not None else ("native" in words)
    if reason is None:
        fast = NativeModel.from_transformer(ours, slots=2)
        native = fast.forward(ids.flatten().tolist(), [0] * 24 + [1] * 24, [*range(24), *range(24)])
        assert gap(native.view(wanted.shape), wanted) <= 1e-5
    run = Trace(ours, ids[0].tolist())
    assert gap(run["logits"], whole[0]) <= 1e-5
    internals.compare(name, theirs, run, ids)
    grids = internals.Rewritten(ours)
    if grids.writes:
        with torch.no_grad():
            assert gap(ours(ids, tap=grids), wanted) <= 1e-5
    assert abs(run.why(words=0).residual) <= 1e-5
    exact = Transformer.empty(config).load(opened.tensors, dtype=torch.float64)
    assert abs(Trace(exact, ids[0].tolist()).why(words=0, parts=0).residual) <= 1e-12
    assert count(config).parameters == sum(p.numel() for p in ours.parameters())
    write_hf(tmp_path / "again", config, dict(opened.tensors), family=kind(name))
    again = open_checkpoint(tmp_path / "again")
    assert again.config == config
    assert all(torch.equal(again.tensors[key], opened.tensors[key]) for key in opened.tensors)
    loaded = type(theirs).from_pretrained(tmp_path / "again", dtype=torch.float32, attn_implementation=computed(name))
    with torch.no_grad():
        assert gap(loaded(ids).logits, wanted) <= 1e-5


def test_every_family_of_a_table_is_tried() -> None:
    from tests.tiny import VARIANTS

    aliases = {"internlm3", "iquestcoder"}  # Llama under other names of type
    assert set(FAMILIES) - set(VARIANTS) - aliases <= set(SETTINGS) | ELSEWHERE


# Families with tests of their own.
ELSEWHERE: set[str] = set()


def test_a_padding_vector_that_a_text_would_meet_is_refused(tmp_path: Path) -> None:
    from glassformer.errors import UnsupportedError

    theirs = reference("xglm")
    theirs.config.pad_token_id = 2
    theirs.config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="pad_token_id"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["gemma3n_text", "gemma4_text", "llama4_text"])
def test_the_text_part_of_a_model_that_sees_and_hears_is_opened(tmp_path: Path, name: str) -> None:
    """Beside parts for pictures and sound, and keys of layers that take them from another, as published files hold."""
    from safetensors.torch import load_file, save_file

    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "text")
    tensors = load_file(tmp_path / "text" / "model.safetensors")
    if name == "llama4_text":
        tensors = {f"language_model.{key}": x for key, x in tensors.items()}
        tensors["vision_model.class_embedding"] = torch.zeros(3)
    else:
        tensors = {f"model.language_model.{key.removeprefix('model.')}": x for key, x in tensors.items()}
        tensors["model.vision_tower.conv.weight"] = torch.zeros(3)
        tensors["model.language_model.layers.3.self_attn.k_proj.weight"] = torch.zeros(3)
    whole = {"model_type": name.removesuffix("_text"), "text_config": theirs.config.to_dict()}
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").write_text(json.dumps(whole))
    save_file(tensors, tmp_path / "whole" / "model.safetensors")
    text, opened = open_checkpoint(tmp_path / "text"), open_checkpoint(tmp_path / "whole")
    assert opened.config == text.config
    assert all(torch.equal(opened.tensors[key], text.tensors[key]) for key in text.tensors)
