"""How evenly experts are used, measured in every step, and the loss that keeps them so.

The loss is the field's: in each layer N · Σ_e f_e · P_e, where f_e is the share of all choices that fell on expert e
and P_e the mean of its probability (Switch Transformer, arXiv:2101.03961; f over all chosen experts and the mean over
layers as in OLMoE, arXiv:2409.02060; a router that chooses among a layer's query heads is one more). It is 1 where all
are used alike; transformers' `router_aux_loss_coef` multiplies the same number times the experts that a token meets.
Shares and means run over all tokens that pass at once, those of all processes together. Padding counts nowhere. No
token is ever dropped: experts take whoever chose them. This module knows routers' scores and weights; it knows no
optimiser and no loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glassformer.model import Config
from glassformer.model.choices import Attention, Experts
from glassformer.model.layers import softcap
from glassformer.model.sites import Where
from glassformer.train.dropout import Dropout
from glassformer.train.loss import IGNORE
from glassformer.train.processes import Processes


class Balance:
    """A tap on routers: what a step's tokens chose, and the loss of a pass.

    Args:
        config: the model; some layer has a router, of experts or of query heads.
        weight: what multiplies the loss; 0 only measures.

    Attributes:
        reduce: sums a tensor over all processes in place, which then call `loss` as often as each other; None alone.
    """

    writes: frozenset[str] = frozenset()

    def __init__(self, config: Config, weight: float) -> None:
        self.routers = dict(routers_of(config))
        self.weight = weight
        sites = ((router.scores, router.weights) for router in self.routers.values())
        self.reads = frozenset(site for pair in sites for site in pair)
        self.reduce: Callable[[Tensor], object] | None = None
        self._seen: dict[str, Tensor] | None = None
        self.begin()

    def begin(self) -> None:
        """A step begins: nobody has been chosen yet."""
        self._counts: dict[str, Tensor] = {}
        self._sum = self._tokens = 0.0

    def __call__(self, site: str, x: Tensor, where: object) -> None:
        # what is computed again for the gradient comes by twice, and counts once
        if self._seen is not None:
            self._seen.setdefault(site, x)

    def watch(self) -> None:
        """A pass begins."""
        self._seen = {}

    def loss(self, targets: Tensor) -> Tensor | None:
        """The pass is done: its loss times its targets and the weight; None where nothing counts. Of several processes,
        this one's part, and its gradient is what the loss of all changes by.

        Args:
            targets: (batch, query); what stands behind a row's last one is padding.
        """
        seen, self._seen = self._seen or {}, None
        counts = targets != IGNORE
        wanted = int(counts.sum())
        if not self.routers:
            return None
        real = counts.flip(1).cumsum(1).flip(1).flatten() > 0
        loads, likely = [], []
        for name, router in self.routers.items():
            chosen = seen[router.weights].detach().flatten(2).flatten(0, 1)[real, : router.n] != 0
            loads.append(chosen.sum(0, dtype=torch.float32))
            self._counts[name] = self._counts.get(name, 0) + loads[-1]
            likely.append(router.probabilities(seen[router.scores].flatten(0, 1)[real].float()).sum(0))
        own = loads[0].new_tensor([wanted, int(real.sum())])
        whole = torch.cat([own, *loads])
        if self.reduce is not None:
            self.reduce(whole)
        targets_of_all, tokens = whole[:2].tolist()
        if not targets_of_all:
            return None
        shares = whole[2:].split([len(load) for load in loads])
        each = [len(f) / f.sum() * (f * p).sum() for f, p in zip(shares, likely, strict=True)]
        loss = torch.stack(each).mean() * (targets_of_all / tokens)
        self._sum += float(loss.detach())
        self._tokens += wanted
        return loss * self.weight if self.weight else None

    def measured(self, ranks: Processes) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Of the step just taken, over all processes: `balance`, the loss before its weight; `busiest`, the largest
        load, in even shares; `idle`, experts that no token chose; and each router's loads, as shares, by its name."""
        total, tokens = ranks.sum(self._sum), ranks.sum(self._tokens)
        loads: dict[str, list[float]] = {}
        busiest, idle = 0.0, 0
        for name, router in self.routers.items():
            counts = self._counts.get(name, torch.zeros(router.n)).clone()
            if ranks.world > 1:
                ranks.reduce(counts)
            shares = (counts / counts.sum().clamp(min=1)).tolist()
            busiest, idle = max(busiest, max(shares) * router.n), idle + shares.count(0.0)
            loads[name] = [round(share, 5) for share in shares]
        return {"balance": total / tokens if tokens else float("nan"), "busiest": busiest, "idle": idle}, loads


@dataclass(frozen=True)
class Router:
    """What a balance knows of a router.

    Args:
        scores: the site of its scores. weights: of what they become, 0 for those not chosen; its first `n` are theirs.
        n: how many it chooses from.
        probabilities: (token, n) of scores -> of probabilities.
    """

    scores: str
    weights: str
    n: int
    probabilities: Callable[[Tensor], Tensor]


def routers_of(config: Config) -> Iterator[tuple[str, Router]]:
    """Every router by the name that the journal has for it: the layer's number, or "3 heads" where it chooses among
    the query heads of every key head."""
    for i, layer in enumerate(config.layers):
        at, mixer, feed = f"blocks.{i}.", layer.mixer, layer.feed_forward
        if isinstance(mixer, Attention) and mixer.gate == "experts":
            yield f"{i} heads", Router(f"{at}attn.router", f"{at}attn.gate", mixer.n_experts, lambda x: x.softmax(-1))
        if isinstance(feed, Experts):
            shares = functools.partial(probabilities, feed)
            yield str(i), Router(f"{at}mlp.router", f"{at}mlp.weights", feed.n_experts, shares)


def probabilities(part: Experts, router: Tensor) -> Tensor:
    """Each expert's probability, from the router's scores: their softmax, or sigmoids made to sum to 1."""
    router = softcap(router, part.router_cap)
    if part.scores == "sigmoid":
        scores = router.sigmoid()
        return scores / scores.sum(-1, keepdim=True)
    return router.softmax(-1)


class Both:
    """Dropout and balance as one tap."""

    def __init__(self, dropout: Dropout, balance: Balance) -> None:
        self.dropout, self.balance = dropout, balance
        self.reads, self.writes = balance.reads, dropout.writes

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None:
        if site in self.writes:
            return self.dropout(site, x, where)
        self.balance(site, x, where)
        return None


def balance_of(config: Config, weight: float) -> Balance | None:
    """Who watches the experts of a model; None where it has none."""
    found = Balance(config, weight)
    return found if found.routers else None
