"""Rotary positions that the length of the whole text decides: however a text is computed, it is one text."""

from __future__ import annotations

import pytest
import torch

from glassformer.model import Attention, Cache, FeedForward, Transformer, uniform
from glassformer.model.choices import RopeScaling, Rotary

LONGROPE = RopeScaling(
    "longrope", 4.0, 10, attention_factor=1.2, factors=(1.0, 1.3, 1.7, 2.0), long_factors=(1.5, 3.0, 5.0, 8.0)
)
DYNAMIC = RopeScaling("dynamic", 2.0, 10)
BOTH = pytest.mark.parametrize("scaling", [LONGROPE, DYNAMIC], ids=lambda scaling: scaling.kind)
IDS = torch.randint(0, 40, (1, 20), generator=torch.Generator().manual_seed(1))


def model(scaling: RopeScaling) -> Transformer:
    torch.manual_seed(0)
    mixer = Attention(4, 2, 8, rotary=Rotary(100.0, scaling=scaling))
    transformer = Transformer(uniform(40, 16, 2, 48, mixer, FeedForward(24))).double().requires_grad_(False)
    for p in transformer.parameters():
        p.normal_(0.0, 0.4)
    return transformer.eval()


def close(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)


@BOTH
def test_a_text_that_grows_is_computed_anew(scaling: RopeScaling) -> None:
    transformer = model(scaling)
    cache, at = Cache(transformer.config, 1, dtype=torch.float64), 0
    for cut in (4, 3, 6, 1, 1, 5):
        piece = transformer(IDS[:, at : at + cut], cache)
        at += cut
        close(piece, transformer(IDS[:, :at])[:, -cut:])
    copy = cache.expand(3)
    copy.truncate(at - 1)
    close(transformer(IDS[:, at - 1 : at].expand(3, 1), copy), transformer(IDS)[:, -1:].expand(3, -1, -1))
    short = Cache(transformer.config, 1, dtype=torch.float64)
    short.copy_from(cache, 5)  # what a long text left is no use to a short one
    close(transformer(IDS[:, 5:8], short), transformer(IDS[:, :8])[:, 5:])


@BOTH
def test_a_short_text_beside_a_long_one_turns_as_it_does_alone(scaling: RopeScaling) -> None:
    transformer = model(scaling)
    padded = torch.cat([torch.zeros(1, 13, dtype=torch.long), IDS[:, :7]], 1)
    both, mask = torch.cat([IDS, padded]), torch.arange(20)[None] >= torch.tensor([[0], [13]])
    out = transformer(both, mask=mask)
    close(out[0], transformer(IDS)[0])
    close(out[1, 13:], transformer(IDS[:, :7])[0])
    cache = Cache(transformer.config, 2, dtype=torch.float64)
    transformer(both[:, :18], cache, mask=mask[:, :18])
    close(transformer(both[:, 18:], cache)[1], transformer(IDS[:, :7])[0, -2:])


def test_a_long_text_turns_otherwise_from_its_first_token() -> None:
    transformer = model(LONGROPE)
    assert not torch.allclose(transformer(IDS)[:, 9], transformer(IDS[:, :10])[:, 9])
    close(transformer(IDS[:, :10])[:, :5], transformer(IDS[:, :5]))
