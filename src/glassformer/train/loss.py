"""Cross-entropy whose logits never exist all at once.

The vocabulary is the widest thing in a language model: at 50,257 tokens one row of logits in float32 is 200 kB,
and a batch of 4 × 1,024 rows with its gradient is 1.6 GB. The loss is a sum over rows, so rows go through the
unembedding in chunks, each chunk's gradient is taken while its logits exist, and in float32 there are only strips
of a chunk. This module knows hidden states
and an unembedding matrix; it knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glassformer.kernels import ops_abi
from glassformer.model import Transformer

IGNORE = -100
"""A target that does not count."""
STRIP_BYTES = 64 << 20
"""Of logits in float32 at once, at most, unless one row takes more."""


def _strip_rows(logits: Tensor) -> int:
    """Rows whose float32 numbers stay in a processor's cache; more on a device that waits for every small piece."""
    return max(1, (4 << 20 if logits.device.type == "cpu" else STRIP_BYTES) // (4 * logits.shape[1]))


def _sum_and_gradient(logits: Tensor, targets: Tensor, softcap: float | None, *, write: bool) -> Tensor:
    """The loss of some rows in float32; their logits become its gradient where they stand, if that is to be written."""
    if softcap is None and (losses := ops_abi.cross_entropy_(logits, targets)) is not None:
        return losses.sum()
    strip, total = _strip_rows(logits), torch.zeros((), dtype=torch.float32, device=logits.device)
    for logit, aim in zip(logits.split(strip), targets.split(strip), strict=True):
        total += _strip(logit, aim, softcap, write=write)
    return total


def _strip(logits: Tensor, targets: Tensor, softcap: float | None, *, write: bool) -> Tensor:
    counts = targets != IGNORE
    index = torch.where(counts, targets, 0)[:, None]
    x, slope = logits.float(), None
    if softcap is not None:
        squashed = torch.tanh(x / softcap)
        x, slope = squashed * softcap, 1 - squashed * squashed
    log_p = torch.log_softmax(x, dim=-1)
    loss = -(log_p.gather(1, index)[:, 0] * counts).sum()
    if write:
        gradient = log_p.exp_()
        gradient.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
        gradient *= counts[:, None]
        if slope is not None:
            gradient *= slope
        logits.copy_(gradient)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over rows of −log softmax(cap(h Wᵀ))[target]; gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, chunk: int) -> Tensor:
        rows = hidden.shape[0]
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        single = rows <= chunk
        d_hidden = torch.empty_like(hidden) if needs_hidden and not single else None
        d_weight = None
        if needs_weight and not single:
            d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, rows, chunk):
            h, target = hidden[start : start + chunk], targets[start : start + chunk]
            logits = h @ weight.T
            total += _sum_and_gradient(logits, target, softcap, write=needs_hidden or needs_weight)
            if needs_hidden:
                if d_hidden is None:
                    d_hidden = logits @ weight
                else:
                    torch.mm(logits, weight, out=d_hidden[start : start + chunk])
            if needs_weight:
                if d_weight is None:
                    d_weight = logits.T @ h
                else:
                    d_weight += logits.T @ h
            del logits  # nothing of a chunk may live into the next
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = upstream[0]
        # both are used once and thrown away, so they are scaled where they stand
        return (
            None if d_hidden is None else d_hidden.mul_(scale),
            None if d_weight is None else d_weight.mul_(scale).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def chunk_rows(rows: int, vocab: int, width: int, size: int = 4, budget: int = 64 << 20) -> int:
    """How many of `rows` rows have logits at once, of `size` bytes each; at least 64.

    As many as fit in `budget` bytes, or, up to 1,024, in those of a float32 gradient of the (vocab, width) unembedding:
    every chunk but an only one adds such a gradient to the others'. Chunks are of about one length.
    """
    most = max(64, budget // (size * vocab), min(1024, 4 * width // size))
    return -(-rows // -(-rows // most))


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float | None = None, chunk: int = 0
) -> Tensor:
    """The sum of −log p(target) over rows that count, in float32, with at most `chunk` rows of logits at once.

    Args:
        hidden: (batch, query, d_model) or (rows, d_model), after the final norm.
        weight: (vocab, d_model), the unembedding.
        targets: token ids shaped like `hidden` without its last axis; `IGNORE` where none counts.
        softcap: logits become softcap · tanh(logits / softcap).
        chunk: rows at once, 0 for a choice by the sizes.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    size = chunk or chunk_rows(rows.shape[0], weight.shape[0], weight.shape[1], weight.element_size())
    total: Tensor = _ChunkedCrossEntropy.apply(rows, weight, targets.reshape(-1), softcap, size)
    return total


def read_out(transformer: Transformer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and a matrix whose product is the logits before the soft cap, the unembedding's scale and bias in
    them."""
    scale, bias, matrix = transformer.config.logit_scale, transformer.unembed_bias, transformer.unembedding
    if scale is not None:
        hidden = hidden * scale
    if bias is not None:
        ones = torch.full_like(hidden[..., :1], 1.0 if scale is None else scale)
        hidden = torch.cat([hidden, ones], dim=-1)
        matrix = torch.cat([matrix, bias[:, None]], dim=1)
    return hidden, matrix
