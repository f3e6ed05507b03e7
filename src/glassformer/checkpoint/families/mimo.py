"""MiMo-V2-Flash: experts; layers with a window have more heads of keys, and sinks."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.grouped_experts import GROUPED, GROUPED_ROWS
from glassformer.checkpoint.families.layered import KINDS, by_kind, each_layer, rotary_kinds, two_rotaries
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, fused
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config


def _mimo_before(attributes: Attributes) -> dict[str, Any]:
    layers = attributes.layers("num_hidden_layers", 48)
    found: dict[str, Any] = {}
    if attributes.sequence("layer_types") is None:
        found["layer_types"] = [KINDS[i != 0 and bool((i + 1) % 6)] for i in range(layers)]
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


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """Heads of keys are listed by layer; layers with a window turn by a base of their own."""
    layers, kinds = attributes.layers("block_count"), found["layer_types"]
    heads = attributes.values.get(attributes.prefix + "attention.head_count_kv")
    heads = heads if isinstance(heads, list) else [heads] * layers
    whole = next((n for n, kind in zip(heads, kinds, strict=False) if kind == KINDS[False]), heads[0] // 2)
    expected = [whole * (2 if kind == KINDS[True] else 1) for kind in kinds]
    if heads != expected:
        raise UnsupportedError(
            f"{attributes.where} sets attention.head_count_kv to {heads}; layers with a window have twice the heads of "
            f"keys of the others in MiMo-V2-Flash, {expected}."
        )
    turned = {"rope_type": "default", "partial_rotary_factor": found["partial_rotary_factor"]}
    attributes.only("expert_weights_norm", True)
    return {
        "num_key_value_heads": whole,
        "v_head_dim": attributes.integer("attention.value_length"),
        "attention_value_scale": attributes.number("attention.value_scale", 1.0),
        "rope_scaling": None,
        "rope_parameters": {
            KINDS[False]: {**turned, **(found["rope_scaling"] or {}), "rope_theta": found["rope_theta"]},
            KINDS[True]: {**turned, "rope_theta": attributes.number("rope.freq_base_swa", 10_000.0)},
        },
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    mixers = [config.attention(i) for i in range(config.n_layers)]
    near = next((m.rotary for m in mixers if m.window is not None and m.rotary is not None), None)
    scale = mixers[0].value_scale
    return {
        "attention.head_count_kv": [mixer.n_kv_heads for mixer in mixers],
        **({} if near is None else {"rope.freq_base_swa": near.theta}),
        **({} if scale is None else {"attention.value_scale": scale}),
    }


_MIMO_ROUTER = GROUPED_ROWS[:2]
MIMO = Sparse(
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
    gguf=GgufTable(
        "mimo2",
        period=0,
        dense="any",
        by_layer=("attention.head_count_kv",),
        read=_read_gguf,
        write=_write_gguf,
    ),
)
