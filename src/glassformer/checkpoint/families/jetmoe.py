"""JetMoE: a router chooses among the query and output projections of attention, another among feed-forward parts."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.settings import attention_of
from glassformer.checkpoint.families.sparse import Sparse, experts_of, fused, one
from glassformer.checkpoint.tables import Row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Config

_EPS = 1e-6  # of the layers' norms, whatever the settings say of the last one
_AT, _OURS = "self_attention.experts.", "blocks.{i}.attn."
_ROWS = (
    Row(f"{_AT}input_linear.weight", (_OURS + "q.weight",), crossed="queries"),
    Row(f"{_AT}output_linear.weight", (_OURS + "o.weight",), crossed="outputs"),
    Row(f"{_AT}bias", (_OURS + "o.bias",)),
    Row(f"{_AT}router.layer.weight", (_OURS + "gate.weight",)),
    one("mlp.router.layer.weight", "router.weight"),
    one("mlp.bias", "bias"),
    *fused("mlp.", "input_linear.weight", "output_linear.weight"),
)


def _heads(attributes: Attributes) -> dict[str, Any]:
    """Every expert of the attention has a query head for each key head."""
    experts = attributes.integer("num_local_experts", 8)
    attributes.asked.add("num_attention_heads")
    return {"num_attention_heads": attributes.integer("num_key_value_heads", 16) * experts}


def _chosen(config: Config, attributes: Attributes) -> Config:
    eps = attributes.number("rms_norm_eps", _EPS)
    config = each_attention(config, gate="experts", gate_active=attributes.integer("num_experts_per_tok", 2))
    return dataclasses.replace(config, final_eps=None if eps == _EPS else eps)


def _settings(config: Config) -> dict[str, Any]:
    a, experts = attention_of(config), experts_of(config)
    if a.gate_active != experts.n_active:
        raise UnsupportedError("it chooses other numbers of attention's experts and of feed-forward parts")
    return {
        "num_attention_heads": a.n_kv_heads * experts.n_active,
        "rms_norm_eps": config.norm.eps if config.final_eps is None else config.final_eps,
    }


JETMOE = Sparse(
    Alike(
        "jetmoe",
        "JetMoe",
        keys={"d_head": "kv_channels", "activation": "activation_function"},
        fixed={"bias": False, "out_bias": True, "mlp_bias": False, "eps": _EPS},
        names={"attn.q": "", "attn.k": "", "attn.v": "", "attn.o": "", "attn.gate": ""},
        joined={"self_attention.kv_proj": ("attn.k", "attn.v")},
        defaults={"n_kv_heads": 16, "d_head": 128, "tied": True, "context": 4096},
        read=_chosen,
    ),
    _ROWS,
    n_experts=("num_local_experts",),
    d_ff=("intermediate_size",),
    fixed={"sum_bias": True},
    before=_heads,
    more=_settings,
    no_effect=frozenset({"aux_loss_coef"}),
)
