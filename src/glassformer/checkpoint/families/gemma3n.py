"""The text part of Gemma 3n: a stream in copies, embeddings of tokens in every layer, shared keys and values."""

from __future__ import annotations

import math
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import KEYS
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gemma4 import BLOCK, GGUF_ROWS, IGNORED, LAYER, ROWS, shared_from
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    layer_types,
    one_window,
    rope,
    rope_kinds,
    scaling_settings,
    windows,
)
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Copies, LayerEmbedding, Rotary
from glassformer.model.config import Attention, Config, FeedForward, Layer, Norm

_FULL, _SLIDING = "full_attention", "sliding_attention"
_MOST_COPIES = 64


def _rows() -> tuple[Row, ...]:
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


def _each(attributes: Attributes, name: str, layers: int, default: object) -> list[Any]:
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
    own = rope_kinds(attributes).get(kind) or {}
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


def _gguf_rows() -> tuple[Row, ...]:
    at, names = (
        "blk.{i}.",
        {"router_norm": "norm", "router": "router", "predict_coef": "predict", "correct_coef": "correct"},
    )
    laurel = {"laurel_l": "down", "laurel_r": "up", "laurel_post_norm": "norm"}
    own = ("per_layer_", at + "inp_gate", at + "proj", at + "post_norm")
    return (
        *(line for line in GGUF_ROWS if line.theirs.startswith(own)),
        *(row(f"{at}altup_{a}.weight", f"{BLOCK}copies.{b}.weight") for a, b in names.items()),
        row(at + "altup_correct_scale.weight", f"{BLOCK}copies.scale"),
        *(row(f"{at}{a}.weight", f"{BLOCK}laurel.{b}.weight") for a, b in laurel.items()),
        row("altup_proj.weight", *(f"spread.{i}.weight" for i in range(3)), cut="parts"),
        row("altup_unembd_proj.weight", *(f"gather.{i}.weight" for i in range(3)), cut="parts"),
    )


_CAP = 30.0  # of logits, whatever a file says
_OWN_KEYS, _SPARSE = 20, 10  # layers with keys of their own, and with sparse neurons, in both published models


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    layers, theta = attributes.layers("block_count"), attributes.number("rope.freq_base", 1_000_000.0)
    attributes.only("altup.active_idx", 0)
    attributes.only("final_logit_softcapping", _CAP)
    near = attributes.number("rope.freq_base_swa", 10_000.0)
    rows = shapes.get("per_layer_token_embd.weight", (found["vocab_size"],))[0]
    return {
        "num_kv_shared_layers": max(layers - _OWN_KEYS, 0),
        "activation_sparsity_pattern": [0.95 if i < _SPARSE else 0.0 for i in range(layers)],
        "altup_num_inputs": attributes.integer("altup.num_inputs", 4),
        "laurel_rank": shapes.get("blk.0.laurel_l.weight", (64,))[0],
        "hidden_size_per_layer_input": attributes.integer("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": rows,
        "sliding_window": attributes.integer("attention.sliding_window"),
        "rope_parameters": {_FULL: {"rope_theta": theta}, _SLIDING: {"rope_theta": near}},
        "rope_scaling": found["rope_scaling"] or {},
        "final_logit_softcapping": _CAP,
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    mixers = [config.attention(i) for i in range(config.n_layers)]
    near = next((m.rotary for m in mixers if m.window is not None), mixers[0].rotary)
    first, copies = config.n_layers - len(config.keys_from), config.layers[0].copies
    if copies is None or (copies.n, copies.rank, config.layer_embedding) != (4, 64, 256):
        raise UnsupportedError("llama.cpp expects 4 copies, LAuReL of rank 64 and layers' embeddings of 256 numbers.")
    if config.logit_softcap != _CAP:
        raise UnsupportedError(f"llama.cpp caps the logits of Gemma 3n at {_CAP:g}, not at {config.logit_softcap}.")
    if any(m.keys_from not in (None, first - (1 if m.window is None else 2)) for m in mixers):
        raise UnsupportedError("llama.cpp takes shared keys and values from the last two layers that have their own.")
    return {
        "altup.num_inputs": copies.n,
        "altup.active_idx": 0,
        "embedding_length_per_layer_input": config.layer_embedding,
        "attention.shared_kv_layers": len(config.keys_from),
        "rope.freq_base_swa": 10_000.0 if near is None else near.theta,
        "feed_forward_length": [x.feed_forward.d_ff for x in config.layers if x.feed_forward is not None],
    }


def _unused(config: Config) -> dict[str, Shape]:
    """Keys and values of the layers that use others', which published files hold."""
    a = config.attention(0)
    width = a.n_kv_heads * a.d_head
    shapes = {"attn_k": (width, config.d_model), "attn_v": (width, config.d_model), "attn_k_norm": (a.d_head,)}
    return {f"blk.{i}.{name}.weight": shape for i in config.keys_from for name, shape in shapes.items()}


_GGUF = GgufTable(
    "gemma3n",
    zeros=_unused,
    rows=_gguf_rows(),
    period=5,
    by_layer=("feed_forward_length",),
    settings={"feed_forward_length": "intermediate_size"},
    read=_read_gguf,
    write=_write_gguf,
    ignored=(r"^blk\.\d+\.attn_(k|v|k_norm)\.weight$",),
)
_KEYS = {**KEYS, "logit_softcap": "final_logit_softcapping", **dict.fromkeys(("d_ff", "mlp_bias"))}

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
    gguf=_GGUF.layout(_read, _write, _KEYS.get),
    no_effect=frozenset({"altup_coef_clip"}),
)
