"""How evenly experts are used: the field's loss, without padding, in gradient and journal, not in the loss shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from glassformer.model import Attention, Experts, Norm, Transformer, uniform
from glassformer.train import journal, train
from glassformer.train.balance import Balance, Both, probabilities
from glassformer.train.dropout import Dropout
from glassformer.train.loss import IGNORE
from glassformer.train.processes import Processes
from glassformer.train.reading import list_runs
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import Objective, Recomputing, fresh
from tests.train.test_designs import drawn, tokens


def passed(model: Transformer, balance: Balance, targets: torch.Tensor) -> torch.Tensor:
    balance.watch()
    model.hidden(tokens()[:, :-1], tap=balance)
    loss = balance.loss(targets)
    assert loss is not None
    return loss


def test_it_is_the_loss_of_the_field() -> None:
    """transformers' own, for one layer: times the experts that a token meets, for there f sums to their number."""
    from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

    model = drawn("olmoe-tiny")
    balance = Balance(model.config, 1.0)
    balance.watch()
    model.hidden(tokens(), tap=balance)
    seen = dict(balance._seen or {})
    targets = tokens()
    loss = balance.loss(targets)
    assert loss is not None
    each = []
    for i, router in balance.routers.items():
        scores, active = seen[router.scores].flatten(0, 1).detach(), model.config.layers[int(i)].feed_forward.n_active
        each.append(float(load_balancing_loss_func((scores,), router.n, active)) / active)
    assert float(loss.detach()) / targets.numel() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_a_router_of_query_heads_is_balanced_too() -> None:
    """JetMoE's: against transformers' loss over the scores of both routers of its layers, all of the same number."""
    from transformers.models.jetmoe.modeling_jetmoe import load_balancing_loss_func

    attention = Attention(6, 2, 8, gate="experts", gate_active=2)
    config = uniform(61, 32, 2, 64, attention, Experts(3, 2, 8), Norm("rms"))
    model = fresh(Transformer.empty(config), 3).requires_grad_(True)
    balance = Balance(config, 1.0)
    assert list(balance.routers) == ["0 heads", "0", "1 heads", "1"]
    balance.watch()
    model.hidden(tokens(), tap=balance)
    seen = dict(balance._seen or {})
    loss = balance.loss(tokens())
    assert loss is not None
    scores = [seen[router.scores].flatten(0, 1) for router in balance.routers.values()]
    wanted = sum(load_balancing_loss_func((x,), 3, 2) for x in scores) / 2 / 4
    torch.testing.assert_close(loss.detach() / tokens().numel(), wanted.detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(block.attn.gate.weight.grad.abs().sum() > 0 for block in model.blocks)
    found, loads = balance.measured(Processes())
    assert found["idle"] == sum(shares.count(0.0) for shares in loads.values())
    assert all(len(shares) == 3 and sum(shares) == pytest.approx(1, abs=1e-4) for shares in loads.values())


def test_padding_is_not_counted() -> None:
    model = drawn("olmoe-tiny")
    targets = tokens()[:, 1:].clone()
    targets[1, 5:] = IGNORE
    targets[0, 3] = IGNORE  # a token that foretells nothing and is read all the same
    balance = Balance(model.config, 1.0)
    balance.begin()
    passed(model, balance, targets)
    assert sum(float(counts.sum()) for counts in balance._counts.values()) == 4 * 2 * (12 + 5)
    found, loads = balance.measured(Processes())
    assert found["balance"] >= 0.9
    assert all(sum(shares) == pytest.approx(1, abs=1e-4) for shares in loads.values())


def test_sigmoid_scores_are_shares_too() -> None:
    part = drawn("deepseek-tiny").config.layers[1].feed_forward
    shares = probabilities(part, torch.randn(5, 8))  # type: ignore[arg-type]
    torch.testing.assert_close(shares.sum(-1), torch.ones(5))


def test_its_gradient_is_in_the_step_and_its_number_is_not() -> None:
    ids = tokens()
    grads, losses = [], []
    for weight in (0.0, 0.5):
        model = drawn("olmoe-tiny")
        loss = Objective(model, balance=Balance(model.config, weight))(ids[:, :-1], ids[:, 1:])
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append(model.blocks[0].mlp.router.weight.grad.clone())
    assert losses[0] == losses[1]
    model = drawn("olmoe-tiny")
    passed(model, Balance(model.config, 0.5), ids[:, 1:]).backward()
    torch.testing.assert_close(grads[1] - grads[0], model.blocks[0].mlp.router.weight.grad, rtol=1e-4, atol=1e-5)


def test_computing_blocks_again_changes_nothing() -> None:
    ids, grads = tokens(), []
    for again in (False, True):
        model = drawn("olmoe-tiny")
        balance = Balance(model.config, 0.5)
        Objective(model, run_block=Recomputing(model) if again else None, balance=balance)(
            ids[:, :-1], ids[:, 1:]
        ).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_several_processes_even_the_loads_of_all_rows_together() -> None:
    """Their gradients and losses sum to those of one process with all rows, though they have unlike numbers of them."""
    ids = torch.cat([tokens(), tokens().flip(1), tokens()[:1]])
    targets = ids[:, 1:].clone()
    targets[1, 4:] = IGNORE
    pieces, said = (slice(0, 1), slice(1, 5)), []

    def gradient(rows: slice, reduce: Callable[[torch.Tensor], object] | None) -> tuple[torch.Tensor, Balance]:
        model = drawn("olmoe-tiny")
        balance = Balance(model.config, 0.5)
        balance.reduce = reduce
        balance.watch()
        model.hidden(ids[rows, :-1], tap=balance)
        loss = balance.loss(targets[rows])
        assert loss is not None
        loss.backward()
        found = model.blocks[0].mlp.router.weight.grad
        assert found is not None
        return found, balance

    for rows in pieces:
        gradient(rows, lambda counts: said.append(counts.clone()))
    whole, of_one = gradient(slice(None), None)
    parts = [gradient(rows, lambda counts: counts.copy_(said[0] + said[1])) for rows in pieces]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole, rtol=1e-5, atol=1e-6)
    assert sum(balance._sum for _, balance in parts) == pytest.approx(of_one._sum, rel=1e-6)
    assert sum(balance._tokens for _, balance in parts) == of_one._tokens


def test_dropout_and_balance_look_at_once() -> None:
    model, ids = drawn("olmoe-tiny"), tokens()
    dropout, balance = Dropout(0.2, 1, model.config), Balance(model.config, 0.1)
    dropout.begin(0)
    objective = Objective(model, dropout=dropout, balance=balance)
    assert isinstance(objective.tap, Both)
    plain = float(Objective(model)(ids[:, :-1], ids[:, 1:]).detach())
    assert float(objective(ids[:, :-1], ids[:, 1:]).detach()) != plain
    assert balance.measured(Processes())[0]["busiest"] >= 1


def test_a_large_weight_evens_the_loads() -> None:
    busiest = []
    for weight in (0.0, 1.0):
        model, ids = drawn("olmoe-tiny"), tokens(4)
        with torch.no_grad():
            for block in model.blocks:
                block.mlp.router.weight[0] += 0.5
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        balance = Balance(model.config, weight)
        for _ in range(12):
            balance.begin()
            optimizer.zero_grad()
            (Objective(model, balance=balance)(ids[:, :-1], ids[:, 1:]) / ids.numel()).backward()
            optimizer.step()
        busiest.append(balance.measured(Processes())[0]["balance"])
    assert busiest[1] < busiest[0] - 0.01


def test_the_journal_and_the_views_of_runs_have_it(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    result = train(small(design="olmoe-tiny", experts=4, steps=4, eval_every=2), out=out(), quiet=True)
    assert result.path is not None
    events = list(journal.read(result.path / "journal.jsonl"))
    steps = [e for e in events if e["event"] == "step"]
    assert all(e["balance"] > 0.9 and 1 <= e["busiest"] <= 4 and e["idle"] >= 0 for e in steps)
    loads = [e["load"] for e in events if e["event"] == "experts"]
    assert len(loads) == 2
    assert loads[0].keys() == {"0", "1"}
    assert all(len(shares) == 4 for shares in loads[0].values())
    shown = list_runs(result.path.parent)[0].to_dict()
    assert shown["curves"]["balance"]["steps"] == [1, 2, 3, 4]
    assert [one["step"] for one in shown["experts"]] == [2, 4]


def test_models_without_experts_say_nothing_of_them(small: Callable[..., Recipe], out: Callable[[], Path]) -> None:
    result = train(small(steps=2), out=out(), quiet=True)
    assert result.path is not None
    events = list(journal.read(result.path / "journal.jsonl"))
    assert not any("balance" in e or e["event"] == "experts" for e in events)
