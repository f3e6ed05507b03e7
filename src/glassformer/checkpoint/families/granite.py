"""Granite's families with experts: its multipliers, and what its hybrids take from here."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_table import GgufTable, sharing
from glassformer.checkpoint.families.llama_alike import LLAMA_ALIKE
from glassformer.checkpoint.families.sparse import Sparse, fused, one
from glassformer.checkpoint.tables import Row
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


def _granite_sinks(config: Config, attributes: Attributes) -> Config:
    """Sinks, a rotary base for each layer (null or 0 for none), and logits that are divided."""
    bases = attributes.sequence("layer_rope_theta")
    layers = list(each_attention(config, sink=True).layers)
    for i, base in enumerate(bases or ()):
        mixer = layers[i].mixer
        assert isinstance(mixer, Attention)
        rotary = None if not base or mixer.rotary is None else dataclasses.replace(mixer.rotary, theta=float(base))
        layers[i] = dataclasses.replace(layers[i], mixer=dataclasses.replace(mixer, rotary=rotary))
    divide = _BASE.read
    assert divide is not None
    return divide(dataclasses.replace(config, layers=tuple(layers)), attributes)


def _granite_bases(config: Config) -> dict[str, Any]:
    rotary = [config.attention(i).rotary for i in range(config.n_layers)]
    return {"layer_rope_theta": [0.0 if one is None else one.theta for one in rotary]}


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
        granite(
            "granitemoe_swa",
            "GraniteMoeSWA",
            keys=_BASE.keys,
            slides=lambda i: False,
            read=_granite_sinks,
        ),
        (
            Row("self_attn.sinks", ("blocks.{i}.attn.sink",)),
            one("block_sparse_moe.router.weight", "router.weight"),
            *fused("block_sparse_moe.experts."),
            *GRANITE_SHARED,
        ),
        **GRANITE_EXPERTS,
        shared="shared_intermediate_size",
        more=_granite_bases,
    ),
)
