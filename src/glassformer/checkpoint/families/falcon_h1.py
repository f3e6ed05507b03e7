"""Falcon-H1: attention and Mamba 2's state space side by side in every layer, with multipliers everywhere."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.folding import Folded
from glassformer.checkpoint.families.gguf_settings import read_state_space
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.hybrid import PARTS, StateSpaceKeys, state_space_rows
from glassformer.checkpoint.tables import row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Parallel
from glassformer.model.config import Config, FeedForward, Layer, StateSpace

_ALIKE = Alike(
    "falcon_h1",
    "FalconH1",
    names={"ln2": "pre_ff_layernorm", **{f"mlp.{p}": f"feed_forward.{p}_proj" for p in ("gate", "up", "down")}},
    outside={"final": "model.final_layernorm"},
    keys={"embedding_scale": "embedding_multiplier", "logit_scale": "lm_head_multiplier"},
    defaults={"n_kv_heads": 8, "eps": 1e-5},
)
_STATE = StateSpaceKeys(
    {
        "n_heads": "mamba_n_heads",
        "d_head": "mamba_d_head",
        "n_groups": "mamba_n_groups",
        "d_state": "mamba_d_state",
        "conv": "mamba_d_conv",
        "conv_bias": "mamba_conv_bias",
        "bias": "mamba_proj_bias",
        "norm": "mamba_rms_norm",
        "norm_first": "mamba_norm_before_gate",
    },
    {"n_heads": 128, "d_state": 256, "norm_first": True},
    inner="mamba_d_ssm",
)


def _numbers(attributes: Attributes, name: str, count: int) -> tuple[float, ...]:
    said = attributes.sequence(name)
    if said is None:
        return (1.0,) * count
    if len(said) != count or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in said):
        raise CheckpointError(f"{attributes.where} sets {name} to {said}; it must be {count} numbers.")
    return tuple(float(x) for x in said)


def _factor(product: float, other: float) -> float:
    """The number that times another gives exactly this product, where a float is one."""
    guess = product / other
    low = high = guess
    for _ in range(4):
        for tried in (low, high):
            if tried * other == product:
                return tried
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return guess


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    inner = attributes.integer("ssm.inner_size")
    return {**read_state_space(attributes, shapes, _STATE.keys), "mamba_d_ssm": inner, "mamba_norm_before_gate": False}


def _folded(config: Config) -> Folded:
    """Every multiplier in the weights: llama.cpp has none, and its converter does the same."""
    reads, writes = config.embedding_scale or 1.0, config.logit_scale or 1.0
    scales, layers = {"embed.weight": reads, "unembed.weight": writes}, []
    for i, layer in enumerate(config.layers):
        mixer, f = layer.mixer, layer.feed_forward
        if not (
            isinstance(mixer, Parallel) and isinstance(mixer.recurrence, StateSpace) and isinstance(f, FeedForward)
        ):
            return Folded(config)
        a, state = mixer.attention, mixer.recurrence
        key = 1.0 if a.scale is None else a.scale * a.d_head**0.5
        within = {  # what a matrix, and its bias, are multiplied by
            **{f"attn.{p}": (mixer.in_scales[0], 1.0) for p in "qv"},
            "attn.k": (mixer.in_scales[0] * key, key),
            "attn.o": (mixer.out_scales[0],) * 2,
            **{f"ssm.{p}": (mixer.in_scales[1] * s, s) for p, s in zip(PARTS, state.scales or (1.0,) * 5, strict=True)},
            "ssm.o": (mixer.out_scales[1],) * 2,
            "mlp.gate": (f.pre_scale,) * 2,
            "mlp.down": (f.out_scale,) * 2,
        }
        for part, (weight, bias) in within.items():
            scales |= {f"blocks.{i}.{part}.weight": weight, f"blocks.{i}.{part}.bias": bias}
        state = dataclasses.replace(state, scales=(), norm_first=state.norm_first and state.norm)
        feed = dataclasses.replace(f, pre_scale=1.0, out_scale=1.0)
        layers.append(
            dataclasses.replace(layer, mixer=Parallel(dataclasses.replace(a, scale=None), state), feed_forward=feed)
        )
    plain = dataclasses.replace(config, layers=tuple(layers), embedding_scale=None, logit_scale=None)
    return Folded(dataclasses.replace(plain, tied=config.tied and reads == writes), scales)


def _key(number: str) -> str | None:
    return None if number in ("embedding_scale", "logit_scale") else _ALIKE.key(number)


_GGUF = GgufTable("falcon-h1", rows=(row("blk.{i}.ffn_norm", "blocks.{i}.ln2.weight"),), read=_read_gguf, fold=_folded)


@dataclass(frozen=True)
class _Beside:
    """The family: a table of layers of attention, and what stands beside it."""

    def family(self) -> Family:
        """The family, as everything else knows families."""
        plain = _ALIKE.family()
        within = tuple(dataclasses.replace(row, theirs=_ALIKE.layer + row.theirs) for row in state_space_rows("mamba."))
        return dataclasses.replace(
            plain,
            rows=(*plain.rows, *within),
            read=self.config,
            write=self.settings,
            gguf=_GGUF.layout(self.config, self.settings, _key),
            no_effect=frozenset(
                {"mamba_chunk_size", "num_logits_to_keep", "mamba_expand", "mamba_use_mlp", "mlp_expansion_factor"}
            ),
        )

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        ask, whole = attributes, _ALIKE.config(attributes)
        a, f = whole.attention(0), whole.feed_forward(0)
        assert isinstance(f, FeedForward)
        state = _STATE.read(ask, whole)
        scales = _numbers(ask, "ssm_multipliers", 5)
        state = dataclasses.replace(
            state,
            scales=() if set(scales) == {1.0} else scales,
            out_bias=ask.flag("projectors_bias", False),
        )
        if state.out_bias is state.bias:
            state = dataclasses.replace(state, out_bias=None)
        key = ask.number("key_multiplier", 1.0)
        mixer = Parallel(
            a if key == 1 else dataclasses.replace(a, scale=key * a.d_head**-0.5),
            state,
            (ask.number("attention_in_multiplier", 1.0), ask.number("ssm_in_multiplier", 1.0)),
            (ask.number("attention_out_multiplier", 1.0), ask.number("ssm_out_multiplier", 1.0)),
        )
        gate, down = _numbers(ask, "mlp_multipliers", 2)
        feed = dataclasses.replace(f, pre_scale=gate, out_scale=down)
        return dataclasses.replace(whole, layers=(Layer(mixer, feed),) * whole.n_layers)

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        mixer, f = config.layers[0].mixer, config.layers[0].feed_forward
        if not isinstance(mixer, Parallel) or not isinstance(f, FeedForward):
            raise UnsupportedError("its layers are not of attention beside a recurrence and a dense feed-forward part")
        a, state = mixer.attention, mixer.recurrence
        plain = Layer(dataclasses.replace(a, scale=None), dataclasses.replace(f, pre_scale=1.0, out_scale=1.0))
        found = _ALIKE.settings(dataclasses.replace(config, layers=(plain,) * config.n_layers))
        return {
            **found,
            **_STATE.write(state, config),
            "projectors_bias": getattr(state, "writes_bias", False),
            "ssm_multipliers": list(getattr(state, "scales", ()) or (1.0,) * 5),
            "key_multiplier": 1.0 if a.scale is None else _factor(a.scale, a.d_head**-0.5),
            "attention_in_multiplier": mixer.in_scales[0],
            "ssm_in_multiplier": mixer.in_scales[1],
            "attention_out_multiplier": mixer.out_scales[0],
            "ssm_out_multiplier": mixer.out_scales[1],
            "mlp_multipliers": [f.pre_scale, f.out_scale],
        }


FALCON_H1 = _Beside().family()
