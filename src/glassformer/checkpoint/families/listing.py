"""What is said of every family that opens: its class, parts, layouts, who computes it, and what it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassformer.checkpoint.families.family import Family
from glassformer.model.choices import members, softmax_of
from glassformer.model.config import Config, LatentAttention, Layer

# Parts of a type, in words -> types. Held to designs with every feature on by tests/checkpoint/test_listing.py.
_BY_PARTS = (
    (
        "attention, dense",
        "apertus arcee biogpt bitnet codegen cohere ctrl ernie4_5 gemma glm glm4 gpt2 gpt_bigcode gpt_neox "
        "gpt_neox_japanese gptj granite helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 llama "
        "nanochat nemotron olmo olmo2 openai-gpt opt persimmon phi seed_oss smollm3 stablelm xglm",
    ),
    ("attention, dense, ALiBi", "bloom falcon mpt"),
    ("attention, dense, embeddings by layer, shared keys, stream in copies, windows", "gemma3n_text"),
    ("attention, dense, experts", "ernie4_5_moe glm4_moe hy_v3 minimax_m3_vl_text"),
    ("attention, dense, experts, chunks", "llama4_text"),
    ("attention, dense, experts, output gates, windows", "afmoe beam laguna"),
    ("attention, dense, experts, sinks, windows", "flint mimo_v2_flash"),
    ("attention, dense, experts, windows", "dots1 exaone_moe mellum qwen3_moe"),
    ("attention, dense, head layer, windows", "modernbert-decoder"),
    ("attention, dense, shared keys, windows", "gemma4_unified_text"),
    ("attention, dense, sinks, windows", "granite_swa"),
    (
        "attention, dense, windows",
        "cohere2 cwm exaone4 gemma2 gemma3_text gpt_neo ministral ministral3 mistral olmo3 phi3 qwen2 qwen3 "
        "starcoder2 vaultgemma",
    ),
    (
        "attention, experts",
        "aria_text dbrx flex_olmo granitemoe granitemoeshared hunyuan_v1_moe minimax_m2 olmoe solar_open",
    ),
    ("attention, experts, embeddings by layer, shared keys, windows", "gemma4_text"),
    ("attention, experts, routed heads", "jetmoe"),
    ("attention, experts, sinks, windows", "gpt_oss granitemoe_swa"),
    ("attention, experts, windows", "cohere2_moe kolibri1 mixtral phimoe qwen2_moe"),
    ("attention, gated delta, dense", "olmo_hybrid"),
    ("attention, gated delta, dense, experts, output gates", "qwen3_next"),
    ("attention, gated delta, dense, output gates", "qwen3_5_text"),
    ("attention, gated delta, experts, output gates", "qwen3_5_moe_text"),
    ("attention, gated linear recurrence, dense, windows", "recurrent_gemma"),
    ("attention, linear attention, experts, windows", "minimax"),
    ("attention, selective state space, dense, experts", "jamba"),
    ("attention, short convolution, dense", "lfm2"),
    ("attention, short convolution, dense, experts", "lfm2_moe"),
    ("attention, short convolution, dense, output gates, windows", "lfm3"),
    ("attention, state space, dense", "bamba falcon_h1"),
    ("attention, state space, dense, experts", "granitemoehybrid nemotron_h"),
    ("differential attention, dense", "diffllama"),
    ("latent attention, dense", "minicpm3 youtu"),
    ("latent attention, dense, experts", "axk1 deepseek_v2 deepseek_v3 glm4_moe_lite"),
    ("latent attention, dense, experts, index of keys", "deepseek_v32 glm_moe_dsa"),
    ("latent attention, dense, experts, index of keys, output gates, windows", "dots3_note_text"),
    ("latent attention, gated delta, dense, experts", "kimi_linear"),
    ("latent attention, gated delta, dense, experts, output gates", "bailing_hybrid"),
    ("matrix memory, dense", "xlstm"),
    ("selective state space", "falcon_mamba mamba"),
    ("state space", "mamba2"),
)
# Types that the native engine does not answer: held to its own word by tests/checkpoint/test_alike.py.
_THROUGH_TORCH = (
    "apertus axk1 bailing_hybrid bamba bitnet deepseek_v2 deepseek_v3 deepseek_v32 diffllama dots3_note_text "
    "falcon_h1 falcon_mamba gemma3n_text gemma4_text glm4_moe_lite glm_moe_dsa granitemoehybrid jamba jetmoe "
    "kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minicpm3 minimax modernbert-decoder nemotron_h olmo_hybrid "
    "openai-gpt opt phimoe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma xlstm youtu"
)
_PARTLY = {"falcon": "native; with ALiBi torch", "phi3": "native; LongRoPE beyond its first length torch"}
PARTS: Mapping[str, str] = {name: parts for parts, names in _BY_PARTS for name in names.split()}


def listing() -> list[dict[str, Any]]:
    """Every family that opens, by its type: plain data for `glassformer models --families` and docs/models.md."""
    from glassformer.checkpoint.families import FAMILIES

    return [_described(name, family) for name, family in sorted(FAMILIES.items())]


def _described(name: str, family: Family) -> dict[str, Any]:
    architectures = list(family.gguf.names) if family.gguf is not None else []
    layouts = ["safetensors", *(["gguf"] if architectures else [])]
    return {
        "type": name,
        "class": family.architecture,
        "parts": PARTS[name].split(", "),
        "read_from": layouts,
        "written_to": layouts,
        "gguf": architectures,
        "answered_by": "torch" if name in _THROUGH_TORCH.split() else _PARTLY.get(name, "native"),
        "held_to": ["transformers", *(["llama.cpp"] if architectures else [])],
    }


def parts_of(config: Config) -> set[str]:
    """The kinds of parts that a design is made of, and what is special about them, in words."""
    found = set[str]()
    for layer in config.layers:
        for part in (layer.mixer, layer.feed_forward):
            found |= {member.kind.replace("_", " ") for member in (members(part) if part is not None else ())}
        found |= _special(layer)
    return found | ({"head layer"} if config.head is not None else set())


def _special(layer: Layer) -> set[str]:
    """Features of a layer that not every transformer has."""
    a = softmax_of(layer.mixer)
    there: dict[str, Any] = {"embeddings by layer": layer.embedding, "stream in copies": layer.copies}
    if a is not None:
        there |= {
            "windows": a.window,
            "chunks": a.chunk,
            "sinks": a.sink,
            "ALiBi": a.alibi,
            "output gates": a.gate is not None and a.gate != "experts",
            "routed heads": a.gate == "experts",
            "shared keys": a.keys_from is not None,
            "index of keys": isinstance(a, LatentAttention) and a.index,
        }
    return {name for name, value in there.items() if value}
