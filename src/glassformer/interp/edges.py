"""Which edges of a model carry what makes two prompts end differently: estimated, checked, and where need be measured.

Every edge is estimated from gradients (`edge_estimates`). An estimate is reliable when the second-order term along the
change is small beside the first-order one and the estimate agrees with that; those that are not, and the strongest, are
replaced by what single-edge path patching measures (`edge_exact`). Knows traces and numbers; which edges make a circuit
is `circuit_search`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.errors import UsageError, near
from glassformer.interp.edge_estimates import LOCAL, METHODS, Estimates, Method
from glassformer.interp.edge_exact import Exact
from glassformer.interp.edge_graph import Graph, Receiver
from glassformer.interp.edge_pair import Metric, Pair
from glassformer.interp.patching import Tokens, each
from glassformer.model.choices import LatentAttention
from glassformer.system.progress import Progress, quiet

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# How edges rank when pairs count by these weights, which add up to 1.
Strength = Callable[[Float[Tensor, " pair"]], Float[Tensor, " cell"]]
Measured = Literal["unreliable", "strongest", "all", "none"]
MEASURED: tuple[str, ...] = get_args(Measured)
# A deviation is small when it is at most this share of what it deviates from,
TOLERANCE = 0.5
# or at most this share of what the metric differs between the prompts.
FLOOR = 0.001
# Over more pairs, the strongest are measured on the first so many, and the unreliable on fewer,
MEASURED_ON, TRIED = 20, 3
# but for those whose size there is this share of what the weakest of as many strongest has.
NEAR = 0.5


@dataclass(frozen=True)
class Edges:
    """All edges, over one or several pairs of prompts.

    A cell is an edge or, `by_position`, an edge and a position: number edge × positions + position. Every number is
    what the metric of the clean run loses when that edge alone carries the corrupted run's value.

    Attributes:
        pairs: the prompts; graph: names of the edges.
        metric, unit: what is measured, by name and in words; method: of the estimates.
        estimate: (pair, cell); first, curvature: (pair, cell), first- and second-order terms of the clean run's
            gradient; exact: (pair, cell), NaN where it was not measured.
        positions: labels of the positions, from the first difference on; None for sums over positions.
    """

    pairs: tuple[Pair, ...]
    graph: Graph
    metric: str
    unit: str
    method: str
    estimate: Float[Tensor, "pair cell"]
    first: Float[Tensor, "pair cell"]
    curvature: Float[Tensor, "pair cell"]
    exact: Float[Tensor, "pair cell"]
    positions: list[str] | None = None

    @property
    def wide(self) -> int:
        """How many cells an edge has."""
        return 1 if self.positions is None else len(self.positions)

    @property
    def value(self) -> Float[Tensor, " cell"]:
        """The mean over pairs of the estimates, and of what exact values differ by where they are known."""
        known = (~torch.isnan(self.exact)).sum(0).clamp(min=1)
        return self.estimate.mean(0) + (self.exact - self.estimate).nan_to_num().sum(0) / known

    @property
    def strength(self) -> Float[Tensor, " cell"]:
        """What circuits rank edges by: `strengths` with all pairs alike."""
        return self.strengths()(torch.full((len(self.pairs),), 1 / len(self.pairs), dtype=torch.float64))

    def strengths(self) -> Strength:
        """Ranks edges when pairs count by weights: their mean size, so that what carries much in one direction here and
        in the other there counts.

        The size is the estimate's; on pairs where it was measured too, its mean with the exact value's. The one is of
        an edge while all else changes too, the other of an edge changed alone; what it does in a circuit lies between.
        """
        size = self.estimate.abs()
        sizes = torch.where(torch.isnan(self.exact), size, (size + self.exact.abs()) / 2)
        return lambda weights: weights @ sizes

    @property
    def reliable(self) -> Bool[Tensor, " cell"]:
        """Whether the second-order term is small, and what the estimate differs from the first-order term by."""
        return reliable(self.pairs, self.estimate, self.first, self.curvature)

    @property
    def measured(self) -> Bool[Tensor, " cell"]:
        """Where the exact value is known, on some pairs at least."""
        return self._times > 0

    @property
    def _times(self) -> Int[Tensor, " cell"]:
        """On how many pairs each cell was measured."""
        return (~torch.isnan(self.exact)).sum(0)

    @property
    def replaced(self) -> float:
        """The share of estimates that were replaced by exact values, on as many pairs as any."""
        return float((self.measured & (self._times == self._times.max())).double().mean())

    @property
    def tried(self) -> float:
        """The share that was measured on some pairs at least."""
        return float(self.measured.double().mean())

    @property
    def correlation(self) -> float | None:
        """Pearson's, of estimates with exact values, over what was measured, where it was."""
        found = self.measured
        if int(found.sum()) < 2:
            return None
        estimate, exact = self.estimate[:, found], self.exact[:, found]
        both = torch.stack([estimate.masked_fill(torch.isnan(exact), torch.nan).nanmean(0), exact.nanmean(0)])
        return None if bool((both.std(1) == 0).any()) else float(torch.corrcoef(both)[0, 1])

    @property
    def adds_up(self) -> float | None:
        """What averaged gradients from the embedding sum to, as a share of the difference of the metric: 1 where enough
        were averaged. None for methods that average none."""
        if self.method in LOCAL:
            return None
        from_embedding = torch.repeat_interleave(self.graph.sender_of == 0, self.wide)
        sums = self.estimate[:, from_embedding].sum(1).tolist()
        return sum(total / p.span for total, p in zip(sums, self.pairs, strict=True)) / len(self.pairs)

    @property
    def clean(self) -> float:
        """The metric of the clean runs, averaged."""
        return sum(p.of_clean for p in self.pairs) / len(self.pairs)

    @property
    def corrupted(self) -> float:
        """The metric of the corrupted runs, averaged."""
        return sum(p.of_corrupted for p in self.pairs) / len(self.pairs)

    def order(self) -> Int[Tensor, " cell"]:
        """Cells by size of their value, largest first."""
        return self.value.abs().argsort(descending=True, stable=True)

    def rows(self, cells: Sequence[int]) -> list[dict[str, Any]]:
        """Plain data of some cells; "exact" is the value with what was measured in it."""
        estimate, exact = self.estimate.mean(0), self.value
        measured, trusted = self.measured, self.reliable
        out = []
        for cell in cells:
            sender, receiver = self.graph.names(cell // self.wide)
            row: dict[str, Any] = {"from": sender, "to": receiver}
            if self.positions is not None:
                row |= {"position": self.pairs[0].first + cell % self.wide}
                row["token"] = self.positions[cell % self.wide]
            row["estimate"] = float(estimate[cell])
            row["exact"] = float(exact[cell]) if bool(measured[cell]) else None
            out.append(row | {"reliable": bool(trusted[cell])})
        return out

    def ranked(self, most: int | None = 20) -> list[dict[str, Any]]:
        """The strongest cells; all of them with None."""
        return self.rows(self.order()[:most].tolist())

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "total_edges": self.graph.total,
            "metric": self.metric,
            "unit": self.unit,
            "method": self.method,
            "pairs": [
                {
                    "clean": p.of_clean,
                    "corrupted": p.of_corrupted,
                    "answer": None if p.answer is None else p.clean.token_text(p.answer),
                    "wrong": None if p.wrong is None else p.clean.token_text(p.wrong),
                }
                for p in self.pairs
            ],
            "unreliable": float((~self.reliable).double().mean()),
            "replaced": self.replaced,
            "tried": self.tried,
            "adds_up": self.adds_up,
            "correlation": self.correlation,
            "edges": self.ranked(most),
        }


def reliable(
    pairs: Sequence[Pair],
    estimate: Float[Tensor, "pair cell"],
    first: Float[Tensor, "pair cell"],
    curvature: Float[Tensor, "pair cell"],
) -> Bool[Tensor, " cell"]:
    """See `Edges.reliable`. What an index that has to choose reads has no slope, so no estimate of it is."""
    graph = pairs[0].graph
    floor = FLOOR * sum(abs(p.span) for p in pairs) / len(pairs)

    def small(deviation: Tensor, of: Tensor) -> Tensor:
        size = deviation.abs().mean(0)
        return (size <= TOLERANCE * of.mean(0).abs()) | (size <= floor)

    chooses = torch.tensor([_chooses(pairs, receiver) for receiver in graph.receivers])[graph.receiver_of]
    trusted = small(curvature, first) & small(estimate - first, estimate)
    return trusted & ~chooses.repeat_interleave(len(trusted) // graph.total)


def _chooses(pairs: Sequence[Pair], receiver: Receiver) -> bool:
    """Whether it is read by an index that leaves keys out at the end of one of these prompts."""
    if receiver.side != "index":
        return False
    assert receiver.layer is not None
    mixer = pairs[0].clean.config.layers[receiver.layer].mixer
    assert isinstance(mixer, LatentAttention)
    assert mixer.index is not None
    return max(pair.at for pair in pairs) >= mixer.index.top


def edges(
    pairs: Sequence[tuple[Trace, Trace]],
    metric: Metric = "logit_difference",
    *,
    answer: Tokens = None,
    wrong: Tokens = None,
    position: int = -1,
    method: Method = "eap-ig",
    steps: int | None = None,
    exact: Measured = "unreliable",
    strongest: int = 300,
    limit: int | None = None,
    by_position: bool = False,
    early: Callable[[Edges], None] = lambda found: None,
    progress: Progress | None = None,
) -> Edges:
    """What every edge of the model is worth.

    Args:
        pairs: (clean, corrupted) traces of one text each; the two of a pair have as many tokens.
        metric: "logit_difference" (before any soft cap), "probability" (of the answer), "kl" (minus the divergence from
            the clean prediction), or a function `metric(logits (row, vocab), pair) -> (row,)`, differentiable.
        answer, wrong: the tokens compared, for all pairs or a list with one for each; None takes what each clean and
            each corrupted run predicts.
        position: after which the answer is predicted; negative from the end.
        method: "eap" (the clean run's gradient), "eap-ig" (its mean while the embeddings go from corrupted to clean),
            or "eap-ig-activations" (while one part's output does), `steps` of them, by default 5 and, where those do
            not add up, 40; or "relp" (relevance by rules, which sends nothing through queries and keys).
        exact: which edges are measured too: "unreliable" ones and the `strongest`, the "strongest" alone, "all", or
            "none"; more of them than `limit` are refused before any is measured. Over more pairs, all but "all" are
            measured on the first `MEASURED_ON` of them, and of the unreliable those that on the first `TRIED` are far
            below the strongest on no others.
        by_position: tell positions apart; for one pair.
        early: called with all estimates, before any edge is measured.
        progress: called with (done, total, what).

    Raises:
        ShapeError: when two prompts do not line up, or the metric gives no number per row.
        UsageError: when the metric is the same for both prompts, nothing was given, or too much would be measured.
        UnsupportedError: when what a part adds does not stay in the stream.
    """
    if exact not in MEASURED:
        raise UsageError(f"exact is {', '.join(MEASURED[:-1])} or none; {exact!r} is none of them.")
    if strongest < 0:
        raise UsageError(f"So many of the strongest edges are measured, 0 or more; {strongest} is not.")
    given = _checked(pairs, metric, method, by_position)
    ready = prepared(given, metric, answer=answer, wrong=wrong, position=position)
    found = _estimated(ready, metric, method, steps, by_position, progress or quiet)
    early(found)
    return _measured(found, exact, strongest, limit, progress or quiet)


def _checked(
    pairs: Sequence[tuple[Trace, Trace]], metric: Metric, method: Method, by_position: bool
) -> list[tuple[Trace, Trace]]:
    pairs = list(pairs)
    if not pairs:
        raise UsageError("Edges need at least one pair of prompts.")
    if by_position and len(pairs) > 1:
        raise UsageError("Positions are those of one pair; give one, or take the sums over positions.")
    if method in LOCAL and metric == "kl":
        raise UsageError(
            f"The KL divergence has no slope at the clean run, so {method} says nothing of it; take eap-ig."
        )
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}; choose {', '.join(METHODS)}.{near(method, METHODS)}")
    return pairs


def _estimated(
    ready: tuple[Pair, ...], metric: Metric, method: Method, steps: int | None, by_position: bool, say: Progress
) -> Edges:
    graph = ready[0].graph
    terms: list[list[Tensor]] = []
    for number, pair in enumerate(ready):
        run = Estimates(pair, by_position, partial(say, number, len(ready), "estimating"))
        terms.append([term.flatten() for term in run.with_reliability(method, steps)])
    estimate, first, curvature = (torch.stack(each) for each in zip(*terms, strict=True))
    labels = list(ready[0].clean.tokens[ready[0].here]) if by_position else None
    name = metric if isinstance(metric, str) else "custom"
    unknown = torch.full_like(estimate, torch.nan)
    return Edges(ready, graph, name, ready[0].unit, method, estimate, first, curvature, unknown, labels)


def _measured(found: Edges, exact: Measured, strongest: int, limit: int | None, say: Progress) -> Edges:
    ready, estimate = found.pairs, found.estimate
    top = _strongest(estimate, exact, strongest)
    flagged = ~found.reliable & ~top if exact == "unreliable" else torch.zeros_like(top)
    whole, some = (len(ready) if exact == "all" else min(n, len(ready)) for n in (MEASURED_ON, TRIED))
    count = int(top.sum()) * whole + int(flagged.sum()) * some
    if limit is not None and count > limit:
        raise UsageError(
            f"{count:,} edges would be measured, and at most {limit:,} are; measure the strongest alone, or none."
        )
    known = torch.full_like(estimate, torch.nan)
    for number, pair in enumerate(ready[:whole]):
        if number == TRIED:
            size = estimate[:TRIED].abs()
            mean = torch.where(torch.isnan(known[:TRIED]), size, (size + known[:TRIED].abs()) / 2).mean(0)
            flagged &= mean >= NEAR * (mean.topk(int(top.sum())).values[-1] if bool(top.any()) else 0.0)
        cells = (top | flagged).nonzero()[:, 0]
        if len(cells):
            told = _telling(say, number * len(cells), whole * len(cells))
            places = None if found.positions is None else cells % found.wide
            known[number, cells] = Exact(pair)(cells // found.wide, places, told)
    return replace(found, exact=known)


def prepared(
    pairs: Sequence[tuple[Trace, Trace]],
    metric: Metric = "logit_difference",
    *,
    answer: Tokens = None,
    wrong: Tokens = None,
    position: int = -1,
) -> tuple[Pair, ...]:
    """Pairs of traces with all that their edges need; arguments and errors are those of `edges`."""
    graph = Graph(pairs[0][0].config)
    named = zip(each(answer, len(pairs), "answers"), each(wrong, len(pairs), "wrong answers"), strict=True)
    return tuple(
        Pair(graph, clean, corrupted, metric, right, other, position, number)
        for number, ((clean, corrupted), (right, other)) in enumerate(zip(pairs, named, strict=True))
    )


def _telling(say: Progress, before: int, total: int) -> Callable[[int], None]:
    return lambda done: say(before + done, total, "measuring")


def _strongest(estimate: Tensor, exact: str, strongest: int) -> Bool[Tensor, " cell"]:
    """The cells that are measured however reliable they are."""
    wanted = torch.full(estimate.shape[1:], exact == "all")
    if exact in ("unreliable", "strongest"):
        wanted[estimate.abs().mean(0).topk(min(strongest, len(wanted))).indices] = True
    return wanted
