"""Mamba and Falcon Mamba: layers of a selective state space of single channels alone."""

from __future__ import annotations

import functools
import math
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import KEYS
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Config, Norm, SelectiveStateSpace, uniform


def selective_rows(at: str) -> tuple[Row, ...]:
    """Tensors of Mamba's state space as its reference code names them, behind `at`."""
    block = "blocks.{i}.mamba."
    found = [
        Row(at + "conv1d.weight", (block + "conv.weight",), squeezed=1),
        Row(at + "conv1d.bias", (block + "conv.bias",)),
        Row(at + "x_proj.weight", tuple(f"{block}{part}.weight" for part in ("dt_in", "b", "c"))),
        *(Row(f"{at}{part}_layernorm.weight", (f"{block}{part}_norm.weight",)) for part in "bc"),
        Row(at + "dt_layernorm.weight", (block + "dt_in_norm.weight",)),
        Row(at + "A_log", (block + "a_log",)),
        Row(at + "D", (block + "skip",)),
    ]
    for kind in ("weight", "bias"):
        found.append(Row(f"{at}in_proj.{kind}", tuple(f"{block}{part}.{kind}" for part in ("x", "gate"))))
        found.append(Row(f"{at}dt_proj.{kind}", (f"{block}dt.{kind}",)))
        found.append(Row(f"{at}out_proj.{kind}", (f"{block}o.{kind}",)))
    return tuple(found)


_LAYER = "backbone.layers.{i}."
_ROWS: tuple[Row, ...] = (
    row("backbone.embeddings.weight", "embed.weight"),
    row(_LAYER + "norm.weight", "blocks.{i}.ln1.weight"),
    *selective_rows(_LAYER + "mixer."),
    row("backbone.norm_f.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)


def _read(attributes: Attributes, *, normed: bool) -> Config:
    d_model, expand = attributes.integer("hidden_size", 768), attributes.number("expand", 2)
    rank = attributes.values.get("time_step_rank", "auto")
    attributes.asked.add("time_step_rank")
    if attributes.text("hidden_act", "silu") not in ("silu", "swish"):
        raise attributes.unsupported("hidden_act", attributes.values.get("hidden_act"))
    return uniform(
        attributes.integer("vocab_size", 50280),
        d_model,
        attributes.layers("num_hidden_layers", 32),
        # a recurrence has no longest text; what was trained on is not said
        attributes.integer("max_position_embeddings", 1 << 20),
        SelectiveStateSpace(
            int(expand * d_model),
            attributes.integer("state_size", 16),
            math.ceil(d_model / 16) if rank == "auto" else attributes.integer("time_step_rank"),
            conv=attributes.integer("conv_kernel", 4),
            conv_bias=attributes.flag("use_conv_bias", True),
            bias=attributes.flag("use_bias", False),
            inner_norm="plain" if normed else None,
            inner_eps=attributes.number("mixer_rms_eps", 1e-6) if normed else 1e-6,
        ),
        None,
        Norm("rms", eps=attributes.number("layer_norm_epsilon", 1e-5)),
        tied=attributes.flag("tie_word_embeddings", True),
    )


def _write(config: Config, *, normed: bool) -> dict[str, Any]:
    s = config.layers[0].mixer
    if not isinstance(s, SelectiveStateSpace) or config.layers[0].feed_forward is not None:
        raise UnsupportedError("it has layers of other parts than a selective state space of channels")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "state_size": s.d_state,
        "expand": expansion(s.width, config),
        "intermediate_size": s.width,
        "conv_kernel": s.conv,
        "time_step_rank": s.dt_rank,
        "use_conv_bias": s.conv_bias,
        "use_bias": s.bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.norm.eps,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
        **({"mixer_rms_eps": s.inner_eps} if normed else {}),
    }


def expansion(width: int, config: Config) -> int:
    """How many times as wide as the stream the channels are.

    Raises:
        UnsupportedError: no whole number of times.
    """
    if width % config.d_model:
        raise UnsupportedError(f"its {width} channels are no multiple of the stream's width, {config.d_model}")
    return width // config.d_model


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """One eps is there for all norms."""
    attributes.asked.add("mamba.ssm.dt_b_c_rms")
    return {
        "expand": attributes.integer("ssm.inner_size") / attributes.integer("embedding_length"),
        "state_size": attributes.integer("ssm.state_size"),
        "conv_kernel": attributes.integer("ssm.conv_kernel"),
        "time_step_rank": attributes.integer("ssm.time_step_rank"),
        "use_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in shapes),
        "mixer_rms_eps": found["layer_norm_epsilon"],
    }


_KEYS = {**KEYS, "eps": "layer_norm_epsilon", **dict.fromkeys(("n_heads", "n_kv_heads", "d_head", "d_ff"))}


def _gguf(normed: bool) -> GgufTable:
    return GgufTable(
        "mamba",
        read=_read_gguf,
        implied={"use_bias": False},
        says={"attention.head_count": 0, "feed_forward_length": 0, "ssm.dt_b_c_rms": normed},
        chosen=lambda settings: settings.get("mamba.ssm.dt_b_c_rms", False) is normed,
    )


def _family(name: str, stem: str, normed: bool) -> Family:
    read, write = functools.partial(_read, normed=normed), functools.partial(_write, normed=normed)
    return Family(
        name=name,
        architecture=f"{stem}ForCausalLM",
        base=f"{stem}Model",
        rows=_ROWS,
        read=read,
        write=write,
        gguf=_gguf(normed).layout(read, write, _KEYS.get),
        prefixes=("backbone.", ""),
        no_effect=frozenset(
            {
                *("rescale_prenorm_residual", "residual_in_fp32", "intermediate_size", "use_mambapy", "d_inner"),
                *("time_step_floor", "time_step_max", "time_step_min", "time_step_scale", "time_step_init_scheme"),
                *("use_associative_scan", "use_falcon_mambapy", "d_model", "n_layer", "ssm_cfg", "rms_norm"),
                *("fused_add_norm", "pad_vocab_size_multiple"),
            }
        ),
    )


MAMBA1 = (_family("mamba", "Mamba", False), _family("falcon_mamba", "FalconMamba", True))
