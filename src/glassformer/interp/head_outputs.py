"""What heads write: each head's share of the residual stream, whole or by source position.

Attention's output projection is linear in each head's sum of values, and a post-norm is linear once its
divisor is fixed as run; so a layer's addition to the stream splits exactly into heads and sources, plus
biases. Knows one trace; claims nothing about causes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp import memory
from glassformer.interp.handed import output_factor, weights_and_values
from glassformer.interp.recording import Recording
from glassformer.model.norms import NormLayer
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.channels import ChannelsPart

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace


def writing(forward: Recording, layer: int) -> Float[Tensor, "head d_model d_head"]:
    """Each head's columns of the output projection."""
    mixer = forward.mixer(layer)
    if isinstance(mixer, AttentionPart):
        return mixer.head_columns
    return mixer.o.weight.view(forward.config.d_model, mixer.heads, mixer.d_value).transpose(0, 1)


def gain(norm: NormLayer | None, like: Tensor) -> Float[Tensor, " d_model"]:
    """What a norm multiplies by after dividing; ones where nothing is learned, or there is no norm."""
    found = None if norm is None else norm.gain
    return torch.ones(like.shape[-1], dtype=like.dtype, device=like.device) if found is None else found.to(like)


def before_post(forward: Recording, layer: int, part: str, at: slice) -> Tensor:
    """What the mixer or the feed-forward part ("mlp") gave before its post-norm."""
    if part != "mlp":
        z = forward.get(f"blocks.{layer}.{forward.prefix(layer)}.z", at)
        mixer = forward.mixer(layer)
        return mixer.write(z) if isinstance(mixer, AttentionPart) else mixer.o(z.reshape(*z.shape[:2], -1))
    return forward.fed(layer, at)


def post_norm(forward: Recording, layer: int, part: str) -> NormLayer | None:
    """The norm of what the mixer or the feed-forward part ("mlp") adds, or None."""
    return forward.block(layer).post_norm(2 if part == "mlp" else 1)


def part_scale(forward: Recording, layer: int, part: str) -> float:
    """What multiplies what the mixer or the feed-forward part ("mlp") adds."""
    return forward.config.layers[layer].part_scale(2 if part == "mlp" else 1)


def through_post(forward: Recording, layer: int, part: str, x: Tensor, at: slice) -> Tensor:
    """Additive parts (batch, query, …, d_model) of a layer's output as they enter the stream.

    Where there is a post-norm its divisor is the one of the run; its bias belongs to no part.
    """
    norm, times = post_norm(forward, layer, part), part_scale(forward, layer, part)
    if times != 1:
        x = x * times
    if norm is None:
        return x
    scale = norm.scale(before_post(forward, layer, part, at)).to(x.dtype)
    scale = scale.view(*scale.shape[:2], *[1] * (x.ndim - 2))
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    return x / scale * gain(norm, x)


@torch.no_grad()
def head_outputs(trace: Trace, layer: int, head: int | None, positions: int | slice | None) -> Tensor:
    """See `Trace.head_outputs`."""
    forward, layer = trace.forward, trace.layer(layer)
    at = slice(None) if positions is None else positions
    if isinstance(at, int):
        at = slice(trace.position(at), trace.position(at) + 1)
    z = forward.get(f"blocks.{layer}.{forward.prefix(layer)}.z", at)
    weights = writing(forward, layer)
    if head is not None:
        chosen = trace.head(head, layer)
        z, weights = z[:, :, chosen : chosen + 1], weights[chosen : chosen + 1]
    shape = (*z.shape[:3], forward.config.d_model)
    memory.numbers(f"blocks.{layer} head outputs", shape, z.element_size(), str(z.device)).require(
        "ask for one head or fewer positions"
    )
    out = torch.einsum("bqhe,hde->bqhd", z, weights)
    out = through_post(forward, layer, "mixer", out, at).transpose(1, 2)
    if isinstance(positions, int):
        out = out[:, :, 0]
    if head is not None:
        out = out[:, 0]
    return out if trace.batched else out[0]


def values_of_head(forward: Recording, layer: int, head: int, keys: slice) -> Float[Tensor, "key d_head"]:
    """The values that a query head reads (those of its group)."""
    values = forward.values(layer, keys)[0]
    return values[:, head // (forward.config.n_heads(layer) // values.shape[1])]


@torch.no_grad()
def contributions(trace: Trace, layer: int, head: int, query: int) -> Tensor:
    """See `Trace.contributions`."""
    found = handed_over(trace, layer, head, query, slice(None))
    return torch.nn.functional.pad(found, (0, 0, 0, trace.forward.length - len(found)))


@torch.no_grad()
def handed_over(
    trace: Trace, layer: int, head: int, query: int, keys: slice | list[int]
) -> Float[Tensor, "key d_model"]:
    """What some positions up to `query` give to it through a head."""
    forward, layer = trace.forward, trace.layer(layer)
    head = trace.head(head, layer)
    query = trace.position(query)
    at = slice(query, query + 1)
    weights, values = (x[0, 0] for x in weights_and_values(forward, layer, query, head))
    handed, factor = weights[keys, None] * values[keys], output_factor(forward, layer, at)
    if factor is not None:
        handed = handed * factor[0, 0, head]
    return through_post(forward, layer, "mixer", (handed @ writing(forward, layer)[head].T)[None, None], at)[0, 0]


@torch.no_grad()
def weighted(trace: Trace, layer: int, head: int | None, queries: int | slice | None, keys: slice | None) -> Tensor:
    """See `Trace.weighted`."""
    forward, layer = trace.forward, trace.layer(layer)
    out = trace.pattern(layer, head, queries, keys).abs()  # a recurrence's shares, and edited ones, have signs
    k = slice(None) if keys is None else keys
    heads = range(forward.config.n_heads(layer)) if head is None else [trace.head(head, layer)]
    grids = out if head is None else out[None]
    at = slice(None) if queries is None else queries
    if isinstance(at, int):
        at = slice(trace.position(at), trace.position(at) + 1)
    norm, factor = post_norm(forward, layer, "mixer"), output_factor(forward, layer, at)
    for i, h in enumerate(heads):
        columns = _columns(forward, layer, h)
        if isinstance(forward.mixer(layer), ChannelsPart):
            assert factor is not None
            for row, query in enumerate(range(*at.indices(forward.length))):
                sent = (weights_and_values(forward, layer, query)[1][0, 0] * factor[0, row, h] @ columns.T).norm(dim=-1)
                padded = torch.nn.functional.pad(sent, (0, forward.length - query - 1))[k].to(grids.dtype)
                if isinstance(queries, int):
                    grids[i] = padded
                else:
                    grids[i, row] = padded
            continue
        values = values_of_head(forward, layer, h, k)
        if factor is None:
            grids[i] *= (values @ columns.T).norm(dim=-1)
            continue
        # the factor differs by query: lengths through the columns' Gram matrix, no vector written out
        gram, own = columns.T @ columns, factor[0, :, h]
        square = torch.einsum("qe,ke,ef,qf,kf->qk", own, values, gram, own, values).clamp(min=0).sqrt()
        grids[i] *= square[0] if isinstance(queries, int) else square
    if norm is not None:
        scale = norm.scale(before_post(forward, layer, "mixer", at))[0].to(out.dtype)
        out = out / (scale[0] if isinstance(queries, int) else scale)
    return out


ROWS = 64
"""Queries of a tile of `weighted_tiles`: with the keys of a few thousand tokens it stays in cache."""


@torch.no_grad()
def weighted_tiles(trace: Trace, layer: int) -> Iterator[tuple[int, Float[Tensor, "head query key"]]]:
    """`weighted` of all heads, some queries at a time over the keys up to them: the first query, and its tile.

    What a head hands over is measured once. Where its length differs by query, all comes in one piece.
    """
    forward, layer = trace.forward, trace.layer(layer)
    plain = isinstance(forward.mixer(layer), AttentionPart) and output_factor(forward, layer, slice(0, 1)) is None
    if not plain:
        yield 0, weighted(trace, layer, None, None, None)
        return
    lengths = torch.stack([_lengths(forward, layer, head) for head in range(forward.config.n_heads(layer))])
    norm = post_norm(forward, layer, "mixer")
    scale = None if norm is None else norm.scale(before_post(forward, layer, "mixer", slice(None)))[0].to(lengths)
    for first in range(0, forward.length, ROWS):
        last = min(first + ROWS, forward.length)
        tile = trace.pattern(layer, None, slice(first, last), slice(0, last)) * lengths[:, None, :last]
        tile = tile.abs() if forward.edits_grid(layer) else tile
        yield first, tile if scale is None else tile / scale[first:last]


def _lengths(forward: Recording, layer: int, head: int) -> Float[Tensor, " key"]:
    """How long each position's value is behind a head's output projection, by a triangle that keeps lengths."""
    values, columns = values_of_head(forward, layer, head, slice(None)), _columns(forward, layer, head)
    wide = columns if columns.dtype == torch.float64 else columns.float()
    return (values.to(wide) @ torch.linalg.qr(wide, mode="r").R.T).norm(dim=-1).to(values.dtype)


def _columns(forward: Recording, layer: int, head: int) -> Float[Tensor, "d_model d_head"]:
    """A head's columns of the output projection, with what scales the part and the gain of a post-norm."""
    norm = post_norm(forward, layer, "mixer")
    columns = writing(forward, layer)[head] * part_scale(forward, layer, "mixer")
    if norm is None:
        return columns
    return (columns - columns.mean(0) if norm.centred else columns) * gain(norm, columns.T)[:, None]
