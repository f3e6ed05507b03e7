"""Qwen 3.5 and Qwen3-Next: three layers of a gated delta rule, then one of attention with a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import KEYS
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.settings import ACTIVATION_NAMES, activation, rope, rope_settings
from glassformer.checkpoint.families.sparse import STEPPED, Sparse, each, fused, one, shared
from glassformer.checkpoint.tables import KEY_HEADS, Row, row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config, FeedForward, GatedDelta, Norm, Rotary, uniform

_LAYER, _BLOCK = "model.layers.{i}.", "blocks.{i}."
_NAMES = {
    "ln1": "input_layernorm",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "delta.o": "linear_attn.out_proj",
    "ln2": "post_attention_layernorm",
    **{f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}

_ROWS: tuple[Row, ...] = (
    row("model.embed_tokens.weight", "embed.weight"),
    *(row(f"{_LAYER}{theirs}.weight", f"{_BLOCK}{ours}.weight") for ours, theirs in _NAMES.items()),
    row(f"{_LAYER}self_attn.q_proj.weight", f"{_BLOCK}attn.q.weight", f"{_BLOCK}attn.gate.weight", per_head=True),
    *(row(f"{_LAYER}self_attn.{part}_proj.bias", f"{_BLOCK}attn.{part}.bias") for part in "kvo"),
    row(f"{_LAYER}self_attn.q_proj.bias", f"{_BLOCK}attn.q.bias", f"{_BLOCK}attn.gate.bias", per_head=True),
    row(f"{_LAYER}linear_attn.conv1d.weight", f"{_BLOCK}delta.conv.weight", squeezed=1),
    row(f"{_LAYER}linear_attn.dt_bias", f"{_BLOCK}delta.dt_bias"),
    row(f"{_LAYER}linear_attn.A_log", f"{_BLOCK}delta.a_log"),
    row(f"{_LAYER}linear_attn.norm.weight", f"{_BLOCK}delta.norm"),
    row("model.norm.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)


def _joined(theirs: str, *parts: str, **how: Any) -> Row:
    """One tensor for several projections of the gated delta rule."""
    return row(f"{_LAYER}linear_attn.{theirs}.weight", *(f"{_BLOCK}delta.{part}.weight" for part in parts), **how)


_APART = (
    _joined("in_proj_qkv", "q", "k", "v"),
    _joined("in_proj_z", "gate"),
    _joined("in_proj_b", "beta"),
    _joined("in_proj_a", "decay"),
)
_BY_KEY_HEAD = (
    _joined("in_proj_qkvz", "q", "k", "v", "gate", blocks=KEY_HEADS),
    _joined("in_proj_ba", "beta", "decay", blocks=KEY_HEADS),
)


@dataclass(frozen=True)
class Delta:
    """One family, its experts apart.

    Args:
        name: ``model_type``; stem: of its classes' names.
        projections: how the projections of the gated delta rule are stored.
        inside: further ``model_type`` values that hold these settings under a name.
    """

    name: str
    stem: str
    base: str
    projections: tuple[Row, ...]
    inside: Mapping[str, str] = field(default_factory=dict)
    layer: str = _LAYER

    def family(self) -> Family:
        """The family, as everything else knows families."""
        return Family(
            name=self.name,
            architecture=f"{self.stem}ForCausalLM",
            base=self.base,
            rows=(*_ROWS, *self.projections),
            read=self.config,
            write=self.settings,
            prefixes=("model.", "model.language_model.", ""),
            ignored=(r"^model\.visual\.", r"^mtp\.", r"(^|\.)rotary_emb\.inv_freq$"),
            inside=self.inside,
        )

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        return _read(attributes)

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        return _write(config)

    def key(self, number: str) -> str | None:
        """The setting that holds a number of the design; None where it is fixed or has none."""
        return KEYS.get(number)


def _read(attributes: Attributes) -> Config:
    layers, eps = attributes.layers("num_hidden_layers", 32), attributes.number("rms_norm_eps", 1e-6)
    context = attributes.integer("max_position_embeddings", 32768)
    parameters = attributes.table("rope_parameters") or attributes.table("rope_scaling")
    theta, scaling = rope(attributes, context, attributes.number("rope_theta", 10_000_000.0))
    inner = attributes.inside(parameters, "rope_parameters")
    fraction = inner.number("partial_rotary_factor", attributes.number("partial_rotary_factor", 0.25))
    attention = Attention(
        attributes.integer("num_attention_heads", 16),
        attributes.integer("num_key_value_heads", 4),
        attributes.integer("head_dim", 256),
        bias=attributes.flag("attention_bias", False),
        out_bias=attributes.flag("attention_bias", False),
        rotary=Rotary(theta, fraction, scaling),
        gate="element",
        qk_norm="head",
    )
    delta = GatedDelta(
        attributes.integer("linear_num_value_heads", 32),
        attributes.integer("linear_num_key_heads", 16),
        attributes.integer("linear_key_head_dim", 128),
        attributes.integer("linear_value_head_dim", 128),
        conv=attributes.integer("linear_conv_kernel_dim", 4),
        norm_eps=eps,
    )
    config = uniform(
        attributes.integer("vocab_size", 248320),
        attributes.integer("hidden_size", 4096),
        layers,
        context,
        attention,
        FeedForward(attributes.integer("intermediate_size", 12288), activation(attributes, "hidden_act", "silu")),
        Norm("rms", eps=eps, one_plus=True),
        tied=attributes.flag("tie_word_embeddings", False),
    )
    kinds = _kinds(attributes, layers)
    return dataclasses.replace(
        config,
        layers=tuple(
            layer if kind == "full_attention" else dataclasses.replace(layer, mixer=delta)
            for layer, kind in zip(config.layers, kinds, strict=True)
        ),
    )


def _kinds(attributes: Attributes, layers: int) -> list[str]:
    every = attributes.integer("full_attention_interval", 4)
    said = attributes.sequence("layer_types")
    if said is None:
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if len(said) != layers or not set(said) <= {"linear_attention", "full_attention"}:
        raise attributes.unsupported("layer_types", said)
    return list(said)


def _write(config: Config) -> dict[str, Any]:
    attentions = [layer for layer in config.layers if isinstance(layer.mixer, Attention)]
    deltas = [layer.mixer for layer in config.layers if isinstance(layer.mixer, GatedDelta)]
    if not attentions or not deltas or len(attentions) + len(deltas) != config.n_layers:
        raise UnsupportedError("its layers are not some of attention and the others of a gated delta rule")
    a, d, f = attentions[0].mixer, deltas[0], config.layers[0].feed_forward
    assert isinstance(a, Attention)
    if not isinstance(f, FeedForward) or a.rotary is None:
        raise UnsupportedError("it has no rotary positions, or layers without a plain feed-forward part")
    found = {
        **rope_settings(dataclasses.replace(config, layers=(attentions[0],))),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "max_position_embeddings": config.context,
        "num_attention_heads": a.n_heads,
        "num_key_value_heads": a.n_kv_heads,
        "head_dim": a.d_head,
        "attention_bias": a.bias,
        "partial_rotary_factor": a.rotary.fraction,
        "linear_num_value_heads": d.n_heads,
        "linear_num_key_heads": d.n_key_heads,
        "linear_key_head_dim": d.d_key,
        "linear_value_head_dim": d.d_head,
        "linear_conv_kernel_dim": d.conv,
        "intermediate_size": f.d_ff,
        "hidden_act": ACTIVATION_NAMES.get(f.activation, f.activation),
        "rms_norm_eps": config.norm.eps,
        "layer_types": [
            "full_attention" if isinstance(layer.mixer, Attention) else "linear_attention" for layer in config.layers
        ],
        "tie_word_embeddings": config.tied,
    }
    if found.get("rope_scaling"):
        found["rope_scaling"]["partial_rotary_factor"] = a.rotary.fraction
    return found


_ROUTED = (
    one("mlp.gate.weight", "router.weight"),
    *shared("mlp.shared_expert."),
    one("mlp.shared_expert_gate.weight", "shared_gate.weight"),
)
_SHARED: dict[str, Any] = {"shared": "shared_expert_intermediate_size", "fixed": {"shared_gate": True}}

QWEN_DELTA = (
    Delta("qwen3_5_text", "Qwen3_5", "Qwen3_5TextModel", _APART, {"qwen3_5": "text_config"}),
    Sparse(
        Delta("qwen3_5_moe_text", "Qwen3_5Moe", "Qwen3_5MoeTextModel", _APART, {"qwen3_5_moe": "text_config"}),
        (*_ROUTED, *fused("mlp.experts.")),
        stacked=((*_ROUTED, *each()),),
        defaults={"n_active": 8},
        **_SHARED,
    ),
    Sparse(
        Delta("qwen3_next", "Qwen3Next", "Qwen3NextModel", _BY_KEY_HEAD),
        (*_ROUTED, *each()),
        stacked=((*_ROUTED, *fused("mlp.experts.")),),
        keys={"renormalise": "norm_topk_prob"},
        defaults={"renormalise": True, "n_active": 10},
        layers=STEPPED,
        **_SHARED,
    ),
)
