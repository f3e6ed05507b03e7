"""DeepSeek and other families with latent attention, with and without experts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes, sharing
from glassformer.checkpoint.families.grouped_experts import GROUPED, GROUPED_ROWS
from glassformer.checkpoint.families.settings import attention_of, rope_table, yarn_temperature
from glassformer.checkpoint.families.sparse import FIRST_DENSE, LISTED, Sparse, each, fused, one, shared
from glassformer.checkpoint.tables import Row
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config, Experts, LatentAttention, Layer, Rotary

_BLOCK = "blocks.{i}.attn."
_JOINED = {"kv_a_proj_with_mqa": ("kv_down", "k_shared"), "kv_b_proj": ("k_own", "v_up")}


@dataclass(frozen=True)
class LatentAlike(Alike):
    """A family whose attention is latent; the rest is as in `Alike`, which sees heads of the rotated size.

    Args:
        at: what stands before a tensor's name in attention.
        gate: of the heads' outputs, as `Attention` has it.
    """

    at: str = "self_attn."
    gate: Literal["element", "head"] | None = None

    def rows(self) -> tuple[Row, ...]:
        """The tensor table."""
        at = self.layer + self.at
        names = {"q_a_proj": "q_down", "q_a_layernorm": "q_latent", "q_b_proj": "q_up", "kv_a_layernorm": "kv_latent"}
        pairs = "neighbours" if self.pairs == "neighbours" else "halves"
        rows = [row for row in super().rows() if row.ours[0] != f"{_BLOCK}q.weight"]
        rows.append(Row(f"{at}g_proj.weight", (f"{_BLOCK}gate.weight",)))
        for kind in ("weight", "bias"):
            rows.append(Row(f"{at}q_proj.{kind}", (f"{_BLOCK}q.{kind}",), pairs=pairs))
            for theirs, ours in names.items():
                rows.append(Row(f"{at}{theirs}.{kind}", (f"{_BLOCK}{ours}.{kind}",), pairs=pairs))
            for theirs, parts in _JOINED.items():
                keys = tuple(f"{_BLOCK}{part}.{kind}" for part in parts)
                rows.append(Row(f"{at}{theirs}.{kind}", keys, per_head=theirs == "kv_b_proj", pairs=pairs))
        return tuple(rows)

    def latent(self, attributes: Attributes) -> Config:
        """`config` of a family whose layers all have the sizes that the settings name."""
        return LatentAlike.config(self, attributes)

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        config = super().config(attributes)
        own, value = attributes.integer("qk_nope_head_dim"), attributes.integer("v_head_dim")
        for name, number in (
            ("qk_head_dim", own + config.attention(0).d_head),
            ("head_dim", config.attention(0).d_head),
        ):
            attributes.only(name, number)
        return _each(config, lambda a: self._latent(a, own, value, attributes))

    def _latent(self, a: Attention, own: int, value: int, attributes: Attributes) -> Attention:
        rotary, size = a.rotary, own + a.d_head
        return LatentAttention(
            a.n_heads,
            a.n_heads,
            size,
            value,
            bias=a.bias,
            out_bias=a.out_bias,
            rotary=None if rotary is None else dataclasses.replace(rotary, fraction=a.d_head / size),
            d_shared=a.d_head if rotary is None else None,
            gate=self.gate,
            scale=None if rotary is None else _scale(size, rotary, attributes),
            kv_rank=attributes.integer("kv_lora_rank"),
            q_rank=attributes.integer("q_lora_rank", None, null=True),
        )

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        latent = attention_of(config)
        if not isinstance(latent, LatentAttention):
            raise UnsupportedError("it has layers without latent attention")
        size, rotary = latent.shared_size, latent.rotary

        def plain(a: Attention) -> Attention:
            turned = None if a.rotary is None else Rotary(a.rotary.theta, 1.0, a.rotary.scaling)
            return Attention(a.n_heads, a.n_heads, size, bias=a.bias, out_bias=a.out_bias, rotary=turned)

        found = super().settings(_each(config, plain))
        stretched = latent.score_scale * math.sqrt(latent.d_head)
        scaling = None if rotary is None else rotary.scaling
        if scaling is not None and scaling.kind == "yarn" and not math.isclose(stretched, 1.0, rel_tol=1e-9):
            share = (math.sqrt(stretched) - 1) / (0.1 * math.log(scaling.factor))
            found["rope_scaling"]["mscale_all_dim"] = round(share, 9)
        return {
            **found,
            "head_dim": size,
            "qk_nope_head_dim": latent.own_size,
            "qk_rope_head_dim": size,
            "v_head_dim": latent.value_size,
            "kv_lora_rank": latent.kv_rank,
            "q_lora_rank": latent.q_rank,
        }


def _each(config: Config, change: Any) -> Config:
    layers: list[Layer] = []
    for layer in config.layers:
        assert isinstance(layer.mixer, Attention)
        layers.append(dataclasses.replace(layer, mixer=change(layer.mixer)))
    return dataclasses.replace(config, layers=tuple(layers))


def _scale(size: int, rotary: Rotary, attributes: Attributes) -> float | None:
    """YaRN's temperature on the scores, where the settings give its share of all dimensions."""
    all_dims = rope_table(attributes).number("mscale_all_dim", 0.0)
    if rotary.scaling is None or not all_dims:
        return None
    temperature: float = yarn_temperature(rotary.scaling.factor, all_dims)
    return size**-0.5 * temperature * temperature


def _greedy(experts: Experts, attributes: Attributes) -> Experts:
    """DeepSeek 2 chooses among all experts, or among those of the groups with the best expert."""
    method = attributes.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise attributes.unsupported("topk_method", method)
    if method == "greedy":
        return dataclasses.replace(experts, groups=1, top_groups=1)
    return dataclasses.replace(experts, group_best=1)


def _says_method(config: Config) -> dict[str, Any]:
    groups = next(layer.feed_forward.groups for layer in config.layers if isinstance(layer.feed_forward, Experts))
    return {"topk_method": "greedy" if groups == 1 else "group_limited_greedy", "norm_topk_prob": False}


def _depth(config: Config, attributes: Attributes) -> Config:
    """MiniCPM scales what layers add by their number, and logits by the width."""
    scale = attributes.number("scale_depth", 1.4) / math.sqrt(config.n_layers)
    base = attributes.integer("dim_model_base", 256)
    layers = tuple(dataclasses.replace(layer, residual_scale=scale) for layer in config.layers)
    return dataclasses.replace(config, layers=layers, logit_scale=base / config.d_model)


def _says_depth(config: Config) -> dict[str, Any]:
    scale = config.layers[0].residual_scale or 1.0
    return {
        "scale_depth": round(scale * math.sqrt(config.n_layers), 9),
        "dim_model_base": round((config.logit_scale or 1.0) * config.d_model),
    }


def _one_dense(attributes: Attributes) -> dict[str, Any]:
    """A.X-K1's first layer is dense where nothing says otherwise."""
    attributes.only("moe_layer_freq", 1)
    said = "mlp_layer_types" in attributes or "first_k_dense_replace" in attributes
    return {} if said else {"first_k_dense_replace": 1}


def _normed_experts(config: Config, attributes: Attributes) -> Config:
    """What experts give is normed, what dense parts give is not."""
    flags = LISTED.read(attributes, config.n_layers)
    layers = tuple(
        dataclasses.replace(layer, norms="feed_both" if flag else "before")
        for layer, flag in zip(config.layers, flags, strict=True)
    )
    return dataclasses.replace(config, layers=layers)


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """Sizes of heads as they are before keys and values are read from the latent, and YaRN's temperature, which stands
    a tenth as large."""
    shared = attributes.integer("rope.dimension_count")
    scaling = {k: v for k, v in (found["rope_scaling"] or {}).items() if k != "partial_rotary_factor"}
    stretch = attributes.number("rope.scaling.yarn_log_multiplier", 0.0)
    if scaling and stretch:
        scaling |= {"mscale_all_dim": round(stretch / 0.1, 6), "attention_factor": 1.0}
    return {
        "rope_scaling": scaling or None,
        "partial_rotary_factor": 1.0,
        "qk_rope_head_dim": shared,
        "qk_nope_head_dim": attributes.integer("attention.key_length_mla") - shared,
        "v_head_dim": attributes.integer("attention.value_length_mla"),
        "kv_lora_rank": attributes.integer("attention.kv_lora_rank"),
        "q_lora_rank": attributes.integer("attention.q_lora_rank", None),
        "num_key_value_heads": attributes.integer("attention.head_count"),
        "topk_method": "group_limited_greedy" if attributes.integer("expert_group_count", 1) > 1 else "greedy",
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    a = attention_of(config)
    assert isinstance(a, LatentAttention)
    if a.q_rank is None and config.n_layers not in (26, 27):
        raise UnsupportedError("llama.cpp reads queries without a latent in models of 26 and 27 layers alone.")
    found: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.key_length": a.kv_rank + a.shared_size,
        "attention.value_length": a.kv_rank,
        "attention.key_length_mla": a.d_head,
        "attention.value_length_mla": a.value_size,
        "attention.kv_lora_rank": a.kv_rank,
        **({} if a.q_rank is None else {"attention.q_lora_rank": a.q_rank}),
    }
    scaling = None if a.rotary is None else a.rotary.scaling
    stretched = a.score_scale * math.sqrt(a.d_head)
    if scaling is not None and scaling.kind == "yarn" and not math.isclose(stretched, 1.0, rel_tol=1e-9):
        found["rope.scaling.yarn_log_multiplier"] = (math.sqrt(stretched) - 1) / math.log(scaling.factor)
        found["rope.scaling.attn_factor"] = scaling.attention_factor
    return found


LATENT_GGUF = GgufTable("deepseek2", dense="first", pairs="neighbours", read=_read_gguf, write=_write_gguf)


def _softmax(settings: Mapping[str, Any]) -> bool:
    """Files from before there was a word for it hold a softmax, those of GLM 4.7 Flash apart."""
    said = settings.get("deepseek2.expert_gating_func", 0)
    lite = settings.get("deepseek2.block_count") in (47, 48) and settings.get("deepseek2.vocab_size") == 154_880
    return said == 1 or (not said and not lite)


_SOFTMAX = sharing(LATENT_GGUF, chosen=_softmax)
_KEYS = {"d_head": "qk_rope_head_dim"}
_FIXED: dict[str, Any] = {"mlp_bias": False}
_NEIGHBOURS: dict[str, Any] = {
    "pairs": "neighbours",
    "keys": _KEYS,
    "fixed": _FIXED,
    "only": {"rope_interleave": (True,)},
}
_UNREAD = frozenset({"num_nextn_predict_layers"})

LATENT_EXPERTS = (
    Sparse(
        LatentAlike(
            "deepseek_v2",
            "DeepseekV2",
            pairs="neighbours",
            keys=_KEYS,
            fixed=_FIXED,
            only={
                "mlp_bias": (False,),
                "norm_topk_prob": (False,),
                "scoring_func": ("softmax",),
                "moe_layer_freq": (1,),
            },
            defaults={"eps": 1e-6},
        ),
        (one("mlp.gate.weight", "router.weight"), *each(), *shared("mlp.shared_experts.")),
        n_experts=("n_routed_experts", "num_local_experts", "num_experts"),
        shared=("n_shared_experts", ""),
        fixed={"renormalise": False},
        keys={"scale": "routed_scaling_factor", "groups": "n_group", "top_groups": "topk_group"},
        layers=FIRST_DENSE,
        read=_greedy,
        more=_says_method,
        gguf=_SOFTMAX,
    ),
    Sparse(
        LatentAlike(
            "deepseek_v3",
            "DeepseekV3",
            **_NEIGHBOURS
            | {
                "only": {
                    "rope_interleave": (True,),
                    "scoring_func": ("sigmoid",),
                    "topk_method": ("noaux_tc",),
                    "moe_layer_freq": (1,),
                }
            },
            defaults={"eps": 1e-6},
        ),
        (*GROUPED_ROWS, *each()),
        **GROUPED,
        layers=FIRST_DENSE,
        stacked=((*GROUPED_ROWS, *fused("mlp.experts.")),),
        no_effect=_UNREAD,
        gguf=LATENT_GGUF,
    ),
    Sparse(
        LatentAlike(
            "axk1",
            "AXK1",
            **_NEIGHBOURS,
            names={"ln2_post": "post_mlp_layernorm"},
            defaults={"eps": 1e-6},
            read=_normed_experts,
        ),
        (*GROUPED_ROWS, *each()),
        **GROUPED | {"defaults": {"renormalise": True, "scale": 2.5, "groups": 8, "top_groups": 4}},
        layers=LISTED,
        stacked=((*GROUPED_ROWS, *fused("mlp.experts.")),),
        before=_one_dense,
        no_effect=_UNREAD,
    ),
    Sparse(
        LatentAlike("glm4_moe_lite", "Glm4MoeLite", **_NEIGHBOURS, defaults={"eps": 1e-5}),
        (*GROUPED_ROWS, *each()),
        **GROUPED,
        layers=LISTED,
        stacked=((*GROUPED_ROWS, *fused("mlp.experts.")),),
        no_effect=_UNREAD,
        gguf=sharing(LATENT_GGUF, chosen=lambda settings: False),
    ),
)


def _read_minicpm(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp knows its scales by heart."""
    shared, d_head = attributes.integer("rope.dimension_count"), attributes.integer("attention.key_length")
    scaling = {k: v for k, v in (found["rope_scaling"] or {}).items() if k != "partial_rotary_factor"}
    rank, heads = attributes.integer("attention.kv_lora_rank"), attributes.integer("attention.head_count")
    both = shapes.get("blk.0.attn_kv_b.weight", (0,))[0]
    return {
        "rope_scaling": scaling or None,
        "partial_rotary_factor": 1.0,
        "qk_rope_head_dim": shared,
        "qk_nope_head_dim": d_head - shared,
        "v_head_dim": both // heads - (d_head - shared),
        "kv_lora_rank": rank,
        "q_lora_rank": attributes.integer("attention.q_lora_rank"),
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    }


def _write_minicpm(config: Config) -> dict[str, Any]:
    a = attention_of(config)
    assert isinstance(a, LatentAttention)
    return {
        "attention.kv_lora_rank": a.kv_rank,
        **({} if a.q_rank is None else {"attention.q_lora_rank": a.q_rank}),
    }


_MINICPM = GgufTable(
    "minicpm3",
    pairs="halves",
    rows=tuple(
        Row(
            f"blk.{{i}}.attn_kv_b.{kind}",
            (f"{_BLOCK}k_own.{kind}", f"{_BLOCK}v_up.{kind}"),
            per_head=True,
            pairs="halves",
        )
        for kind in ("weight", "bias")
    ),
    read=_read_minicpm,
    write=_write_minicpm,
    factors=True,
)
LATENT = (
    LatentAlike(
        "minicpm3",
        "MiniCPM3",
        gguf=_MINICPM,
        keys={**_KEYS, "embedding_scale": "scale_emb"},
        fixed=_FIXED,
        only={"mlp_bias": (False,)},
        defaults={"eps": 1e-5, "tied": True},
        read=_depth,
        write=_says_depth,
    ),
    LatentAlike(
        "youtu",
        "Youtu",
        **_NEIGHBOURS,
        defaults={"eps": 1e-6, "tied": True},
        no_effect=frozenset({"embedding_initializer_range"}),
    ),
)
