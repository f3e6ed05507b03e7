"""Cross-entropy whose logits never exist all at once.

The vocabulary is the widest thing in a language model: at 50,257 tokens one row of logits in float32 is 200 kB,
and a batch of 4 × 1,024 rows with its gradient is 1.6 GB. The loss is a sum over rows, so rows go through the
unembedding in chunks, and each chunk's gradient is taken while its logits exist. This module knows hidden states
and an unembedding matrix; it knows no model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glassformer.model import Transformer

IGNORE = -100
"""A target that does not count."""


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
            counts = target != IGNORE
            index = torch.where(counts, target, 0)[:, None]
            logits = (h @ weight.T).float()
            slope = None
            if softcap is not None:
                squashed = torch.tanh(logits / softcap)
                logits, slope = squashed * softcap, 1 - squashed * squashed
            log_p = torch.log_softmax(logits, dim=-1)
            del logits  # here and below: nothing of a chunk may live into the next
            total -= (log_p.gather(1, index)[:, 0] * counts).sum()
            if not (needs_hidden or needs_weight):
                del log_p
                continue
            d_logits = log_p.exp_()
            d_logits.scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
            d_logits *= counts[:, None]
            if slope is not None:
                d_logits *= slope
            d_logits = d_logits.to(hidden.dtype)
            del log_p, slope
            if needs_hidden:
                if d_hidden is None:
                    d_hidden = d_logits @ weight
                else:
                    torch.mm(d_logits, weight, out=d_hidden[start : start + chunk])
            if needs_weight:
                if d_weight is None:
                    d_weight = d_logits.T @ h
                else:
                    d_weight += d_logits.T @ h
            del d_logits
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


def chunk_rows(vocab: int, budget: int = 64 << 20) -> int:
    """Rows whose float32 logits fit in `budget` bytes, at least 64."""
    return max(64, budget // (4 * vocab))


def cross_entropy_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, softcap: float | None = None, chunk: int = 0
) -> Tensor:
    """The sum of −log p(target) over rows that count, in float32, with at most `chunk` rows of logits at once.

    Args:
        hidden: (batch, query, d_model) or (rows, d_model), after the final norm.
        weight: (vocab, d_model), the unembedding.
        targets: token ids shaped like `hidden` without its last axis; `IGNORE` where none counts.
        softcap: logits become softcap · tanh(logits / softcap).
        chunk: rows at once, 0 for a choice by vocabulary size.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    # no chunk may be so wide that one alone dominates
    size = chunk or chunk_rows(weight.shape[0])
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
