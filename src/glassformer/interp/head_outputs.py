"""What heads write: each head's share of the residual stream, whole or by source position.

Attention's output projection is linear in each head's sum of values, and a post-norm is linear once its
divisor is fixed as run; so a layer's addition to the stream splits exactly into heads and sources, plus
biases. Knows one trace; claims nothing about causes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp import memory
from glassformer.interp.recording import Forward
from glassformer.model.layers import NormLayer

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace


def writing(forward: Forward, layer: int) -> Float[Tensor, "head d_model d_head"]:
    """Each head's columns of the output projection."""
    a = forward.config.attention
    return forward.block(layer).attn.o.weight.view(forward.config.d_model, a.n_heads, a.d_head).transpose(0, 1)


def gain(norm: NormLayer) -> Float[Tensor, " d_model"]:
    """What a norm multiplies by after dividing."""
    return 1.0 + norm.weight if norm.one_plus else norm.weight


def before_post(forward: Forward, layer: int, part: str, at: slice) -> Tensor:
    """What attention ("attn") or feed-forward ("mlp") gave before its post-norm."""
    block = forward.block(layer)
    if part == "attn":
        z = forward.get(f"blocks.{layer}.attn.z", at)
        return block.attn.o(z.reshape(*z.shape[:2], -1))
    return block.mlp.down(forward.get(f"blocks.{layer}.mlp.post", at))


def through_post(forward: Forward, layer: int, part: str, x: Tensor, at: slice) -> Tensor:
    """Additive parts (batch, query, …, d_model) of a layer's output as they enter the stream.

    Where there is a post-norm its divisor is the one of the run; its bias belongs to no part.
    """
    norm = forward.block(layer).ln1_post if part == "attn" else forward.block(layer).ln2_post
    if norm is None:
        return x
    scale = norm.scale(before_post(forward, layer, part, at)).to(x.dtype)
    scale = scale.view(*scale.shape[:2], *[1] * (x.ndim - 2))
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    return x / scale * gain(norm).to(x.dtype)


@torch.no_grad()
def head_outputs(trace: Trace, layer: int, head: int | None, positions: int | slice | None) -> Tensor:
    """See `Trace.head_outputs`."""
    forward, layer = trace.forward, trace.layer(layer)
    at = slice(None) if positions is None else positions
    if isinstance(at, int):
        at = slice(trace.position(at), trace.position(at) + 1)
    z = forward.get(f"blocks.{layer}.attn.z", at)
    weights = writing(forward, layer)
    if head is not None:
        chosen = trace.head(head)
        z, weights = z[:, :, chosen : chosen + 1], weights[chosen : chosen + 1]
    shape = (*z.shape[:3], forward.config.d_model)
    memory.numbers(f"blocks.{layer} head outputs", shape, z.element_size(), str(z.device)).require(
        "ask for one head or fewer positions"
    )
    out = torch.einsum("bqhe,hde->bqhd", z, weights)
    out = through_post(forward, layer, "attn", out, at).transpose(1, 2)
    if isinstance(positions, int):
        out = out[:, :, 0]
    if head is not None:
        out = out[:, 0]
    return out if trace.batched else out[0]


def values_of_head(forward: Forward, layer: int, head: int, keys: slice) -> Float[Tensor, "key d_head"]:
    """The values that a query head reads (those of its group)."""
    a = forward.config.attention
    return forward.get(f"blocks.{layer}.attn.v", keys)[0, :, head // (a.n_heads // a.n_kv_heads)]


@torch.no_grad()
def contributions(trace: Trace, layer: int, head: int, query: int) -> Tensor:
    """See `Trace.contributions`."""
    forward, layer, head = trace.forward, trace.layer(layer), trace.head(head)
    query = trace.position(query)
    weights = trace.pattern(layer, head, query)
    values = values_of_head(forward, layer, head, slice(None)) @ writing(forward, layer)[head].T
    at = slice(query, query + 1)
    return through_post(forward, layer, "attn", (weights[:, None] * values)[None, None], at)[0, 0]


@torch.no_grad()
def weighted(trace: Trace, layer: int, head: int | None, queries: int | slice | None, keys: slice | None) -> Tensor:
    """See `Trace.weighted`."""
    forward, layer = trace.forward, trace.layer(layer)
    out = trace.pattern(layer, head, queries, keys).clone()
    block = forward.block(layer)
    k = slice(None) if keys is None else keys
    heads = range(forward.config.attention.n_heads) if head is None else [trace.head(head)]
    grids = out if head is None else out[None]
    norm = block.ln1_post
    for i, h in enumerate(heads):
        values = values_of_head(forward, layer, h, k) @ writing(forward, layer)[h].T
        if norm is not None:
            values = (values - values.mean(-1, keepdim=True) if norm.centred else values) * gain(norm)
        grids[i] *= values.norm(dim=-1)
    if norm is not None:
        at = slice(None) if queries is None else queries
        if isinstance(at, int):
            at = slice(trace.position(at), trace.position(at) + 1)
        scale = norm.scale(before_post(forward, layer, "attn", at))[0].to(out.dtype)
        out = out / (scale[0] if isinstance(queries, int) else scale)
    return out
