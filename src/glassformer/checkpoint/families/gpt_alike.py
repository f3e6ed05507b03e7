"""Families with GPT's feed-forward part (not gated) and LayerNorms: GPT-Neo, GPT-J, OPT, BLOOM, …"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config, Norm, Rotary

BIASED: dict[str, Any] = {"bias": True, "out_bias": True, "mlp_bias": True}
_GPT_KEYS = {
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "context": "n_positions",
    "d_ff": "n_inner",
    "activation": "activation_function",
    "eps": "layer_norm_epsilon",
}
H: dict[str, Any] = {"layer": "transformer.h.{i}.", "prefixes": ("transformer.", ""), "gated": False}
_GPT_OUTSIDE = {"embed": "transformer.wte", "pos_embed": "transformer.wpe", "final": "transformer.ln_f"}
_GPT_NAMES = {"ln1": "ln_1", "ln2": "ln_2", "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
QKV = ("attn.q", "attn.k", "attn.v")
BUFFERS = (r"\.attn\.(attention\.)?(bias|masked_bias)$", r"(^|\.)rotary_emb\.inv_freq$", r"embed_positions$")


def slopes(heads: int, most: float = 8.0, *, cut: bool = False) -> tuple[float, ...]:
    """ALiBi's slopes (arXiv:2108.12409). For a number of heads that is no power of two, the next lower power's slopes
    are followed by every second one of the next higher's; `cut` takes every second of the higher's first, then the
    others."""
    power = 2 ** math.floor(math.log2(heads))
    if power == heads:
        return tuple(2.0 ** (-most * (i + 1) / heads) for i in range(heads))
    if cut:
        wide = [2.0 ** (-most * (i + 1) / (2 * power)) for i in range(2 * power)]
        return tuple([*wide[1::2], *wide[::2]][:heads])
    lower = [2.0 ** (-most * (i + 1) / power) for i in range(power)]
    higher = [2.0 ** (-most * (i + 1) / (2 * power)) for i in range(2 * power)]
    return (*lower, *higher[::2][: heads - power])


# GPT-Neo


def _neo(config: Config, attributes: Attributes) -> Config:
    kinds, grouped = attributes.sequence("attention_layers"), attributes.sequence("attention_types")
    if kinds is None:
        kinds = [kind for some, times in grouped or [] for kind in list(some) * times]
    window = attributes.integer("window_size", 256)
    if len(kinds) != config.n_layers or any(kind not in ("global", "local") for kind in kinds):
        raise attributes.unsupported("attention_layers", kinds)
    layers = []
    for layer, kind in zip(each_attention(config, scale=1.0).layers, kinds, strict=True):
        assert isinstance(layer.mixer, Attention)
        mixer = dataclasses.replace(layer.mixer, window=window if kind == "local" else None)
        layers.append(dataclasses.replace(layer, mixer=mixer))
    return dataclasses.replace(config, layers=tuple(layers))


def _neo_settings(config: Config) -> dict[str, Any]:
    from glassformer.checkpoint.families.settings import one_window

    kinds = ["global" if config.window(i) is None else "local" for i in range(config.n_layers)]
    return {
        "attention_layers": kinds,
        "attention_types": [[[kind], 1] for kind in kinds],
        "window_size": one_window(config) or 256,
    }


# GPT-J and CodeGen


def _part_turned(config: Config, attributes: Attributes) -> Config:
    dims = attributes.integer("rotary_dim", 64, null=True)
    d_head = config.attention(0).d_head
    return each_attention(config, rotary=Rotary(fraction=1.0 if dims is None else dims / d_head))


def _turned_dims(config: Config) -> dict[str, Any]:
    rotary = config.attention(0).rotary
    if rotary is not None and (rotary.theta != 10_000.0 or rotary.scaling is not None):
        raise UnsupportedError("its rotary base is fixed at 10,000")
    return {"rotary_dim": config.attention(0).rotary_dims}


_J: dict[str, Any] = {
    **H,
    "norm": Norm("layer"),
    "norms": "shared",
    "pairs": "neighbours",
    "keys": _GPT_KEYS,
    "fixed": {
        "bias": False,
        "out_bias": False,
        "mlp_bias": True,
        "unembed_bias": True,
        "parallel": True,
        "n_kv_heads": None,
        "d_head": None,
    },
    "outside": _GPT_OUTSIDE,
    "defaults": {"activation": "gelu_new"},
    "read": _part_turned,
    "write": lambda config: {**_turned_dims(config), "rope_theta": None, "rope_scaling": None},
    "ignored": BUFFERS,
    "no_effect": frozenset({"n_ctx", "rope_theta"}),
}
_J_NAMES = {"ln1": "ln_1", "attn.o": "attn.out_proj", "mlp.up": "mlp.fc_in", "mlp.down": "mlp.fc_out"}


# BLOOM


def _bloom(config: Config, attributes: Attributes) -> Config:
    if attributes.flag("apply_residual_connection_post_layernorm", False):
        raise attributes.unsupported("apply_residual_connection_post_layernorm", True)
    return each_attention(config, alibi=slopes(config.attention(0).n_heads))


def _bloom_settings(config: Config) -> dict[str, Any]:
    a = config.attention(0)
    if a.alibi != slopes(a.n_heads):
        raise UnsupportedError("its ALiBi slopes are not those of its number of heads")
    return {}


# OPT and BioGPT


def _opt(config: Config, attributes: Attributes) -> Config:
    attributes.only("enable_bias", True)
    attributes.only("layer_norm_elementwise_affine", True)
    attributes.only("_remove_final_layer_norm", False)
    width = attributes.integer("word_embed_proj_dim", None)
    if width is not None and width != config.d_model:
        config = dataclasses.replace(config, d_embed=width)
    if attributes.flag("do_layer_norm_before", True):
        return config
    layers = tuple(dataclasses.replace(layer, norms="sum") for layer in config.layers)
    return dataclasses.replace(config, layers=layers, final_norm=False)


DECODER = {
    "ln1": "self_attn_layer_norm",
    "attn.o": "self_attn.out_proj",
    "ln2": "final_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}


def scaled(config: Config, attributes: Attributes) -> Config:
    """The design with embeddings multiplied by √d_model where `scale_embedding` says so."""
    if not attributes.flag("scale_embedding", True):
        return config
    return dataclasses.replace(config, embedding_scale=math.sqrt(config.d_model))


OWN_POSITIONS: dict[str, Any] = {"n_kv_heads": None, "d_head": None, "learned_positions": True}

_STARCODER = GgufTable(
    "starcoder",
    joined=("qkv",),
    read=lambda attributes, shapes, found: {"multi_query": attributes.integer("attention.head_count_kv", 1) == 1},
)
_BLOOM = GgufTable("bloom", joined=("qkv",))

GPT_ALIKE = (
    Alike(
        "gpt_neo",
        "GPTNeo",
        **H,
        norm=Norm("layer"),
        rotates=False,
        keys={
            "n_layers": "num_layers",
            "n_heads": "num_heads",
            "activation": "activation_function",
            "eps": "layer_norm_epsilon",
        },
        fixed={"bias": False, "out_bias": True, "mlp_bias": True, **OWN_POSITIONS},
        names={
            **_GPT_NAMES,
            **{f"attn.{p}": f"attn.attention.{p}_proj" for p in "qkv"},
            "attn.o": "attn.attention.out_proj",
        },
        outside=_GPT_OUTSIDE,
        defaults={"activation": "gelu_new", "tied": True},
        read=_neo,
        write=_neo_settings,
        ignored=BUFFERS,
    ),
    Alike("gptj", "GPTJ", **_J, names={**_J_NAMES, **{f"attn.{p}": f"attn.{p}_proj" for p in "qkv"}}),
    Alike(
        "codegen",
        "CodeGen",
        **_J,
        names=_J_NAMES,
        joined={"attn.qkv_proj": ("attn.q", "attn.v", "attn.k")},
        blocks=4,
    ),
    Alike(
        "gpt_bigcode",
        "GPTBigCode",
        gguf=_STARCODER,
        **H,
        norm=Norm("layer"),
        rotates=False,
        keys=_GPT_KEYS,
        fixed={**BIASED, **OWN_POSITIONS},
        names=_GPT_NAMES,
        joined={"attn.c_attn": QKV},
        grouped=("attn.c_attn",),
        outside=_GPT_OUTSIDE,
        defaults={"activation": "gelu_pytorch_tanh", "tied": True},
        read=lambda config, attributes: each_attention(
            config,
            n_kv_heads=1 if attributes.flag("multi_query", True) else config.attention(0).n_heads,
            scale=None if attributes.flag("scale_attn_weights", True) else 1.0,
        ),
        write=lambda config: {
            "multi_query": config.attention(0).n_kv_heads == 1,
            "scale_attn_weights": config.attention(0).scale is None,
        },
        ignored=BUFFERS,
        no_effect=frozenset(
            [
                "attention_softmax_in_fp32",
                "scale_attention_softmax_in_fp32",
                "num_key_value_heads",
                "n_ctx",
                "inference_runner",
                "max_batch_size",
                "max_sequence_length",
                "validate_runner_input",
                "pre_allocate_kv_cache",
            ]
        ),
    ),
    Alike(
        "openai-gpt",
        "OpenAIGPT",
        **H,
        architecture="OpenAIGPTLMHeadModel",
        norm=Norm("layer"),
        norms="sum",
        rotates=False,
        transposed=True,
        keys=_GPT_KEYS,
        fixed={**BIASED, **OWN_POSITIONS, "activation": "gelu_tanh", "d_ff": None},
        names=_GPT_NAMES,
        joined={"attn.c_attn": QKV},
        outside={"embed": "transformer.tokens_embed", "pos_embed": "transformer.positions_embed"},
        only={"afn": ("gelu",)},
        defaults={"tied": True},
        read=lambda config, attributes: dataclasses.replace(config, final_norm=False),
        write=lambda config: {"afn": "gelu"},
        ignored=BUFFERS,
        no_effect=frozenset(["n_ctx"]),
    ),
    Alike(
        "bloom",
        "Bloom",
        gguf=_BLOOM,
        **H,
        norm=Norm("layer"),
        rotates=False,
        keys={
            "n_layers": "n_layer",
            "n_heads": "n_head",
            "eps": "layer_norm_epsilon",
            "context": "seq_length",
        },
        fixed={
            **BIASED,
            "n_kv_heads": None,
            "d_head": None,
            "d_ff": None,
            "activation": "gelu_tanh",
            "embedding_norm": True,
        },
        names={
            "attn.o": "self_attention.dense",
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
        joined={"self_attention.query_key_value": QKV},
        grouped=("self_attention.query_key_value",),
        outside={
            "embed": "transformer.word_embeddings",
            "embed_norm": "transformer.word_embeddings_layernorm",
            "final": "transformer.ln_f",
        },
        defaults={"tied": True, "context": 2048},
        read=_bloom,
        write=_bloom_settings,
        no_effect=frozenset(
            [
                "slow_but_exact",
                "bias_dropout_fusion",
                "masked_softmax_fusion",
                "skip_bias_add",
                "skip_bias_add_qkv",
                "n_inner",
                "unk_token_id",
            ]
        ),
    ),
    Alike(
        "opt",
        "OPT",
        layer="model.decoder.layers.{i}.",
        prefixes=("model.decoder.", "decoder."),
        gated=False,
        norm=Norm("layer", eps=1e-5),
        rotates=False,
        skip=2,
        keys={"d_ff": "ffn_dim", "activation": "activation_function"},
        fixed={**BIASED, **OWN_POSITIONS, "eps": 1e-5},
        names=DECODER,
        outside={
            "embed": "model.decoder.embed_tokens",
            "pos_embed": "model.decoder.embed_positions",
            "final": "model.decoder.final_layer_norm",
            "project_in": "model.decoder.project_in",
            "project_out": "model.decoder.project_out",
        },
        defaults={"activation": "relu", "tied": True},
        read=_opt,
        write=lambda config: {
            "do_layer_norm_before": config.layers[0].norms == "before",
            "word_embed_proj_dim": config.d_embed or config.d_model,
        },
    ),
    Alike(
        "biogpt",
        "BioGpt",
        layer="biogpt.layers.{i}.",
        prefixes=("biogpt.", ""),
        gated=False,
        norm=Norm("layer"),
        rotates=False,
        skip=2,
        keys={"eps": "layer_norm_eps"},
        fixed={**BIASED, **OWN_POSITIONS},
        names=DECODER,
        outside={
            "embed": "biogpt.embed_tokens",
            "pos_embed": "biogpt.embed_positions",
            "final": "biogpt.layer_norm",
            "unembed": "output_projection",
        },
        defaults={"activation": "gelu", "tied": True, "eps": 1e-12},
        read=scaled,
        write=lambda config: {"scale_embedding": config.embedding_scale is not None},
    ),
)
