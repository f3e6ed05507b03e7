"""Layers of any mixture, looked into: what a trace derives is what the forward computed, and reasons add up."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings

from glassformer.errors import SiteError
from glassformer.interp import edits, head_outputs
from glassformer.interp.decompose import KINDS
from glassformer.interp.patching import patch
from glassformer.interp.taps import Compose
from glassformer.interp.trace import Trace
from glassformer.model import Attention, Config, FeedForward, Norm, StateSpace, uniform
from glassformer.model.choices import GatedLinearRecurrence, Head, Parallel, SelectiveStateSpace, ShortConvolution
from glassformer.model.sites import names
from tests.model.test_stacks import PHASES, Everything, drawn
from tests.strategies import stacks


@given(stacks())
@settings(max_examples=30, phases=PHASES)
def test_everything_derived_is_what_the_forward_computed(config: Config) -> None:
    transformer = drawn(config)
    ids = torch.randint(0, config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(2))
    tap = Everything(config)
    transformer(ids, tap=tap)
    found = Trace(transformer, ids.tolist())
    for name in names(config):
        torch.testing.assert_close(found[name], tap.seen[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@given(stacks())
@settings(max_examples=20, phases=PHASES)
def test_a_trace_grows_into_the_whole_texts(config: Config) -> None:
    """With an earlier text's beginning read already, every derived number is that of a forward of the whole text."""
    transformer = drawn(config)
    ids = torch.randint(0, config.vocab_size, (12,), generator=torch.Generator().manual_seed(2)).tolist()
    other = [*ids[:9], *((i + 1) % config.vocab_size for i in ids[8:])]
    found, whole = Trace(transformer, other).grown(ids), Trace(transformer, ids)
    for name in names(config):
        torch.testing.assert_close(found[name], whole[name], rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@given(stacks())
@settings(max_examples=20, phases=PHASES)
def test_parts_add_up_and_removing_them_is_a_tap(config: Config) -> None:
    """Contributions sum to the number; a head's total effect is that of a whole forward without it."""
    transformer = drawn(config)
    ids = torch.randint(0, config.vocab_size, (9,), generator=torch.Generator().manual_seed(2)).tolist()
    assume(float(transformer(torch.tensor([ids]))[0, -1].std()) > 1e-6)
    run = Trace(transformer, ids)
    found = run.why(words=0)
    assert abs(found.residual) <= 1e-12
    goal, at = found.target, len(ids) - 1

    def number(tap: object) -> float:
        """The number explained of a whole forward under a tap."""
        normed = transformer.hidden(torch.tensor([ids]), tap=Compose(tap).bind(config))[0, at]
        return float(normed @ goal.way.vector) + goal.way.offset

    for layer, choice in enumerate(config.layers):
        if choice.mixer is None:
            continue
        name = f"blocks.{layer}.{choice.mixer.prefix}.out"
        part = run.contributions(layer, 0, at)[3]
        without = number(edits.tap(name, lambda x, where, part=part: x - part, positions=at))
        chosen = (found.parts.kind == KINDS.index("head")) & (found.parts.layer == layer)
        chosen &= (found.parts.head == 0) & (found.parts.source == 3)
        measured = float(found.parts.total[chosen])
        assert abs(goal.value - without - measured) <= 1e-8 * max(1.0, abs(goal.value))
        whole = torch.zeros(config.n_heads(layer), len(ids), len(ids), dtype=part.dtype)
        with mock.patch.object(head_outputs, "ROWS", 4):
            for first, tile in head_outputs.weighted_tiles(run, layer):
                whole[:, first : first + tile.shape[1], : tile.shape[2]] = tile
        for head in range(config.n_heads(layer)):
            for query in (2, 6):
                torch.testing.assert_close(whole[head, query], run.contributions(layer, head, query).norm(dim=-1))


@pytest.mark.parametrize(
    "mixer",
    [SelectiveStateSpace(6, 3, 2), ShortConvolution(6, 3, True, True), GatedLinearRecurrence(6, 2)],
    ids=["selective", "convolution", "recurrence"],
)
def test_channels_have_grids_of_their_own_and_can_be_cut_off(mixer: Any) -> None:
    """Shares times values are what was read; the grid is their mean; a written 0 takes one position's part away."""
    config = Config(40, 16, 64, (*uniform(40, 16, 2, 64, mixer, FeedForward(8)).layers,))
    transformer, name = drawn(config), f"blocks.1.{mixer.prefix}."
    run = Trace(transformer, [3, 17, 5, 22, 9, 30, 17, 5])
    shares = torch.stack([run.channel_pattern(1, i) for i in range(6)])
    values, mixed = run[name + mixer.handed][:, 0], run[name + "mixed"][:, 0]
    constant = transformer.blocks[1].mixer.constant
    read = torch.einsum("cqk,kc->qc", shares, values) + (0.0 if constant is None else constant)
    torch.testing.assert_close(read, mixed)
    torch.testing.assert_close(run.pattern(1, 0), shares.abs().mean(0))
    torch.testing.assert_close(run.channel_pattern(1, 2, slice(3, 5)), shares[2, 3:5])
    without = Trace(transformer, run.ids, tap=edits.ablate(layer=1, keys=4))
    cut = torch.einsum("cq,c->qc", shares[:, :, 4], values[4])
    torch.testing.assert_close(without[name + "mixed"][:, 0], mixed - cut)
    tap = Everything(config)
    transformer(torch.tensor([run.ids]), tap=Compose(edits.ablate(layer=1, keys=4), tap).bind(config))
    torch.testing.assert_close(tap.seen[name + "mixed"][0, :, 0], mixed - cut)
    assert not without.contributions(1, 0, 7)[4].any()
    torch.testing.assert_close(run.weighted(1, 0)[6], run.contributions(1, 0, 6).norm(dim=-1))
    assert abs(without.why(words=0).residual) <= 1e-12
    # a gradient at the grid is what a small ratio changes
    step, at = 1e-6, name + "pattern"
    more = Trace(transformer, run.ids, tap=edits.tap(at, lambda x, where: x * (1 + step)))
    grown = (more["logits"][-1, 3] - run["logits"][-1, 3]) / step
    estimate = (run.gradient(at, lambda logits: logits[0, -1, 3]) * run[at]).sum()
    torch.testing.assert_close(estimate, grown, rtol=1e-4, atol=1e-6)
    with pytest.raises(SiteError, match="channels 0 to 5"):
        run.channel_pattern(1, 6)


def mamba(layers: int = 2) -> Config:
    return uniform(40, 16, layers, 64, StateSpace(4, 8, 6, n_groups=2, norm_groups=2), None)


def hybrid() -> Config:
    one, two = mamba(1).layers, uniform(40, 16, 1, 64, Attention(4, 2, 8), FeedForward(24)).layers
    return Config(40, 16, 64, (*one, *two, *one))


def beside() -> Config:
    """Two heads of attention beside two of a state space, which are wider."""
    mixer = Parallel(
        Attention(2, 1, 4, gate="head"), StateSpace(2, 8, 6, n_groups=2, norm_groups=2), (1.3, 0.7), (0.5, 1.5)
    )
    return uniform(40, 16, 2, 64, mixer, FeedForward(24))


@pytest.mark.parametrize("config", [mamba(), hybrid(), beside()], ids=["mamba", "hybrid", "beside"])
def test_every_way_of_looking_works_on_a_state_space(config: Config) -> None:
    transformer = drawn(config)
    run = Trace(transformer, [3, 17, 5, 22, 9, 30, 17, 5])
    assert run.pattern(0).shape == (4, 8, 8)
    assert run.head_outputs(0).shape == (4, 8, 16)
    whole = run[f"blocks.0.{config.mixer(0).prefix}.out"]
    torch.testing.assert_close(run.head_outputs(0).sum(0), whole, rtol=1e-9, atol=1e-10)
    parts = torch.stack([run.contributions(0, h, 5) for h in range(4)]).sum((0, 1))
    torch.testing.assert_close(parts, whole[5], rtol=1e-9, atol=1e-10)
    assert run.lens().places
    found = run.why()
    total = found.parts.total[torch.isfinite(found.parts.total)]
    assert len(total) == len(found.parts)
    off = Trace(transformer, run.ids, tap=edits.ablate(layer=0, head=1))
    assert not torch.allclose(off["logits"], run["logits"])
    heads = run.heads(length=6, shuffles=1)
    assert heads.scores["previous"].shape == (config.n_layers, 4)


def test_heads_of_attention_and_of_a_recurrence_side_by_side() -> None:
    """Patterns and outputs of both stand one after the other; edits of any head are edits of what it is in."""
    config = beside()
    transformer, name = drawn(config), "blocks.0."
    run = Trace(transformer, [3, 17, 5, 22, 9, 30, 17, 5])
    torch.testing.assert_close(run.pattern(0)[:2], run[name + "attn.pattern"])
    torch.testing.assert_close(run.pattern(0, 3), run[name + "ssm.pattern"][1])
    assert not run[name + "mix.z"][:, :2, 4:].any()
    torch.testing.assert_close(run[name + "mix.z"][:, 2:], run[name + "ssm.z"])
    for head in (1, 3):
        tap = edits.ablate(layer=0, head=head)
        off = Trace(transformer, run.ids, tap=tap)
        expected = run[name + "mix.out"] - run.head_outputs(0, head)
        torch.testing.assert_close(off[name + "mix.out"], expected)
        assert abs(off.why(words=0).residual) <= 1e-12
        blind = edits.knockout(keys=2, layer=0, head=head)
        cut = Trace(transformer, run.ids, tap=blind)
        assert not cut.contributions(0, head, 5)[2].any()
        assert abs(cut.why(words=0).residual) <= 1e-12
        seen = Everything(config)
        transformer(torch.tensor([run.ids]), tap=Compose(blind, seen).bind(config))
        torch.testing.assert_close(cut[name + "mix.pattern"], seen.seen[name + "mix.pattern"][0])
        torch.testing.assert_close(cut[name + "mix.z"], seen.seen[name + "mix.z"][0])
    other = Trace(transformer, [3, 17, 8, 22, 9, 30, 17, 5])
    found = patch([(run, other)], "heads", answer=3, wrong=5)
    assert found.measured.shape == (1, 2, 4)
    assert len({round(float(x), 12) for x in found.measured[0, 0]}) == 4
    assert run.cell(0, 1, 6, 2).weight == float(run.pattern(0, 1, 6)[2])
    for ask in (lambda: run.cell(0, 2, 6, 2), lambda: run.scores(0, 3)):
        with pytest.raises(SiteError, match="0 to 1 have"):
            ask()


def test_a_sink_switched_off_leaves_its_share_to_the_keys() -> None:
    """The edited model is the one whose sink scores nothing, in that head alone, and its parts add up."""
    config = uniform(40, 16, 2, 64, Attention(4, 2, 8, sink=True), FeedForward(24))
    transformer, other, ids = drawn(config), drawn(config), [3, 17, 5, 22, 9, 30, 17, 5]
    assert other.blocks[1].attn.sink is not None
    other.blocks[1].attn.sink.data[2] = float("-inf")
    off = Trace(transformer, ids, tap=edits.tap("blocks.1.attn.sink", lambda x, where: x * 0.0, head=2))
    torch.testing.assert_close(off["logits"], Trace(other, ids)["logits"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(off.pattern(1, 2).sum(-1), torch.ones(8, dtype=torch.float64))
    assert not torch.allclose(off["logits"], Trace(transformer, ids)["logits"])
    assert off.why(words=0).residual <= 1e-12


@pytest.mark.parametrize("norm", [Norm("layer"), Norm("rms", one_plus=True)], ids=["layer", "rms"])
def test_a_layer_before_the_final_norm_is_held_as_it_ran(norm: Norm) -> None:
    """Claims go through its norm and activation as run and sum to the number; a direct share is that of a last stream
    without the part, everything after it computed anew."""
    layers = uniform(40, 16, 2, 64, Attention(4, 2, 8), FeedForward(24)).layers
    config = Config(40, 16, 64, layers, norm, head=Head("gelu", bias=True))
    transformer, ids = drawn(config), [3, 17, 5, 22, 9, 30, 17, 5]
    run = Trace(transformer, ids)
    found = run.why(words=0)
    assert found.residual <= 1e-12
    last, goal = run["blocks.1.resid_post"][-1], found.target
    feed = found.parts.of("feed_forward", 1)
    without = transformer.normed(last - run["blocks.1.mlp.out"][-1]) @ goal.way.vector + goal.way.offset
    assert float(found.parts.direct[feed]) == pytest.approx(goal.value - float(without), abs=1e-9)
    head = found.parts.of("head", 1)
    one = head[(found.parts.head[head] == 2) & (found.parts.source[head] == 3)]
    without = transformer.normed(last - run.contributions(1, 2, 7)[3]) @ goal.way.vector + goal.way.offset
    assert float(found.parts.direct[one]) == pytest.approx(goal.value - float(without), abs=1e-9)
    off = Trace(transformer, ids, tap=edits.ablate(layer=0, head=1))
    assert off.why(words=0).residual <= 1e-12
