"""DBRX: experts in flat matrices, and settings in objects of their own."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.settings import float32
from glassformer.checkpoint.families.sparse import Sparse, experts_of, one
from glassformer.checkpoint.tables import Row
from glassformer.model.config import Config, Norm


def _dbrx_flat(attributes: Attributes) -> dict[str, Any]:
    """What DBRX keeps in objects of their own, beside the rest."""
    inner = attributes.inside(attributes.table("attn_config"), "attn_config")
    feed = attributes.inside(attributes.table("ffn_config"), "ffn_config")
    name = attributes.inside(feed.table("ffn_act_fn"), "ffn_act_fn").text("name", "silu")
    feed.only("moe_normalize_expert_weights", 1, 1.0)
    feed.only("hidden_size", attributes.integer("d_model"))
    return {
        "kv_n_heads": inner.integer("kv_n_heads", 1),
        "clip_qkv": inner.number("clip_qkv", None),
        "rope_theta": inner.number("rope_theta", 10_000.0),
        "ffn_hidden_size": feed.integer("ffn_hidden_size", 3584),
        "moe_num_experts": feed.integer("moe_num_experts", 4),
        "moe_top_k": feed.integer("moe_top_k", 1),
        "hidden_act": name,
    }


def _dbrx_nested(config: Config) -> dict[str, Any]:
    attention, experts = config.attention(0), experts_of(config)
    rotary = attention.rotary
    return {
        "attn_config": {
            "kv_n_heads": attention.n_kv_heads,
            "clip_qkv": attention.clip,
            "rope_theta": None if rotary is None else rotary.theta,
        },
        "ffn_config": {
            "ffn_act_fn": {"name": experts.activation},
            "ffn_hidden_size": experts.d_ff,
            "hidden_size": config.d_model,
            "moe_num_experts": experts.n_experts,
            "moe_top_k": experts.n_active,
            "moe_normalize_expert_weights": 1.0,
        },
    }


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    attributes.only("attention.layer_norm_epsilon", 1e-5, float32(1e-5))
    return {
        "attn_config": {
            "kv_n_heads": found["kv_n_heads"],
            "clip_qkv": attributes.number("attention.clamp_kqv", None),
            "rope_theta": found["rope_theta"],
        },
        "ffn_config": {
            "ffn_hidden_size": found["ffn_hidden_size"],
            "moe_num_experts": found["moe_num_experts"],
            "moe_top_k": found["moe_top_k"],
        },
    }


_DBRX = Alike(
    "dbrx",
    "Dbrx",
    norm=Norm("layer", bias=False),
    layer="transformer.blocks.{i}.",
    keys={
        "d_model": "d_model",
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "n_kv_heads": "kv_n_heads",
        "context": "max_seq_len",
        "clip": "clip_qkv",
        "d_ff": "ffn_hidden_size",
    },
    fixed={"bias": False, "out_bias": False, "mlp_bias": False, "d_head": None, "eps": 1e-5},
    names={
        "ln1": "norm_attn_norm.norm_1",
        "ln2": "norm_attn_norm.norm_2",
        "attn.o": "norm_attn_norm.attn.out_proj",
    },
    joined={"norm_attn_norm.attn.Wqkv": ("attn.q", "attn.k", "attn.v")},
    outside={"embed": "transformer.wte", "final": "transformer.norm_f"},
    prefixes=("transformer.", ""),
)

DBRX = Sparse(
    _DBRX,
    (
        one("ffn.router.layer.weight", "router.weight"),
        Row("ffn.experts.mlp.w1", ("blocks.{i}.mlp.experts.gate.weight",), flat=True),
        Row("ffn.experts.mlp.v1", ("blocks.{i}.mlp.experts.up.weight",), flat=True),
        Row("ffn.experts.mlp.w2", ("blocks.{i}.mlp.experts.down.weight",), flat=True, transposed=True),
    ),
    n_experts=("moe_num_experts",),
    n_active="moe_top_k",
    d_ff=("ffn_hidden_size",),
    before=_dbrx_flat,
    more=_dbrx_nested,
    gguf=GgufTable("dbrx", joined=("qkv",), names={"ln2": "attn_output_norm"}, read=_read_gguf),
    no_effect=frozenset(
        {"emb_pdrop", "is_encoder_decoder", "moe_jitter_eps", "moe_loss_weight", "num_key_value_heads"}
    ),
)
