"""RecurrentGemma: two layers of a gated linear recurrence, then one of attention with a window."""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.hybrid import Flags, Hybrid, Layers
from glassformer.checkpoint.families.settings import ACTIVATION_NAMES, activation, one_window
from glassformer.checkpoint.tables import Row
from glassformer.errors import UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Attention, Config, FeedForward, GatedLinearRecurrence, Norm

_AT, _BLOCK = "temporal_block.", "blocks.{i}.lru."
_ROWS = (
    Row(_AT + "conv_1d.weight", (_BLOCK + "conv.weight",), squeezed=1),
    Row(_AT + "conv_1d.bias", (_BLOCK + "conv.bias",)),
    Row(_AT + "rg_lru.recurrent_param", (_BLOCK + "rate",)),
    *(
        Row(f"{_AT}linear_{theirs}.{kind}", (f"{_BLOCK}{ours}.{kind}",))
        for theirs, ours in (("y", "gate"), ("x", "x"), ("out", "o"))
        for kind in ("weight", "bias")
    ),
    *(
        Row(f"{_AT}rg_lru.{theirs}_gate_{kind}", (f"{_BLOCK}{ours}.{kind}",), transposed=kind == "weight")
        for theirs, ours in (("input", "gate_in"), ("recurrent", "keep"))
        for kind in ("weight", "bias")
    ),
)
_USUAL = ("recurrent", "recurrent", "attention")


def _kinds(attributes: Attributes, layers: int) -> Flags:
    said = attributes.sequence("block_types") or _USUAL
    if not set(said) <= set(_USUAL):
        raise attributes.unsupported("block_types", said)
    return [said[i % len(said)] == "recurrent" for i in range(layers)]


def _said(flags: Flags) -> dict[str, Any]:
    """The shortest round of layers that gives these."""
    for length in range(1, len(flags) + 1):
        if all(flag is flags[i % length] for i, flag in enumerate(flags)):
            return {"block_types": [_USUAL[0] if flag else _USUAL[2] for flag in flags[:length]]}
    raise AssertionError


def _read(config: Config, attributes: Attributes) -> Config:
    """Windows everywhere, feed-forward parts of half the width that is said, and embeddings scaled as they are."""
    window = attributes.integer("attention_window_size", 2048)
    layers = []
    for layer in config.layers:
        assert isinstance(layer.mixer, Attention)
        assert isinstance(layer.feed_forward, FeedForward)
        half = dataclasses.replace(layer.feed_forward, d_ff=layer.feed_forward.d_ff // 2)
        layers.append(
            dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, window=window), feed_forward=half)
        )
    return dataclasses.replace(config, layers=tuple(layers), embedding_scale=_in_bfloat16(math.sqrt(config.d_model)))


def _write(config: Config) -> dict[str, Any]:
    feed = config.layers[0].feed_forward
    assert isinstance(feed, FeedForward)
    return {"intermediate_size": 2 * feed.d_ff, "attention_window_size": one_window(config)}


def _in_bfloat16(value: float) -> float:
    """A number rounded to bfloat16, to even where it is in the middle."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    found: float = struct.unpack("<f", struct.pack("<I", rounded))[0]
    return found


def _recurrence(attributes: Attributes, config: Config) -> Mixer:
    return GatedLinearRecurrence(
        attributes.integer("lru_width", config.d_model, null=True) or config.d_model,
        attributes.integer("num_attention_heads", 10),
        attributes.integer("conv1d_width", 4),
        activation(attributes, "hidden_activation", "gelu_pytorch_tanh"),
    )


def _recurrence_settings(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    if mixer is None:
        return {}
    if not isinstance(mixer, GatedLinearRecurrence):
        raise UnsupportedError("it has layers that are neither attention nor a gated linear recurrence")
    return {
        "lru_width": mixer.width,
        "conv1d_width": mixer.conv,
        "num_attention_heads": mixer.blocks,
        "hidden_activation": ACTIVATION_NAMES.get(mixer.activation, mixer.activation),
    }


RECURRENT_GEMMA = Hybrid(
    Alike(
        "recurrent_gemma",
        "RecurrentGemma",
        keys={"activation": "hidden_activation", "logit_softcap": "logits_soft_cap"},
        names={
            "ln1": "temporal_pre_norm",
            "ln2": "channel_pre_norm",
            **{f"attn.{part}": f"{_AT}{part}_proj" for part in "qkvo"},
            **{f"mlp.{part}": f"mlp_block.{part}_proj" for part in ("gate", "up", "down")},
        },
        outside={"final": "model.final_norm"},
        norm=Norm("rms", one_plus=True),
        fraction=0.5,
        fixed={"out_bias": True, "mlp_bias": True, "d_head": None},
        defaults={
            "activation": "gelu_pytorch_tanh",
            "eps": 1e-6,
            "tied": True,
            "logit_softcap": 30.0,
            "context": 8192,
        },
        read=_read,
        write=_write,
        no_effect=frozenset(
            {
                *("head_dim", "w_init_variance_scale", "final_w_init_variance_scale", "_block_types"),
                "embeddings_scale_by_sqrt_dim",
            }
        ),
    ),
    _ROWS,
    Layers(_kinds, _said),
    _recurrence,
    _recurrence_settings,
)
