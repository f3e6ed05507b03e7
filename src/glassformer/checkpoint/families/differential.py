"""DiffLlama: Llama whose heads stand in pairs that give the difference of two softmaxes."""

from __future__ import annotations

import dataclasses
import math

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.tables import Row
from glassformer.model.choices.differential import LAMBDAS
from glassformer.model.config import Attention, Config, DifferentialAttention


def _paired(config: Config, attributes: Attributes) -> Config:
    """Heads in pairs; what is taken of the second begins at a number that grows with the layer's."""
    layers = []
    for i, layer in enumerate(config.layers):
        mixer = layer.mixer
        assert isinstance(mixer, Attention)
        held = {field.name: getattr(mixer, field.name) for field in dataclasses.fields(Attention)}
        start = 0.8 - 0.6 * math.exp(-0.3 * i)
        own = DifferentialAttention(**held, start=start, pair_eps=config.norm.eps)
        layers.append(dataclasses.replace(layer, mixer=own))
    return dataclasses.replace(config, layers=tuple(layers))


_DIFFLLAMA = Alike(
    "diffllama",
    "DiffLlama",
    fixed={"mlp_bias": False},
    defaults={"eps": 1e-5},
    read=_paired,
    no_effect=frozenset(["lambda_std_dev"]),
)
DIFFLLAMA: Family = dataclasses.replace(
    _DIFFLLAMA.family(),
    rows=(
        *_DIFFLLAMA.rows(),
        *(Row(f"model.layers.{{i}}.self_attn.{name}", (f"blocks.{{i}}.attn.{name}",)) for name in LAMBDAS),
    ),
)
