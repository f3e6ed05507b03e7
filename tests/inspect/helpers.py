"""Small models and comparisons for the inspection tests."""

from __future__ import annotations

from typing import Any

import torch

from glassformer.model.config import Attention, Config, FeedForward, Norm, Position
from glassformer.model.transformer import Transformer


def randomised(transformer: Transformer, seed: int = 0, size: float = 0.4) -> Transformer:
    """Weights large enough that every part matters, biases and norms included."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in transformer.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * size + (1.0 if p.ndim == 1 and p.shape[0] > 1 else 0.0) * 0.5)
    return transformer.requires_grad_(False)


def model(
    *,
    n_layers: int = 2,
    context: int = 64,
    windows: tuple[int | None, ...] = (),
    softcap: float | None = None,
    post: bool = False,
    parallel: bool = False,
    logit_softcap: float | None = None,
    seed: int = 0,
    **attention: Any,
) -> Transformer:
    """A small model with every bias, grouped keys and rotary positions."""
    config = Config(
        vocab_size=40,
        d_model=16,
        n_layers=n_layers,
        context=context,
        attention=Attention(4, 2, 8, bias=True, out_bias=True, softcap=softcap, windows=windows, **attention),
        feed_forward=FeedForward(d_ff=24, bias=True),
        norm=Norm("rms", post=post),
        position=Position(),
        parallel=parallel,
        logit_softcap=logit_softcap,
    )
    return randomised(Transformer(config), seed)


def close(a: torch.Tensor, b: torch.Tensor, what: str = "", tolerance: float = 1e-5) -> None:
    """Equal in the project's sense: max|Δ| ≤ tolerance · max|b|, hidden scores equally hidden."""
    assert a.shape == b.shape, (what, tuple(a.shape), tuple(b.shape))
    hidden = torch.isinf(b)
    assert torch.equal(torch.isinf(a), hidden), what
    a, b = a.masked_fill(hidden, 0).double(), b.masked_fill(hidden, 0).double()
    most = float(b.abs().max()) if b.numel() else 0.0
    worst = float((a - b).abs().max()) if b.numel() else 0.0
    assert worst <= tolerance * max(most, 1e-6), f"{what}: {worst} against {most}"
