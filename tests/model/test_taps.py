"""The tap protocol: declared before, checked after, and free when nobody looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glassformer.errors import SiteError
from glassformer.model import Attention, FeedForward, Transformer, uniform
from glassformer.model.sites import Where

CONFIG = uniform(20, 16, 2, 32, Attention(2, 1, 8), FeedForward(16))


class Write:
    def __init__(self, site: str, change) -> None:
        self.reads, self.writes = frozenset(), frozenset([site])
        self.change = change

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None:
        return self.change(x)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(CONFIG).requires_grad_(False)


TOKENS = torch.arange(10)[None]


def test_writing_changes_what_follows_and_nothing_before(model: Transformer) -> None:
    plain = model(TOKENS)
    assert torch.equal(model(TOKENS, tap=Write("logits", torch.zeros_like)), torch.zeros_like(plain))
    zeroed = model(TOKENS, tap=Write("blocks.1.resid_post", torch.zeros_like))
    assert torch.allclose(zeroed, zeroed[:, :1].expand_as(zeroed))
    assert torch.equal(model(TOKENS), plain), "the model itself never changes"


def test_writing_the_pattern_selects_the_visible_path(model: Transformer) -> None:
    def previous_only(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, :, torch.arange(1, 10), torch.arange(9)] = 1.0
        return y

    changed = model(TOKENS, tap=Write("blocks.0.attn.pattern", previous_only))
    assert not torch.allclose(changed, model(TOKENS))


def test_unknown_sites_raise_before_the_forward(model: Transformer) -> None:
    with pytest.raises(SiteError, match="no site 'blocks.0.atn.out'.*Did you mean"):
        model(TOKENS, tap=Write("blocks.0.atn.out", lambda x: x))
    with pytest.raises(SiteError, match="names sites in full; write 'blocks.0.attn.pattern'"):
        model(TOKENS, tap=Write("blocks.0.attn.hook_pattern", lambda x: x))


def test_wrong_returns_are_named(model: Transformer) -> None:
    with pytest.raises(SiteError, match="returned nothing"):
        model(TOKENS, tap=Write("blocks.0.attn.out", lambda x: None))
    with pytest.raises(SiteError, match=r"returned shape \(1, 9, 16\); it needs \(1, 10, 16\)"):
        model(TOKENS, tap=Write("blocks.0.attn.out", lambda x: x[:, :9]))


def test_a_declared_site_that_never_fires_raises(model: Transformer) -> None:
    with pytest.raises(SiteError, match="declared logits and this forward never reached it"):
        model.hidden(TOKENS, tap=Write("logits", lambda x: x))


def test_reading_cannot_change(model: Transformer) -> None:
    class Sneaky:
        reads, writes = frozenset(["blocks.0.attn.out"]), frozenset()

        def __call__(self, site: str, x: Tensor, where: Where) -> Tensor:
            return torch.zeros_like(x)

    assert torch.equal(model(TOKENS, tap=Sneaky()), model(TOKENS))


def test_gradients_flow_through_sites(model: Transformer) -> None:
    leaf: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        leaf.append(x.detach().requires_grad_(True))
        return leaf[0]

    model(TOKENS, tap=Write("blocks.0.resid_post", keep))[0, -1, 3].backward()
    assert leaf[0].grad is not None
    assert leaf[0].grad.abs().sum() > 0


def test_looking_does_not_change_the_captured_graph(model: Transformer) -> None:
    """With no tap, the traced forward holds no trace of `see`."""
    exported = torch.export.export(model, (TOKENS,), strict=False)
    ops = [n.target for n in exported.graph.nodes if n.op == "call_function"]
    assert ops, "the graph holds the forward"
    assert not any("visit" in str(op) or "see" in str(op) for op in ops)
