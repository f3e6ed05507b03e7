"""A head's two circuits, read from its weights: whom it would look at, and what it would write.

The query-key circuit scores a looking token against a looked-at one at a stated distance, rotary turns
and query-key norms included; the value-output circuit says which tokens attending to a token raises.
Both read tokens from the embedding through the layer's own norm, as if nothing stood between: exact in
the first layer, a convention above it. Norms' gains are included. No vocabulary × vocabulary matrix is formed
(transformer-circuits.pub/2021/framework).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import SiteError
from glassformer.inspect.heads_out import gain
from glassformer.model import Transformer
from glassformer.model.layers import rotate

# Tokens embedded at a time.
_CHUNK = 8192


def _checked(transformer: Transformer, layer: int, head: int) -> tuple[int, int]:
    config = transformer.config
    if not -config.n_layers <= layer < config.n_layers:
        raise SiteError(f"There is no layer {layer}: the model has {config.n_layers}, 0 to {config.n_layers - 1}.")
    heads = config.attention.n_heads
    if not -heads <= head < heads:
        raise SiteError(f"There is no head {head}: each layer has {heads} heads, 0 to {heads - 1}.")
    return layer % config.n_layers, head % heads


def _attention(transformer: Transformer, layer: int) -> Any:
    return transformer.blocks[layer].attn


def _read(transformer: Transformer, layer: int, ids: Tensor) -> Float[Tensor, "token d_model"]:
    """Tokens as the layer's norm hands them over when only the embedding stands in the stream."""
    x = transformer.embed.weight[ids]
    if transformer.config.embedding_scale is not None:
        x = x * transformer.config.embedding_scale
    block: Any = transformer.blocks[layer]
    return block.ln1(x)


def _side(
    transformer: Transformer, layer: int, which: str, index: int, ids: Tensor, position: int
) -> Float[Tensor, "token d_head"]:
    part: Any = _attention(transformer, layer)
    d = part.d_head
    matrix = getattr(part, which)
    x = F.linear(
        _read(transformer, layer, ids),
        matrix.weight[index * d : (index + 1) * d],
        None if matrix.bias is None else matrix.bias[index * d : (index + 1) * d],
    )
    if which == "v":
        return x
    norm = part.q_norm if which == "q" else part.k_norm
    if norm is not None:
        x = norm(x)
    angles = transformer.angles(torch.full((1, len(ids)), position, device=x.device), layer)
    return x if angles is None else rotate(x[None, :, None], *angles)[0, :, 0]


@torch.no_grad()
def query_key(transformer: Transformer, layer: int, head: int, token: int, offset: int) -> Float[Tensor, " vocab"]:
    """The score with which a head at `token` would look at every token `offset` positions before it."""
    layer, head = _checked(transformer, layer, head)
    if offset < 0:
        raise SiteError(f"The offset counts backwards from the query and is 0 or more; got {offset}.")
    part: Any = _attention(transformer, layer)
    device = transformer.device
    q = _side(transformer, layer, "q", head, torch.tensor([token], device=device), offset)[0]
    group = head // (part.heads // part.kv_heads)
    out = []
    for low in range(0, transformer.config.vocab_size, _CHUNK):
        ids = torch.arange(low, min(low + _CHUNK, transformer.config.vocab_size), device=device)
        out.append(_side(transformer, layer, "k", group, ids, 0) @ q)
    scores = torch.cat(out) * part.scale
    return scores if part.cap is None else part.cap * torch.tanh(scores / part.cap)


@torch.no_grad()
def output_value(transformer: Transformer, layer: int, head: int, token: int) -> Float[Tensor, " vocab"]:
    """What attending fully to `token` would add to every token's logit, before the final norm's division."""
    layer, head = _checked(transformer, layer, head)
    part: Any = _attention(transformer, layer)
    group = head // (part.heads // part.kv_heads)
    v = _side(transformer, layer, "v", group, torch.tensor([token], device=transformer.device), 0)[0]
    d = part.d_head
    written = part.o.weight[:, head * d : (head + 1) * d] @ v
    return transformer.unembedding @ (written * gain(transformer.final))


@torch.no_grad()
def copying_scores(transformer: Transformer) -> Float[Tensor, "layer head"]:
    """Σ Re λ / Σ |λ| of every head's value-output circuit, in [−1, 1].

    The circuit is vocabulary × vocabulary of rank d_head; its eigenvalues other than zero are those of a
    d_head × d_head product with the embedding-unembedding Gram matrix in the middle, formed once.
    """
    config = transformer.config
    scale = config.embedding_scale or 1.0
    gram = torch.zeros(config.d_model, config.d_model, dtype=torch.float64)
    for low in range(0, config.vocab_size, _CHUNK):
        e = transformer.embed.weight[low : low + _CHUNK].double().cpu() * scale
        e = e - e.mean(-1, keepdim=True) if config.norm.kind == "layer" else e
        gram += e.T @ transformer.unembedding[low : low + _CHUNK].double().cpu()
    gram = gram * gain(transformer.final).double().cpu()
    out = torch.zeros(config.n_layers, config.attention.n_heads)
    d = config.attention.d_head
    for layer in range(config.n_layers):
        block: Any = transformer.blocks[layer]
        part = block.attn
        before = gain(block.ln1).double().cpu()
        o = part.o.weight.double().cpu()
        v = part.v.weight.double().cpu() * before
        for head in range(part.heads):
            group = head // (part.heads // part.kv_heads)
            values = v[group * d : (group + 1) * d] @ gram @ o[:, head * d : (head + 1) * d]
            found = torch.linalg.eigvals(values)
            size = float(found.abs().sum())
            out[layer, head] = float(found.real.sum()) / size if size else 0.0
    return out
