"""Cohere 1 and 2, StableLM, Phi and NVIDIA's Nemotron: LayerNorms, often one for both parts side by side."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes, normed
from glassformer.model.config import Config, Norm

_LAYER = Norm("layer", bias=False)


def _cohere2_rotates(layer: int, window: int | None, attributes: Attributes) -> bool:
    """Only layers with a window rotate."""
    return window is not None


def _qk_normed(config: Config, attributes: Attributes) -> Config:
    if not attributes.flag("use_qk_norm", False):
        return config
    return each_attention(config, qk_norm="each", qk_norm_kind=Norm("layer", eps=config.norm.eps, bias=False))


def _phi_normed(config: Config, attributes: Attributes) -> Config:
    if not attributes.flag("qk_layernorm", False):
        return config
    return each_attention(config, qk_norm="head", qk_norm_kind=config.norm)


def _each_normed(config: Config, attributes: Attributes) -> Config:
    if not attributes.flag("qk_layernorm", False):
        return config
    return each_attention(config, qk_norm="each", qk_norm_kind=Norm("layer", eps=config.norm.eps, bias=False))


def _says_normed(key: str) -> Any:
    return lambda config: {key: config.attention(0).qk_norm is not None}


_COHERE: dict[str, Any] = {
    "norm": _LAYER,
    "norms": "shared",
    "pairs": "neighbours",
}
_DENSE = {
    "attn.o": "self_attn.dense",
    "attn.q_norm": "self_attn.q_layernorm",
    "attn.k_norm": "self_attn.k_layernorm",
}


def _gguf_normed(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp norms queries and keys in the largest model, of 64 layers."""
    return {"use_qk_norm": attributes.layers("block_count") >= 64}


COHERE = (
    Alike(
        "cohere",
        "Cohere",
        gguf=GgufTable("command-r", pairs="neighbours", read=_gguf_normed),
        **_COHERE,
        keys={"eps": "layer_norm_eps", "logit_scale": "logit_scale"},
        fixed={"mlp_bias": False, "parallel": True},
        defaults={"tied": True, "logit_scale": 0.0625},
        read=_qk_normed,
        write=_says_normed("use_qk_norm"),
    ),
    Alike(
        "cohere2",
        "Cohere2",
        gguf=GgufTable("cohere2", pairs="neighbours", period=4),
        **_COHERE,
        keys={"eps": "layer_norm_eps", "logit_scale": "logit_scale"},
        fixed={"mlp_bias": False, "parallel": True},
        slides=lambda i: bool((i + 1) % 4),
        rotates_layer=_cohere2_rotates,
        defaults={"tied": True, "logit_scale": 0.0625, "window": 4096},
    ),
    Alike(
        "phi",
        "Phi",
        gguf=GgufTable("phi2", implied={"qk_layernorm": False}),
        norm=Norm("layer"),
        norms="shared",
        gated=False,
        fraction=0.5,
        keys={"eps": "layer_norm_eps"},
        fixed={"bias": True, "out_bias": True, "mlp_bias": True, "unembed_bias": True, "parallel": True},
        names={**_DENSE, "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"},
        outside={"final": "model.final_layernorm"},
        defaults={"activation": "gelu_new"},
        read=_phi_normed,
        write=_says_normed("qk_layernorm"),
    ),
    Alike(
        "persimmon",
        "Persimmon",
        norm=Norm("layer"),
        gated=False,
        fraction=0.5,
        keys={"eps": "layer_norm_eps"},
        fixed={"bias": True, "out_bias": True, "mlp_bias": True, "n_kv_heads": None},
        names={**_DENSE, "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"},
        joined={"self_attn.query_key_value": ("attn.q", "attn.k", "attn.v")},
        grouped=("self_attn.query_key_value",),
        outside={"final": "model.final_layernorm"},
        defaults={"activation": "relu2"},
        read=_phi_normed,
        write=_says_normed("qk_layernorm"),
        no_effect=frozenset(["num_key_value_heads"]),
    ),
    Alike(
        "stablelm",
        "StableLm",
        gguf=GgufTable(
            "stablelm", settings={"use_parallel_residual": "use_parallel_residual"}, read=normed("qk_layernorm")
        ),
        norm=Norm("layer"),
        norms="shared",
        fraction=0.25,
        keys={"eps": "layer_norm_eps", "bias": "use_qkv_bias", "parallel": "use_parallel_residual"},
        fixed={"out_bias": False, "mlp_bias": False},
        names={f"attn.{p}_norm": f"self_attn.{p}_layernorm.norms.{{e}}" for p in "qk"},
        read=_each_normed,
        write=_says_normed("qk_layernorm"),
    ),
    Alike(
        "nemotron",
        "Nemotron",
        gguf=GgufTable("nemotron", shift=True),
        norm=Norm("layer", one_plus=True),
        gated=False,
        fraction=0.5,
        keys={"eps": "norm_eps"},
        defaults={"activation": "relu2"},
    ),
    Alike(
        "jais2",
        "Jais2",
        gguf=GgufTable("jais2"),
        norm=Norm("layer"),
        gated=False,
        keys={"eps": "layer_norm_eps"},
        defaults={"activation": "relu2", "bias": True, "out_bias": True, "mlp_bias": True},
    ),
    Alike(
        "starcoder2",
        "Starcoder2",
        gguf=GgufTable("starcoder2"),
        norm=Norm("layer"),
        gated=False,
        keys={"eps": "norm_epsilon", "bias": "use_bias", "out_bias": "use_bias", "mlp_bias": "use_bias"},
        names={"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"},
        slides=lambda i: True,
        defaults={"activation": "gelu_pytorch_tanh", "tied": True, "bias": True, "out_bias": True, "mlp_bias": True},
    ),
    Alike(
        "nanochat",
        "NanoChat",
        norm=Norm("rms", weight=False),
        gated=False,
        pairs="swapped",
        keys={"logit_softcap": "final_logit_softcapping"},
        fixed={
            "mlp_bias": False,
            "embedding_norm": True,
            "qk_norm": "head",
            "qk_norm_after": True,
        },
        names={"mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"},
        defaults={"activation": "relu2", "eps": 1e-6, "logit_softcap": 15.0},
        read=lambda config, attributes: each_attention(config, qk_norm_kind=config.norm),
    ),
)
