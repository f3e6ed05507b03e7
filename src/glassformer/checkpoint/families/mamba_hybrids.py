"""Bamba and Granite 4: layers of Mamba 2's state space and layers of attention, each with a feed-forward part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_settings import has, read_state_space
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.granite import GRANITE_EXPERTS, GRANITE_ROWS, GRANITE_SHARED, granite
from glassformer.checkpoint.families.hybrid import (
    ATTENTION_LISTED,
    Hybrid,
    StateSpaceKeys,
    by_types,
    state_space_rows,
)
from glassformer.checkpoint.families.sparse import Sparse
from glassformer.model.config import Attention, Config, Experts

_KEYS = StateSpaceKeys(
    {
        "n_heads": "mamba_n_heads",
        "d_head": "mamba_d_head",
        "n_groups": "mamba_n_groups",
        "d_state": "mamba_d_state",
        "conv": "mamba_d_conv",
        "conv_bias": "mamba_conv_bias",
        "bias": "mamba_proj_bias",
    },
    {"n_heads": 128, "d_state": 256},
)
_CHUNKS = frozenset({"mamba_chunk_size", "num_logits_to_keep"})


def _rotated(config: Config, attributes: Attributes) -> Config:
    """Granite 4 rotates only where its settings say so; logits are divided by a setting."""
    rotates = attributes.values.get("position_embedding_type") == "rope"
    attributes.only("position_embedding_type", "rope", "nope")
    divide = granite("", "").read
    assert divide is not None
    return divide(config if rotates else each_attention(config, rotary=None), attributes)


def _says_rotated(config: Config) -> dict[str, Any]:
    divided = granite("", "").write
    assert divided is not None
    mixers = [layer.mixer for layer in config.layers]
    turns = any(isinstance(mixer, Attention) and mixer.rotary is not None for mixer in mixers)
    return {**divided(config), "position_embedding_type": "rope" if turns else "nope"}


@dataclass(frozen=True)
class _MaybeSparse(Sparse):
    """Granite 4: without experts, the part that stands beside them is the whole feed-forward part."""

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        if attributes.integer("num_local_experts", 8):
            return super().config(attributes)
        width = attributes.integer("shared_intermediate_size", 1024)
        for name in ("intermediate_size", "num_experts_per_tok"):
            attributes.asked.add(name)
        shown = Attributes({**attributes.values, "intermediate_size": width}, attributes.where)
        config = self.alike.config(shown)
        attributes.asked |= shown.asked
        attributes._inner.extend(shown._inner)
        return config

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        if any(isinstance(layer.feed_forward, Experts) for layer in config.layers):
            return super().settings(config)
        found = self.alike.settings(config)
        return {**found, "num_local_experts": 0, "shared_intermediate_size": found["intermediate_size"]}


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    flags = has(shapes, "ssm_in.weight", attributes.layers("block_count"))
    rotates = attributes.flag("rope.scaling.finetuned", True)
    return {
        **read_state_space(attributes, shapes, {**_KEYS.keys, "expand": _KEYS.expand}),
        **by_types(lambda layer: True).write(flags),
        "position_embedding_type": "rope" if rotates else "nope",
        "num_local_experts": found.get("num_local_experts", 0),
        "shared_intermediate_size": found.get("shared_intermediate_size", found["intermediate_size"]),
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    mixers = [layer.mixer for layer in config.layers]
    return {"rope.scaling.finetuned": any(isinstance(m, Attention) and m.rotary is not None for m in mixers)}


def _read_bamba(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    flags = has(shapes, "ssm_in.weight", attributes.layers("block_count"))
    attributes.only("rope.scaling.finetuned", True)
    return {
        **read_state_space(attributes, shapes, {**_KEYS.keys, "expand": _KEYS.expand}),
        **ATTENTION_LISTED.write(flags),
    }


_GGUF = GgufTable(
    "granitehybrid",
    pairs="neighbours",
    by_layer=("attention.head_count_kv",),
    settings={"logit_scale": "logits_scaling"},
    read=_read_gguf,
    write=_write_gguf,
)
_BAMBA = GgufTable(
    "granitehybrid",
    pairs="neighbours",
    by_layer=("attention.head_count_kv",),
    read=_read_bamba,
    says={"rope.scaling.finetuned": True},
    chosen=lambda settings: "granitehybrid.logit_scale" not in settings,
)

_GRANITE = Hybrid(
    granite(
        "granitemoehybrid",
        "GraniteMoeHybrid",
        joined={"shared_mlp.input_linear": ("mlp.gate", "mlp.up")},
        names={"mlp.down": "shared_mlp.output_linear"},
        fixed={"mlp_bias": False},
        defaults={"scale": 1.0, "eps": 1e-6},
        read=_rotated,
        write=_says_rotated,
    ),
    state_space_rows("mamba."),
    by_types(lambda layer: True),
    _KEYS.read,
    _KEYS.write,
    no_effect=_CHUNKS,
)

MAMBA_HYBRIDS = (
    Hybrid(
        Alike(
            "bamba",
            "Bamba",
            names={"ln2": "pre_ff_layernorm", **{f"mlp.{p}": f"feed_forward.{p}_proj" for p in ("gate", "up", "down")}},
            outside={"final": "model.final_layernorm"},
            fraction=0.5,
            defaults={"n_kv_heads": 8, "eps": 1e-5},
            no_effect=frozenset({"attn_rotary_emb", "z_loss_coefficient"}),
        ),
        state_space_rows("mamba."),
        ATTENTION_LISTED,
        _KEYS.read,
        _KEYS.write,
        no_effect=_CHUNKS,
        gguf=_BAMBA,
    ),
    _MaybeSparse(
        _GRANITE,
        (*GRANITE_ROWS, *GRANITE_SHARED),
        **GRANITE_EXPERTS,
        shared="shared_intermediate_size",
        gguf=_GGUF,
    ),
)
