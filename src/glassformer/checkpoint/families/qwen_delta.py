"""Qwen 3.5 and Qwen3-Next: three layers of a gated delta rule, then one of attention with a gate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import KEYS
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_settings import has
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.settings import ACTIVATION_NAMES, activation, rope, rope_settings, rope_table
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


def _joined(theirs: str, *parts: str, **how: object) -> Row:
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
        gguf: the same family in GGUF.
    """

    name: str
    stem: str
    base: str
    projections: tuple[Row, ...]
    inside: Mapping[str, str] = field(default_factory=dict)
    layer: str = _LAYER
    gguf: GgufTable | None = None

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
            gguf=None if self.gguf is None else self.gguf.layout(self.config, self.settings, self.key),
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
    theta, scaling = rope(attributes, context, attributes.number("rope_theta", 10_000_000.0))
    fraction = rope_table(attributes).number("partial_rotary_factor", attributes.number("partial_rotary_factor", 0.25))
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


def _delta_rows(tiled: bool) -> tuple[Row, ...]:
    """GGUF's tensors of the gated delta rule, and queries with their gates."""
    at, delta = "blk.{i}.", f"{_BLOCK}delta."
    found = [
        row(at + "attn_q.weight", f"{_BLOCK}attn.q.weight", f"{_BLOCK}attn.gate.weight", per_head=True),
        row(at + "attn_qkv.weight", *(f"{delta}{p}.weight" for p in "qkv"), tiled=tiled),
        row(at + "attn_gate.weight", f"{delta}gate.weight", tiled=tiled),
        row(at + "ssm_conv1d.weight", f"{delta}conv.weight", tiled=tiled),
        row(at + "ssm_dt.bias", f"{delta}dt_bias", tiled=tiled),
        row(at + "ssm_a", f"{delta}a_log", tiled=tiled, exponent=True),
        row(at + "ssm_norm.weight", f"{delta}norm"),
        row(at + "ssm_out.weight", f"{delta}o.weight", tiled=tiled),
    ]
    if tiled:
        found += [row(f"{at}ssm_{a}.weight", f"{delta}{b}.weight", tiled=True) for a, b in _PER_HEAD]
    else:
        found.append(row(at + "ssm_ba.weight", f"{delta}beta.weight", f"{delta}decay.weight", blocks=KEY_HEADS))
    return tuple(found)


_PER_HEAD = (("beta", "beta"), ("alpha", "decay"))


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    values = attributes.integer("ssm.time_step_rank")
    kinds = has(shapes, "ssm_out.weight", attributes.layers("block_count"))
    return {
        "layer_types": ["linear_attention" if kind else "full_attention" for kind in kinds],
        "linear_num_value_heads": values,
        "linear_num_key_heads": attributes.integer("ssm.group_count"),
        "linear_key_head_dim": attributes.integer("ssm.state_size"),
        "linear_value_head_dim": attributes.share(
            "ssm.inner_size", attributes.integer("ssm.inner_size"), "ssm.time_step_rank", values
        ),
        "linear_conv_kernel_dim": attributes.integer("ssm.conv_kernel"),
        "attention_bias": False,
    }


def _write_gguf(config: Config, *, sections: bool) -> dict[str, Any]:
    flags = [isinstance(layer.mixer, Attention) for layer in config.layers]
    every = flags.index(True) + 1 if True in flags else 0
    if not every or flags != [(i + 1) % every == 0 for i in range(len(flags))]:
        raise UnsupportedError("llama.cpp expects attention in one layer after so many others, as in all such models.")
    d, a = next(x.mixer for x in config.layers if isinstance(x.mixer, GatedDelta)), config.attention(every - 1)
    if d.d_key != d.d_head:
        raise UnsupportedError("llama.cpp expects keys and values of a recurrence to be of one size.")
    pairs = a.rotary_dims // 2
    said = [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]
    return {
        "full_attention_interval": every,
        "ssm.conv_kernel": d.conv,
        "ssm.state_size": d.d_key,
        "ssm.group_count": d.n_key_heads,
        "ssm.time_step_rank": d.n_heads,
        "ssm.inner_size": d.out_size,
        # which pairs turn by which of a picture's axes, all equal in texts
        **({"rope.dimension_sections": said} if sections else {}),
    }


def _gguf(architecture: str, *, tiled: bool, **more: Any) -> GgufTable:
    return GgufTable(
        architecture,
        names={"ln2": "post_attention_norm"},
        rows=_delta_rows(tiled),
        shift=True,
        read=_read_gguf,
        write=functools.partial(_write_gguf, sections=tiled),
        **more,
    )


_ROUTED = (
    one("mlp.gate.weight", "router.weight"),
    *shared("mlp.shared_expert."),
    one("mlp.shared_expert_gate.weight", "shared_gate.weight"),
)
_SHARED: dict[str, Any] = {"shared": "shared_expert_intermediate_size", "fixed": {"shared_gate": True}}

QWEN_DELTA = (
    Delta(
        "qwen3_5_text",
        "Qwen3_5",
        "Qwen3_5TextModel",
        _APART,
        {"qwen3_5": "text_config"},
        gguf=_gguf("qwen35", tiled=True),
    ),
    Sparse(
        Delta("qwen3_5_moe_text", "Qwen3_5Moe", "Qwen3_5MoeTextModel", _APART, {"qwen3_5_moe": "text_config"}),
        (*_ROUTED, *fused("mlp.experts.")),
        stacked=((*_ROUTED, *each()),),
        defaults={"n_active": 8},
        gguf=_gguf("qwen35moe", tiled=True),
        **_SHARED,
    ),
    Sparse(
        Delta("qwen3_next", "Qwen3Next", "Qwen3NextModel", _BY_KEY_HEAD),
        (*_ROUTED, *each()),
        stacked=((*_ROUTED, *fused("mlp.experts.")),),
        keys={"renormalise": "norm_topk_prob"},
        defaults={"renormalise": True, "n_active": 10},
        layers=STEPPED,
        gguf=_gguf("qwen3next", tiled=False, implied={"norm_topk_prob": True}),
        **_SHARED,
    ),
)
