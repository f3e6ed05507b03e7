"""Families whose layers differ in shape: other heads, positions, sinks or gates in layers with a window."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.experts import GROUPED, GROUPED_ROWS
from glassformer.checkpoint.families.llama_alike import LLAMA_ALIKE
from glassformer.checkpoint.families.settings import rope, scaling_settings
from glassformer.checkpoint.families.sparse import LISTED, Layers, Sparse, each, experts_of, fused, one, shared
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Rotary
from glassformer.model.config import Attention, Config, Experts, Norm

_GRANITE = next(family for family in LLAMA_ALIKE if family.name == "granite")
_KINDS = {False: "full_attention", True: "sliding_attention"}


def each_layer(config: Config, change: Callable[[int, Attention], Attention]) -> Config:
    """The design with every layer's attention changed."""
    layers = []
    for i, layer in enumerate(config.layers):
        assert isinstance(layer.mixer, Attention)
        layers.append(dataclasses.replace(layer, mixer=change(i, layer.mixer)))
    return dataclasses.replace(config, layers=tuple(layers))


# Rotary positions by kind of layer


def by_kind(attributes: Attributes) -> dict[str, Any]:
    """Rotary settings of the two kinds of layers apart, where they are: those of layers with a window as "local rope".

    A kind whose settings are null does not rotate: "still" names these kinds.
    """
    kinds = attributes.table("rope_parameters")
    if not any(kind in kinds for kind in _KINDS.values()):
        return {}
    still = [kind for kind in _KINDS.values() if kind in kinds and kinds[kind] is None]
    return {
        "rope_parameters": kinds.get("full_attention") or {},
        "local rope": kinds.get("sliding_attention") or {},
        "still": still,
    }


def two_rotaries(config: Config, attributes: Attributes, fraction: float = 1.0) -> Config:
    """What `by_kind` found, in the layers with a window and in those that do not rotate.

    Args:
        fraction: the rotated share of layers with a window, where no setting says so.
    """
    local, still = attributes.table("local rope"), attributes.sequence("still") or []
    if local:
        theta, scaling = rope(attributes, config.context, 10_000.0, local)
        share = attributes.inside(local, "rope_parameters").number("partial_rotary_factor", fraction)
        near = Rotary(theta, share, scaling)

    def change(i: int, mixer: Attention) -> Attention:
        windowed = mixer.window is not None
        if _KINDS[windowed] in still:
            return dataclasses.replace(mixer, rotary=None)
        return dataclasses.replace(mixer, rotary=near) if windowed and local else mixer

    return each_layer(config, change)


def rotary_kinds(config: Config) -> dict[str, Any]:
    """`by_kind` the other way."""
    found: dict[str, Any] = {}
    for layer in config.layers:
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            continue
        kind, rotary = _KINDS[mixer.window is not None], mixer.rotary
        if rotary is None:
            found.setdefault(kind, None)
            continue
        scaling = {"rope_type": "default"} if rotary.scaling is None else scaling_settings(rotary.scaling)
        own = {"rope_theta": rotary.theta, "partial_rotary_factor": rotary.fraction, **scaling}
        found.setdefault(kind, own)
    missing = {"rope_theta": 10_000.0, "rope_type": "default"}
    return {"rope_parameters": {kind: found.get(kind, missing) for kind in _KINDS.values()}}


# Granite with sinks


def _granite_sinks(config: Config, attributes: Attributes) -> Config:
    """Sinks, a rotary base for each layer (0 for none), and logits that are divided."""
    bases = attributes.sequence("layer_rope_theta")
    if bases is not None and len(bases) != config.n_layers:
        raise CheckpointError(f"{attributes.where} names {len(bases)} layer_rope_theta for {config.n_layers} layers.")

    def change(i: int, mixer: Attention) -> Attention:
        rotary = mixer.rotary
        if bases is not None and rotary is not None:
            rotary = dataclasses.replace(rotary, theta=float(bases[i])) if bases[i] else None
        return dataclasses.replace(mixer, sink=True, rotary=rotary)

    assert _GRANITE.read is not None
    return _GRANITE.read(each_layer(config, change), attributes)


def _granite_settings(config: Config) -> dict[str, Any]:
    assert _GRANITE.write is not None
    rotary = [config.attention(i).rotary for i in range(config.n_layers)]
    return {
        **_GRANITE.write(config),
        "layer_rope_theta": [0.0 if one is None else one.theta for one in rotary],
    }


GRANITE_SWA = Alike(
    "granite_swa",
    "GraniteSWA",
    keys=_GRANITE.keys,
    bare={"attn.sink": "self_attn.sinks"},
    slides=lambda i: bool(i % 4),
    defaults={**_GRANITE.defaults, "window": 128, "tied": True},
    read=_granite_sinks,
    write=_granite_settings,
)


# AFMoE


def _afmoe_kinds(attributes: Attributes) -> dict[str, Any]:
    every = attributes.integer("global_attn_every_n_layers", 4)
    if attributes.sequence("layer_types") is not None or every < 1:
        return {}
    layers = attributes.layers("num_hidden_layers")
    return {"layer_types": [_KINDS[bool((i + 1) % every)] for i in range(layers)]}


def _afmoe(config: Config, attributes: Attributes) -> Config:
    config = each_attention(config, gate="element")
    if not attributes.flag("mup_enabled", False):
        return config
    return dataclasses.replace(config, embedding_scale=math.sqrt(config.d_model))


_NUM_DENSE = Layers(
    lambda attributes, layers: [i >= attributes.integer("num_dense_layers", 1) for i in range(layers)],
    lambda flags: {"num_dense_layers": flags.index(True) if True in flags else len(flags)},
)
_AFMOE = Sparse(
    Alike(
        "afmoe",
        "Afmoe",
        norms="both",
        fixed={"mlp_bias": False, "qk_norm": "head"},
        names={
            "attn.gate": "self_attn.gate_proj",
            "ln1_post": "post_attention_layernorm",
            "ln2": "pre_mlp_layernorm",
            "ln2_post": "post_mlp_layernorm",
        },
        slides=lambda i: bool((i + 1) % 4),
        rotates_layer=lambda layer, window, attributes: window is not None,
        defaults={"eps": 1e-5, "d_head": 128, "window": 1024},
        read=_afmoe,
        write=lambda config: {"mup_enabled": config.embedding_scale is not None},
    ),
    (
        one("mlp.router.gate.weight", "router.weight"),
        one("mlp.expert_bias", "correction"),
        *each(),
        *shared("mlp.shared_experts."),
    ),
    n_experts=("num_experts",),
    shared=("num_shared_experts", ""),
    fixed={"scores": "sigmoid", "correction": True},
    keys={"scale": "route_scale"},
    layers=_NUM_DENSE,
    before=_afmoe_kinds,
    defaults={"n_active": 6},
)


# Laguna


def _laguna(config: Config, attributes: Attributes) -> Config:
    gating = attributes.values.get("gating", True)
    attributes.only("gating", True, "per-head", "per-element")
    heads = attributes.sequence("num_attention_heads_per_layer")
    if heads is not None and (len(heads) != config.n_layers or not all(type(n) is int for n in heads)):
        raise CheckpointError(
            f"{attributes.where} sets num_attention_heads_per_layer to {heads}; it must be {config.n_layers} numbers."
        )

    def change(i: int, mixer: Attention) -> Attention:
        return dataclasses.replace(
            mixer,
            n_heads=mixer.n_heads if heads is None else heads[i],
            gate="element" if gating == "per-element" else "head",
            gate_activation="softplus",
        )

    return two_rotaries(each_layer(config, change), attributes)


def _laguna_before(attributes: Attributes) -> dict[str, Any]:
    attributes.only("moe_apply_router_weight_on_input", False)
    layers = attributes.layers("num_hidden_layers")
    found: dict[str, Any] = {}
    if attributes.sequence("mlp_layer_types") is None:
        found["mlp_layer_types"] = ["dense", *["sparse"] * (layers - 1)]
    if not attributes.table("rope_parameters"):
        full = {"rope_type": "default", "rope_theta": 500_000.0, "partial_rotary_factor": 0.5}
        return {**found, "rope_parameters": full, "local rope": {"rope_type": "default", "rope_theta": 10_000.0}}
    return {**found, **by_kind(attributes)}


def _laguna_settings(config: Config) -> dict[str, Any]:
    first = config.attention(0)
    if first.gate is None:
        raise UnsupportedError("its attention has no gate")
    heads = [config.n_heads(i) for i in range(config.n_layers)]
    return {
        "gating": "per-head" if first.gate == "head" else "per-element",
        "num_attention_heads": heads[0],
        "num_attention_heads_per_layer": heads,
    }


def _laguna_router(experts: Experts, attributes: Attributes) -> Experts:
    cap = attributes.number("moe_router_logit_softcapping", 0.0)
    return dataclasses.replace(experts, router_cap=cap or None)


def _laguna_more(config: Config) -> dict[str, Any]:
    return {**rotary_kinds(config), "moe_router_logit_softcapping": experts_of(config).router_cap or 0.0}


_LAGUNA = Sparse(
    Alike(
        "laguna",
        "Laguna",
        fixed={"mlp_bias": False, "qk_norm": "head"},
        names={"attn.gate": "self_attn.g_proj"},
        slides=lambda i: False,
        defaults={"eps": 1e-6, "d_head": 128, "n_kv_heads": 8, "window": 512},
        read=_laguna,
        write=_laguna_settings,
    ),
    (
        one("mlp.gate.weight", "router.weight"),
        one("mlp.experts.e_score_correction_bias", "correction"),
        *each(),
        *shared("mlp.shared_expert."),
    ),
    n_experts=("num_experts",),
    shared="shared_expert_intermediate_size",
    fixed={"scores": "sigmoid", "correction": True},
    keys={"scale": "moe_routed_scaling_factor"},
    layers=LISTED,
    before=_laguna_before,
    read=_laguna_router,
    more=_laguna_more,
    defaults={"n_active": 8},
)


# MiMo-V2-Flash


def _mimo_before(attributes: Attributes) -> dict[str, Any]:
    layers = attributes.layers("num_hidden_layers", 48)
    found: dict[str, Any] = {}
    if attributes.sequence("layer_types") is None:
        found["layer_types"] = [_KINDS[i != 0 and bool((i + 1) % 6)] for i in range(layers)]
    if attributes.sequence("mlp_layer_types") is None:
        found["mlp_layer_types"] = ["dense", *["sparse"] * (layers - 1)]
    if (size := attributes.integer("sliding_window_size", None)) is not None:
        found["sliding_window"] = size + 1
    if not attributes.table("rope_parameters"):
        full = {"rope_type": "default", "rope_theta": 5_000_000.0}
        return {**found, "rope_parameters": full, "local rope": {"rope_type": "default", "rope_theta": 10_000.0}}
    return {**found, **by_kind(attributes)}


def _mimo(config: Config, attributes: Attributes) -> Config:
    """Layers with a window have twice the heads of keys, and sinks; heads' values are smaller than their keys."""
    size, scale = attributes.integer("v_head_dim", 128), attributes.number("attention_value_scale", 0.707, null=True)

    def change(i: int, mixer: Attention) -> Attention:
        windowed = mixer.window is not None
        return dataclasses.replace(
            mixer,
            n_kv_heads=mixer.n_kv_heads * (2 if windowed else 1),
            d_value=None if size == mixer.d_head else size,
            value_scale=None if scale == 1 else scale,
            sink=windowed,
        )

    return two_rotaries(each_layer(config, change), attributes, 0.334)


def _mimo_settings(config: Config) -> dict[str, Any]:
    first = config.attention(0)
    return {
        "num_key_value_heads": first.n_kv_heads // (1 if first.window is None else 2),
        "v_head_dim": first.value_size,
        "attention_value_scale": 1.0 if first.value_scale is None else first.value_scale,
    }


_MIMO_ROUTER = GROUPED_ROWS[:2]
_MIMO = Sparse(
    Alike(
        "mimo_v2_flash",
        "MiMoV2Flash",
        fixed={"out_bias": False, "mlp_bias": False},
        fraction=0.334,
        bare={"attn.sink": "self_attn.attention_sink_bias"},
        slides=lambda i: False,
        defaults={"eps": 1e-5, "d_head": 192, "n_kv_heads": 4, "window": 129},
        read=_mimo,
        write=_mimo_settings,
    ),
    (*_MIMO_ROUTER, *each()),
    fixed={"scores": "sigmoid", "correction": True},
    keys=GROUPED["keys"],
    defaults={**GROUPED["defaults"], "n_active": 8},
    n_experts=("n_routed_experts", "num_local_experts"),
    layers=LISTED,
    stacked=((*_MIMO_ROUTER, *fused("mlp.experts.")),),
    before=_mimo_before,
    more=rotary_kinds,
)

# Llama 4

_CHUNKED = {False: "full_attention", True: "chunked_attention"}
_FEED = {f"mlp.{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")}


def _llama4(config: Config, attributes: Attributes) -> Config:
    """Layers that rotate see their chunk and norm queries and keys; those that do not see all, queries scaled."""
    listed, every = attributes.sequence("no_rope_layers"), attributes.integer("no_rope_layer_interval", 4)
    rotates = [bool((i + 1) % every) for i in range(config.n_layers)]
    if listed:
        if len(listed) < config.n_layers:
            raise CheckpointError(
                f"{attributes.where} names {len(listed)} no_rope_layers for {config.n_layers} layers."
            )
        rotates = [bool(flag) for flag in listed[: config.n_layers]]
    kinds = attributes.sequence("layer_types") or [_CHUNKED[flag] for flag in rotates]
    if len(kinds) != config.n_layers or not set(kinds) <= set(_CHUNKED.values()):
        raise attributes.unsupported("layer_types", kinds)
    chunk, normed = attributes.integer("attention_chunk_size", 8192, null=True), attributes.flag("use_qk_norm", True)
    if chunk is None and "chunked_attention" in kinds:
        raise CheckpointError(f"{attributes.where} has chunked_attention layers and no attention_chunk_size.")
    tuned, floor = attributes.flag("attn_temperature_tuning", True), attributes.number("floor_scale", 8192.0)
    strength = attributes.number("attn_scale", 0.1)

    def change(i: int, mixer: Attention) -> Attention:
        mixer = dataclasses.replace(mixer, chunk=chunk if kinds[i] == "chunked_attention" else None)
        if not rotates[i]:
            scale = (strength, floor) if tuned else None
            return dataclasses.replace(
                mixer, rotary=None, length_scale=scale, length_rule="log_next" if tuned else "log"
            )
        if not normed:
            return mixer
        norm = Norm("rms", eps=config.norm.eps, weight=False)
        return dataclasses.replace(mixer, qk_norm="head", qk_norm_kind=norm, qk_norm_after=True)

    return each_layer(config, change)


def _llama4_settings(config: Config) -> dict[str, Any]:
    mixers = [config.attention(i) for i in range(config.n_layers)]
    scales = {mixer.length_scale for mixer in mixers if mixer.length_scale is not None}
    chunks = {mixer.chunk for mixer in mixers if mixer.chunk is not None}
    if len(scales) > 1 or len(chunks) > 1:
        raise UnsupportedError("its layers have chunks or scales of queries of several sizes")
    strength, floor = next(iter(scales), (0.1, 8192.0))
    return {
        "no_rope_layers": [int(mixer.rotary is not None) for mixer in mixers],
        "layer_types": [_CHUNKED[mixer.chunk is not None] for mixer in mixers],
        "attention_chunk_size": next(iter(chunks), 8192),
        "use_qk_norm": any(mixer.qk_norm is not None for mixer in mixers),
        "attn_temperature_tuning": bool(scales),
        "attn_scale": strength,
        "floor_scale": int(floor) if float(floor).is_integer() else floor,
    }


def _llama4_flags(attributes: Attributes, layers: int) -> list[bool]:
    listed, step = attributes.sequence("moe_layers"), attributes.integer("interleave_moe_layer_step", 1)
    if listed is None:
        return [step > 0 and (i + 1) % step == 0 for i in range(layers)]
    return [i in listed for i in range(layers)]


_LLAMA4 = Sparse(
    Alike(
        "llama4_text",
        "Llama4",
        base="Llama4TextModel",
        pairs="neighbours",
        keys={"d_ff": "intermediate_size_mlp"},
        fixed={"mlp_bias": False},
        names=_FEED,
        prefixes=("", "language_model."),
        ignored=(r"^(model\.)?(vision_model|multi_modal_projector)\.", r"(^|\.)rotary_emb\.inv_freq$"),
        inside={"llama4": "text_config"},
        defaults={"theta": 500_000.0, "eps": 1e-5, "d_head": 128, "d_ff": 16384},
        read=_llama4,
        write=_llama4_settings,
    ),
    (
        one("feed_forward.router.weight", "router.weight"),
        *fused("feed_forward.experts.", transposed=True),
        *shared("feed_forward.shared_expert."),
    ),
    n_experts=("num_local_experts",),
    d_ff=("intermediate_size",),
    shared="intermediate_size",
    fixed={"scores": "sigmoid", "renormalise": False, "on_input": True},
    defaults={"n_active": 1, "n_experts": 16},
    layers=Layers(_llama4_flags, lambda flags: {"moe_layers": [i for i, flag in enumerate(flags) if flag]}),
    no_effect=frozenset({"no_rope_layer_interval", "interleave_moe_layer_step", "for_llm_compressor"}),
)

# Beam

_REACH = (0.1, 2048.0)  # how queries grow in layers that do not rotate


def _beam_before(attributes: Attributes) -> dict[str, Any]:
    layers = attributes.layers("num_hidden_layers", 52)
    found: dict[str, Any] = {}
    if attributes.sequence("layer_types") is None:
        found["layer_types"] = [_KINDS[bool((i + 1) % 6) and i < layers - 1] for i in range(layers)]
    if attributes.sequence("mlp_layer_types") is None:
        dense = min(3, layers)
        found["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * (layers - dense)
    kinds = attributes.table("rope_parameters") or {"sliding_attention": {}, "full_attention": None}
    return {**found, **by_kind(Attributes({"rope_parameters": kinds}, attributes.where))}


def _beam(config: Config, attributes: Attributes) -> Config:
    """Every part counts as much in the stream as those before it; layers that do not rotate grow their queries."""

    def change(i: int, mixer: Attention) -> Attention:
        mixer = dataclasses.replace(mixer, gate="element", gate_bias=True)
        if mixer.rotary is not None:
            return mixer
        return dataclasses.replace(mixer, length_scale=_REACH, length_rule="power")

    config = each_layer(two_rotaries(config, attributes), change)
    layers = [dataclasses.replace(layer, averaged=2 * i + 1) for i, layer in enumerate(config.layers)]
    return dataclasses.replace(config, layers=tuple(layers))


_BEAM = Sparse(
    Alike(
        "beam",
        "Beam",
        norms="both",
        keys={"logit_softcap": "final_logit_softcapping"},
        fixed={"mlp_bias": False, "qk_norm": "head"},
        names={
            "attn.gate": "self_attn.gate_proj",
            "ln1_post": "post_attention_layernorm",
            "ln2": "pre_feedforward_layernorm",
            "ln2_post": "post_feedforward_layernorm",
        },
        bare={"attn.gate_bias": "self_attn.gate_bias"},
        slides=lambda i: False,
        defaults={"eps": 1e-6, "d_head": 128, "n_kv_heads": 8, "window": 512, "logit_softcap": 30.0},
        read=_beam,
    ),
    (*GROUPED_ROWS[:2], *each()),
    n_experts=("num_experts",),
    fixed={"scores": "sigmoid", "correction": True},
    keys=GROUPED["keys"],
    defaults={"renormalise": True, "scale": 2.5, "groups": 8, "top_groups": 4, "n_active": 8},
    layers=LISTED,
    stacked=((*GROUPED_ROWS[:2], *fused("mlp.experts.")),),
    before=_beam_before,
    more=rotary_kinds,
)

LAYERED = (_AFMOE, _LAGUNA, _MIMO, _LLAMA4, _BEAM)
