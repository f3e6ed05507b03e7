"""The native parameter keys of a design and their shapes, from its config alone.

These keys are public: a native checkpoint holds exactly them, and every family's table ends in
them. This module allocates nothing and does not import torch.
"""

from __future__ import annotations

from glassformer.model.config import Config

Shape = tuple[int, ...]


def native_shapes(config: Config) -> dict[str, Shape]:
    """Every parameter a design has, by native key, in the order of the computation.

    All matrices are (out, in). ``unembed.weight`` exists only when the output is not tied.
    """
    d_model, vocab = config.d_model, config.vocab_size
    layered = config.norm.kind == "layer"
    shapes: dict[str, Shape] = {"embed.weight": (vocab, d_model)}
    if config.position.kind == "learned":
        shapes["pos_embed.weight"] = (config.context, d_model)
    for i in range(config.n_layers):
        block = f"blocks.{i}."
        for key, shape in _attention(config).items():
            shapes[block + key] = shape
        for key, shape in _feed_forward(config).items():
            shapes[block + key] = shape
    shapes["final.weight"] = (d_model,)
    if layered:
        shapes["final.bias"] = (d_model,)
    if not config.tied:
        shapes["unembed.weight"] = (vocab, d_model)
    return shapes


def _norm(config: Config, name: str) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (config.d_model,)}
    if config.norm.kind == "layer":
        shapes[f"{name}.bias"] = (config.d_model,)
    return shapes


def _attention(config: Config) -> dict[str, Shape]:
    part, d_model = config.attention, config.d_model
    query, key = part.n_heads * part.d_head, part.n_kv_heads * part.d_head
    shapes = _norm(config, "ln1")
    for name, rows in (("q", query), ("k", key), ("v", key)):
        shapes[f"attn.{name}.weight"] = (rows, d_model)
        if part.bias:
            shapes[f"attn.{name}.bias"] = (rows,)
    shapes["attn.o.weight"] = (d_model, query)
    if part.out_bias:
        shapes["attn.o.bias"] = (d_model,)
    if part.qk_norm:
        shapes["attn.q_norm.weight"] = shapes["attn.k_norm.weight"] = (part.d_head,)
    if config.norm.post:
        shapes |= _norm(config, "ln1_post")
    return shapes


def _feed_forward(config: Config) -> dict[str, Shape]:
    part, d_model = config.feed_forward, config.d_model
    shapes = _norm(config, "ln2")
    inward = ("gate", "up") if part.gated else ("up",)
    for name, rows, columns in [(n, part.d_ff, d_model) for n in inward] + [("down", d_model, part.d_ff)]:
        shapes[f"mlp.{name}.weight"] = (rows, columns)
        if part.bias:
            shapes[f"mlp.{name}.bias"] = (rows,)
    if config.norm.post:
        shapes |= _norm(config, "ln2_post")
    return shapes
