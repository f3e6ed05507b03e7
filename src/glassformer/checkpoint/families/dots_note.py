"""Dots 3 Note (its text part): latent attention, indexed or within windows, of other sizes by layer, and experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.grouped_experts import GROUPED, GROUPED_ROWS
from glassformer.checkpoint.families.indexed import IndexedAlike
from glassformer.checkpoint.families.settings import one_window, rope, rope_kinds, scaling_settings
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, fused
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Config, Index, LatentAttention, Layer, Rotary

_KINDS = ("indexed_attention", "sliding_attention", "full_attention")
_BASE = {"sliding_attention": 50_000.0}
# A layer's sizes, by setting, and what windows have where a file says nothing of them.
_SIZES = {
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "head_dim": 256,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


@dataclasses.dataclass(frozen=True)
class NoteAlike(IndexedAlike):
    """Dots 3 Note, as the others with an index but for what differs by layer."""

    def rows(self) -> tuple[Row, ...]:
        """The tensor table."""
        norm = Row(
            f"{self.layer}{self.at}k_rope_only_layernorm.weight",
            ("blocks.{i}.attn.k_shared_norm.weight",),
            pairs="neighbours",
        )
        return (*super().rows(), norm)

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        count = attributes.layers("num_hidden_layers")
        kinds = attributes.sequence("layer_types")
        if kinds is None:
            kinds = ["indexed_attention" if i < 2 or i % 4 == 1 else "sliding_attention" for i in range(count)]
        attributes.only("use_dsa", True)
        if len(kinds) != count or not set(kinds) <= set(_KINDS):
            raise attributes.unsupported("layer_types", kinds)
        turns = self._rotations(attributes, set(kinds))
        attributes.integer("head_dim", None)
        seen = Attributes({**attributes.values, "rope_parameters": None, "head_dim": None}, attributes.where)
        config = self.latent(seen)
        attributes.asked |= seen.asked
        attributes._inner.extend(seen._inner)
        index = Index(
            attributes.integer("index_n_heads", 64),
            attributes.integer("index_head_dim", 128),
            attributes.integer("index_topk", 2048),
        )
        window = attributes.integer("sliding_window", attributes.integer("sliding_window_size", 512), null=True)
        layers: list[Layer] = []
        for i, (layer, kind) in enumerate(zip(config.layers, kinds, strict=True)):
            mixer = layer.mixer
            assert isinstance(mixer, LatentAttention)
            sizes = _sizes(attributes, i, kind == "sliding_attention")
            own = _of_sizes(mixer, sizes, turns[kind], config.d_model, config.norm.eps)
            if kind == "sliding_attention":
                own = dataclasses.replace(own, window=window)
            elif kind == "indexed_attention":
                own = dataclasses.replace(own, index=index)
            layers.append(dataclasses.replace(layer, mixer=own))
        return dataclasses.replace(config, layers=tuple(layers))

    def _rotations(self, attributes: Attributes, kinds: set[str]) -> dict[str, Rotary]:
        tables, found = rope_kinds(attributes), {}
        context = attributes.integer("max_position_embeddings")
        for kind in kinds:
            own = tables.get(kind) or {}
            attributes.inside(own, "rope_parameters").number("partial_rotary_factor", None)  # follows from the sizes
            theta, scaling = rope(attributes, context, _BASE.get(kind, 80_000_000.0), own)
            found[kind] = Rotary(theta, 1.0, scaling)
        return found

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        mixers = [layer.mixer for layer in config.layers]
        if not all(isinstance(mixer, LatentAttention) and mixer.rotary is not None for mixer in mixers):
            raise UnsupportedError("it has layers without rotated latent attention")
        first = mixers[0]
        assert isinstance(first, LatentAttention)
        layers = tuple(dataclasses.replace(layer, mixer=first) for layer in config.layers)
        found = super().settings(dataclasses.replace(config, layers=layers))
        kinds: list[str] = []
        ropes: dict[str, dict[str, Any]] = {}
        differ: dict[str, dict[str, int]] = {}
        for i, mixer in enumerate(mixers):
            assert isinstance(mixer, LatentAttention)
            assert mixer.rotary is not None
            indexed = "full_attention" if mixer.index is None else "indexed_attention"
            kinds.append(indexed if mixer.window is None else "sliding_attention")
            scaling = mixer.rotary.scaling
            stretch = {"rope_type": "default"} if scaling is None else scaling_settings(scaling)
            ropes[kinds[i]] = {"rope_theta": mixer.rotary.theta, **stretch}
            if mixer.window is not None:
                differ[str(i)] = {
                    "num_attention_heads": mixer.n_heads,
                    "num_key_value_heads": mixer.n_heads,
                    "q_lora_rank": mixer.q_rank or 0,
                    "kv_lora_rank": mixer.kv_rank,
                    "head_dim": mixer.d_head,
                    "qk_nope_head_dim": mixer.own_size,
                    "qk_rope_head_dim": mixer.shared_size,
                    "v_head_dim": mixer.value_size,
                }
        return {
            **found,
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": ropes,
            "layer_types": kinds,
            "per_layer_config": differ,
            "sliding_window": one_window(config) or 512,
        }


def _sizes(attributes: Attributes, layer: int, slides: bool) -> dict[str, int]:
    """A layer's sizes: those of `per_layer_config`, of older files' ``swa_…`` settings, or of all layers."""
    given = attributes.by_layer("per_layer_config")
    own = attributes.inside(given.get(layer, {}), f"per_layer_config.{layer}")
    found = {}
    for name, default in _SIZES.items():
        common = attributes.integer(name, default)
        if not given and slides:
            common = attributes.integer(f"swa_{name}", default)
        found[name] = own.integer(name, common)
    if found["num_key_value_heads"] != found["num_attention_heads"]:
        raise CheckpointError(
            f"{attributes.where} gives layer {layer} fewer keys than queries, where each has its own."
        )
    return found


def _of_sizes(
    mixer: LatentAttention, sizes: dict[str, int], rotary: Rotary, d_model: int, eps: float
) -> LatentAttention:
    own, turned = sizes["qk_nope_head_dim"], sizes["qk_rope_head_dim"]
    q_rank, kv_rank = sizes["q_lora_rank"], sizes["kv_lora_rank"]
    return dataclasses.replace(
        mixer,
        n_heads=sizes["num_attention_heads"],
        n_kv_heads=sizes["num_attention_heads"],
        d_head=own + turned,
        d_value=sizes["v_head_dim"],
        rotary=dataclasses.replace(rotary, fraction=turned / (own + turned)),
        scale=None,
        q_rank=q_rank,
        kv_rank=kv_rank,
        latent_eps=eps,
        latent_scale=((d_model / q_rank) ** 0.5, (d_model / kv_rank) ** 0.5),
        shared_norm=True,
    )


def _shared(attributes: Attributes) -> dict[str, Any]:
    """The shared part is as wide as all that are counted; the first layer is dense where nothing says otherwise."""
    times = attributes.integer("n_shared_experts", 1)
    width = attributes.integer("shared_experts_intermediate_size", 1536)
    width = attributes.integer("moe_shared_expert_intermediate_size", width)
    attributes.only("moe_layer_freq", 1)
    said = "mlp_layer_types" in attributes or "first_k_dense_replace" in attributes
    dense = {} if said else {"first_k_dense_replace": 1}
    return {"shared_experts_intermediate_size": times * width, **dense}


DOTS_NOTE = Sparse(
    NoteAlike(
        "dots3_note_text",
        "Dots3Note",
        base="Dots3NoteTextModel",
        pairs="neighbours",
        index_pairs="neighbours",
        gate="head",
        keys={"d_head": "qk_rope_head_dim"},
        fixed={"mlp_bias": False},
        only={"mlp_bias": (False,)},
        defaults={"eps": 1e-5},
    ),
    (*GROUPED_ROWS, *each()),
    **{
        **GROUPED,
        "shared": "shared_experts_intermediate_size",
        "defaults": {"renormalise": True, "scale": 1.0},
    },
    layers=LISTED,
    stacked=((*GROUPED_ROWS, *fused("mlp.experts.")),),
    before=_shared,
    more=lambda config: {"n_shared_experts": 1},
    no_effect=frozenset({"num_nextn_predict_layers", "first_k_dense_replace", "use_sliding_window"}),
)
