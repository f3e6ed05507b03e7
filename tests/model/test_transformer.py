"""The transformer computes one function, whichever path it takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glassformer.errors import CheckpointError, ShapeError
from glassformer.model import Attention, Cache, Config, FeedForward, Transformer, uniform
from glassformer.model.sites import Where, names
from tests import shapes
from tests.strategies import configs


def built(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model in which every parameter matters."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0 if p.ndim > 1 else 0.5, 0.3)
    return model.to(dtype).requires_grad_(False)


def text(config: Config, batch: int, count: int, seed: int = 1) -> Tensor:
    return torch.randint(config.vocab_size, (batch, count), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """The design's norm: max|Δ| ≤ tolerance · max|b|."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


class See:
    def __init__(self, reads: set[str], writes: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.reads, self.writes = frozenset(reads), frozenset(writes)
        self.seen: dict[str, Tensor] = {}
        self.where: Where | None = None

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor:
        self.seen[site] = x
        self.where = where
        return x


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(configs())
def test_cached_padded_and_visible_equal_plain(config: Config) -> None:
    model = built(config)
    tokens = text(config, 2, 20)
    plain = model(tokens)
    assert plain.isfinite().all()

    cache = Cache(config, 2, 30)
    pieces = [model(tokens[:, :11], cache), model(tokens[:, 11:12], cache), model(tokens[:, 12:], cache)]
    close(torch.cat(pieces, 1), plain)

    padded = torch.cat([tokens.new_zeros(2, 5), tokens], 1)
    padded[1, :5] = tokens[1, :5]
    mask = torch.ones_like(padded, dtype=torch.bool)
    mask[0, :5] = False
    close(model(padded, mask=mask)[0, 5:], plain[0])
    cache = Cache(config, 2, 40)
    pieces = [model(padded[:, :13], cache, mask[:, :13]), model(padded[:, 13:], cache)]
    close(torch.cat(pieces, 1)[0, 5:], plain[0])

    everything = See(set(names(config)))
    close(model(tokens, tap=everything), plain)
    assert set(everything.seen) == set(names(config))
    for name, x in everything.seen.items():
        if name.endswith("attn.pattern"):
            assert torch.allclose(x.sum(-1), torch.ones(x.shape[:-1]), atol=1e-5)
    close(model(tokens, last=True), plain[:, -1:])
    close(model.unembed_hidden(model.hidden(tokens)), plain)


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(1, 18))
def test_later_tokens_do_not_change_earlier_logits(config: Config, cut: int) -> None:
    model = built(config)
    tokens = text(config, 1, 20)
    other = tokens.clone()
    other[:, cut:] = (other[:, cut:] + 1) % config.vocab_size
    close(model(other)[:, :cut], model(tokens)[:, :cut])
    assert not torch.equal(model(other)[:, cut:], model(tokens)[:, cut:])


@pytest.mark.slow
def test_long_texts_take_the_same_path_in_tiles() -> None:
    """Windows, soft caps and padding are tiled past 256 queries; the grid formed whole is the reference."""
    for windows, cap in (((None, 70), None), ((None, 300), 3.0), ((50, 50), 3.0)):
        config = uniform(30, 16, 2, 2048, Attention(4, 2, 8, softcap=cap), FeedForward(16), windows=windows)
        model = built(config)
        tokens = text(config, 2, 1100)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[1, :300] = False
        for m in (None, mask):
            visible = model(tokens, mask=m, tap=See({"blocks.0.attn.pattern", "blocks.1.attn.pattern"}))
            close(model(tokens, mask=m), visible)


def test_rows_that_are_all_padding_are_zero_and_finite() -> None:
    config = uniform(30, 16, 2, 64, Attention(2, 1, 8), FeedForward(16))
    model = built(config)
    tokens = text(config, 2, 12)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0] = False
    tap = See({"blocks.0.attn.pattern", "blocks.0.attn.z"})
    out = model(tokens, mask=mask, tap=tap)
    assert out.isfinite().all()
    assert (tap.seen["blocks.0.attn.pattern"][0] == 0).all()
    assert (tap.seen["blocks.0.attn.z"][0] == 0).all()
    z = See({"blocks.1.attn.z"})
    model(tokens, mask=mask, tap=z)
    assert (z.seen["blocks.1.attn.z"][0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_runs_in_the_dtype_it_is_given(dtype: torch.dtype) -> None:
    config = uniform(30, 16, 2, 64, Attention(4, 2, 8, qk_norm="head"), FeedForward(16))
    tokens = text(config, 1, 20)
    exact = built(config)(tokens)
    out = built(config, dtype=dtype)(tokens)
    assert out.dtype == dtype
    close(out.float(), exact, 0.05 if dtype == torch.bfloat16 else 1e-5)


def test_gradients_flow_and_agree_with_and_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    from glassformer.kernels import ops

    config = uniform(30, 64, 2, 64, Attention(4, 2, 16, bias=True, out_bias=True), FeedForward(96, bias=True))
    tokens = text(config, 4, 40)

    def gradients() -> dict[str, Tensor]:
        model = built(config).requires_grad_(True)
        model(tokens).logsumexp(-1).sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    if torch.backends.mkldnn.is_available():
        monkeypatch.setattr(ops, "_ONEDNN", torch.ops.mkldnn._linear_pointwise.default)
    ours = gradients()
    monkeypatch.setattr(ops, "_ONEDNN", None)
    theirs = gradients()
    assert ours.keys() == theirs.keys() == dict(Transformer(config).named_parameters()).keys()
    for name, gradient in ours.items():
        close(gradient, theirs[name], 2e-5)


def test_positions_count_from_the_first_real_token() -> None:
    config = uniform(30, 16, 1, 64, Attention(2, 2, 8, rotary=None), FeedForward(16), learned_positions=True)
    model = built(config)
    tap = See({"embed"})
    tokens = text(config, 2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6], dtype=torch.bool)
    model(tokens, mask=mask, tap=tap)
    assert tap.where is not None
    assert tap.where.positions.tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_misfits_are_named() -> None:
    config = uniform(30, 16, 1, 8, Attention(2, 2, 8, rotary=None), FeedForward(16), learned_positions=True)
    model = built(config)
    with pytest.raises(ShapeError, match="8 trained positions; the text needs 9"):
        model(text(config, 1, 9))
    with pytest.raises(ShapeError, match="at least one query"):
        model(torch.zeros(1, 0, dtype=torch.long))
    cache = Cache(config, 1, 4)
    with pytest.raises(ShapeError, match="4 slots, 0 of them filled; 5 more do not fit"):
        model(text(config, 1, 5), cache)
    with pytest.raises(ShapeError, match="holds 1 rows and was given 2"):
        model(text(config, 2, 2), cache)
    with shapes.unchecked(), pytest.raises(ShapeError, match="mask must have the tokens' shape"):
        model(text(config, 1, 4), mask=torch.ones(1, 3, dtype=torch.bool))


def test_cache_truncates_and_expands() -> None:
    config = uniform(30, 16, 2, 64, Attention(2, 1, 8), FeedForward(16))
    model = built(config)
    tokens = text(config, 1, 10)
    cache = Cache(config, 1, 16)
    model(tokens, cache)
    cache.truncate(6)
    wide = cache.expand(3, 12)
    tails = text(config, 3, 4)
    whole = model(torch.cat([tokens[:, :6].expand(3, -1), tails], 1))
    close(model(tails, wide), whole[:, 6:])
    with pytest.raises(ShapeError, match="holds 6 tokens and cannot be cut to 7"):
        cache.truncate(7)


def test_load_names_what_does_not_fit() -> None:
    config = uniform(30, 16, 1, 64, Attention(2, 2, 8), FeedForward(16))
    tensors = {n: p.detach() for n, p in built(config).named_parameters()}
    model = Transformer.empty(config).load(tensors)
    assert model.embed.weight.data_ptr() == tensors["embed.weight"].data_ptr()
    with pytest.raises(CheckpointError, match=r"lacks 1 of the \d+ tensors .* first 'final.weight'"):
        Transformer.empty(config).load({k: v for k, v in tensors.items() if k != "final.weight"})
    with pytest.raises(CheckpointError, match="holds 'blocks.0.attn.w'"):
        Transformer.empty(config).load({**tensors, "blocks.0.attn.w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'final.weight' has shape \(3,\); its config asks for \(16,\)"):
        Transformer.empty(config).load({**tensors, "final.weight": torch.zeros(3)})


def test_parameter_names_are_public_api() -> None:
    """Native checkpoints hold these keys: changing one breaks every saved model."""
    config = uniform(
        10, 8, 1, 16, Attention(2, 1, 4, bias=True, out_bias=True, qk_norm="head"), FeedForward(8, bias=True)
    )
    assert sorted(n for n, _ in Transformer(config).named_parameters()) == sorted(
        ["embed.weight", "final.weight", "unembed.weight", "blocks.0.ln1.weight", "blocks.0.ln2.weight"]
        + [f"blocks.0.attn.{p}.{w}" for p in "qkvo" for w in ("weight", "bias")]
        + ["blocks.0.attn.q_norm.weight", "blocks.0.attn.k_norm.weight"]
        + [f"blocks.0.mlp.{p}.{w}" for p in ("gate", "up", "down") for w in ("weight", "bias")]
    )
