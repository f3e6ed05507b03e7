"""Families with Llama's tensors and other choices: gated feed-forward parts, rotary positions, rms norms."""

from __future__ import annotations

import math
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.folding import untied
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.settings import rope_table, yarn_temperature
from glassformer.checkpoint.tables import row
from glassformer.errors import UnsupportedError
from glassformer.model.choices.feed_forward import LEARNED
from glassformer.model.config import Config, FeedForward, Norm

_NO_BIASES: dict[str, Any] = {"bias": False, "out_bias": False, "mlp_bias": False}
_GRANITE = {
    "scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "embedding_scale": "embedding_multiplier",
}


def _divided(config: Config, attributes: Attributes) -> Config:
    """Logits are divided by a setting, where a design multiplies them."""
    import dataclasses

    by = attributes.number("logits_scaling", 1.0)
    return dataclasses.replace(config, logit_scale=None if by == 1 else 1.0 / by)


def _dividing(config: Config) -> dict[str, Any]:
    return {"logits_scaling": 1.0 if config.logit_scale is None else 1.0 / config.logit_scale}


def _post_normed(config: Config, attributes: Attributes) -> Config:
    import dataclasses

    if not attributes.flag("use_post_norm", False):
        return config
    layers = tuple(dataclasses.replace(layer, norms="both") for layer in config.layers)
    return dataclasses.replace(config, layers=layers)


def _smollm3_rotates(layer: int, window: int | None, attributes: Attributes) -> bool:
    listed = attributes.sequence("no_rope_layers")
    if listed is not None:
        return bool(listed[layer]) if layer < len(listed) else True
    return bool((layer + 1) % attributes.integer("no_rope_layer_interval", 4))


def _unrotated(config: Config) -> dict[str, Any]:
    return {
        "no_rope_layers": [int(config.attention(i).rotary is not None) for i in range(config.n_layers)],
        "use_sliding_window": any(config.window(i) is not None for i in range(config.n_layers)),
    }


def _by_scalar(config: Config, attributes: Attributes) -> Config:
    return each_attention(config, scale=attributes.number("query_pre_attn_scalar", 256.0) ** -0.5)


def _lengthened(config: Config, attributes: Attributes) -> Config:
    """Queries beyond the original length are multiplied by a number that grows with their position's logarithm."""
    inner = rope_table(attributes)
    beta = inner.number("llama_4_scaling_beta", None)
    inner.number("max_position_embeddings", None)  # the context once more
    if not beta:
        return config
    return each_attention(config, length_scale=(beta, float(inner.integer("original_max_position_embeddings"))))


def _length_settings(config: Config) -> dict[str, Any]:
    from glassformer.checkpoint.families.settings import rope_settings

    found = rope_settings(config)
    scale = config.attention(0).length_scale
    parameters = {"rope_theta": found["rope_theta"], **(found["rope_scaling"] or {"rope_type": "default"})}
    if scale is not None:
        parameters |= {"llama_4_scaling_beta": scale[0], "original_max_position_embeddings": int(scale[1])}
    return {"rope_theta": None, "rope_scaling": None, "rope_parameters": parameters}


def _long(config: Config, attributes: Attributes) -> Config:
    """Phi-3 knows one scaling, under names that say others elsewhere."""
    rotary = config.attention(0).rotary
    if rotary is not None and rotary.scaling is not None and rotary.scaling.kind != "longrope":
        raise attributes.unsupported("rope_scaling", rotary.scaling.kind)
    return config


def _original(config: Config) -> dict[str, Any]:
    rotary = config.attention(0).rotary
    if rotary is None or rotary.scaling is None:
        return {}
    return {"original_max_position_embeddings": rotary.scaling.original_context}


def _sub_norms(config: Config, attributes: Attributes) -> Config:
    """Norms over the heads' and the neurons' outputs, before the matrices that read them."""
    import dataclasses

    config = each_attention(config, out_norm=config.norm)
    layers = []
    for layer in config.layers:
        assert isinstance(layer.feed_forward, FeedForward)
        feed = dataclasses.replace(layer.feed_forward, out_norm=config.norm)
        layers.append(dataclasses.replace(layer, feed_forward=feed))
    return dataclasses.replace(config, layers=tuple(layers))


def _read_mistral3(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """YaRN's temperature is that of its whole stretch over that of a share of it."""
    scaling = found["rope_scaling"]
    if not scaling:
        return {}
    share, beta = (attributes.number(name, 0.0) for name in (_SHARE, "attention.temperature_scale"))
    factor = scaling["factor"]
    said = {"attention_factor": yarn_temperature(factor) / yarn_temperature(factor, share)} if share else {}
    return {"rope_scaling": {**scaling, **said, **({"llama_4_scaling_beta": beta} if beta else {})}}


def _write_mistral3(config: Config) -> dict[str, Any]:
    a = config.attention(0)
    scaling = None if a.rotary is None else a.rotary.scaling
    if a.length_scale is not None and (scaling is None or scaling.original_context != a.length_scale[1]):
        raise UnsupportedError("llama.cpp lets queries grow beyond the context that is stretched, and nowhere else.")
    found = {} if a.length_scale is None else {"attention.temperature_scale": a.length_scale[0]}
    if scaling is not None and scaling.kind == "yarn":
        unit = 0.1 * math.log(scaling.factor)
        found |= {_SHARE: ((1 + unit) / scaling.attention_factor - 1) / unit, "rope.scaling.attn_factor": 1.0}
    return found


_SHARE = "rope.scaling.yarn_log_multiplier"

LLAMA_ALIKE = (
    Alike(
        "arcee",
        "Arcee",
        gguf=GgufTable("arcee", pairs="neighbours", factors=True, implied={"attention_bias": False, "mlp_bias": False}),
        gated=False,
        defaults={"activation": "relu2"},
    ),
    Alike(
        "cwm",
        "Cwm",
        fixed={"bias": False, "out_bias": False},
        slides=lambda i: i % 4 != 0,
        more={"bos_token_id": 0},  # its class takes no null
        defaults={"theta": 1_000_000.0, "window": 8192},
    ),
    Alike(
        "seed_oss",
        "SeedOss",
        gguf=GgufTable("seed_oss", names={"ln2": "post_attention_norm"}),
        keys={"out_bias": "attention_out_bias"},
        defaults={"bias": True},
    ),
    Alike(
        "ministral", "Ministral", fixed=_NO_BIASES, slides=lambda i: True, defaults={"window": 4096, "n_kv_heads": 8}
    ),
    Alike("helium", "Helium", pairs="neighbours", fixed={"out_bias": False}, defaults={"theta": 100_000.0}),
    Alike(
        "ernie4_5",
        "Ernie4_5",
        gguf=GgufTable("ernie4_5", pairs="neighbours", implied={"use_bias": False}),
        pairs="neighbours",
        keys={"bias": "use_bias", "out_bias": "use_bias", "mlp_bias": "use_bias"},
        defaults={"tied": True, "theta": 500_000.0},
    ),
    Alike(
        "granite",
        "Granite",
        gguf=GgufTable("granite", pairs="neighbours", settings={"logit_scale": "logits_scaling"}, factors=True),
        keys=_GRANITE,
        read=_divided,
        write=_dividing,
        defaults={"scale": 1.0},
    ),
    Alike(
        "hyperclovax",
        "HyperCLOVAX",
        # This one multiplies its logits, where Granite divides.
        keys={**_GRANITE, "logit_scale": "logits_scaling"},
        names={"ln1_post": "post_norm1", "ln2_post": "post_norm2"},
        read=_post_normed,
        write=lambda config: {"use_post_norm": config.layers[0].norms == "both"},
    ),
    # Llama under other names of type.
    Alike("internlm3", "Llama"),
    Alike("iquestcoder", "Llama"),
    Alike(
        "smollm3",
        "SmolLM3",
        gguf=GgufTable("smollm3", pairs="neighbours"),
        slides=lambda i: False,
        rotates_layer=_smollm3_rotates,
        write=_unrotated,
        defaults={"tied": True, "theta": 2_000_000.0},
        no_effect=frozenset(["no_rope_layer_interval", "use_sliding_window", "sliding_window"]),
    ),
    Alike(
        "hunyuan_v1_dense",
        "HunYuanDenseV1",
        gguf=GgufTable("hunyuan-dense"),
        fixed={"mlp_bias": False, "qk_norm": "head", "qk_norm_after": True},
        names={"attn.q_norm": "self_attn.query_layernorm", "attn.k_norm": "self_attn.key_layernorm"},
        no_effect=frozenset(["eod_token_id"]),
    ),
    Alike(
        "gemma",
        "Gemma",
        gguf=GgufTable("gemma", shift=True, implied={"tie_word_embeddings": True}),
        norm=Norm("rms", one_plus=True),
        fixed={"mlp_bias": False, "embedding_scale": "root"},
        defaults={"activation": "gelu_pytorch_tanh", "eps": 1e-6, "tied": True, "d_head": 256},
    ),
    Alike(
        "apertus",
        "Apertus",
        gated=False,
        keys={"out_bias": "attention_bias"},
        fixed={"mlp_bias": False, "qk_norm": "head", "activation": "xielu"},
        names={
            "ln1": "attention_layernorm",
            "ln2": "feedforward_layernorm",
            **{f"mlp.{name}": f"mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps")},
        },
        only={"hidden_act": ("xielu",)},
        defaults={"theta": 12_000_000.0},
        write=lambda config: {"hidden_act": "xielu"},
        gguf=GgufTable(
            "apertus",
            rows=tuple(
                row(f"blk.{{i}}.{name}", f"blocks.{{i}}.mlp.{name}", setting=f"xielu.{name}") for name in LEARNED
            ),
            implied={"attention_bias": False, "hidden_act": "xielu"},
            factors=True,
            fold=untied,
        ),
    ),
    Alike(
        "vaultgemma",
        "VaultGemma",
        norm=Norm("rms", one_plus=True),
        keys={
            "activation": "hidden_activation",
            "softcap": "attn_logit_softcapping",
            "logit_softcap": "final_logit_softcapping",
        },
        fixed={"mlp_bias": False, "embedding_scale": "root"},
        names={"ln2": "pre_feedforward_layernorm"},
        slides=lambda i: i % 2 == 0,
        defaults={"activation": "gelu_pytorch_tanh", "eps": 1e-6, "tied": True, "d_head": 256, "window": 4096},
        read=_by_scalar,
        write=lambda config: {"query_pre_attn_scalar": round(config.attention(0).score_scale ** -2)},
    ),
    Alike(
        "phi3",
        "Phi3",
        gguf=GgufTable("phi3", joined=("qkv", "gate"), period=0, factors=True),
        fixed=_NO_BIASES,
        joined={"self_attn.qkv_proj": ("attn.q", "attn.k", "attn.v"), "mlp.gate_up_proj": ("mlp.gate", "mlp.up")},
        slides=lambda i: True,
        read=_long,
        write=_original,
        no_effect=frozenset(["original_max_position_embeddings"]),
    ),
    Alike(
        "ministral3",
        "Ministral3",
        gguf=GgufTable("mistral3", pairs="neighbours", read=_read_mistral3, write=_write_mistral3),
        fixed=_NO_BIASES,
        slides=lambda i: True,
        defaults={"n_kv_heads": 8, "theta": 1_000_000.0},
        read=_lengthened,
        write=_length_settings,
    ),
    Alike(
        "glm",
        "Glm",
        gguf=GgufTable("chatglm", pairs="neighbours", joined=("gate",)),
        pairs="neighbours",
        fraction=0.5,
        fixed={"out_bias": False, "mlp_bias": False},
        joined={"mlp.gate_up_proj": ("mlp.gate", "mlp.up")},
    ),
    Alike(
        "glm4",
        "Glm4",
        gguf=GgufTable("glm4", pairs="neighbours", joined=("gate",)),
        pairs="neighbours",
        fraction=0.5,
        norms="both",
        fixed={"out_bias": False, "mlp_bias": False},
        names={"ln1_post": "post_self_attn_layernorm", "ln2_post": "post_mlp_layernorm"},
        joined={"mlp.gate_up_proj": ("mlp.gate", "mlp.up")},
    ),
    Alike(
        "bitnet",
        "BitNet",
        gguf=GgufTable("bitnet", implied={"hidden_act": "silu", "tie_word_embeddings": True}),
        fixed={"mlp_bias": False},
        names={"attn.out_norm": "self_attn.attn_sub_norm", "mlp.out_norm": "mlp.ffn_sub_norm"},
        defaults={"activation": "relu2", "theta": 500_000.0, "eps": 1e-5},
        read=_sub_norms,
    ),
)
