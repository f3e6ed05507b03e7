"""Mellum: experts, and rotary settings of their own for layers with windows."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.folding import untied
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.layered import by_kind, rotary_kinds, two_rotaries
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, one


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp turns layers with windows by the same base, and stretches nothing there."""
    return {"local rope": {"rope_type": "default", "rope_theta": found["rope_theta"]}, "norm_topk_prob": True}


MELLUM = Sparse(
    Alike(
        "mellum",
        "Mellum",
        fixed={"mlp_bias": False, "qk_norm": "head"},
        slides=lambda i: False,
        defaults={"eps": 1e-6},
        read=two_rotaries,
    ),
    (one("mlp.gate.weight", "router.weight"), *each()),
    keys={"renormalise": "norm_topk_prob"},
    layers=LISTED,
    before=by_kind,
    more=rotary_kinds,
    no_effect=frozenset({"num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"}),
    gguf=GgufTable("mellum", period=4, read=_read_gguf, fold=untied),
)
