"""Tiny random models of every family, made and saved by transformers: the reference for our own answers.

Every parameter is random, norms and biases too, so that one that is dropped, swapped or misread shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from glassformer.model.config import Config

VOCAB = 320
CONTEXT = 64

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_GEMMA: dict[str, Any] = {**_LLAMA_LIKE, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}
_SETTINGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": None},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 16},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**_GEMMA, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_positions": CONTEXT,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gpt_neox": {
        **{key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    },
}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **more}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
_TIED = {"tie_word_embeddings": True}
_UNTIED = {"tie_word_embeddings": False}
_SOME_SLIDE = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}

# family → variant → settings: what every exactness test runs over.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "plain": {},
        "tied": _TIED,
        "multi-head": {"num_key_value_heads": 4},
        "multi-query": {"num_key_value_heads": 1},
        "wide heads": {"head_dim": 12},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "gelu": {"hidden_act": "gelu_pytorch_tanh"},
        "linear": _rope("linear", factor=4.0),
        "llama3": _LLAMA3,
        "yarn": _YARN,
        "yarn, all said": _rope(
            "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=16.0, beta_slow=2.0, attention_factor=0.9
        ),
        "yarn, mscale": _rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.4),
        "eps": {"rms_norm_eps": 1e-2},
    },
    "mistral": {"no window": {}, "window": {"sliding_window": 7}, "wide heads": {"head_dim": 12}},
    "qwen2": {
        "plain": {},
        "tied": _TIED,
        "windows": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        "windows by layer": {"use_sliding_window": True, "sliding_window": 5, **_SOME_SLIDE},
        "yarn": _YARN,
    },
    "qwen3": {
        "plain": {},
        "tied": _TIED,
        "biases": {"attention_bias": True},
        "windows": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    },
    "gemma2": {
        "plain": {},
        "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "own scale of heads": {"query_pre_attn_scalar": 16},
        "no windows": {"layer_types": ["full_attention"] * 3},
        "biases": {"attention_bias": True},
    },
    "gemma3_text": {
        "plain": {},
        "linear": {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
        "every sixth": {"layer_types": None, "num_hidden_layers": 7},
        "untied": _UNTIED,
        "cap": {"final_logit_softcapping": 3.0},
        "no windows": {"layer_types": ["full_attention"] * 4},
    },
    "gpt2": {
        "plain": {},
        "untied": _UNTIED,
        "narrow": {"n_inner": 40},
        "relu": {"activation_function": "relu"},
        "unscaled": {"scale_attn_weights": False},
    },
    "gpt_neox": {
        "plain": {},
        "sequential": {"use_parallel_residual": False},
        "tanh": {"hidden_act": "gelu_fast"},
        "no biases": {"attention_bias": False},
        "all rotated": _rope("default", partial_rotary_factor=1.0),
        "linear": _rope("linear", factor=4.0, partial_rotary_factor=0.5),
        "tied": _TIED,
    },
}
EVERY = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]


def tiny_settings(family: str, variant: str = "") -> dict[str, Any]:
    """The settings of a tiny model of a family, and of one of its variants."""
    return {**_SETTINGS[family], **(VARIANTS[family][variant] if variant else {})}


def tiny_hf(family: str, seed: int = 0, **settings: Any) -> Any:
    """A tiny random model of a family (its ``model_type``), as transformers builds it, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**_SETTINGS[family], **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.dim() > 1 else 0.2, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight") and not family.startswith("gemma"):
                parameter.add_(1.0)
    return model


def tiny_directory(directory: Path, family: str = "llama", seed: int = 0, **settings: Any) -> Path:
    """A folder with a tiny model and a small real tokenizer, as transformers saves them."""
    tiny_hf(family, seed, **settings).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of `VOCAB` tokens; 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "The American shrew mole is a small mole. One mole of carbon dioxide contains about as many molecules. "
    tokenizer.train_from_iterator(
        [text + "Take a biopsy of the mole and the capital of France is Paris. " + text],
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if tokenizer.get_vocab_size() != VOCAB:
        raise AssertionError(f"the tiny tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCAB}")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


def reference_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What transformers answers: (batch, query, vocab), float32."""
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


def tiny_tokens(batch: int = 2, length: int = 40, seed: int = 1) -> torch.Tensor:
    """Random token ids, (batch, query)."""
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|Δ| relative to the largest logit: the project's norm of equality."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def tiny_gguf(directory: Path, family: str = "llama", **settings: Any) -> tuple[Path, Config]:
    """A GGUF of a family's tiny model in float32, and its design."""
    from glassformer.checkpoint import open_checkpoint, write_gguf
    from glassformer.tokenizer.tokenizer import Tokenizer

    path = tiny_directory(directory / family, family, **settings)
    checkpoint = open_checkpoint(path)
    file = directory / f"{family}.gguf"
    write_gguf(file, checkpoint.config, checkpoint.tensors, Tokenizer.from_directory(path), dtype="float32")
    return file, checkpoint.config
