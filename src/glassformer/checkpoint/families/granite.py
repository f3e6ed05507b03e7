"""Granite's families with experts or sinks: its multipliers, and what its hybrids take from here."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes, sharing
from glassformer.checkpoint.families.layered import each_layer
from glassformer.checkpoint.families.llama_alike import LLAMA_ALIKE
from glassformer.checkpoint.families.sparse import Sparse, fused, one
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError
from glassformer.model.config import Attention, Config

_BASE = next(family for family in LLAMA_ALIKE if family.name == "granite")


def granite(name: str, stem: str, **more: Any) -> Alike:
    """A family with Granite's multipliers."""
    return dataclasses.replace(_BASE, name=name, stem=stem, **{"gguf": None, **more})


GRANITE_ROWS = (
    one("block_sparse_moe.router.layer.weight", "router.weight"),
    *fused("block_sparse_moe.", "input_linear.weight", "output_linear.weight"),
)
GRANITE_SHARED = (
    Row("shared_mlp.input_linear.weight", ("blocks.{i}.mlp.shared.gate.weight", "blocks.{i}.mlp.shared.up.weight")),
    one("shared_mlp.output_linear.weight", "shared.down.weight"),
)
GRANITE_GGUF = GgufTable("granitemoe", pairs="neighbours", settings={"logit_scale": "logits_scaling"}, factors=True)
GRANITE_EXPERTS: dict[str, Any] = {"n_experts": ("num_local_experts",), "d_ff": ("intermediate_size",)}


def _sinks(config: Config, attributes: Attributes) -> Config:
    """Sinks, a rotary base for each layer (null or 0 for none), and logits that are divided."""
    bases = attributes.sequence("layer_rope_theta")
    if bases is not None and len(bases) != config.n_layers:
        raise CheckpointError(f"{attributes.where} names {len(bases)} layer_rope_theta for {config.n_layers} layers.")

    def change(i: int, mixer: Attention) -> Attention:
        rotary = mixer.rotary
        if bases is not None and rotary is not None:
            rotary = dataclasses.replace(rotary, theta=float(bases[i])) if bases[i] else None
        return dataclasses.replace(mixer, sink=True, rotary=rotary)

    assert _BASE.read is not None
    return _BASE.read(each_layer(config, change), attributes)


def _says_bases(config: Config) -> dict[str, Any]:
    assert _BASE.write is not None
    rotary = [config.attention(i).rotary for i in range(config.n_layers)]
    return {**_BASE.write(config), "layer_rope_theta": [0.0 if one is None else one.theta for one in rotary]}


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """One base for all layers that rotate; of the part beside experts, gates and the rest are one tensor."""
    turned = attributes.sequence("attention.rope_pattern") or [True] * attributes.layers("block_count")
    bases = [found["rope_theta"] if turns else 0.0 for turns in turned]
    return {"layer_rope_theta": bases, "shared_intermediate_size": found.get("shared_intermediate_size", 0) // 2}


def _write_gguf(config: Config) -> dict[str, Any]:
    flags = [config.window(i) is not None for i in range(config.n_layers)]
    turned = [config.attention(i).rotary is not None for i in range(config.n_layers)]
    window = next((window for i in range(config.n_layers) if (window := config.window(i))), 1)
    return {
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": flags,
        "attention.rope_pattern": turned,
    }


_SINKS_GGUF = GgufTable(
    "granite_swa",
    pairs="neighbours",
    rows=(
        Row("blk.{i}.ffn_up_shexp.weight", ("blocks.{i}.mlp.shared.gate.weight", "blocks.{i}.mlp.shared.up.weight")),
    ),
    settings={"logit_scale": "logits_scaling"},
    period=4,
    first=True,
    factors=True,
    read=_read_gguf,
    write=_write_gguf,
)

GRANITE_SWA = granite(
    "granite_swa",
    "GraniteSWA",
    bare={"attn.sink": "self_attn.sinks"},
    slides=lambda i: bool(i % 4),
    defaults={**_BASE.defaults, "window": 128, "tied": True},
    read=_sinks,
    write=_says_bases,
    gguf=_SINKS_GGUF,
)
GRANITE_SPARSE = (
    Sparse(granite("granitemoe", "GraniteMoe"), GRANITE_ROWS, **GRANITE_EXPERTS, gguf=GRANITE_GGUF),
    Sparse(
        granite("granitemoeshared", "GraniteMoeShared"),
        (*GRANITE_ROWS, *GRANITE_SHARED),
        **GRANITE_EXPERTS,
        shared="shared_intermediate_size",
        gguf=sharing(GRANITE_GGUF, chosen=lambda s: bool(s.get("granitemoe.expert_shared_feed_forward_length"))),
    ),
    Sparse(
        dataclasses.replace(
            GRANITE_SWA, name="granitemoe_swa", stem="GraniteMoeSWA", slides=lambda i: False, gguf=None
        ),
        (
            one("block_sparse_moe.router.weight", "router.weight"),
            *fused("block_sparse_moe.experts."),
            *GRANITE_SHARED,
        ),
        **GRANITE_EXPERTS,
        shared="shared_intermediate_size",
        gguf=sharing(_SINKS_GGUF, chosen=lambda s: bool(s.get("granite_swa.expert_count"))),
    ),
)
