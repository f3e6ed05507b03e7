"""Edges against a forward written out here, layer by layer, in which each receiver's input can be changed alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings

from glassformer.errors import ShapeError, SiteError, UsageError
from glassformer.interp.edge_estimates import Estimates
from glassformer.interp.edge_exact import Exact
from glassformer.interp.edge_graph import Graph
from glassformer.interp.edge_pair import Pair
from glassformer.interp.edge_run import Slopes
from glassformer.interp.edges import edges
from glassformer.interp.edits import ablate
from glassformer.interp.trace import Trace
from glassformer.model import Config, Transformer, uniform
from glassformer.model.choices import Experts
from glassformer.model.config import Attention, FeedForward
from tests.interp.helpers import Letters, model, planted, randomised
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks

CLEAN, CORRUPTED = [5, 9, 1, 7, 8, 4], [5, 9, 2, 7, 8, 4]
RIGHT, WRONG = 3, 7
HEADS, GROUPS, SIZE = 4, 2, 6


@functools.cache
def small() -> Transformer:
    """Two layers with grouped keys, biases and learned positions."""
    mixer = Attention(HEADS, GROUPS, SIZE, bias=True, out_bias=True, rotary=None)
    config = uniform(40, 12, 2, 32, mixer, FeedForward(20, bias=True), learned_positions=True)
    return randomised(Transformer(config)).double()


def textbook(
    t: Transformer,
    x: torch.Tensor,
    added: dict[str, torch.Tensor] | None = None,
    inside: Callable[[str, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor] | None = None,
    held: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits after the last of the embeddings x (query, d_model), and what each sender adds. `added` is added to the
    inputs of the receivers named; `inside(receiver, stream, senders before)` says what a receiver reads; `held` is what
    relevance is propagated through instead of a divisor, a weight of attention or a slope."""
    added, sent = added or {}, {"embed": x}
    hear = inside or (lambda name, x, before: x)
    weights = dict(t.named_parameters())
    eps, length = t.config.norm.eps, len(x)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / held((x.square().mean(-1, keepdim=True) + eps).sqrt()) * weights[f"{name}.weight"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for i in range(t.config.n_layers):
        b, upstream = f"blocks.{i}.", dict(sent)

        def read(name: str, b: str = b, x: torch.Tensor = x, before: Any = upstream) -> torch.Tensor:
            return norm(hear(name, x, before) + added.get(name, 0.0), f"{b}ln1")

        middle = x
        for h in range(HEADS):
            g = h // (HEADS // GROUPS)
            mine, theirs = slice(h * SIZE, (h + 1) * SIZE), slice(g * SIZE, (g + 1) * SIZE)
            q = linear(read(f"a{i}.h{h}.q"), f"{b}attn.q")[:, mine]
            k = linear(read(f"a{i}.kv{g}.k"), f"{b}attn.k")[:, theirs]
            v = linear(read(f"a{i}.kv{g}.v"), f"{b}attn.v")[:, theirs]
            scores = q @ k.T / SIZE**0.5
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            z = held(scores.masked_fill(hidden, float("-inf")).softmax(-1)) @ v
            sent[f"a{i}.h{h}"] = z @ weights[f"{b}attn.o.weight"][:, mine].T
            middle = middle + sent[f"a{i}.h{h}"]
        middle = middle + weights[f"{b}attn.o.bias"]
        y = norm(hear(f"m{i}", middle, sent) + added.get(f"m{i}", 0.0), f"{b}ln2")
        gate, up = linear(y, f"{b}mlp.gate"), linear(y, f"{b}mlp.up")
        act = gate * held(F.silu(gate) / gate)
        neurons = (act * held(up) + held(act) * up) / 2 if held(act) is not act else act * up
        sent[f"m{i}"] = linear(neurons, f"{b}mlp.down")
        x = middle + sent[f"m{i}"]
    return norm(hear("logits", x, sent) + added.get("logits", 0.0), "final")[-1] @ t.unembedding.T, sent


def begin(t: Transformer, ids: list[int]) -> torch.Tensor:
    """Embeddings of a text."""
    assert t.pos_embed is not None
    return t.embed.weight[ids] + t.pos_embed.weight[: len(ids)]


def difference(logits: torch.Tensor) -> torch.Tensor:
    return logits[RIGHT] - logits[WRONG]


def found(**options: Any) -> Any:
    t = small()
    pair = (Trace(t, CLEAN, vocabulary=Letters(40)), Trace(t, CORRUPTED, vocabulary=Letters(40)))
    return edges([pair], answer=RIGHT, wrong=WRONG, **options)


def by_hand(measure: Any = difference) -> torch.Tensor:
    """Every edge's exact effect, by a forward each."""
    t = small()
    logits, clean = textbook(t, begin(t, CLEAN))
    _, corrupted = textbook(t, begin(t, CORRUPTED))
    torch.testing.assert_close(logits, t(torch.tensor([CLEAN]))[0, -1], rtol=1e-12, atol=1e-12)
    out = []
    graph = Graph(t.config)
    for edge in range(graph.total):
        sender, receiver = graph.names(edge)
        changed, _ = textbook(t, begin(t, CLEAN), {receiver: corrupted[sender] - clean[sender]})
        out.append(measure(logits) - measure(changed))
    return torch.stack(out)


def test_the_graph_has_every_edge():
    graph = Graph(small().config)
    # per layer: 4 queries, 2 keys, 2 values see what stands before; the feed-forward part also the layer's heads
    assert graph.senders == ["embed", *(f"a0.h{h}" for h in range(4)), "m0", *(f"a1.h{h}" for h in range(4)), "m1"]
    assert graph.total == (8 * 1 + 5) + (8 * 6 + 10) + 11
    assert graph.names(graph.edge("m0", "a1.kv1.k")) == ("m0", "a1.kv1.k")
    smollm2 = uniform(100, 576, 30, 64, Attention(9, 3, 64), FeedForward(8))
    assert Graph(smollm2).total == 70_651
    with pytest.raises(SiteError, match="no edge from m1 to a0.h1.q: it does not stand downstream"):
        graph.edge("m1", "a0.h1.q")
    with pytest.raises(SiteError, match="Nothing called 'a0.h9' adds to the stream"):
        graph.edge("a0.h9", "logits")


def test_exact_edges_are_those_of_a_forward_each():
    exact = found(exact="all")
    torch.testing.assert_close(exact.value, by_hand(), rtol=0, atol=1e-10)
    assert exact.replaced == 1
    assert exact.measured.all()
    assert exact.correlation > 0.5


@pytest.mark.parametrize("metric", ["probability", "kl", "caller's"])
def test_other_metrics(metric):
    t = small()
    clean, _ = textbook(t, begin(t, CLEAN))

    def measure(logits: torch.Tensor) -> torch.Tensor:
        if metric == "probability":
            return logits.softmax(-1)[RIGHT]
        if metric == "kl":
            return -F.kl_div(logits.log_softmax(-1), clean.softmax(-1), reduction="sum")
        return logits[RIGHT] ** 2

    pair = (Trace(t, CLEAN), Trace(t, CORRUPTED))
    named: dict[str, Any] = {"answer": RIGHT} if metric == "probability" else {}
    given = metric if metric != "caller's" else lambda logits, pair: logits[:, RIGHT] ** 2
    exact = edges([pair], given, exact="all", **named)
    torch.testing.assert_close(exact.value, by_hand(measure), rtol=0, atol=1e-10)
    assert exact.clean == pytest.approx(float(measure(clean)), abs=1e-12)


def gradients_by_hand(
    x: torch.Tensor, directed: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The metric's gradient at each receiver's input by autograd, and how fast it changes along `directed`."""
    t = small()
    graph = Graph(t.config)
    inputs = {r.name: torch.zeros(len(CLEAN), 12, dtype=torch.float64, requires_grad=True) for r in graph.receivers}
    x = x.clone().requires_grad_()
    number = difference(textbook(t, x, inputs)[0])
    first = torch.autograd.grad(number, [x, *inputs.values()], create_graph=True)
    second = None
    if directed is not None:
        second = torch.autograd.grad((first[0] * directed).sum(), list(inputs.values()), allow_unused=True)
    names = list(inputs)
    grads = dict(zip(names, (g.detach() for g in first[1:]), strict=True))
    rates = (
        {} if second is None else {n: torch.zeros(1) if s is None else s for n, s in zip(names, second, strict=True)}
    )
    return grads, rates


def scored(grads: dict[str, torch.Tensor], times: float = 1.0) -> torch.Tensor:
    t = small()
    graph = Graph(t.config)
    clean, corrupted = (textbook(t, begin(t, ids))[1] for ids in (CLEAN, CORRUPTED))
    named = [graph.names(e) for e in range(graph.total)]
    return torch.stack([-times * ((corrupted[s] - clean[s]) * grads[r]).sum() for s, r in named])


def test_estimates_are_gradients_by_hand():
    t = small()
    clean, corrupted = begin(t, CLEAN), begin(t, CORRUPTED)
    eap = found(method="eap", exact="none")
    grads, rates = gradients_by_hand(clean, corrupted - clean)
    torch.testing.assert_close(eap.value, scored(grads), rtol=0, atol=1e-10)
    expected = scored(rates, 0.5)
    assert (eap.curvature[0] - expected).abs().max() <= 1e-6 * expected.abs().max()
    mean: dict[str, torch.Tensor] = {}
    for k in range(1, 4):
        for name, g in gradients_by_hand(corrupted + k / 3 * (clean - corrupted))[0].items():
            mean[name] = mean.get(name, 0) + g / 3
    ig = found(method="eap-ig", steps=3, exact="none")
    torch.testing.assert_close(ig.value, scored(mean), rtol=0, atol=1e-10)
    assert not ig.measured.any()
    assert ig.correlation is None


def test_averaged_gradients_add_up_to_the_difference():
    """What leaves the embedding, over all receivers, is the whole difference (completeness, arXiv:1703.01365)."""
    found_ = found(method="eap-ig", steps=400, exact="none")
    whole = found_.value[found_.graph.sender_of == 0].sum()
    assert float(whole) == pytest.approx(found_.clean - found_.corrupted, rel=1e-2)
    assert found_.adds_up == pytest.approx(1, abs=1e-2)
    apart = found(method="eap-ig", steps=400, exact="none", by_position=True)
    assert apart.adds_up == pytest.approx(found_.adds_up, abs=1e-9)
    assert found(method="relp", exact="none").adds_up is None


def test_one_part_at_a_time_is_the_mean_of_its_own_runs():
    """Edges out of the last layer's parts, whose runs are few: by hand."""
    t = small()
    per = found(method="eap-ig-activations", steps=4, exact="none")
    clean, corrupted = (textbook(t, begin(t, ids))[1] for ids in (CLEAN, CORRUPTED))
    change = corrupted["m1"] - clean["m1"]
    total = 0.0
    for k in range(1, 5):
        x = (1 - k / 4) * change
        x.requires_grad_()
        number = difference(textbook(t, begin(t, CLEAN), {"logits": x})[0])
        total -= float((torch.autograd.grad(number, x)[0] * change).sum()) / 4
    assert float(per.value[per.graph.edge("m1", "logits")]) == pytest.approx(total, abs=1e-10)
    inputs = found(method="eap-ig", steps=4, exact="none")
    same = per.graph.sender_of == 0
    torch.testing.assert_close(per.value[same], inputs.value[same], rtol=0, atol=1e-12)
    assert not torch.allclose(per.value, inputs.value)


def test_positions_add_up_and_are_measured_one_at_a_time():
    summed, apart = found(method="eap", exact="none"), found(method="eap", exact="all", by_position=True)
    cells = apart.estimate.view(-1, 4)
    torch.testing.assert_close(cells.sum(1), summed.value, rtol=0, atol=1e-10)
    t = small()
    logits, clean = textbook(t, begin(t, CLEAN))
    _, corrupted = textbook(t, begin(t, CORRUPTED))
    for sender, receiver, position in (("embed", "a1.kv0.v", 2), ("a0.h2", "m1", 5), ("m0", "a1.h3.q", 4)):
        change = torch.zeros(6, 12, dtype=torch.float64)
        change[position] = (corrupted[sender] - clean[sender])[position]
        expected = difference(logits) - difference(textbook(t, begin(t, CLEAN), {receiver: change})[0])
        cell = apart.graph.edge(sender, receiver) * 4 + position - 2
        assert float(apart.value[cell]) == pytest.approx(float(expected), abs=1e-10)
        assert apart.rows([cell])[0]["position"] == position
        assert apart.rows([cell])[0]["token"] == "?bhie"[position - 1]


def test_unreliable_estimates_are_replaced():
    some = found(strongest=3)
    everything = by_hand()
    measured = some.measured
    assert (measured | some.reliable).all()
    assert 0 < some.replaced < 1
    torch.testing.assert_close(some.value[measured], everything[measured], rtol=0, atol=1e-10)
    assert torch.equal(some.value[~measured], some.estimate[0, ~measured])
    row = some.ranked(1)[0]
    assert set(row) == {"from", "to", "estimate", "exact", "reliable"}
    assert abs(row["exact"]) == pytest.approx(float(some.value.abs().max()))
    assert len(some.to_dict()["edges"]) == some.graph.total


def test_the_strongest_alone_are_measured():
    some, everything = found(exact="strongest", strongest=5, limit=5), found(exact="all")
    top = some.estimate[0].abs().topk(5).indices
    assert sorted(some.measured.nonzero()[:, 0].tolist()) == sorted(top.tolist())
    torch.testing.assert_close(some.value[top], everything.value[top], rtol=0, atol=1e-10)


def test_small_batches_give_the_same(monkeypatch):
    whole = found(exact="all")
    monkeypatch.setattr("glassformer.interp.edge_exact._WORK", 1 << 14)
    monkeypatch.setattr("glassformer.interp.edge_estimates._HELD", 1)
    parts = found(exact="all")
    torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.estimate, whole.estimate, rtol=0, atol=1e-12)


@given(stacks())
@settings(max_examples=15, phases=PHASES)
def test_edges_of_any_stack(config: Config) -> None:
    """All edges inside are the clean run, none the corrupted one; all but one are that edge measured."""
    transformer = drawn(config)
    g = torch.Generator().manual_seed(2)
    clean = torch.randint(0, config.vocab_size, (9,), generator=g).tolist()
    corrupted = [(i + 1) % config.vocab_size if at in (3, 5) else i for at, i in enumerate(clean)]
    ends = transformer(torch.tensor([clean, corrupted]))[:, -1]
    assume(float((ends[:, 1] - ends[:, 2]).diff().abs()) > 1e-6)
    graph = Graph(config)
    pair = Pair(
        graph,
        Trace(transformer, clean),
        Trace(transformer, corrupted),
        lambda x, _: x[:, 1] - x[:, 2],
        None,
        None,
        -1,
        0,
    )
    chosen = torch.randperm(graph.total, generator=g)[:40].sort().values
    sets = torch.ones(len(chosen) + 2, graph.total, dtype=torch.bool)
    sets[1] = False
    sets[torch.arange(len(chosen)) + 2, chosen] = False
    with torch.no_grad():
        numbers = pair.set_runs(pair.streams(pair.corrupted), sets)
        hub = Slopes(pair.entering()[None], {which: own[None] for which, (own, _) in pair.tokens.items()})
        held = pair.numbers(pair.apart.run(hub, 1, relevance=True))
    scale = max(1.0, abs(pair.of_clean), abs(pair.of_corrupted))
    assert abs(float(numbers[0]) - pair.of_clean) <= 1e-9 * scale
    assert abs(float(numbers[1]) - pair.of_corrupted) <= 1e-9 * scale
    assert abs(float(held[0]) - pair.of_clean) <= 1e-9 * scale
    exact = Exact(pair)(chosen)
    assert (pair.of_clean - numbers[2:] - exact).abs().max() <= 1e-8 * scale
    assert torch.isfinite(Estimates(pair).by("eap", 1)).all()
    assert torch.isfinite(Estimates(pair).by("relp", 1)).all()


@pytest.mark.parametrize(
    "design", [{"windows": (4, None)}, {"softcap": 3.0, "post": True}, {"parallel": True}], ids=str
)
def test_a_millionth_is_its_gradient(design):
    """A word that differs by a millionth changes every edge by its gradient."""
    t = model(n_layers=2, **design).double()
    with torch.no_grad():
        t.embed.weight[1] = t.embed.weight[2] + 1e-6 * torch.linspace(-1, 1, 16, dtype=torch.float64)
    both = edges([(Trace(t, CLEAN), Trace(t, CORRUPTED))], answer=RIGHT, wrong=WRONG, method="eap", exact="all")
    assert both.reliable.all()
    assert (both.estimate - both.exact).abs().max() <= 1e-4 * both.exact.abs().max()


def test_relevance_goes_back_by_the_rules():
    t = small()
    graph = Graph(t.config)
    into = {r.name: torch.zeros(6, 12, dtype=torch.float64, requires_grad=True) for r in graph.receivers}
    logits, clean = textbook(t, begin(t, CLEAN), into, held=torch.Tensor.detach)
    torch.testing.assert_close(logits.detach(), textbook(t, begin(t, CLEAN))[0], rtol=0, atol=1e-12)
    slopes = torch.autograd.grad(difference(logits), list(into.values()), allow_unused=True)
    _, corrupted = textbook(t, begin(t, CORRUPTED))
    expected = []
    for edge in range(graph.total):
        sender, receiver = graph.names(edge)
        slope = slopes[list(into).index(receiver)]
        change = (corrupted[sender] - clean[sender]).detach()
        expected.append(0.0 if slope is None else -float((slope * change).sum()))
    estimate = found(method="relp", exact="none").estimate[0]
    torch.testing.assert_close(estimate, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    sides = [graph.receivers[int(r)].side for r in graph.receiver_of]
    through = torch.tensor([side in ("q", "k") for side in sides])
    assert float(estimate[through].abs().max()) == 0
    assert float(estimate[~through].abs().max()) > 0


def test_the_planted_edges_stand_first():
    transformer, ids, at = planted()
    other = [51 if i == at else id for i, id in enumerate(ids)]
    for method in ("eap", "eap-ig", "eap-ig-activations"):
        pair = (Trace(transformer, ids), Trace(transformer, other))
        seen = edges([pair], answer=33, wrong=34, method=method)
        ends = [(row["from"], row["to"]) for row in seen.ranked(3)]
        assert set(ends) >= {("a1.h2", "logits"), ("embed", "a1.kv2.v")}, method


def test_what_cannot_be_is_said():
    t = small()
    a, b = Trace(t, CLEAN, vocabulary=Letters(40)), Trace(t, CORRUPTED, vocabulary=Letters(40))
    with pytest.raises(ShapeError, match="The prompts are 6 and 5 tokens long"):
        edges([(a, Trace(t, CORRUPTED[:-1], vocabulary=Letters(40)))])
    with pytest.raises(UsageError, match="The two prompts are the same"):
        edges([(a, Trace(t, CLEAN))])
    with pytest.raises(UsageError, match="at least one pair"):
        edges([])
    with pytest.raises(UsageError, match=r"gives 0 both ways .* no difference that edges could carry"):
        edges([(a, b)], lambda x, _: 0 * x[:, 0])
    with pytest.raises(UsageError, match=r"no metric 'prob'; choose logit_difference.*Did you mean"):
        edges([(a, b)], "prob")
    with pytest.raises(UsageError, match="no method 'ig'"):
        edges([(a, b)], method="ig")
    for method in ("eap", "relp"):
        with pytest.raises(UsageError, match=f"no slope at the clean run, so {method} says nothing"):
            edges([(a, b)], "kl", method=method)
    with pytest.raises(UsageError, match="differ from position 2 on, and the answer is measured after position 1"):
        edges([(a, b)], position=1, answer=1, wrong=2)
    with pytest.raises(UsageError, match="without edits"):
        edges([(a, Trace(t, CORRUPTED, tap=ablate(layer=0, head=1)))], answer=1, wrong=2)
    with pytest.raises(UsageError, match="Positions are those of one pair"):
        edges([(a, b), (a, b)], by_position=True)
    with pytest.raises(UsageError, match="unreliable, strongest, all or none; 'some' is none of them"):
        edges([(a, b)], answer=1, wrong=2, exact="some")
    with pytest.raises(UsageError, match="0 or more; -1 is not"):
        edges([(a, b)], answer=1, wrong=2, strongest=-1)
    with pytest.raises(UsageError, match=f"{Graph(t.config).total} edges would be measured, and at most 9 are"):
        edges([(a, b)], answer=1, wrong=2, exact="all", limit=9)
    with pytest.raises(UsageError, match="1 step or more"):
        edges([(a, b)], answer=1, wrong=2, steps=0)


def test_experts_and_their_router_read_apart():
    """One layer of experts by hand: the router chooses from its own input, each expert computes from its own."""
    mixer, feed = Attention(2, 2, 6), Experts(4, 2, 5, shared=FeedForward(7))
    t = drawn(uniform(40, 12, 1, 32, mixer, feed))
    runs = Trace(t, CLEAN), Trace(t, CORRUPTED)
    told = edges([runs], answer=RIGHT, wrong=WRONG, exact="all")
    graph = told.graph
    parts = ["m0.e0", "m0.e1", "m0.e2", "m0.e3", "m0.shared"]
    assert [r.name for r in graph.receivers if r.layer == 0 and r.place == 2] == ["m0.router", *parts]
    assert graph.inputs[graph.senders.index("m0.e1")] == tuple(
        i for i, r in enumerate(graph.receivers) if r.name in ("m0.router", "m0.e1")
    )
    w = {name.removeprefix("blocks.0."): x for name, x in t.named_parameters()}
    middle, other = (run["blocks.0.resid_mid"] for run in runs)
    heads = runs[1]["blocks.0.attn.z"] - runs[0]["blocks.0.attn.z"]
    change = {"embed": runs[1]["blocks.0.resid_pre"] - runs[0]["blocks.0.resid_pre"]}
    change |= {f"a0.h{h}": heads[:, h] @ w["attn.o.weight"][:, 6 * h : 6 * h + 6].T for h in range(2)}
    torch.testing.assert_close(sum(change.values()), other - middle, rtol=0, atol=1e-10)

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + t.config.norm.eps).sqrt() * weight

    def after(receiver: str, moved: torch.Tensor) -> torch.Tensor:
        read = {name: normed(middle + moved * (name == receiver), w["ln2.weight"]) for name in ("m0.router", *parts)}
        best = (read["m0.router"] @ w["mlp.router.weight"].T).topk(2, dim=-1)
        weights = torch.zeros(len(CLEAN), 4, dtype=torch.float64).scatter(-1, best.indices, best.values.softmax(-1))
        out = middle
        for e, name in enumerate(parts[:4]):
            gate, up, down = (w[f"mlp.experts.{m}.weight"][e] for m in ("gate", "up", "down"))
            y = F.silu(read[name] @ gate.T) * (read[name] @ up.T) @ down.T
            out = out + weights[:, e, None] * y
        gate, up, down = (w[f"mlp.shared.{m}.weight"] for m in ("gate", "up", "down"))
        out = out + F.silu(read["m0.shared"] @ gate.T) * (read["m0.shared"] @ up.T) @ down.T
        return difference(normed(out, t.final.weight)[-1] @ t.unembedding.T)

    for receiver in ("m0.router", *parts):
        for sender, moved in change.items():
            expected = told.clean - float(after(receiver, moved))
            assert float(told.value[graph.edge(sender, receiver)]) == pytest.approx(expected, abs=1e-10)
    assert float(told.value[graph.edge("embed", "m0.router")]) != 0
