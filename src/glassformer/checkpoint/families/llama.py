"""Llama and what grew from it: SmolLM, Mistral, Qwen2, Qwen3. One tensor table, four sets of settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family, GgufLayout
from glassformer.checkpoint.families.gguf_settings import refuse_unread
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    all_rotated,
    attention_of,
    feed_forward_of,
    gguf_rope,
    gguf_rope_settings,
    layer_types,
    one_rotation,
    one_window,
    rope,
    rope_settings,
    rotary_of,
    windows,
)
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config, FeedForward, Norm, Rotary, uniform

_LAYER, _BLOCK = "model.layers.{i}.", "blocks.{i}."

ROWS: tuple[Row, ...] = (
    row("model.embed_tokens.weight", "embed.weight"),
    row(_LAYER + "input_layernorm.weight", _BLOCK + "ln1.weight"),
    *(row(f"{_LAYER}self_attn.{p}_proj.{t}", f"{_BLOCK}attn.{p}.{t}") for p in "qkvo" for t in ("weight", "bias")),
    *(row(f"{_LAYER}self_attn.{p}_norm.weight", f"{_BLOCK}attn.{p}_norm.weight") for p in "qk"),
    row(_LAYER + "post_attention_layernorm.weight", _BLOCK + "ln2.weight"),
    *(
        row(f"{_LAYER}mlp.{p}_proj.{t}", f"{_BLOCK}mlp.{p}.{t}")
        for p in ("gate", "up", "down")
        for t in ("weight", "bias")
    ),
    row("model.norm.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)


QK_NORMS = ("attn.q_norm", "attn.k_norm")
_PARTS = ("embed", "ln1", *(f"attn.{p}" for p in "qkvo"), "ln2", "mlp.gate", "mlp.up", "mlp.down", "final")


def gguf_rows(*more: str, biases: str = "", pairs: str = "half", shift: bool = False) -> tuple[Row, ...]:
    """The tensors that llama.cpp looks for in one of its Llama-like architectures.

    Args:
        more: parts that it has beside Llama's.
        biases: of which matrices: any of q, k, v, o and f for the feed-forward ones.
        pairs, shift: as of `GgufTable`.
    """
    held = {f"{part}.weight" for part in (*_PARTS, *more)}
    held |= {f"{part}.bias" for part in _PARTS if part[-1:] in biases or (part[:4] == "mlp." and "f" in biases)}
    rows = GgufTable("", pairs=pairs, shift=shift).tensors()
    return tuple(line for line in rows if line.ours[0].removeprefix(_BLOCK) in held)


def _read(name: str, attributes: Attributes) -> Config:
    """config.json of any of the four, which differ in their defaults and in what they leave unsaid."""
    all_rotated(attributes)
    one_rotation(attributes)
    heads = attributes.integer("num_attention_heads")
    d_model = attributes.integer("hidden_size")
    layers = attributes.layers("num_hidden_layers")
    context = attributes.integer("max_position_embeddings", {"llama": 2048, "mistral": 131_072}.get(name, 32_768))
    theta, scaling = rope(attributes, context, attributes.number("rope_theta", 10_000.0))
    if scaling is not None and scaling.kind == "dynamic":  # made to go on beyond what it was trained for
        context = round(context * scaling.factor)
    bias = name == "qwen2" or (name != "mistral" and attributes.flag("attention_bias", False))
    return uniform(
        vocab_size=attributes.integer("vocab_size"),
        d_model=d_model,
        n_layers=layers,
        context=context,
        mixer=Attention(
            n_heads=heads,
            n_kv_heads=attributes.integer("num_key_value_heads", 8 if name == "mistral" else None, null=True) or heads,
            d_head=attributes.integer("head_dim", 128 if name == "qwen3" else None, null=True)
            or attributes.share("hidden_size", d_model, "num_attention_heads", heads),
            bias=bias,
            out_bias=bias and name != "qwen2",
            qk_norm="head" if name == "qwen3" else None,
            rotary=Rotary(theta, scaling=scaling),
        ),
        feed_forward=FeedForward(
            attributes.integer("intermediate_size"),
            activation=activation(attributes, "hidden_act", "silu"),
            bias=name == "llama" and attributes.flag("mlp_bias", False),
        ),
        norm=Norm("rms", eps=attributes.number("rms_norm_eps", 1e-6)),
        windows=_windows(name, attributes, layers),
        tied=attributes.flag("tie_word_embeddings", False),
    )


def _trained(config: Config) -> int:
    """The context that a config.json names: of dynamic scaling, the length before it sets in."""
    scaling = rotary_of(config).scaling
    return scaling.original_context if scaling is not None and scaling.kind == "dynamic" else config.context


def _windows(name: str, attributes: Attributes, layers: int) -> tuple[int | None, ...]:
    window = attributes.integer("sliding_window", 4096, null=True)
    if name in ("llama", "mistral"):
        if name == "llama":
            window = None
        every = "full_attention" if window is None else "sliding_attention"
        kinds = attributes.sequence("layer_types") or []
        if any(kind != every for kind in kinds):
            raise attributes.unsupported("layer_types", kinds)
        return () if window is None else (window,) * layers
    if not attributes.flag("use_sliding_window", False):
        window = None
    first = attributes.integer("max_window_layers", 28)
    return windows(attributes, layers, window, lambda i: window is not None and i >= first)


def _write(name: str, config: Config) -> dict[str, Any]:
    attention, feed, window = attention_of(config), feed_forward_of(config), one_window(config)
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": feed.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.d_head,
        "hidden_act": ACTIVATION_NAMES[feed.activation],
        "max_position_embeddings": _trained(config),
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.tied,
        **rope_settings(config),
    }
    if name == "llama":
        settings |= {"attention_bias": attention.bias, "mlp_bias": feed.bias}
    elif name == "mistral":
        settings["sliding_window"] = window
    else:
        settings |= {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": layer_types(config),
            "max_window_layers": next((i for i in range(config.n_layers) if config.window(i)), config.n_layers),
        }
    if name == "qwen3":
        settings["attention_bias"] = attention.bias
    return settings


def read_gguf(attributes: Attributes, shapes: Mapping[str, Shape]) -> Config:
    """Any Llama-like architecture's settings; what a tensor's presence says is read from the tensors."""
    refuse_unread(attributes)
    heads = attributes.integer("attention.head_count")
    d_model = attributes.integer("embedding_length")
    d_head = attributes.integer("attention.key_length", None) or attributes.share(
        "embedding_length", d_model, "attention.head_count", heads
    )
    attributes.only("attention.value_length", d_head)
    rotated = attributes.integer("rope.dimension_count", d_head)
    return uniform(
        vocab_size=shapes.get("token_embd.weight", (attributes.integer("vocab_size", 0),))[0],
        d_model=d_model,
        n_layers=attributes.layers("block_count"),
        context=attributes.integer("context_length"),
        mixer=Attention(
            n_heads=heads,
            n_kv_heads=attributes.integer("attention.head_count_kv", heads),
            d_head=d_head,
            bias="blk.0.attn_q.bias" in shapes,
            out_bias="blk.0.attn_output.bias" in shapes,
            qk_norm="head" if "blk.0.attn_q_norm.weight" in shapes else None,
            rotary=Rotary(
                theta=attributes.number("rope.freq_base", 10_000.0),
                fraction=1.0 if rotated == d_head else rotated / d_head,
                scaling=gguf_rope(attributes),
            ),
        ),
        feed_forward=FeedForward(attributes.integer("feed_forward_length"), bias="blk.0.ffn_down.bias" in shapes),
        norm=Norm("rms", eps=attributes.number("attention.layer_norm_rms_epsilon")),
        tied="output.weight" not in shapes,
    )


def write_gguf(config: Config) -> dict[str, Any]:
    """`read_gguf` the other way."""
    attention, feed = attention_of(config), feed_forward_of(config)
    return {
        "block_count": config.n_layers,
        "context_length": config.context,
        "embedding_length": config.d_model,
        "feed_forward_length": feed.d_ff,
        "attention.head_count": attention.n_heads,
        "attention.head_count_kv": attention.n_kv_heads,
        "attention.key_length": attention.d_head,
        "attention.value_length": attention.d_head,
        "attention.layer_norm_rms_epsilon": config.norm.eps,
        **gguf_rope_settings(config),
    }


def _write_qwen2(config: Config) -> dict[str, Any]:
    if not attention_of(config).bias:
        raise UnsupportedError("attention.bias False has no place in a GGUF of Qwen2.")
    return write_gguf(config)


_IGNORED = (r"(^|\.)rotary_emb\.inv_freq$",)


def _family(name: str, stem: str, gguf: GgufLayout) -> Family:
    return Family(
        name=name,
        architecture=f"{stem}ForCausalLM",
        base=f"{stem}Model",
        rows=ROWS,
        read=partial(_read, name),
        write=partial(_write, name),
        prefixes=("model.", ""),
        ignored=_IGNORED,
        gguf=gguf,
    )


_GGUF_LLAMA = GgufLayout(
    "llama", partial(gguf_rows, "unembed", biases="qkvof", pairs="neighbours"), read_gguf, write_gguf, factors=True
)

LLAMA = _family("llama", "Llama", _GGUF_LLAMA)
MISTRAL = _family("mistral", "Mistral", _GGUF_LLAMA)
_ROWS2, _ROWS3 = partial(gguf_rows, "unembed", biases="qkv"), partial(gguf_rows, "unembed", *QK_NORMS)
QWEN2 = _family("qwen2", "Qwen2", GgufLayout("qwen2", _ROWS2, read_gguf, _write_qwen2))
QWEN3 = _family("qwen3", "Qwen3", GgufLayout("qwen3", _ROWS3, read_gguf, write_gguf))
