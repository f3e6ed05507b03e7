"""Llama 4: experts in some layers; layers that rotate see their chunk, the others everything."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.layered import each_layer
from glassformer.checkpoint.families.sparse import Layers, Sparse, fused, one, shared
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Attention, Config, Experts, Norm

_CHUNKED = {False: "full_attention", True: "chunked_attention"}
_FEED = {f"mlp.{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")}


def _llama4(config: Config, attributes: Attributes) -> Config:
    """Layers that rotate see their chunk and norm queries and keys; those that do not see all, queries scaled."""
    listed, every = attributes.sequence("no_rope_layers"), attributes.integer("no_rope_layer_interval", 4)
    rotates = [bool((i + 1) % every) for i in range(config.n_layers)]
    if listed:
        if len(listed) < config.n_layers:
            raise CheckpointError(
                f"{attributes.where} names {len(listed)} no_rope_layers for {config.n_layers} layers."
            )
        rotates = [bool(flag) for flag in listed[: config.n_layers]]
    kinds = attributes.sequence("layer_types") or [_CHUNKED[flag] for flag in rotates]
    if len(kinds) != config.n_layers or not set(kinds) <= set(_CHUNKED.values()):
        raise attributes.unsupported("layer_types", kinds)
    chunk, normed = attributes.integer("attention_chunk_size", 8192, null=True), attributes.flag("use_qk_norm", True)
    if chunk is None and "chunked_attention" in kinds:
        raise CheckpointError(f"{attributes.where} has chunked_attention layers and no attention_chunk_size.")
    tuned, floor = attributes.flag("attn_temperature_tuning", True), attributes.number("floor_scale", 8192.0)
    strength = attributes.number("attn_scale", 0.1)

    def change(i: int, mixer: Attention) -> Attention:
        mixer = dataclasses.replace(mixer, chunk=chunk if kinds[i] == "chunked_attention" else None)
        if not rotates[i]:
            scale = (strength, floor) if tuned else None
            return dataclasses.replace(
                mixer, rotary=None, length_scale=scale, length_rule="log_next" if tuned else "log"
            )
        if not normed:
            return mixer
        norm = Norm("rms", eps=config.norm.eps, weight=False)
        return dataclasses.replace(mixer, qk_norm="head", qk_norm_kind=norm, qk_norm_after=True)

    return each_layer(config, change)


def _llama4_settings(config: Config) -> dict[str, Any]:
    mixers = [config.attention(i) for i in range(config.n_layers)]
    scales = {mixer.length_scale for mixer in mixers if mixer.length_scale is not None}
    chunks = {mixer.chunk for mixer in mixers if mixer.chunk is not None}
    if len(scales) > 1 or len(chunks) > 1:
        raise UnsupportedError("its layers have chunks or scales of queries of several sizes")
    strength, floor = next(iter(scales), (0.1, 8192.0))
    return {
        "no_rope_layers": [int(mixer.rotary is not None) for mixer in mixers],
        "layer_types": [_CHUNKED[mixer.chunk is not None] for mixer in mixers],
        "attention_chunk_size": next(iter(chunks), 8192),
        "use_qk_norm": any(mixer.qk_norm is not None for mixer in mixers),
        "attn_temperature_tuning": bool(scales),
        "attn_scale": strength,
        "floor_scale": int(floor) if float(floor).is_integer() else floor,
    }


def _llama4_flags(attributes: Attributes, layers: int) -> list[bool]:
    listed, step = attributes.sequence("moe_layers"), attributes.integer("interleave_moe_layer_step", 1)
    if listed is None:
        return [step > 0 and (i + 1) % step == 0 for i in range(layers)]
    return [i in listed for i in range(layers)]


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """Chunks, and queries that grow with their position, are as in the published models; the largest has no norms."""
    attributes.asked.add(attributes.prefix + "interleave_moe_layer_step")
    return {"use_qk_norm": attributes.integer("expert_count", 0) != 128, "layer_types": None}


def _write_gguf(config: Config) -> dict[str, Any]:
    flags = [isinstance(layer.feed_forward, Experts) for layer in config.layers]
    step = flags.index(True) + 1 if True in flags else 0
    if not step or flags != [(i + 1) % step == 0 for i in range(len(flags))]:
        raise UnsupportedError("llama.cpp expects experts in one layer of so many of architecture llama4.")
    return {"interleave_moe_layer_step": step}


LLAMA4 = Sparse(
    Alike(
        "llama4_text",
        "Llama4",
        base="Llama4TextModel",
        pairs="neighbours",
        keys={"d_ff": "intermediate_size_mlp"},
        fixed={"mlp_bias": False},
        names=_FEED,
        prefixes=("", "language_model."),
        ignored=(r"^(model\.)?(vision_model|multi_modal_projector)\.", r"(^|\.)rotary_emb\.inv_freq$"),
        inside={"llama4": "text_config"},
        defaults={"theta": 500_000.0, "eps": 1e-5, "d_head": 128, "d_ff": 16384},
        read=_llama4,
        write=_llama4_settings,
    ),
    (
        one("feed_forward.router.weight", "router.weight"),
        *fused("feed_forward.experts.", transposed=True),
        *shared("feed_forward.shared_expert."),
    ),
    n_experts=("num_local_experts",),
    d_ff=("intermediate_size",),
    shared="intermediate_size",
    fixed={"scores": "sigmoid", "renormalise": False, "on_input": True},
    defaults={"n_active": 1, "n_experts": 16},
    gguf=GgufTable("llama4", pairs="neighbours", factors=True, dense="any", read=_read_gguf, write=_write_gguf),
    layers=Layers(_llama4_flags, lambda flags: {"moe_layers": [i for i, flag in enumerate(flags) if flag]}),
    no_effect=frozenset({"no_rope_layer_interval", "interleave_moe_layer_step", "for_llm_compressor"}),
)
