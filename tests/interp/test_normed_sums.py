"""Norms after the sum: parts carried through them add up, and what is measured of each is a forward without it."""

from __future__ import annotations

import pytest
import torch

from glassformer.interp import edits
from glassformer.interp.decompose import KINDS, additions
from glassformer.interp.taps import Compose
from glassformer.interp.trace import Trace
from glassformer.model import Attention, Config, FeedForward, Norm, uniform
from tests.model.test_stacks import drawn

IDS = [3, 17, 5, 22, 9, 30]


def design(kind: str = "layer") -> Config:
    mixer = Attention(4, 2, 8, bias=True, out_bias=True)
    feed = FeedForward(24, gated=False, bias=True)
    return uniform(40, 16, 3, 64, mixer, feed, norm=Norm(kind), norms="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_parts_add_up_and_each_is_measured_by_a_forward_without_it(kind: str) -> None:
    transformer = drawn(design(kind))
    run = Trace(transformer, IDS)
    found, at = run.why(words=0), len(IDS) - 1
    assert found.residual <= 1e-12
    assert bool(torch.isfinite(found.parts.total).all())
    goal = found.target

    def number(site: str, part: torch.Tensor) -> float:
        tap = edits.tap(site, lambda x, where: x - part, positions=at)
        normed = transformer.hidden(torch.tensor([IDS]), tap=Compose(tap).bind(transformer.config))[0, at]
        return float(normed @ goal.way.vector) + goal.way.offset

    for layer in range(3):
        block, name = transformer.blocks[layer], f"blocks.{layer}."
        vectors = {
            "attention_bias": [(name + "attn.out", block.attn.o.bias)],
            "feed_forward_bias": [(name + "mlp.out", block.mlp.down.bias)],
            "feed_forward": [(name + "mlp.out", run[name + "mlp.out"][at] - block.mlp.down.bias)],
            "norm_bias": [(name + "resid_mid", block.ln1.bias), (name + "resid_post", block.ln2.bias)],
        }
        if kind == "rms":
            del vectors["norm_bias"]
        for part, pairs in vectors.items():
            measured = found.parts.total[found.parts.of(part, layer)].tolist()
            for (site, vector), mine in zip(pairs, measured, strict=True):
                assert goal.value - number(site, vector) == pytest.approx(mine, abs=1e-9)
        head = run.contributions(layer, 1, at)[2]
        chosen = (found.parts.kind == KINDS.index("head")) & (found.parts.layer == layer)
        chosen &= (found.parts.head == 1) & (found.parts.source == 2)
        assert goal.value - number(name + "attn.out", head) == pytest.approx(float(found.parts.total[chosen]), abs=1e-9)


def test_what_enters_a_layer_is_the_sum_of_what_stood_before_it() -> None:
    """By hand for the first layer: both norms' divisors are those of the run."""
    transformer = drawn(design())
    run, at = Trace(transformer, IDS), 4
    block = transformer.blocks[0]
    before = {"ln1": run["blocks.0.resid_pre"][at] + run["blocks.0.attn.out"][at]}
    before["ln2"] = run["blocks.0.resid_mid"][at] + run["blocks.0.mlp.out"][at]

    def through(name: str, x: torch.Tensor) -> torch.Tensor:
        norm, whole = getattr(block, name), before[name]
        return norm.weight * (x - x.mean()) / (whole.var(unbiased=False) + norm.eps).sqrt()

    found = {kind: x for kind, layer, _, x in additions(run, at, 1) if isinstance(x, torch.Tensor) and layer < 1}
    embedded = run["blocks.0.resid_pre"][at]
    torch.testing.assert_close(found["embedding"], through("ln2", through("ln1", embedded)))
    fed = run["blocks.0.mlp.out"][at] - block.mlp.down.bias
    torch.testing.assert_close(found["feed_forward"], through("ln2", fed))
    parts = [x if isinstance(x, torch.Tensor) else x.total() for _, _, _, x in additions(run, at, 1)]
    torch.testing.assert_close(torch.stack(parts).sum(0), run["blocks.1.resid_pre"][at])


def test_an_edit_is_a_part_and_scores_have_reasons() -> None:
    transformer = drawn(design())
    tap = edits.tap("blocks.1.resid_mid", lambda x, where: x * 1.1)
    run = Trace(transformer, IDS, tap=tap)
    found = run.why(words=0)
    assert found.residual <= 1e-12
    assert len(found.parts.of("edit")) == 1
    assert Trace(transformer, IDS).reasons(2, 1, 5, 2).residual <= 1e-12
    neurons = Trace(transformer, IDS).neurons(k=3)
    whole = Trace(transformer, IDS).why(words=0)
    assert neurons.all == pytest.approx(float(whole.parts.claimed[whole.parts.of("feed_forward")].sum()))
