"""MiniMax-Text-01: layers of linear attention and layers of attention, experts in all of them.

Its layers norm the stream itself, not what a part reads: each norm stands after the sum before it, the first after the
embedding and the last one's place is that of the final norm.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.hybrid import Hybrid, by_types
from glassformer.checkpoint.families.settings import one_window
from glassformer.checkpoint.families.sparse import Sparse, each, fused, one
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import KEY_HEADS, Row
from glassformer.errors import UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Attention, Config, LinearAttention

_AT, _OURS = "self_attn.", "blocks.{i}.linear."
# Norm after the experts of one layer -> what the next calls it.
_ROWS = (
    Row("input_layernorm.weight", ("blocks.{h}.ln2.weight",)),
    Row(f"{_AT}qkv_proj.weight", tuple(f"{_OURS}{part}.weight" for part in "qkv"), blocks=KEY_HEADS),
    *(
        Row(f"{_AT}{theirs}.weight", (f"{_OURS}{ours}.weight",))
        for theirs, ours in (("output_gate", "gate"), ("norm", "norm"), ("out_proj", "o"))
    ),
)
_LAST = Row("model.norm.weight", ("blocks.{last}.ln2.weight",))
_BUFFER = re.compile(r"layers\.(\d+)\.self_attn\.(slope_rate|(?:query|key|diagonal)_decay)$")
_KINDS = {Attention: "full_attn", LinearAttention: "linear_attn"}
_ROUTER = one("block_sparse_moe.gate.weight", "router.weight")
_W = ("w1", "w3", "w2")


def _linear(attributes: Attributes, config: Config) -> LinearAttention:
    attention = config.attention(0)
    return LinearAttention(attention.n_heads, attention.d_head)


def _says_linear(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    attention = next((x.mixer for x in config.layers if isinstance(x.mixer, Attention)), None)
    if isinstance(mixer, LinearAttention) and attention is None:
        return {"num_attention_heads": mixer.n_heads, "num_key_value_heads": mixer.n_heads, "head_dim": mixer.d_head}
    return {}


def _rate(layer: int, layers: int) -> float:
    """How fast a layer's states fade, relative to the first's."""
    return 1 - layer / (layers - 1 + 1e-5) + 1e-5


def _decays(config: Config, name: str, shape: Shape) -> Any:
    """What a stored buffer of a layer's decays must hold, (head, 1, 1), (head, position, 1) or (1, head, position,
    position) within a block; None for other tensors."""
    import torch

    found = _BUFFER.search(name)
    mixer = None if found is None else config.mixer(int(found[1]))
    if found is None or not isinstance(mixer, LinearAttention):
        return None
    rates = torch.tensor(mixer.rates, dtype=torch.float64)[:, None, None]
    if found[2] == "slope_rate":
        return rates
    block = shape[-2] if len(shape) > 1 else 1
    place = torch.arange(1, block + 1, dtype=torch.float64)[:, None]
    if found[2] == "query_decay":
        return torch.exp(-rates * place)
    if found[2] == "key_decay":
        return torch.exp(-rates * (block - place))
    return torch.exp(-rates * (place - place.T))[None].tril()


@dataclass(frozen=True)
class _Normed(Sparse):
    """A family whose stream is normed after every sum, stream and part each times a number."""

    def family(self) -> Family:
        """The family, as everything else knows families."""
        plain = super().family()
        return dataclasses.replace(
            plain,
            rows=(*plain.rows, _LAST),
            layouts=tuple((*rows, _LAST) for rows in plain.layouts),
            implied=_decays,
        )

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        config = super().config(attributes)
        scales = {
            kind: [attributes.number(f"{kind}_{name}_factor", 1.0) for name in ("alpha", "beta")]
            for kind in (*_KINDS.values(), "mlp")
        }
        window = attributes.integer("sliding_window", None, null=True)
        layers = []
        for i, layer in enumerate(config.layers):
            mixer = layer.mixer
            if isinstance(mixer, Attention):
                mixer = dataclasses.replace(mixer, window=window)
            if isinstance(mixer, LinearAttention):
                mixer = dataclasses.replace(mixer, rate=_rate(i, config.n_layers))
            kept, given = zip(scales[_KINDS[type(mixer)]], scales["mlp"], strict=True)
            layers.append(dataclasses.replace(layer, mixer=mixer, stream_scales=kept, part_scales=given))
        return dataclasses.replace(config, layers=tuple(layers), final_norm=False)

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        found = {**super().settings(config), "sliding_window": one_window(config)}
        for layer in reversed(config.layers):
            kind = _KINDS.get(type(layer.mixer))
            if kind is None:
                raise UnsupportedError("it has layers that are neither attention nor linear attention")
            for number, which in enumerate((kind, "mlp")):
                found[f"{which}_alpha_factor"] = layer.stream_scales[number]
                found[f"{which}_beta_factor"] = layer.part_scales[number]
        return found


LIGHTNING = _Normed(
    Hybrid(
        Alike(
            "minimax",
            "MiniMax",
            norms="sum",
            fixed={"bias": False, "out_bias": False, "mlp_bias": False, "embedding_norm": True},
            names={"ln1": "post_attention_layernorm", "ln2": ""},
            outside={"embed_norm": "model.layers.0.input_layernorm"},
            defaults={"n_kv_heads": 8, "eps": 1e-5, "theta": 1_000_000.0, "context": 131_072},
            only={"hidden_act": ("silu",)},
            ignored=(r"(^|\.)rotary_emb\.inv_freq$", r"\.self_attn\.(slope_rate|(query|key|diagonal)_decay)$"),
        ),
        _ROWS,
        by_types(lambda layer: layer % 2 == 1),
        _linear,
        _says_linear,
        no_effect=frozenset({"block_size"}),
    ),
    (_ROUTER, *each("block_sparse_moe.experts.{e}.", _W)),
    stacked=((one("mlp.gate.weight", "router.weight"), *fused("mlp.experts.")),),
    n_experts=("num_local_experts", "num_experts"),
    d_ff=("intermediate_size",),
    no_effect=frozenset({"router_jitter_noise"}),
)
