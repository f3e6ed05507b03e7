"""Gemma 2 and the text part of Gemma 3: norms of 1 + weight around every part, alternating windows, soft caps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families import llama
from glassformer.checkpoint.families.family import Family, GgufLayout
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    all_rotated,
    attention_of,
    feed_forward_of,
    layer_types,
    one_window,
    rope,
    rope_kinds,
    rope_settings,
    rotary_of,
    scaling_settings,
    windows,
)
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config, FeedForward, Norm, RopeScaling, Rotary, uniform

_LAYER, _BLOCK = "model.layers.{i}.", "blocks.{i}."
_NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln1_post",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_post",
}
# Llama's rows, except that Llama calls the second norm what Gemma calls the first one's after-norm.
_ROWS: tuple[Row, ...] = (
    *(line for line in llama.ROWS if "layernorm" not in line.theirs),
    *(row(f"{_LAYER}{theirs}.weight", f"{_BLOCK}{ours}.weight") for theirs, ours in _NORMS.items()),
)
_PERIOD = {"gemma2": 2, "gemma3_text": 6}  # every so many layers one sees everything
_LARGEST = {"gemma2": 46, "gemma3_text": 62}  # layers of the 27B models, whose scores are scaled by another rule


def _read(name: str, attributes: Attributes) -> Config:
    all_rotated(attributes)
    second = name == "gemma2"
    layers, d_model = attributes.layers("num_hidden_layers"), attributes.integer("hidden_size")
    context = attributes.integer("max_position_embeddings", 8192 if second else 131_072)
    d_head = attributes.integer("head_dim", 256)
    bias = attributes.flag("attention_bias", False)
    period = 2 if second else attributes.integer("sliding_window_pattern", 6)
    if period < 1:
        raise attributes.unsupported("sliding_window_pattern", period)
    window = attributes.integer("sliding_window", 4096, null=True)
    each = windows(attributes, layers, window, lambda i: bool((i + 1) % period))
    wide, local = _rotary(attributes, context), None
    if not second:
        wide, local = _rotaries(attributes, context, bool(each))
    return uniform(
        vocab_size=attributes.integer("vocab_size", 256_000 if second else 262_208),
        d_model=d_model,
        n_layers=layers,
        context=context,
        mixer=Attention(
            n_heads=attributes.integer("num_attention_heads", 8),
            n_kv_heads=attributes.integer("num_key_value_heads", 4),
            d_head=d_head,
            bias=bias,
            out_bias=bias,
            qk_norm=None if second else "head",
            scale=_scale(attributes.integer("query_pre_attn_scalar", 256), d_head, attributes),
            softcap=attributes.number("attn_logit_softcapping", 50.0, null=True) if second else None,
            rotary=wide,
        ),
        feed_forward=FeedForward(
            attributes.integer("intermediate_size"),
            activation=activation(attributes, "hidden_activation", "gelu_pytorch_tanh"),
        ),
        norm=Norm("rms", eps=attributes.number("rms_norm_eps", 1e-6), one_plus=True),
        norms="both",
        windows=each,
        local_rotary=local,
        tied=attributes.flag("tie_word_embeddings", True),
        embedding_scale=math.sqrt(d_model) if d_model > 0 else None,
        logit_softcap=attributes.number("final_logit_softcapping", 30.0 if second else None, null=True),
    )


def _scale(scalar: int, d_head: int, attributes: Attributes) -> float | None:
    if scalar < 1:
        raise attributes.unsupported("query_pre_attn_scalar", scalar)
    return None if scalar == d_head else scalar**-0.5


def _rotary(attributes: Attributes, context: int) -> Rotary:
    theta, scaling = rope(attributes, context, attributes.number("rope_theta", 10_000.0))
    return Rotary(theta, scaling=scaling)


def _rotaries(attributes: Attributes, context: int, sliding: bool) -> tuple[Rotary, Rotary | None]:
    """Gemma 3 turns its two kinds of layers by different bases, and mostly stretches only those that see everything."""
    kinds = rope_kinds(attributes)
    wide = {**(kinds.get("full_attention") or {}), **attributes.table("rope_scaling")}
    near = kinds.get("sliding_attention") or {}
    theta, scaling = rope(attributes, context, attributes.number("rope_theta", 1_000_000.0), wide)
    local, stretched = rope(attributes, context, attributes.number("rope_local_base_freq", 10_000.0), near)
    return Rotary(theta, scaling=scaling), Rotary(local, scaling=stretched) if sliding else None


def _write(name: str, config: Config) -> dict[str, Any]:
    attention, feed = attention_of(config), feed_forward_of(config)
    scalar = round(attention.score_scale**-2)
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": feed.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.d_head,
        "attention_bias": attention.bias,
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": attention.softcap if name == "gemma2" else None,
        "final_logit_softcapping": config.logit_softcap,
        # transformers wants a number here even where no layer slides.
        "sliding_window": one_window(config) or 4096,
        "layer_types": layer_types(config),
        "hidden_activation": ACTIVATION_NAMES[feed.activation],
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied,
    }
    if name == "gemma2":
        return {**settings, **rope_settings(config)}
    wide, local = rotary_of(config, window=False), rotary_of(config, window=True)
    scaling, near = (
        {"rope_type": "default"} if rotary.scaling is None else scaling_settings(rotary.scaling)
        for rotary in (wide, local)
    )
    # Said once, in the spelling that transformers writes since version 5 and that keeps the two kinds of layers apart,
    # and once more in the older one, which agrees.
    return {
        **settings,
        "rope_theta": wide.theta,
        "rope_local_base_freq": local.theta,
        "rope_scaling": None if wide.scaling is None else scaling,
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": wide.theta},
            "sliding_attention": {**near, "rope_theta": local.theta},
        },
    }


def _read_gguf(name: str, attributes: Attributes, shapes: Mapping[str, Shape]) -> Config:
    second = name == "gemma2"
    base = llama.read_gguf(attributes, shapes)
    attributes.only("attention.sliding_window_pattern", _PERIOD[name])
    window = attributes.integer("attention.sliding_window", 4096 if second else None)
    each = tuple(window if (i + 1) % _PERIOD[name] else None for i in range(base.n_layers))
    theta = attributes.number("rope.freq_base", 10_000.0)
    local = attributes.number("rope.freq_base_swa", theta if second else 10_000.0)
    attention, feed = attention_of(base), feed_forward_of(base)
    rule = base.d_model // attention.n_heads if base.n_layers == _LARGEST[name] else attention.d_head
    assert attention.rotary is not None
    wide = dataclasses.replace(attention.rotary, theta=theta)
    return uniform(
        base.vocab_size,
        base.d_model,
        base.n_layers,
        base.context,
        dataclasses.replace(
            attention,
            scale=None if rule == attention.d_head else rule**-0.5,
            softcap=attributes.number("attn_logit_softcapping", 50.0) if second else None,
            rotary=wide,
        ),
        dataclasses.replace(feed, activation="gelu_tanh"),
        dataclasses.replace(base.norm, one_plus=True),
        norms="both",
        windows=each if any(each) else (),
        local_rotary=None if second else Rotary(local, wide.fraction),
        tied=True,
        embedding_scale=math.sqrt(base.d_model),
        logit_softcap=attributes.number("final_logit_softcapping", 30.0 if second else None),
    )


def _write_gguf(name: str, config: Config) -> dict[str, Any]:
    settings = llama.write_gguf(config)
    window, attention = one_window(config), attention_of(config)
    if window is not None:
        settings["attention.sliding_window"] = window
    if name == "gemma2":
        if attention.softcap is not None:
            settings["attn_logit_softcapping"] = attention.softcap
        if config.logit_softcap is not None:
            settings["final_logit_softcapping"] = config.logit_softcap
    elif isinstance(scaling := rotary_of(config, window=False).scaling, RopeScaling) and scaling.kind != "linear":
        raise UnsupportedError(f"rotary scaling {scaling.kind!r} has no place in a GGUF of Gemma 3.")
    return settings


def _family(name: str, stem: str, base: str, gguf: str, norms: tuple[str, ...], **more: Any) -> Family:
    return Family(
        name=name,
        architecture=f"{stem}ForCausalLM",
        base=base,
        rows=_ROWS,
        read=partial(_read, name),
        write=partial(_write, name),
        gguf=GgufLayout(
            gguf,
            partial(llama.gguf_rows, "ln1_post", "ln2_post", *norms, shift=True),
            partial(_read_gguf, name),
            partial(_write_gguf, name),
        ),
        **more,
    )


GEMMA2 = _family(
    "gemma2",
    "Gemma2",
    "Gemma2Model",
    "gemma2",
    (),
    prefixes=("model.", ""),
    ignored=(r"(^|\.)rotary_emb\.inv_freq$",),
)
# The models that also see images hold the same text model under a longer name; their other parts are left alone.
GEMMA3 = _family(
    "gemma3_text",
    "Gemma3",
    "Gemma3TextModel",
    "gemma3",
    llama.QK_NORMS,
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    inside={"gemma3": "text_config"},
    only={"attn_logit_softcapping": ()},
    reasons={
        "attn_logit_softcapping": "which transformers does not use in this type, so what was trained is not known."
    },
    ignored=(r"(^|\.)rotary_emb\.inv_freq$", r"^(model\.)?(vision_tower|multi_modal_projector)\."),
)
