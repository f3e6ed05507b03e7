"""LFM2, with experts and without, and LFM3: layers of a short convolution and layers of attention."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_settings import has
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes, sharing
from glassformer.checkpoint.families.hybrid import Hybrid, Layers, by_types
from glassformer.checkpoint.families.settings import one_window, rope, rope_kinds, scaling_settings
from glassformer.checkpoint.families.sparse import Layers as ExpertLayers
from glassformer.checkpoint.families.sparse import Sparse, each, fused, one
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Attention, Config, FeedForward, Placement, Rotary, ShortConvolution

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


def _read(attributes: Attributes, config: Config, spans: int = 3) -> Mixer:
    bias = attributes.flag("conv_bias", False)
    return ShortConvolution(config.d_model, attributes.integer("conv_L_cache", spans), bias, bias)


def _write(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    found = ShortConvolution(config.d_model) if mixer is None else mixer
    if not isinstance(found, ShortConvolution):
        raise UnsupportedError("it has layers that are neither attention nor a short convolution")
    return {"conv_L_cache": found.conv, "conv_bias": found.conv_bias}


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    kinds = has(shapes, "shortconv.in_proj.weight", attributes.layers("block_count"))
    return {
        "conv_L_cache": attributes.integer("shortconv.l_cache"),
        "layer_types": ["conv" if kind else "full_attention" for kind in kinds],
        "block_auto_adjust_ff_dim": False,
    }


_GGUF = GgufTable(
    "lfm2",
    names={"final": "token_embd_norm"},
    by_layer=("attention.head_count_kv",),
    implied={"conv_bias": False},
    read=_read_gguf,
)


def _hybrid(alike: Alike, gguf: GgufTable | None = None) -> Hybrid:
    return Hybrid(alike, _ROWS, _kinds(), _read, _write, no_effect=_NO_EFFECT, gguf=gguf)


# LFM3: windows and a rotation of its own in some of the attention layers, gates on heads, norms after the parts

_KINDS = {"conv": None, "full_attention": False, "sliding_attention": True}
_ROTATIONS: dict[str, dict[str, Any]] = {
    "full_attention": {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}


def _usual(layer: int) -> str:
    return "full_attention" if layer % 4 == 2 else "sliding_attention" if layer % 4 == 0 and layer else "conv"


def _third(config: Config, attributes: Attributes) -> Config:
    parameters = rope_kinds(attributes) or _ROTATIONS
    rotations = {}
    for kind, usual in _ROTATIONS.items():
        theta, scaling = rope(attributes, config.context, usual["rope_theta"], parameters.get(kind, usual))
        rotations[kind] = Rotary(theta, scaling=scaling)
    window = attributes.integer("sliding_window", 256, null=True)
    norms: Placement = "both" if attributes.flag("use_sandwich_norm", True) else "before"
    gate = "head" if attributes.flag("use_attention_gate", True) else None
    kinds = attributes.sequence("layer_types") or [_usual(i) for i in range(config.n_layers)]
    layers = []
    for layer, kind in zip(config.layers, kinds, strict=False):
        slides = kind == "sliding_attention"
        if slides and window is None:
            raise CheckpointError(f"{attributes.where} has sliding_attention layers and no sliding_window.")
        mixer = dataclasses.replace(
            layer.mixer,  # type: ignore[type-var]
            rotary=rotations["sliding_attention" if slides else "full_attention"],
            window=window if slides else None,
            gate=gate,
        )
        layers.append(dataclasses.replace(layer, mixer=mixer, norms=norms))
    return dataclasses.replace(config, layers=(*layers, *config.layers[len(layers) :]))


@dataclass(frozen=True)
class _Third(Hybrid):
    """Layers of three kinds: short convolutions, attention to everything, attention with a window."""

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        kinds, rotations = [], dict(_ROTATIONS)
        for layer in config.layers:
            mixer = layer.mixer
            if not isinstance(mixer, Attention):
                kinds.append("conv")
                continue
            kinds.append("full_attention" if mixer.window is None else "sliding_attention")
            if mixer.rotary is None:
                raise UnsupportedError("it has attention without rotary positions")
            scaling = mixer.rotary.scaling
            said = {"rope_type": "default"} if scaling is None else scaling_settings(scaling)
            rotations[kinds[-1]] = {**said, "rope_theta": mixer.rotary.theta}
        gates = {layer.mixer.gate for layer in config.layers if isinstance(layer.mixer, Attention)}
        return {
            **super().settings(config),
            "layer_types": kinds,
            "rope_parameters": rotations,
            "sliding_window": one_window(config),
            "use_sandwich_norm": config.layers[0].norms == "both",
            "use_attention_gate": gates != {None},
        }


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
        ),
        _GGUF,
    ),
    _Third(
        Alike(
            "lfm3",
            "Lfm3",
            keys=_COMMON["keys"],
            names={
                **{ours: theirs for ours, theirs in _NAMES.items() if not ours.startswith("attn.")},
                "ln1_post": "post_operator_norm",
                "ln2_post": "post_ffn_norm",
                "attn.gate": "self_attn.gate_proj",
            },
            outside=_COMMON["outside"],
            fixed={"mlp_bias": False, "qk_norm": "head", "activation": "silu"},
            defaults={"eps": 1e-5, "n_kv_heads": 4, "d_head": 128, "context": 128_000, "tied": True},
            rotates=False,
            read=_third,
        ),
        _ROWS,
        by_types(lambda layer: _usual(layer) == "conv", names={name: kind is None for name, kind in _KINDS.items()}),
        functools.partial(_read, spans=7),
        _write,
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
        gguf=sharing(_GGUF, architecture="lfm2moe", dense="first"),
    ),
)
