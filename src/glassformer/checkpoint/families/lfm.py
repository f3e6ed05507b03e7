"""LFM2, with experts and without: layers of a short convolution and layers of attention."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.hybrid import Hybrid, Layers, by_types
from glassformer.checkpoint.families.sparse import Layers as ExpertLayers
from glassformer.checkpoint.families.sparse import Sparse, each, fused, one
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Config, FeedForward, ShortConvolution

_IN = tuple(f"blocks.{{i}}.conv.{part}" for part in ("gate_in", "gate", "v"))
_ROWS = (
    Row("conv.conv.weight", ("blocks.{i}.conv.conv.weight",), squeezed=1),
    Row("conv.conv.bias", ("blocks.{i}.conv.conv.bias",)),
    *(Row(f"conv.in_proj.{kind}", tuple(f"{part}.{kind}" for part in _IN)) for kind in ("weight", "bias")),
    *(Row(f"conv.out_proj.{kind}", (f"blocks.{{i}}.conv.o.{kind}",)) for kind in ("weight", "bias")),
)
_NAMES = {
    "ln1": "operator_norm",
    "ln2": "ffn_norm",
    "attn.o": "self_attn.out_proj",
    "attn.q_norm": "self_attn.q_layernorm",
    "attn.k_norm": "self_attn.k_layernorm",
    **{f"mlp.{ours}": f"feed_forward.{theirs}" for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))},
}
_COMMON: dict[str, Any] = {
    "keys": {"eps": "norm_eps"},
    "names": _NAMES,
    "outside": {"final": "model.embedding_norm"},
    "fixed": {"bias": False, "out_bias": False, "mlp_bias": False, "qk_norm": "head", "activation": "silu"},
    "defaults": {"eps": 1e-5, "theta": 1_000_000.0, "n_kv_heads": 8, "context": 128_000},
    "ignored": (r"(^|\.)(rotary_emb|pos_emb)\.inv_freq$",),
}
# What training and older code wrote beside the settings that are read.
_NO_EFFECT = frozenset(
    {
        *("block_dim", "block_norm_eps", "block_mlp_init_scale", "block_out_init_scale", "block_use_swiglu"),
        *("block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "theta"),
        "use_pos_enc",
    }
)


def _tied(config: Config, attributes: Attributes) -> Config:
    """An older name of the ties comes first; neither said, they are."""
    tied = attributes.flag("tie_embedding", attributes.flag("tie_word_embeddings", True))
    return dataclasses.replace(config, tied=tied)


def _adjusted(config: Config, attributes: Attributes) -> Config:
    """Feed-forward parts are as wide as said, or two thirds of that, times a factor, up to the next multiple."""
    width = attributes.integer("block_ff_dim", attributes.integer("intermediate_size", 12288))
    if attributes.flag("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        times = attributes.number("block_ffn_dim_multiplier", 1.0)
        if times is not None:
            unit = attributes.integer("block_multiple_of", 256)
            width = unit * -(-int(times * width) // unit)
    else:
        for name in ("block_ffn_dim_multiplier", "block_multiple_of"):
            attributes.asked.add(name)
    layers = []
    for layer in config.layers:
        assert isinstance(layer.feed_forward, FeedForward)
        layers.append(dataclasses.replace(layer, feed_forward=dataclasses.replace(layer.feed_forward, d_ff=width)))
    return _tied(dataclasses.replace(config, layers=tuple(layers)), attributes)


def _kinds() -> Layers:
    typed = by_types(lambda layer: False, names={"conv": True, "full_attention": False})

    def read(attributes: Attributes, layers: int) -> list[bool]:
        listed = attributes.sequence("full_attn_idxs")
        if listed is None or attributes.sequence("layer_types") is not None:
            return typed.read(attributes, layers)
        if not set(listed) <= set(range(layers)):
            raise CheckpointError(f"{attributes.where} names {listed} as full_attn_idxs of {layers} layers.")
        return [i not in listed for i in range(layers)]

    return Layers(read, typed.write)


def _read(attributes: Attributes, config: Config) -> Mixer:
    bias = attributes.flag("conv_bias", False)
    return ShortConvolution(config.d_model, attributes.integer("conv_L_cache", 3), bias, bias)


def _write(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    found = ShortConvolution(config.d_model) if mixer is None else mixer
    if not isinstance(found, ShortConvolution):
        raise UnsupportedError("it has layers that are neither attention nor a short convolution")
    return {"conv_L_cache": found.conv, "conv_bias": found.conv_bias}


def _hybrid(alike: Alike) -> Hybrid:
    return Hybrid(alike, _ROWS, _kinds(), _read, _write, no_effect=_NO_EFFECT)


def _dense_first(attributes: Attributes, layers: int) -> list[bool]:
    first = attributes.integer("num_dense_layers", 2)
    return [i >= first for i in range(layers)]


_ROUTED = (
    one("feed_forward.gate.weight", "router.weight"),
    one("feed_forward.expert_bias", "correction"),
)

LFM = (
    _hybrid(
        Alike(
            "lfm2",
            "Lfm2",
            **_COMMON,
            read=_adjusted,
            write=lambda config: {"block_auto_adjust_ff_dim": False},
        )
    ),
    Sparse(
        _hybrid(Alike("lfm2_moe", "Lfm2Moe", **_COMMON, read=_tied)),
        (*_ROUTED, *each("feed_forward.experts.{e}.", ("w1", "w3", "w2"))),
        stacked=((*_ROUTED, *fused("feed_forward.experts.")),),
        n_experts=("num_experts",),
        fixed={"scores": "sigmoid"},
        keys={"renormalise": "norm_topk_prob", "scale": "routed_scaling_factor", "correction": "use_expert_bias"},
        defaults={"renormalise": True, "correction": True, "n_active": 4, "n_experts": 32, "d_ff": 1792},
        layers=ExpertLayers(
            _dense_first, lambda flags: {"num_dense_layers": flags.index(True) if True in flags else len(flags)}
        ),
    ),
)
