"""MPT: GPT's parts without biases, and settings of attention in an object of their own."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.gpt_alike import QKV, slopes
from glassformer.errors import UnsupportedError
from glassformer.model.config import Config, Norm


def _read(config: Config, attributes: Attributes) -> Config:
    inner = attributes.inside(attributes.table("attn_config"), "attn_config")
    inner.only("qk_ln", False)
    inner.only("attn_type", "multihead_attention")
    inner.only("prefix_lm", False)
    scale = inner.number("softmax_scale", None)
    d_head = config.attention(0).d_head
    alibi: tuple[float, ...] = ()
    if inner.flag("alibi", True):
        alibi = slopes(config.attention(0).n_heads, inner.number("alibi_bias_max", 8), cut=True)
    config = each_attention(config, alibi=alibi, scale=None if scale in (None, d_head**-0.5) else scale)
    # no_bias says that no part has a bias; the reference builds no other form
    attributes.only("no_bias", True)
    attributes.only("logit_scale")
    return each_attention(config, clip=inner.number("clip_qkv", None))


def _write(config: Config) -> dict[str, Any]:
    a = config.attention(0)
    if a.alibi and a.alibi != slopes(a.n_heads, 8, cut=True):
        raise UnsupportedError("its ALiBi slopes are not those of 8 / heads")
    return {
        "attn_config": {"alibi": bool(a.alibi), "alibi_bias_max": 8, "softmax_scale": a.scale, "clip_qkv": a.clip},
        "no_bias": True,
    }


def _gguf_slopes(config: Config) -> dict[str, Any]:
    a = config.attention(0)
    clip = {} if a.clip is None else {"attention.clamp_kqv": a.clip}
    return {"attention.max_alibi_bias": 8.0 if a.alibi else 0.0, **clip}


_GGUF = GgufTable(
    "mpt",
    joined=("qkv",),
    read=lambda attributes, shapes, found: {
        "attn_config": {
            "alibi": attributes.number("attention.max_alibi_bias", 0.0) > 0,
            "alibi_bias_max": attributes.number("attention.max_alibi_bias", 0.0) or 8,
            "clip_qkv": attributes.number("attention.clamp_kqv", None),
        },
        "layer_norm_epsilon": attributes.number("attention.layer_norm_epsilon"),
    },
    write=_gguf_slopes,
)
MPT = Alike(
    "mpt",
    "Mpt",
    gguf=_GGUF,
    layer="transformer.blocks.{i}.",
    prefixes=("transformer.", ""),
    gated=False,
    norm=Norm("layer", bias=False),
    rotates=False,
    keys={
        "d_model": "d_model",
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "context": "max_seq_len",
        "eps": "layer_norm_epsilon",
    },
    fixed={
        "bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "n_kv_heads": None,
        "d_head": None,
        "d_ff": None,
        "activation": "gelu",
    },
    names={
        "ln1": "norm_1",
        "ln2": "norm_2",
        "attn.o": "attn.out_proj",
        "mlp.up": "ffn.up_proj",
        "mlp.down": "ffn.down_proj",
    },
    joined={"attn.Wqkv": QKV},
    outside={"embed": "transformer.wte", "final": "transformer.norm_f"},
    defaults={"tied": True},
    read=_read,
    write=_write,
    no_effect=frozenset(
        [
            "embedding_fraction",
            "init_device",
            "learned_pos_emb",
            "norm_type",
            "expansion_ratio",
            "use_cache",
            "verbose",
            "is_encoder_decoder",
            "attn_impl",
            "attn_uses_sequence_id",
        ]
    ),
)
