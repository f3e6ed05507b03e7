"""GPT-NeoX, Pythia and the Japanese sibling: partial rotary, queries, keys and values fused head by head."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_settings import Shapes
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.gpt2 import QKV
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    attention_of,
    feed_forward_of,
    rope,
    rope_fraction,
    rotary_of,
    scaling_settings,
)
from glassformer.checkpoint.tables import Row, row
from glassformer.model.config import Attention, Config, FeedForward, Norm, Rotary, uniform

_LAYER, _BLOCK = "gpt_neox.layers.{i}.", "blocks.{i}."


def _both(theirs: str, *ours: str, per_head: bool = False) -> tuple[Row, ...]:
    return tuple(row(f"{theirs}.{t}", *(f"{k}.{t}" for k in ours), per_head=per_head) for t in ("weight", "bias"))


_ROWS: tuple[Row, ...] = (
    row("gpt_neox.embed_in.weight", "embed.weight"),
    *_both(_LAYER + "input_layernorm", _BLOCK + "ln1"),
    *_both(_LAYER + "attention.query_key_value", *QKV, per_head=True),
    *_both(_LAYER + "attention.dense", _BLOCK + "attn.o"),
    *_both(_LAYER + "post_attention_layernorm", _BLOCK + "ln2"),
    *_both(_LAYER + "mlp.dense_h_to_4h", _BLOCK + "mlp.up"),
    *_both(_LAYER + "mlp.dense_4h_to_h", _BLOCK + "mlp.down"),
    *_both("gpt_neox.final_layer_norm", "final"),
    row("embed_out.weight", "unembed.weight"),
)


def _read(attributes: Attributes) -> Config:
    heads, d_model = attributes.integer("num_attention_heads"), attributes.integer("hidden_size")
    context = attributes.integer("max_position_embeddings", 2048)
    bias = attributes.flag("attention_bias", True)
    base = attributes.number("rotary_emb_base", 10_000.0)  # a rope_theta alone is not looked at by transformers either
    theta, scaling = rope(attributes, context, base)
    return uniform(
        vocab_size=attributes.integer("vocab_size"),
        d_model=d_model,
        n_layers=attributes.layers("num_hidden_layers"),
        context=context,
        mixer=Attention(
            n_heads=heads,
            n_kv_heads=heads,
            d_head=attributes.share("hidden_size", d_model, "num_attention_heads", heads),
            bias=bias,
            out_bias=bias,
            rotary=Rotary(theta, rope_fraction(attributes, "rotary_pct", 0.25), scaling),
        ),
        feed_forward=FeedForward(
            attributes.integer("intermediate_size"),
            activation=activation(attributes, "hidden_act", "gelu"),
            gated=False,
            bias=True,
        ),
        norm=Norm("layer", eps=attributes.number("layer_norm_eps", 1e-5)),
        parallel=attributes.flag("use_parallel_residual", True),
        tied=attributes.flag("tie_word_embeddings", False),
    )


def _write(config: Config) -> dict[str, Any]:
    attention, feed, rotary = attention_of(config), feed_forward_of(config), rotary_of(config)
    scaling = rotary.scaling
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": feed.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "attention_bias": attention.bias,
        "hidden_act": ACTIVATION_NAMES[feed.activation],
        "max_position_embeddings": config.context,
        "layer_norm_eps": config.norm.eps,
        "rotary_emb_base": rotary.theta,
        "rotary_pct": rotary.fraction,
        "rope_scaling": None if scaling is None else scaling_settings(scaling),
        "use_parallel_residual": config.layers[0].parallel,
        "tie_word_embeddings": config.tied,
    }


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    return {"rotary_emb_base": found["rope_theta"], "rotary_pct": found["partial_rotary_factor"]}


_KEYS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "context": "max_position_embeddings",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "eps": "layer_norm_eps",
    "tied": "tie_word_embeddings",
}
# GGUF does not say which gelu; llama.cpp, which defines what a GGUF means, computes the tanh form.
_GGUF = GgufTable(
    "gptneox",
    joined=("qkv",),
    settings={"use_parallel_residual": "use_parallel_residual"},
    implied={"hidden_act": "gelu_new", "attention_bias": True},
    read=_read_gguf,
)

NEOX = Family(
    name="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    base="GPTNeoXModel",
    rows=_ROWS,
    read=_read,
    write=_write,
    prefixes=("gpt_neox.", ""),
    ignored=(r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$", r"(^|\.)rotary_emb\.inv_freq$"),
    gguf=_GGUF.layout(_read, _write, _KEYS.get),
)


# The Japanese one: no biases but on the last layer's attention, parts one after another.


def _read_japanese(config: Config, attributes: Attributes) -> Config:
    times = attributes.integer("intermediate_multiple_size", 4)
    theta, scaling = rope(attributes, config.context, attributes.number("rotary_emb_base", 10_000.0))
    config = each_attention(config, rotary=Rotary(theta, rope_fraction(attributes, "rotary_pct", 1.0), scaling))
    layers = []
    for i, layer in enumerate(config.layers):
        assert isinstance(layer.mixer, Attention)
        assert isinstance(layer.feed_forward, FeedForward)
        mixer = dataclasses.replace(layer.mixer, out_bias=i == config.n_layers - 1)
        feed = dataclasses.replace(layer.feed_forward, d_ff=times * config.d_model)
        layers.append(dataclasses.replace(layer, mixer=mixer, feed_forward=feed))
    return dataclasses.replace(config, layers=tuple(layers))


def _write_japanese(config: Config) -> dict[str, Any]:
    rotary = rotary_of(config)
    return {
        "intermediate_multiple_size": feed_forward_of(config).d_ff // config.d_model,
        "rope_theta": None,
        "rotary_emb_base": rotary.theta,
        "rotary_pct": rotary.fraction,
        "partial_rotary_factor": None,
    }


_JAPANESE = Alike(
    "gpt_neox_japanese",
    "GPTNeoXJapanese",
    layer="gpt_neox_japanese.layers.{i}.",
    prefixes=("gpt_neox_japanese.", ""),
    gated=False,
    norm=Norm("layer"),
    keys={"eps": "layer_norm_eps"},
    fixed={"bias": False, "out_bias": False, "mlp_bias": False, "n_kv_heads": None, "d_head": None, "d_ff": None},
    names={"attn.o": "attention.dense", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"},
    joined={"attention.query_key_value": ("attn.q", "attn.k", "attn.v")},
    grouped=("attention.query_key_value",),
    outside={
        "embed": "gpt_neox_japanese.embed_in",
        "final": "gpt_neox_japanese.final_layer_norm",
        "unembed": "embed_out",
    },
    defaults={"activation": "gelu", "tied": True, "context": 2048, "eps": 1e-5},
    read=_read_japanese,
    write=_write_japanese,
    ignored=NEOX.ignored,
)
NEOX_JAPANESE = dataclasses.replace(
    _JAPANESE.family(),
    rows=tuple(
        dataclasses.replace(line, theirs=line.theirs.replace("attention.dense.bias", "attention.dense_bias"))
        for line in _JAPANESE.rows()
    ),
)
