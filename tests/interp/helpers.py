"""Small models and comparisons for the inspection tests."""

from __future__ import annotations

from typing import Any

import torch

from glassformer.model.config import Attention, FeedForward, uniform
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
    config = uniform(
        vocab_size=40,
        d_model=16,
        n_layers=n_layers,
        context=context,
        mixer=Attention(4, 2, 8, bias=True, out_bias=True, softcap=softcap, **attention),
        windows=windows,
        feed_forward=FeedForward(d_ff=24, bias=True),
        norms="both" if post else "before",
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


class Letters:
    """A vocabulary whose tokens are single letters, lower-case and then capitals, each with a space before it from
    the 27th on; spelt so that every token but the last is a word."""

    special_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.token_ids = vocab_size, range(vocab_size)

    def token_bytes(self, id: int) -> bytes:
        letter = chr(ord("a") + id % 26)
        return letter.encode() if id < 26 else (" " + letter * (id // 26)).encode()

    def token_text(self, id: int) -> str:
        return self.token_bytes(id).decode()

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        by_text = {self.token_text(i): i for i in range(self.vocab_size)}
        return [by_text[text]] if text in by_text else [by_text[c] for c in text]


def planted() -> tuple[Transformer, list[int], int]:
    """A model in which head 2 of layer 1 finds token 60 and writes the direction of token 33; a text with token
    60 in it; and where it stands."""
    config = uniform(
        vocab_size=80,
        d_model=96,
        n_layers=3,
        context=32,
        mixer=Attention(4, 4, 16, rotary=None),
        feed_forward=FeedForward(d_ff=32),
        learned_positions=True,
    )
    transformer = randomised(Transformer(config), 3, 0.02)
    with torch.no_grad():
        transformer.embed.weight.zero_()
        transformer.embed.weight[:, :80] = torch.eye(80)
        transformer.unembed.weight.zero_()
        transformer.unembed.weight[:, :80] = torch.eye(80)
        transformer.embed.weight[:, 90] = 1.0  # every token asks
        attention = transformer.blocks[1].attn
        rows = slice(32, 48)
        for matrix in (attention.q.weight, attention.k.weight, attention.v.weight):
            matrix[rows] = 0.0
        attention.q.weight[32, 90] = 4.0
        attention.k.weight[32, 60] = 4.0
        attention.v.weight[33, 60] = 3.0
        attention.o.weight[:, rows] = 0.0
        attention.o.weight[33, 33] = 3.0
    ids = [50 + i for i in (0, 3, 10, 5, 7, 2, 9)]
    return transformer, ids, ids.index(60)
