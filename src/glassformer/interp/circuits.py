"""A head's two circuits, read from its weights: whom it would look at, and what it would write.

The query-key circuit scores a looking token against a looked-at one at a stated distance, rotary turns
and query-key norms included; the value-output circuit says which tokens attending to a token raises.
Both read tokens from the embedding through the layer's own norm, as if nothing stood between: exact in
the first layer (learned positions are added where a position is said), a convention above it. Norms' gains
are included. No vocabulary × vocabulary matrix is formed (transformer-circuits.pub/2021/framework).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import SiteError
from glassformer.interp.head_outputs import gain
from glassformer.model import Transformer
from glassformer.model.attention import rounded_distances
from glassformer.model.choices import Attention
from glassformer.model.layers import softcap
from glassformer.model.norms import NormLayer

# Tokens embedded at a time.
_CHUNK = 8192


def _checked(transformer: Transformer, layer: int, head: int) -> tuple[int, int]:
    config = transformer.config
    if not -config.n_layers <= layer < config.n_layers:
        raise SiteError(f"There is no layer {layer}: the model has {config.n_layers}, 0 to {config.n_layers - 1}.")
    layer %= config.n_layers
    heads = config.attention(layer).n_heads
    if not -heads <= head < heads:
        raise SiteError(
            f"There is no head {head}: layer {layer % config.n_layers} has {heads} heads, 0 to {heads - 1}."
        )
    return layer % config.n_layers, head % heads


def _attention(transformer: Transformer, layer: int) -> Any:
    return transformer.blocks[layer].attn


def embedded(transformer: Transformer, ids: Tensor | slice) -> Float[Tensor, "token d_model"]:
    """Tokens as they enter the stream, positions apart."""
    return transformer.entering(transformer.embed.weight[ids])


def _read(transformer: Transformer, layer: int, ids: Tensor, position: int | None) -> Float[Tensor, "token d_model"]:
    """Tokens as the layer's norm hands them over when only the embedding stands in the stream."""
    x = embedded(transformer, ids)
    if position is not None and transformer.pos_embed is not None:
        if transformer.config.learned_positions and position >= transformer.config.context:
            raise SiteError(
                f"This model has {transformer.config.context} trained positions; there is no position {position}."
            )
        x = x + transformer.pos_embed(torch.tensor([[position]], device=x.device))[0, 0].to(x.dtype)
    block: Any = transformer.blocks[layer]
    if block.copies is not None:
        x = block.copies.predicted(transformer.in_copies(x))[..., 0, :]
    norm = block.norm(1)
    return x if norm is None else norm(x)


def _side(
    transformer: Transformer, layer: int, which: str, index: int, ids: Tensor, position: int | None
) -> Float[Tensor, "token d_head"]:
    """One head's queries, keys or values of tokens, as the scores (or the weighted sum) use them."""
    part: Any = _attention(transformer, layer)
    if which in "kv" and part.choice.keys_from is not None:
        layer = part.choice.keys_from
        part = _attention(transformer, layer)
    x = _read(transformer, layer, ids, position)[None]
    if which == "v":
        return part.keys_and_values(x)[1][0, :, index]
    x = part.queries(x) if which == "q" else part.keys_and_values(x)[0]
    at = torch.full((1, len(ids)), position or 0, device=x.device)
    angles = None if part.table is None else transformer.angles(at)[part.table]
    return part.rotate(x, angles, which, at)[0, :, index]


@torch.no_grad()
def query_key(
    transformer: Transformer, layer: int, head: int, token: int, offset: int, position: int | None = None
) -> Float[Tensor, " vocab"]:
    """The score with which a head at `token` would look at every token `offset` positions before it.

    Args:
        offset: how far back, 0 or more, within the layer's window.
        position: where `token` stands, `offset` by default. Rotary scores do not depend on it; with learned
            positions both tokens have theirs added.

    Raises:
        SiteError: for a layer, head, offset or position that is not there.
    """
    layer, head = _checked(transformer, layer, head)
    if offset < 0:
        raise SiteError(f"The offset counts backwards from the query and is 0 or more; got {offset}.")
    part: Any = _attention(transformer, layer)
    if part.choice.window is not None and offset >= part.choice.window:
        raise SiteError(
            f"Layer {layer} sees {part.choice.window} positions, its own among them; nothing {offset} back is seen."
        )
    at = offset if position is None else position
    if at < offset:
        raise SiteError(f"Nothing stands {offset} positions before position {at}.")
    device = transformer.device
    q = _side(transformer, layer, "q", head, torch.tensor([token], device=device), at)[0]
    group = head // (part.heads // part.kv_heads)
    out = []
    for low in range(0, transformer.config.vocab_size, _CHUNK):
        ids = torch.arange(low, min(low + _CHUNK, transformer.config.vocab_size), device=device)
        out.append(_side(transformer, layer, "k", group, ids, at - offset) @ q)
    found = softcap(torch.cat(out) * part.scale, part.cap)
    if not part.choice.alibi:
        return found
    if part.choice.alibi_rounded:
        slope = torch.tensor(part.choice.alibi[head : head + 1])
        return found + part.scale * float(rounded_distances(slope, torch.tensor([[at - offset]]))[0, 0, 0, 0])
    return found - offset * part.choice.alibi[head]


def written(transformer: Transformer, layer: int, head: int, token: int, position: int | None = None) -> Tensor:
    """What a head that attends fully to `token` adds to the stream, (d_model,); a post-norm's gain is in it and
    its division is not."""
    layer, head = _checked(transformer, layer, head)
    part: Any = _attention(transformer, layer)
    block: Any = transformer.blocks[layer]
    group = head // (part.heads // part.kv_heads)
    v = _side(transformer, layer, "v", group, torch.tensor([token], device=transformer.device), position)[0]
    out = part.head_columns[head] @ v * block.choice.part_scale(1)
    if block.ln1_post is None:
        return out
    return (out - out.mean() if block.ln1_post.centred else out) * gain(block.ln1_post, out)


@torch.no_grad()
def output_value(
    transformer: Transformer, layer: int, head: int, token: int, position: int | None = None
) -> Float[Tensor, " vocab"]:
    """What attending fully to `token` would add to every token's logit, before the final norm's division.

    Args:
        position: where the token stands; adds its learned position, where positions are learned.
    """
    return unembedded(transformer, written(transformer, layer, head, token, position))


def unembedded(transformer: Transformer, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """A part of the stream read as logits: through the final norm's centring and gain, without its division. Where a
    head stands before that norm, its own norm likewise and its matrix, without its activation."""
    head = transformer.head
    if head is not None:
        x = F.linear(_gained(head.norm, x), head.dense.weight)
    logits = F.linear(_gained(transformer.final, x), transformer.unembedding)
    return logits if transformer.config.logit_scale is None else logits * transformer.config.logit_scale


def _gained(norm: NormLayer | None, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """A part of the stream after a norm's centring and gain."""
    x = x - x.mean(-1, keepdim=True) if norm is not None and norm.centred else x
    return x * gain(norm, x)


def _read_by(norm: NormLayer | None, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """Rows that read what a norm gives, as rows that read what it takes, its division apart."""
    rows = rows * gain(norm, rows)
    return rows - rows.mean(-1, keepdim=True) if norm is not None and norm.centred else rows


@torch.no_grad()
def copying_scores(transformer: Transformer) -> Float[Tensor, "layer head"]:
    """Σ Re λ / Σ |λ| of every head's value-output circuit, in [−1, 1].

    The circuit is vocabulary × vocabulary of rank d_head; its eigenvalues other than zero are those of a
    d_head × d_head product with the embedding-unembedding Gram matrix in the middle, formed once. Norms' gains
    and centring are in it (of the embedding's own norm, all), their divisions and learned positions are not; nor is the
    activation of a head before the final norm.
    """
    config, final, between = transformer.config, transformer.final, transformer.head
    gram = torch.zeros(config.d_model, config.d_model, dtype=torch.float64)
    for low in range(0, config.vocab_size, _CHUNK):
        e = embedded(transformer, slice(low, low + _CHUNK)).double().cpu()
        u = _read_by(final, transformer.unembedding[low : low + _CHUNK].double().cpu())
        if between is not None:
            u = _read_by(between.norm, u @ between.dense.weight.double().cpu())
        gram += e.T @ u
    out = torch.zeros(config.n_layers, config.most_heads)
    for layer, choice in enumerate(config.layers):
        if not isinstance(choice.mixer, Attention) or choice.mixer.keys_from is not None:
            continue
        block: Any = transformer.blocks[layer]
        part = block.attn
        d = part.d_value
        o = part.head_columns.double().cpu()
        if block.ln1_post is not None:
            o = o - o.mean(1, keepdim=True) if block.ln1_post.centred else o
            o = o * gain(block.ln1_post, o[0].T)[:, None]
        v = _read_by(block.norm(1), part.value_matrix.double().cpu())
        for head in range(part.heads):
            group = head // (part.heads // part.kv_heads)
            values = v[group * d : (group + 1) * d] @ gram @ o[head]
            found = torch.linalg.eigvals(values)
            size = float(found.abs().sum())
            out[layer, head] = float(found.real.sum()) / size if size else 0.0
    return out
