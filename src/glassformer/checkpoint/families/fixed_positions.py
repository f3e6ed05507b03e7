"""XGLM and CTRL: GPT's parts, and positions that are sines and cosines instead of trained vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gpt_alike import BIASED, DECODER, scaled
from glassformer.model.config import Config, Norm, Sinusoids

_FIXED: dict[str, Any] = {**BIASED, "n_kv_heads": None, "d_head": None}


def _xglm(config: Config, attributes: Attributes) -> Config:
    """Positions count from 2; the vector whose number is that of the padding token is zero, which no text meets
    where that is 0 or 1, as in every published model."""
    if (padding := attributes.integer("pad_token_id", 1)) > 1:
        raise attributes.unsupported("pad_token_id", padding)
    return dataclasses.replace(scaled(config, attributes), sinusoids=Sinusoids(first=2, closed=True))


FIXED_POSITIONS = (
    Alike(
        "xglm",
        "XGLM",
        gated=False,
        norm=Norm("layer"),
        rotates=False,
        keys={
            "d_model": "d_model",
            "n_layers": "num_layers",
            "n_heads": "attention_heads",
            "d_ff": "ffn_dim",
            "activation": "activation_function",
        },
        fixed={**_FIXED, "eps": 1e-5},
        names=DECODER,
        outside={"final": "model.layer_norm"},
        defaults={"activation": "gelu", "tied": True},
        read=_xglm,
        write=lambda config: {"scale_embedding": config.embedding_scale is not None},
        ignored=(r"embed_positions\.weights$",),
    ),
    Alike(
        "ctrl",
        "CTRL",
        architecture="CTRLLMHeadModel",
        layer="transformer.h.{i}.",
        prefixes=("transformer.", ""),
        gated=False,
        norm=Norm("layer"),
        rotates=False,
        keys={
            "d_model": "n_embd",
            "n_layers": "n_layer",
            "n_heads": "n_head",
            "context": "n_positions",
            "d_ff": "dff",
        },
        fixed={**_FIXED, "eps": 1e-6, "activation": "relu", "embedding_scale": "root", "unembed_bias": True},
        names={
            "ln1": "layernorm1",
            "ln2": "layernorm2",
            **{f"attn.{p}": f"multi_head_attention.W{p}" for p in "qkv"},
            "attn.o": "multi_head_attention.dense",
            "mlp.up": "ffn.0",
            "mlp.down": "ffn.2",
        },
        outside={"embed": "transformer.w", "final": "transformer.layernorm"},
        only={"layer_norm_epsilon": (1e-6,)},  # of the last norm alone; the layers' is fixed
        defaults={"tied": True},
        more={"layer_norm_epsilon": 1e-6},
        read=lambda config, attributes: dataclasses.replace(config, sinusoids=Sinusoids()),
        no_effect=frozenset(["n_ctx", "from_tf"]),
    ),
)
