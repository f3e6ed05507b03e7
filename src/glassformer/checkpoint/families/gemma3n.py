"""The text part of Gemma 3n: a stream in copies, embeddings of tokens in every layer, shared keys and values."""

from __future__ import annotations

import math
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gemma4 import BLOCK, IGNORED, LAYER, ROWS, shared_from
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    layer_types,
    one_window,
    rope,
    scaling_settings,
    windows,
)
from glassformer.checkpoint.tables import row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Copies, LayerEmbedding, Rotary
from glassformer.model.config import Attention, Config, FeedForward, Layer, Norm

_FULL, _SLIDING = "full_attention", "sliding_attention"
_MOST_COPIES = 64


def _rows() -> tuple[Any, ...]:
    found = [
        row(f"{LAYER}altup.router_norm.weight", f"{BLOCK}copies.norm.weight"),
        row(f"{LAYER}altup.modality_router.weight", f"{BLOCK}copies.router.weight"),
        row(f"{LAYER}altup.prediction_coefs.weight", f"{BLOCK}copies.predict.weight"),
        row(f"{LAYER}altup.correction_coefs.weight", f"{BLOCK}copies.correct.weight"),
        row(f"{LAYER}altup.correct_output_scale", f"{BLOCK}copies.scale"),
        row(f"{LAYER}laurel.linear_left.weight", f"{BLOCK}laurel.down.weight"),
        row(f"{LAYER}laurel.linear_right.weight", f"{BLOCK}laurel.up.weight"),
        row(f"{LAYER}laurel.post_laurel_norm.weight", f"{BLOCK}laurel.norm.weight"),
    ]
    for i in range(_MOST_COPIES - 1):
        found.append(row(f"model.altup_projections.{i}.weight", f"spread.{i}.weight"))
        found.append(row(f"model.altup_unembed_projections.{i}.weight", f"gather.{i}.weight"))
    return (*ROWS, *found)


def _each(attributes: Attributes, name: str, layers: int, default: Any) -> list[Any]:
    """A setting of which there is one for each layer, or one for all."""
    value = attributes.values.get(name)
    attributes.asked.add(name)
    if value is None:
        value = default
    listed = list(value) if isinstance(value, list) else [value] * layers
    if len(listed) != layers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed):
        raise CheckpointError(f"{attributes.where} sets {name} to {value}; it must be {layers} numbers, or one.")
    return listed


def _rotary(attributes: Attributes, kind: str, context: int) -> Rotary:
    own = attributes.table("rope_parameters").get(kind) or {}
    old = ("rope_theta", 1_000_000.0) if kind == _FULL else ("rope_local_base_freq", 10_000.0)
    stretched = attributes.table("rope_scaling") if kind == _FULL else {}
    theta, scaling = rope(attributes, context, attributes.number(*old), {**own, **stretched})
    return Rotary(theta, scaling=scaling)


def _read(attributes: Attributes) -> Config:
    layers, d_model = attributes.layers("num_hidden_layers", 35), attributes.integer("hidden_size", 2048)
    context = attributes.integer("max_position_embeddings", 32_768)
    window = attributes.integer("sliding_window", 512)
    each = windows(attributes, layers, window, lambda i: bool((i + 1) % 5)) or (None,) * layers
    widths = _each(attributes, "intermediate_size", layers, 16_384)
    off = [0.95] * 10 + [0.0] * (layers - 10) if layers > 10 else [0.0] * layers
    sparsity = _each(attributes, "activation_sparsity_pattern", layers, off)
    act = activation(attributes, "hidden_activation", "gelu_pytorch_tanh")
    copies = attributes.integer("altup_num_inputs", 4)
    if not 2 <= copies <= _MOST_COPIES:
        raise attributes.unsupported("altup_num_inputs", copies)
    bias = attributes.flag("attention_bias", False)
    donors = shared_from(attributes, each, 15)
    rotary = {kind: _rotary(attributes, kind, context) for kind in (_FULL, _SLIDING)}
    own = LayerEmbedding(attributes.integer("hidden_size_per_layer_input", 256), act)
    stream = Copies(copies, attributes.integer("laurel_rank", 64))
    found = []
    for i, seen in enumerate(each):
        mixer = Attention(
            attributes.integer("num_attention_heads", 8),
            attributes.integer("num_key_value_heads", 2),
            attributes.integer("head_dim", 256),
            bias=bias,
            out_bias=bias,
            rotary=rotary[_FULL if seen is None else _SLIDING],
            window=seen,
            qk_norm="head",
            scale=1.0,
            value_norm=True,
            keys_from=donors[i],
        )
        feed = FeedForward(int(widths[i]), act, sparsity=float(sparsity[i]))
        found.append(Layer(mixer, feed, "both", embedding=own, copies=stream))
    vocab = attributes.integer("vocab_size", 262_400)
    rows = attributes.integer("vocab_size_per_layer_input", 262_144)
    return Config(
        vocab,
        d_model,
        context,
        tuple(found),
        Norm("rms", eps=attributes.number("rms_norm_eps", 1e-6)),
        tied=attributes.flag("tie_word_embeddings", True),
        embedding_scale=math.sqrt(d_model),
        logit_softcap=attributes.number("final_logit_softcapping", 30.0, null=True),
        layer_vocab=None if rows == vocab else rows,
    )


def _write(config: Config) -> dict[str, Any]:
    mixers, feeds = [config.attention(i) for i in range(config.n_layers)], [x.feed_forward for x in config.layers]
    first, copies = mixers[0], config.layers[0].copies
    dense = [feed for feed in feeds if isinstance(feed, FeedForward)]
    if copies is None or config.layer_embedding is None or len(dense) < len(feeds):
        raise UnsupportedError("its stream does not stand in copies")
    rotary = {}
    for kind, windowed in ((_FULL, False), (_SLIDING, True)):
        own = next((m.rotary for m in mixers if (m.window is not None) is windowed), first.rotary)
        if own is None:
            raise UnsupportedError("it has layers without rotary positions")
        scaling = {"rope_type": "default"} if own.scaling is None else scaling_settings(own.scaling)
        rotary[kind] = {"rope_theta": own.theta, **scaling}
    return {
        "vocab_size": config.vocab_size,
        "vocab_size_per_layer_input": config.vocab_size if config.layer_vocab is None else config.layer_vocab,
        "hidden_size": config.d_model,
        "hidden_size_per_layer_input": config.layer_embedding,
        "intermediate_size": [feed.d_ff for feed in dense],
        "activation_sparsity_pattern": [feed.sparsity for feed in dense],
        "hidden_activation": ACTIVATION_NAMES.get(dense[0].activation, dense[0].activation),
        "altup_num_inputs": copies.n,
        "altup_active_idx": 0,
        "altup_correct_scale": True,
        "laurel_rank": copies.rank,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": first.n_heads,
        "num_key_value_heads": first.n_kv_heads,
        "head_dim": first.d_head,
        "attention_bias": first.bias,
        "num_kv_shared_layers": len(config.keys_from),
        "sliding_window": one_window(config) or 512,
        "layer_types": layer_types(config),
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied,
        "final_logit_softcapping": config.logit_softcap,
        "rope_parameters": rotary,
    }


GEMMA3N = Family(
    name="gemma3n_text",
    architecture="Gemma3nForCausalLM",
    base="Gemma3nTextModel",
    rows=_rows(),
    read=_read,
    write=_write,
    prefixes=("model.", "model.language_model.", "language_model.model.", ""),
    only={"altup_active_idx": (0,), "altup_correct_scale": (True,)},
    ignored=IGNORED,
    inside={"gemma3n": "text_config"},
    no_effect=frozenset({"altup_coef_clip"}),
)
