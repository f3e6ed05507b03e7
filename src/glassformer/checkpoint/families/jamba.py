"""Jamba: layers of Mamba's state space and, every few, one of attention without positions; experts in some."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_settings import has
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.hybrid import Flags, Hybrid, Layers
from glassformer.checkpoint.families.mamba1 import expansion, selective_rows
from glassformer.checkpoint.families.sparse import Layers as ExpertLayers
from glassformer.checkpoint.families.sparse import Sparse, each, fused, one
from glassformer.errors import UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Config, Experts, SelectiveStateSpace


def _every(attributes: Attributes, which: str, layers: int, period: int, offset: int) -> Flags:
    period = attributes.integer(f"{which}_layer_period", period)
    offset = attributes.integer(f"{which}_layer_offset", offset)
    return [i % period == offset for i in range(layers)]


def _said(flags: Flags, which: str) -> dict[str, int]:
    """`_every` the other way; where no period gives these layers, reading back shows it."""
    there = [i for i, flag in enumerate(flags) if flag]
    period = there[1] - there[0] if len(there) > 1 else len(flags) + 1
    return {f"{which}_layer_period": period, f"{which}_layer_offset": there[0] if there else len(flags)}


def _read(attributes: Attributes, config: Config) -> Mixer:
    rank = attributes.values.get("mamba_dt_rank", "auto")
    attributes.asked.add("mamba_dt_rank")
    return SelectiveStateSpace(
        attributes.integer("mamba_expand", 2) * config.d_model,
        attributes.integer("mamba_d_state", 16),
        math.ceil(config.d_model / 16) if rank == "auto" else attributes.integer("mamba_dt_rank"),
        conv=attributes.integer("mamba_d_conv", 4),
        conv_bias=attributes.flag("mamba_conv_bias", True),
        bias=attributes.flag("mamba_proj_bias", False),
        inner_norm="weighted",
        inner_eps=config.norm.eps,
    )


def _write(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    found = SelectiveStateSpace(config.d_model, 16, 1) if mixer is None else mixer
    if not isinstance(found, SelectiveStateSpace):
        raise UnsupportedError("it has layers that are neither attention nor a selective state space of channels")
    return {
        "mamba_expand": expansion(found.width, config),
        "mamba_d_state": found.d_state,
        "mamba_dt_rank": found.dt_rank,
        "mamba_d_conv": found.conv,
        "mamba_conv_bias": found.conv_bias,
        "mamba_proj_bias": found.bias,
    }


@dataclass(frozen=True)
class _MaybeSparse(Sparse):
    """One expert alone is a plain feed-forward part."""

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        if attributes.integer("num_experts", 16) > 1:
            return super().config(attributes)
        attributes.asked |= {"num_experts_per_tok", "expert_layer_period", "expert_layer_offset"}
        return self.alike.config(attributes)

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        if any(isinstance(layer.feed_forward, Experts) for layer in config.layers):
            return super().settings(config)
        return {**self.alike.settings(config), "num_experts": 1, "num_experts_per_tok": 1}


_FEED = "feed_forward."
_ATTENTION = Layers(
    lambda attributes, layers: [not flag for flag in _every(attributes, "attn", layers, 8, 4)],
    lambda flags: _said([not flag for flag in flags], "attn"),
)


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """One expert alone is a plain feed-forward part, of which there is no word."""
    inner, layers = attributes.integer("ssm.inner_size"), attributes.layers("block_count")
    return {
        "mamba_expand": inner // attributes.integer("embedding_length"),
        "mamba_d_state": attributes.integer("ssm.state_size"),
        "mamba_dt_rank": attributes.integer("ssm.time_step_rank"),
        "mamba_d_conv": attributes.integer("ssm.conv_kernel"),
        "mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in shapes),
        "mamba_proj_bias": False,
        "num_experts": found.get("num_experts", 1),
        **_ATTENTION.write(has(shapes, "ssm_in.weight", layers)),
    }


JAMBA = _MaybeSparse(
    Hybrid(
        Alike(
            "jamba",
            "Jamba",
            rotates=False,
            names={"ln2": "pre_ff_layernorm", **{f"mlp.{p}": f"{_FEED}{p}_proj" for p in ("gate", "up", "down")}},
            outside={"final": "model.final_layernorm"},
            fixed={"bias": False, "out_bias": False, "mlp_bias": False},
            defaults={"eps": 1e-6, "n_kv_heads": 8, "context": 262_144},
            no_effect=frozenset({"use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep"}),
        ),
        selective_rows("mamba."),
        _ATTENTION,
        _read,
        _write,
    ),
    (one(_FEED + "router.weight", "router.weight"), *each(_FEED + "experts.{e}.")),
    stacked=((one(_FEED + "router.weight", "router.weight"), *fused(_FEED + "experts.")),),
    d_ff=("intermediate_size",),
    fixed={"renormalise": False},
    defaults={"n_experts": 16},
    layers=ExpertLayers(
        lambda attributes, layers: _every(attributes, "expert", layers, 2, 1), lambda flags: _said(flags, "expert")
    ),
    gguf=GgufTable("jamba", dense="any", by_layer=("attention.head_count_kv",), read=_read_gguf),
)
