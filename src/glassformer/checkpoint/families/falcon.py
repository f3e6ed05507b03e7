"""Falcon: parts side by side under one norm or two, rotary positions or ALiBi, grouped or single keys."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.gpt_alike import BUFFERS, QKV, H, slopes
from glassformer.checkpoint.tables import Row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Config, Norm, Placement

_LAYER, _BLOCK = "transformer.h.{i}.", "blocks.{i}."


def _two_norms(config: Config) -> bool:
    """Parts side by side that each have a norm before them."""
    return config.layers[0].parallel and config.layers[0].norms == "before"


def _read(config: Config, attributes: Attributes) -> Config:
    heads = config.attention(0).n_heads
    fresh = attributes.flag("new_decoder_architecture", False)
    kv = attributes.integer("num_kv_heads", heads, null=True) or heads
    if not fresh:
        kv = 1 if attributes.flag("multi_query", True) else heads
    config = each_attention(config, n_kv_heads=kv)
    if attributes.flag("alibi", False):
        config = each_attention(config, rotary=None, alibi=slopes(heads), alibi_rounded=True)
    parallel = fresh or attributes.flag("parallel_attn", True)
    norms: Placement = "shared" if parallel else "before"
    if fresh and (attributes.integer("num_ln_in_parallel_attn", 2, null=True) or 2) == 2:
        norms = "before"
    layers = tuple(dataclasses.replace(x, norms=norms, parallel=parallel) for x in config.layers)
    return dataclasses.replace(config, layers=layers)


def _write(config: Config) -> dict[str, Any]:
    a, layer = config.attention(0), config.layers[0]
    if a.alibi and a.alibi != slopes(a.n_heads):
        raise UnsupportedError("its ALiBi slopes are not those of its number of heads")
    fresh = _two_norms(config) or 1 < a.n_kv_heads < a.n_heads
    return {
        "new_decoder_architecture": fresh,
        "num_kv_heads": a.n_kv_heads,
        "multi_query": a.n_kv_heads == 1,
        "alibi": bool(a.alibi),
        "parallel_attn": layer.parallel,
        "num_ln_in_parallel_attn": (2 if _two_norms(config) else 1) if fresh else None,
    }


_FALCON = Alike(
    "falcon",
    "Falcon",
    **H,
    norm=Norm("layer"),
    norms="shared",
    keys={
        "d_ff": "ffn_hidden_size",
        "activation": "activation",
        "eps": "layer_norm_epsilon",
        "bias": "bias",
        "out_bias": "bias",
        "mlp_bias": "bias",
    },
    fixed={"n_kv_heads": None, "d_head": None},
    names={
        "attn.o": "self_attention.dense",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    },
    joined={"self_attention.query_key_value": QKV},
    grouped=("self_attention.query_key_value",),
    outside={"embed": "transformer.word_embeddings", "final": "transformer.ln_f"},
    defaults={"activation": "gelu", "tied": True, "context": 2048},
    read=_read,
    write=_write,
    ignored=BUFFERS,
    no_effect=frozenset(["n_ctx", "num_ln_in_parallel_attn", "multi_query", "parallel_attn"]),
)


def _rows() -> tuple[Row, ...]:
    """The tensor table; norms have other names where each part has one of its own."""
    rows: list[Row] = []
    for row in _FALCON.rows():
        if row.ours[0].startswith((f"{_BLOCK}ln1", f"{_BLOCK}ln2")):
            row = dataclasses.replace(row, when=lambda config: not _two_norms(config))
        rows.append(row)
    for ours, theirs in (("ln1", "ln_attn"), ("ln2", "ln_mlp")):
        for kind in ("weight", "bias"):
            rows.append(Row(f"{_LAYER}{theirs}.{kind}", (f"{_BLOCK}{ours}.{kind}",), when=_two_norms))
    return tuple(rows)


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    two, kv = "blk.0.attn_norm_2.weight" in shapes, attributes.integer("attention.head_count_kv", 1)
    return {
        "new_decoder_architecture": two or 1 < kv < found["num_attention_heads"],
        "num_kv_heads": kv,
        "multi_query": kv == 1,
        "num_ln_in_parallel_attn": 2 if two else 1,
    }


_GGUF = GgufTable(
    "falcon",
    joined=("qkv",),
    rows=tuple(
        Row(f"blk.{{i}}.{theirs}.{kind}", (f"{_BLOCK}{ours}.{kind}",), when=when)
        for ours, theirs, when in (
            ("ln1", "attn_norm", lambda config: not _two_norms(config)),
            ("ln1", "attn_norm_2", _two_norms),
            ("ln2", "attn_norm", _two_norms),
        )
        for kind in ("weight", "bias")
    ),
    implied={"bias": False},
    read=_read_gguf,
)
FALCON: Family = dataclasses.replace(
    _FALCON.family(), rows=_rows(), gguf=_GGUF.layout(_FALCON.config, _FALCON.settings, _FALCON.key)
)
