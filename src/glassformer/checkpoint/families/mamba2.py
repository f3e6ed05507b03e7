"""Mamba 2: layers of a state space alone."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import KEYS
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_settings import read_state_space
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.hybrid import bounds, said_bounds, state_space_rows
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Config, Norm, StateSpace, uniform

_LAYER = "backbone.layers.{i}."

ROWS: tuple[Row, ...] = (
    row("backbone.embeddings.weight", "embed.weight"),
    row(_LAYER + "norm.weight", "blocks.{i}.ln1.weight"),
    *state_space_rows(_LAYER + "mixer."),
    row("backbone.norm_f.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)


def _read(attributes: Attributes) -> Config:
    d_model, heads = attributes.integer("hidden_size", 4096), attributes.integer("num_heads", 128)
    d_head, groups = attributes.integer("head_dim", 64), attributes.integer("n_groups", 8)
    if heads * d_head != int(attributes.number("expand", 2.0) * d_model):
        raise attributes.unsupported("expand", attributes.values.get("expand"))
    attributes.only("hidden_act", "silu")
    eps = attributes.number("layer_norm_epsilon", 1e-5)
    return uniform(
        attributes.integer("vocab_size", 32768),
        d_model,
        attributes.layers("num_hidden_layers", 64),
        # a recurrence has no longest text; what was trained on is not said
        attributes.integer("max_position_embeddings", 1 << 20),
        StateSpace(
            heads,
            d_head,
            attributes.integer("state_size", 128),
            n_groups=groups,
            conv=attributes.integer("conv_kernel", 4),
            conv_bias=attributes.flag("use_conv_bias", True),
            bias=attributes.flag("use_bias", False),
            norm_groups=groups,
            norm_eps=eps,
            dt_limit=bounds(attributes),
        ),
        None,
        Norm("rms", eps=eps),
        tied=attributes.flag("tie_word_embeddings", False),
    )


def _whole(ratio: float) -> float | int:
    return int(ratio) if ratio == int(ratio) else ratio


def _write(config: Config) -> dict[str, Any]:
    s = config.layers[0].mixer
    if not isinstance(s, StateSpace) or config.layers[0].feed_forward is not None:
        raise UnsupportedError("it has layers of other parts than a state space")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_heads": s.n_heads,
        "head_dim": s.d_head,
        "state_size": s.d_state,
        "n_groups": s.n_groups,
        "expand": _whole(s.n_heads * s.d_head / config.d_model),
        "conv_kernel": s.conv,
        "use_conv_bias": s.conv_bias,
        "use_bias": s.bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm.eps,
        "max_position_embeddings": config.context,
        "time_step_limit": said_bounds(s.dt_limit),
        "tie_word_embeddings": config.tied,
    }


_GGUF_NAMES = {
    "n_heads": "num_heads",
    "d_head": "head_dim",
    "d_state": "state_size",
    "n_groups": "n_groups",
    "conv": "conv_kernel",
    "conv_bias": "use_conv_bias",
    "bias": "use_bias",
    "expand": "expand",
}
_GGUF = GgufTable(
    "mamba2",
    read=lambda attributes, shapes, found: read_state_space(attributes, shapes, _GGUF_NAMES),
    says={"attention.head_count": 0, "feed_forward_length": 0},
)
_KEYS = {**KEYS, "eps": "layer_norm_epsilon", **dict.fromkeys(("n_heads", "n_kv_heads", "d_head", "d_ff"))}

MAMBA2 = Family(
    name="mamba2",
    architecture="Mamba2ForCausalLM",
    base="Mamba2Model",
    rows=ROWS,
    read=_read,
    write=_write,
    prefixes=("backbone.", ""),
    gguf=_GGUF.layout(_read, _write, _KEYS.get),
    no_effect=frozenset(
        {
            *("chunk_size", "rescale_prenorm_residual", "residual_in_fp32", "time_step_rank", "intermediate_size"),
            *("time_step_floor", "time_step_max", "time_step_min", "rms_norm", "norm_before_gate", "d_model"),
        }
    ),
)
