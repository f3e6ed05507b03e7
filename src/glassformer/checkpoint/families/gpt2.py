"""GPT-2: learned positions, fused queries, keys and values, and matrices stored (in, out)."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.settings import ACTIVATION_NAMES, activation, attention_of, feed_forward_of
from glassformer.checkpoint.tables import Row, row
from glassformer.model.config import Attention, Config, FeedForward, Norm, uniform

_LAYER, _BLOCK = "transformer.h.{i}.", "blocks.{i}."


def _both(theirs: str, *ours: str, transposed: bool = False) -> tuple[Row, Row]:
    """A weight and its bias; only matrices can be transposed."""
    return (
        row(f"{theirs}.weight", *(f"{key}.weight" for key in ours), transposed=transposed),
        row(f"{theirs}.bias", *(f"{key}.bias" for key in ours)),
    )


QKV = tuple(f"{_BLOCK}attn.{p}" for p in "qkv")

_ROWS: tuple[Row, ...] = (
    row("transformer.wte.weight", "embed.weight"),
    row("transformer.wpe.weight", "pos_embed.weight"),
    *_both(_LAYER + "ln_1", _BLOCK + "ln1"),
    *_both(_LAYER + "attn.c_attn", *QKV, transposed=True),
    *_both(_LAYER + "attn.c_proj", _BLOCK + "attn.o", transposed=True),
    *_both(_LAYER + "ln_2", _BLOCK + "ln2"),
    *_both(_LAYER + "mlp.c_fc", _BLOCK + "mlp.up", transposed=True),
    *_both(_LAYER + "mlp.c_proj", _BLOCK + "mlp.down", transposed=True),
    *_both("transformer.ln_f", "final"),
    row("lm_head.weight", "unembed.weight"),
)


def _read(attributes: Attributes) -> Config:
    heads, d_model = attributes.integer("n_head", 12), attributes.integer("n_embd", 768)
    config = uniform(
        vocab_size=attributes.integer("vocab_size", 50_257),
        d_model=d_model,
        n_layers=attributes.layers("n_layer", 12),
        context=attributes.integer("n_positions", 1024),
        mixer=Attention(
            n_heads=heads,
            n_kv_heads=heads,
            d_head=attributes.share("n_embd", d_model, "n_head", heads),
            bias=True,
            out_bias=True,
            rotary=None,
            scale=None if attributes.flag("scale_attn_weights", True) else 1.0,
        ),
        feed_forward=FeedForward(
            attributes.integer("n_inner", 4 * d_model),
            activation=activation(attributes, "activation_function", "gelu_new"),
            gated=False,
            bias=True,
        ),
        norm=Norm("layer", eps=attributes.number("layer_norm_epsilon", 1e-5)),
        learned_positions=True,
        tied=attributes.flag("tie_word_embeddings", True),
    )
    if attributes.flag("scale_attn_by_inverse_layer_idx", False):
        return _by_layer(config)
    return config


def _by_layer(config: Config) -> Config:
    """Scores of layer i are divided by i + 1 besides."""
    layers = []
    for i, layer in enumerate(config.layers):
        assert isinstance(layer.mixer, Attention)
        mixer = dataclasses.replace(layer.mixer, scale=layer.mixer.score_scale / (i + 1))
        layers.append(dataclasses.replace(layer, mixer=mixer))
    return dataclasses.replace(config, layers=tuple(layers))


def _write(config: Config) -> dict[str, Any]:
    attention, feed = attention_of(config), feed_forward_of(config)
    name = ACTIVATION_NAMES[feed.activation]
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": attention.n_heads,
        "n_inner": feed.d_ff,
        "activation_function": "gelu_new" if name == "gelu_pytorch_tanh" else name,
        "layer_norm_epsilon": config.norm.eps,
        "scale_attn_weights": attention.scale != 1.0,
        "scale_attn_by_inverse_layer_idx": len({config.attention(i).scale for i in range(config.n_layers)}) > 1,
        "tie_word_embeddings": config.tied,
    }


_KEYS = {
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "context": "n_positions",
    "n_heads": "n_head",
    "d_ff": "n_inner",
    "eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
_GGUF = GgufTable("gpt2", joined=("qkv",), implied={"activation_function": "gelu_new"})

GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    base="GPT2Model",
    rows=_ROWS,
    read=_read,
    write=_write,
    prefixes=("transformer.", ""),
    ignored=(r"(^|\.)h\.\d+\.attn\.(bias|masked_bias)$",),
    gguf=_GGUF.layout(_read, _write, _KEYS.get),
)
