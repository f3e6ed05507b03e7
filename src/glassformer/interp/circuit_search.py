"""Sets of edges that by themselves carry what makes two prompts end differently, and how much to trust them.

Edges are taken greedily, from the logits backwards, the strongest first whose receiver already counts. A set runs with
every edge outside it carrying the corrupted run's value; its faithfulness is the share of the metric's difference that
it brings back, f = (m(C) − m(∅)) / (m(all) − m(∅)), and over the best 0.1 … 100 % of all edges CPR = ∫ f and
CMD = ∫ |1 − f| (arXiv:2504.13151). Beside it stand sets of random edges, sets without any of its edges, and how much
the set changes when the prompts are drawn again. Knows edges and their values, not how they were found.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.edge_graph import Graph
from glassformer.interp.edge_pair import Pair
from glassformer.interp.edges import Edges, Strength
from glassformer.system.progress import Progress, quiet

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Bytes of all senders' vectors in one batch of sets.
_HELD = 128 << 20
# Runs of a set that exact pruning may take, over all pairs.
_PRUNE = 3000


def greedy(graph: Graph, strength: Float[Tensor, " cell"], most: int | None = None) -> Int[Tensor, " rank"]:
    """Edges in the order in which they join: each time the strongest one into an input that already counts.

    The logits count from the start; when an edge from a sender joins, the inputs that make that sender count too.
    By position (`Edges`) an input counts at one position: the logits at the last; a sender is made by its inputs at its
    position, and by all that a mixer carries there from earlier ones.
    """
    wide = len(strength) // graph.total
    size, most = strength.abs().view(-1, wide), len(strength) if most is None else most
    ranked: dict[tuple[int, int], list[int]] = {}
    heap: list[tuple[float, int, int, int]] = []  # −size, cell, receiver, rank within the receiver at its position
    known, sizes = [False] * (len(graph.senders) * wide), strength.abs().tolist()

    def offer(receiver: int, at: int, rank: int) -> None:
        if rank < len(ranked[receiver, at]):
            cell = ranked[receiver, at][rank] * wide + at
            heapq.heappush(heap, (-sizes[cell], cell, receiver, rank))

    def count(receiver: int, at: int) -> None:
        if (receiver, at) not in ranked:
            first = int(graph.offset[receiver])
            own = size[first : first + graph.receivers[receiver].reads, at]
            ranked[receiver, at] = (own.argsort(descending=True, stable=True) + first).tolist()
            offer(receiver, at, 0)

    count(graph.logits[0], wide - 1)
    out: list[int] = []
    senders = graph.sender_of.tolist()
    while heap and len(out) < most:
        _, cell, receiver, rank = heapq.heappop(heap)
        out.append(cell)
        edge, at = divmod(cell, wide)
        offer(receiver, at, rank + 1)
        if not known[senders[edge] * wide + at]:
            known[senders[edge] * wide + at] = True
            for inner in graph.inputs[senders[edge]]:
                for earlier in range(0 if graph.receivers[inner].carries else at, at + 1):
                    count(inner, earlier)
    return torch.tensor(out, dtype=torch.long)


class Runs:
    """Runs sets of edges, or of edges at positions, on pairs of prompts.

    Args:
        say: told, after each batch of sets, of so many runs of the model how many are done, and what they are for; what
            it raises stops them.
    """

    def __init__(self, pairs: Sequence[Pair], say: Progress = quiet) -> None:
        self.pairs, self._say = list(pairs), say
        self._streams = [pair.streams(pair.corrupted) for pair in self.pairs]
        self._what, self._done, self._most = "running sets", 0, 0

    def begin(self, what: str, sets: int) -> None:
        """From here on, so many sets at most are run for this."""
        self._what, self._done, self._most = what, 0, sets * len(self.pairs)
        self._told(0)

    def left(self, sets: int) -> None:
        """So many sets at most are still to be run for what was begun."""
        self._most = self._done + sets * len(self.pairs)

    def _told(self, runs: int) -> None:
        self._done += runs
        self._say(self._done, self._most, self._what)

    @torch.no_grad()
    def metric(self, sets: Bool[Tensor, "set cell"], counted: bool = True) -> Float[Tensor, " set"]:
        """The metric when each set runs alone, averaged over pairs; `counted` where `begin` counted these runs."""
        total = torch.zeros(len(sets), dtype=torch.float64)
        for pair, streams in zip(self.pairs, self._streams, strict=True):
            step = max(1, _HELD // (pair.sent.numel() * pair.sent.element_size()))
            for low in range(0, len(sets), step):
                part = sets[low : low + step].to(pair.sent.device)
                part = part if part.shape[1] == pair.graph.total else part.unflatten(1, (pair.graph.total, -1))
                total[low : low + step] += pair.set_runs(streams, part)
                self._told(len(part) if counted else 0)
        return total / len(self.pairs)

    def faithfulness(self, sets: Bool[Tensor, "set cell"], counted: bool = True) -> Float[Tensor, " set"]:
        """f of each set."""
        clean, corrupted = (
            sum(getattr(p, name) for p in self.pairs) / len(self.pairs) for name in ("of_clean", "of_corrupted")
        )
        return (self.metric(sets, counted) - corrupted) / (clean - corrupted)


def prefixes(cells: int, order: Int[Tensor, " rank"], counts: Sequence[int]) -> Bool[Tensor, "set cell"]:
    """The first so many of an order, as sets among so many cells."""
    sets = torch.zeros(len(counts), cells, dtype=torch.bool)
    for row, count in zip(sets, counts, strict=True):
        row[order[:count]] = True
    return sets


@dataclass(frozen=True)
class Curve:
    """Faithfulness over growing sets.

    Attributes:
        shares: of all edges; f: of the set of that size.
    """

    shares: tuple[float, ...]
    f: tuple[float, ...]

    def _area(self, heights: Sequence[float]) -> float:
        steps = zip(self.shares[:-1], self.shares[1:], heights[:-1], heights[1:], strict=True)
        return sum((b - a) * (x + y) / 2 for a, b, x, y in steps)

    @property
    def cpr(self) -> float:
        """∫ f over the share of edges, by trapezoids."""
        return self._area(self.f)

    @property
    def cmd(self) -> float:
        """∫ |1 − f| over the share of edges, by trapezoids."""
        return self._area([abs(1 - x) for x in self.f])


def curve(runs: Runs, cells: int, order: Int[Tensor, " rank"]) -> Curve:
    """f of the best 0.1 … 100 % of all cells."""
    f = runs.faithfulness(prefixes(cells, order, [max(1, int(share * cells)) for share in SHARES]))
    return Curve(SHARES, tuple(f.tolist()))


def smallest(runs: Runs, cells: int, order: Int[Tensor, " rank"], target: float) -> int:
    """The fewest first ones of an order that reach a faithfulness, by bisection of its growth."""
    low, high, points = 0, cells, 8
    counts = sorted({min(cells, 2**i) for i in range(cells.bit_length() + 1)})
    widest = max(b - a for a, b in zip([0, *counts], counts, strict=False))
    runs.begin("finding the smallest", len(counts) + _bisected(widest, points))
    while True:
        reached = runs.faithfulness(prefixes(cells, order, counts)) >= target
        first = int(reached.int().argmax()) if bool(reached.any()) else len(counts)
        if first < len(counts):
            high = counts[first]
        if first > 0:
            low = max(low, counts[first - 1])
        runs.left(_bisected(high - low, points))
        if high - low <= 1:
            return high
        counts = sorted({low + (high - low) * i // (points + 1) for i in range(1, points + 1)} - {low, high})
        if not counts:
            counts = [low + 1]


def _bisected(gap: int, points: int) -> int:
    """How many sets a bisection of so wide a gap runs at most, so many in each round."""
    sets = 0
    while gap > 1:
        sets += min(points, gap - 1)
        gap = -(-gap // (points + 1))
    return sets


def pruned(runs: Runs, chosen: Int[Tensor, " cell"], cells: int, target: float) -> tuple[Int[Tensor, " kept"], bool]:
    """The chosen ones less those without which the set still reaches `target`; and whether each that is left was tried.

    Blocks of them are taken out, each alone, and the set run; those that cost least go first, as many together as may.
    When no block can go, smaller ones are tried, down to single edges, as long as runs are left.
    """
    left, block = _PRUNE // len(runs.pairs), max(1, len(chosen) // 64)
    runs.begin("taking edges out", left)
    while len(chosen):
        blocks = chosen.split(block)
        left -= len(blocks)
        if left < 0:
            return chosen, False
        sets = torch.zeros(len(blocks), cells, dtype=torch.bool)
        sets[:, chosen] = True
        for row, out in zip(sets, blocks, strict=True):
            row[out] = False
        order = runs.faithfulness(sets).argsort(descending=True).tolist()
        counts = sorted({min(len(blocks), 2**i) for i in range(len(blocks).bit_length() + 1)})
        tried = torch.zeros(len(counts), cells, dtype=torch.bool)
        for row, count in zip(tried, counts, strict=True):
            row[torch.cat([chosen[:0], *(blocks[i] for i in order[count:])])] = True
        held = (runs.faithfulness(tried, counted=False) >= target).nonzero()[:, 0].tolist()
        if held:
            chosen = torch.cat([chosen[:0], *(blocks[i] for i in sorted(order[counts[held[-1]] :]))])
        elif block == 1:
            return chosen, True
        else:
            block = max(1, block // 4)
    return chosen, True


def jaccard(
    graph: Graph,
    pairs: int,
    size: int,
    strength: Strength,
    draws: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> float | None:
    """How alike the sets are that redrawn pairs give: the mean of |A ∩ B| / |A ∪ B| over pairs of bootstrap draws.

    None for one pair of prompts, which says nothing of others.

    Args:
        pairs: how many there are; strength: what a draw's edges are ranked by, from how often it drew each pair.
    """
    if pairs < 2:
        return None
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, pairs, (draws, pairs), generator=g)
    sets = torch.zeros(draws, graph.total)
    for number, (row, drawn) in enumerate(zip(sets, rows, strict=True)):
        (progress or quiet)(number, draws, "drawing prompts again")
        row[greedy(graph, strength(torch.bincount(drawn, minlength=pairs).double() / pairs), size)] = 1
    both = sets @ sets.T
    either = 2 * size - both
    apart = ~torch.eye(draws, dtype=torch.bool)
    return float((both / either)[apart].mean())


@dataclass(frozen=True)
class Circuit:
    """A set of edges and what is known of it.

    Attributes:
        edges: the values it was ranked by; chosen: its edges, or edges at positions, by the number of their cell;
        target: the faithfulness asked for.
        f: its own; tried: whether each of its edges was taken out alone and found to be needed.
        curve: f of the best 0.1 … 100 % of edges; random: the same of random orders.
        random_f: of random sets as large as this one; jaccard: under redrawn prompts, or None for one pair.
        rivals: sets without any of its edges, and their f; held_out: its f on other prompts, or None.
    """

    edges: Edges
    chosen: Int[Tensor, " cell"]
    target: float
    f: float
    tried: bool
    curve: Curve
    random: list[Curve]
    random_f: float
    jaccard: float | None
    rivals: list[dict[str, Any]]
    held_out: float | None

    def nodes(self) -> list[str]:
        """The senders of its edges, in the model's order."""
        graph, own = self.edges.graph, self.chosen // self.edges.wide
        return [graph.senders[i] for i in sorted(set(graph.sender_of[own].tolist()))]

    def rows(self) -> list[dict[str, Any]]:
        """Its edges, strongest first."""
        size = self.edges.value[self.chosen].abs()
        return self.edges.rows(self.chosen[size.argsort(descending=True, stable=True)].tolist())

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """Plain data for JSON."""
        times = 1 / len(self.random)
        return self.edges.to_dict(most) | {
            "circuit": {
                "target": self.target,
                "f": self.f,
                "size": len(self.chosen),
                "pruned": self.tried,
                "edges": self.rows(),
                "nodes": self.nodes(),
                "held_out": self.held_out,
            },
            "faithfulness": [{"share": s, "f": f} for s, f in zip(self.curve.shares, self.curve.f, strict=True)],
            "cpr": self.curve.cpr,
            "cmd": self.curve.cmd,
            "random": {
                "cpr": sum(c.cpr for c in self.random) * times,
                "cmd": sum(c.cmd for c in self.random) * times,
                "f": self.random_f,
            },
            "jaccard": self.jaccard,
            "rivals": self.rivals,
        }


def circuit(
    edges: Edges,
    faithfulness: float = 0.9,
    *,
    held_out: Sequence[Pair] = (),
    randoms: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Circuit:
    """The smallest set of edges that reaches a faithfulness, and what it is worth.

    Args:
        faithfulness: the share of the metric's difference that the set is to bring back.
        held_out: other pairs, on which the set is run too.
        randoms: how many random orders stand beside it.

    Raises:
        UsageError: for a faithfulness outside (0, 1].
    """
    if not 0 < faithfulness <= 1:
        raise UsageError(f"A circuit's faithfulness is above 0 and at most 1; {faithfulness} is not.")
    say = progress or quiet
    graph, runs, cells = edges.graph, Runs(edges.pairs, say), len(edges.strength)
    order = greedy(graph, edges.strength)
    runs.begin("running sets", len(SHARES))
    whole = curve(runs, cells, order)
    runs.begin("random sets", len(SHARES) * randoms)
    g = torch.Generator().manual_seed(seed)
    orders = [greedy(graph, torch.rand(cells, generator=g)) for _ in range(randoms)]
    random = [curve(runs, cells, each) for each in orders]
    first = order[: smallest(runs, cells, order, faithfulness)]
    chosen, tried = pruned(runs, first, cells, faithfulness)
    outside = edges.strength
    outside[chosen] = 0
    without = greedy(graph, outside)
    without = without[~torch.isin(without, chosen)]
    sizes = sorted({min(len(without), max(1, len(chosen)) * times) for times in (1, 4, 16)})
    beside = [prefixes(cells, without, sizes), *(prefixes(cells, each, [len(chosen)]) for each in orders)]
    own = torch.zeros(1, cells, dtype=torch.bool)
    own[0, chosen] = True
    runs.begin("rivals", 1 + len(sizes) + len(orders))
    f = runs.faithfulness(torch.cat([own, *beside])).tolist()
    held = Runs(held_out, say) if held_out else None
    if held is not None:
        held.begin("held out", 1)
    beyond = None if held is None else float(held.faithfulness(own)[0])
    return Circuit(
        edges=edges,
        chosen=chosen,
        target=faithfulness,
        f=f[0],
        tried=tried,
        curve=whole,
        random=random,
        random_f=sum(f[1 + len(sizes) :]) / len(orders),
        jaccard=jaccard(graph, len(edges.pairs), max(1, len(first)), edges.strengths(), seed=seed, progress=say),
        rivals=[{"size": n, "overlap": 0.0, "f": x} for n, x in zip(sizes, f[1:], strict=False)],
        held_out=beyond,
    )
