"""Experts, looked into: who was chosen, what each wrote, and what happens without one."""

from __future__ import annotations

import pytest
import torch

from glassformer.count import count
from glassformer.errors import UnsupportedError, UsageError
from glassformer.interp import edits
from glassformer.interp.decompose import KINDS
from glassformer.interp.neurons import excited_by, top_neurons, writes
from glassformer.interp.trace import Trace
from glassformer.model import Attention, Config, Experts, FeedForward, Transformer, uniform
from glassformer.model.parts.experts import ExpertsPart, Product, Stack
from tests.model.test_stacks import drawn

IDS = [3, 17, 5, 22, 9, 30, 17, 5]


def design(**more: object) -> Config:
    feed = Experts(8, 2, 6, **{"shared": FeedForward(10), **more})  # type: ignore[arg-type]
    return uniform(40, 16, 2, 64, Attention(4, 2, 8), feed)


def test_the_weights_say_who_was_chosen() -> None:
    run = Trace(drawn(design()), IDS)
    router, weights = run["blocks.0.mlp.router"], run["blocks.0.mlp.weights"]
    assert weights.shape == (8, 8)
    assert ((weights != 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(8, dtype=torch.float64))
    best = router.topk(2, dim=-1)
    # a softmax over all, cut to the chosen and renormalised, is a softmax over the chosen
    torch.testing.assert_close(weights.gather(-1, best.indices), best.values.softmax(-1))


def test_an_expert_taken_away_is_what_its_part_measured() -> None:
    transformer = drawn(design())
    run = Trace(transformer, IDS)
    found = run.why(words=0)
    assert found.residual <= 1e-12
    chosen = found.parts.of("expert")
    assert len(chosen) == 4  # two in each layer
    for i in chosen.tolist():
        part = found.part(i)
        assert part["head"] is None
        assert run[f"blocks.{part['layer']}.mlp.weights"][-1, part["expert"]] != 0
        tap = edits.ablate(layer=part["layer"], expert=part["expert"], positions=len(IDS) - 1)
        without = Trace(transformer, IDS, tap=tap).why(found.target.way.token, words=0)
        assert without.residual <= 1e-12
        assert found.value - without.value == pytest.approx(part["total"], abs=1e-9)
    assert "expert" in found.sentence()


@pytest.mark.parametrize("more", [{}, {"bias": True, "shared_gate": True}, {"shared": None, "renormalise": False}])
def test_experts_are_shown_as_heads_are(more: dict[str, object]) -> None:
    """Who was chosen, with what weight and score, and what each wrote: as a forward of each by hand gives it."""
    transformer = drawn(design(**more))
    run = Trace(transformer, IDS)
    found, at = run.experts(1, position=3, words=4), 3
    part, read = transformer.blocks[1].mlp, run["blocks.1.ln2.normed"][at]
    weights = run["blocks.1.mlp.weights"]
    torch.testing.assert_close(found.weights, weights)
    chosen = weights[at].abs().argsort(descending=True)[:2].tolist()
    assert [one["expert"] for one in found.experts] == chosen
    claimed = run.why(position=at, words=0).parts
    for one in found.experts:
        e, stacks = one["expert"], part.experts
        hidden = torch.nn.functional.silu(stacks.gate.each()(e, read)) * stacks.up.each()(e, read)
        wrote = stacks.down.each()(e, hidden) * weights[at, e]
        assert one["length"] == pytest.approx(float(wrote.norm()), rel=1e-9)
        assert one["weight"] == float(weights[at, e])
        assert one["score"] == pytest.approx(float(part.router(read)[e]), rel=1e-9)
        mine = claimed.of("expert", 1)[claimed.head[claimed.of("expert", 1)] == e]
        assert one["contribution"] == pytest.approx(float(claimed.claimed[mine].sum()), abs=1e-10)
        pushed = transformer.unembedding @ (transformer.final.weight * wrote)
        assert one["raises"] == [run.token_text(i) for i in pushed.topk(4).indices.tolist()]
    if part.shared is None:
        assert found.shared is None
    else:
        beside = part.beside(read)
        assert found.shared["length"] == pytest.approx(float(beside.norm()), rel=1e-9)
    assert found.apart <= 1e-12
    with pytest.raises(UsageError, match="At least one word"):
        run.experts(1, words=0)


def test_a_layer_without_experts_says_which_have_some() -> None:
    one, two = design().layers[0], uniform(40, 16, 1, 64, Attention(4, 2, 8), FeedForward(8)).layers[0]
    run = Trace(drawn(Config(40, 16, 64, (two, one))), IDS)
    with pytest.raises(UnsupportedError, match=r"Layer 0 has no experts; layers 1 have\."):
        run.experts(0)
    run = Trace(drawn(Config(40, 16, 64, (two,))), IDS)
    with pytest.raises(UnsupportedError, match="No layer of this model has experts"):
        run.experts(0)


def test_edited_weights_and_neurons_add_up_too() -> None:
    transformer = drawn(design(bias=True, shared_gate=True))
    on = edits.replace("blocks.1.mlp.weights", 0.5, unit=7)
    dead = edits.ablate(layer=0, neuron=13)
    for tap in (on, dead):
        run = Trace(transformer, IDS, tap=tap)
        assert run.why(words=0).residual <= 1e-12
    whole = Trace(transformer, IDS, tap=on)
    assert (whole["blocks.1.mlp.weights"][:, 7] == 0.5).all()
    assert whole.why(words=0).parts.of("expert", 1).numel() in (2, 3)


def test_neurons_are_numbered_through_all_experts() -> None:
    transformer = drawn(design(shared=None))
    run = Trace(transformer, IDS)
    found = top_neurons(run, k=500)
    kinds = run.why(words=0).parts
    assert found.all == pytest.approx(float(kinds.claimed[kinds.kind == KINDS.index("expert")].sum()), abs=1e-9)
    chosen = (run["blocks.0.mlp.weights"][-1] != 0).nonzero()[:, 0].tolist()
    met = {n["index"] // 6 for n in found.neurons if n["layer"] == 0 and n["activation"]}
    assert met == set(chosen)
    part = transformer.blocks[0].mlp
    column = part.experts.down.weight[2, :, 1]
    raised, _ = writes(transformer, 0, 13, 3)
    assert raised == (transformer.unembedding @ (column * transformer.final.weight)).topk(3).indices.tolist()
    e = transformer.blocks[0].ln2(transformer.embed.weight)
    fired = torch.nn.functional.silu(e @ part.experts.gate.weight[2, 1]) * (e @ part.experts.up.weight[2, 1])
    assert excited_by(transformer, 0, 13, 4) == fired.topk(4).indices.tolist()


def test_only_chosen_experts_are_computed_and_company_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = design()
    part = drawn(config).blocks[0].mlp
    assert isinstance(part, ExpertsPart)
    calls: list[int] = []
    plain = Stack.each

    def counted(self: Stack) -> Product:
        product = plain(self)

        def one(expert: int, x: torch.Tensor) -> torch.Tensor:
            calls.append(expert)
            return product(expert, x)

        return one

    monkeypatch.setattr(Stack, "each", counted)
    x = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = part(x)
    assert len(calls) == 3 * 2
    others = torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(part(torch.cat([x, others]))[:1], alone, rtol=1e-12, atol=1e-12)


def test_total_and_active_parameters() -> None:
    config = design()
    found = count(config)
    assert found.parameters == sum(p.numel() for p in Transformer.empty(config).parameters())
    assert found.parameters - found.active_parameters == 2 * 6 * (3 * 6 * 16)


def test_what_is_ablated_is_said_once() -> None:
    with pytest.raises(UsageError, match="an expert are ablated by a tap each"):
        edits.ablate(layer=0, neuron=1, expert=2)
