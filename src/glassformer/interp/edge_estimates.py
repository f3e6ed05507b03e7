"""What every edge is worth, estimated from gradients.

The estimate of an edge is what the metric would lose if that edge alone carried the corrupted run's value: the change
of its sender times the metric's gradient at its receiver's input, norms and all taken as the gradient takes them. The
gradient is that of the clean run (edge attribution patching, arXiv:2310.10348), or its mean over runs between corrupted
and clean: of the embeddings, or of one part's output at a time (EAP-IG, arXiv:2403.17806); or what RelP's rules
propagate in its place (arXiv:2508.21258, `edge_relevance`). Knows one pair of prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError, near
from glassformer.interp.edge_graph import MIXER
from glassformer.interp.edge_pair import Pair
from glassformer.interp.edge_parts import widened
from glassformer.interp.edge_run import Slopes

Method = Literal["eap", "eap-ig", "eap-ig-activations", "relp"]
METHODS: tuple[Method, ...] = get_args(Method)
# These take the clean run's slope alone.
LOCAL = ("eap", "relp")
# Bytes of all receivers' inputs in one backward pass.
_HELD = 256 << 20
# How far along the change the gradient is taken for its rate of change, by precision.
_NUDGE = {torch.float64: 1e-4, torch.float32: 1e-2}

# Gradients that are averaged, and how many where so few do not add up;
FEW, MANY = 5, 40
# which is to say: where what leaves the embedding is off the metric's difference by more than this share of it.
OFF = 0.5

Weights = dict[float, float]


def _between(steps: int) -> Weights:
    """The mean of so many gradients on the way from corrupted to clean."""
    return {1 - k / steps: 1 / steps for k in range(1, steps + 1)}


def slopes(
    pair: Pair,
    x: Float[Tensor, "row query wide"],
    tokens: Mapping[int, Float[Tensor, "row query d_ple"]],
    start: int = 0,
    given: tuple[int, int, Tensor] | None = None,
    relevance: bool = False,
) -> dict[int, Float[Tensor, "receiver row query d_model"]]:
    """The gradient of each row's metric at every receiver's input, by the first receiver of a place; or what RelP's
    rules propagate there. The run begins with the stream `x` and tokens' own vectors, by receiver."""
    with torch.enable_grad():
        hub = Slopes(x.detach().clone().requires_grad_(), {k: v.detach().requires_grad_() for k, v in tokens.items()})
        numbers = pair.numbers(pair.apart.run(hub, len(x), start, given, relevance))
        found = torch.autograd.grad(numbers.sum(), list(hub.inputs.values()), allow_unused=True)
    return {
        first: torch.zeros_like(seen) if g is None else g
        for (first, seen), g in zip(hub.inputs.items(), found, strict=True)
    }


class Estimates:
    """Estimates of all edges of one pair.

    Args:
        by_position: one number for each edge and position instead of their sum.
        tick: called before each batch of gradients; what it raises stops them.
    """

    def __init__(self, pair: Pair, by_position: bool = False, tick: Callable[[], None] = lambda: None) -> None:
        self.pair, self.by_position, self.tick = pair, by_position, tick
        wide = pair.change[0].numel() * pair.change.element_size()
        self.rows = max(1, _HELD // (wide * len(pair.graph.receivers)))

    def zeros(self) -> Float[Tensor, "edge ..."]:
        """Nothing yet, for every edge."""
        positions = (self.pair.change.shape[1],) if self.by_position else ()
        return torch.zeros(self.pair.graph.total, *positions, dtype=torch.float64)

    def _begun(self, shares: list[float]) -> tuple[Float[Tensor, "row query wide"], dict[int, Tensor]]:
        """What the prompt brings in, a share of the way from clean to corrupted: the stream and tokens' own vectors."""
        clean = self.pair.entering()
        times = torch.tensor(shares, dtype=torch.float64).to(clean)[:, None, None]
        tokens = {which: own + times * change for which, (own, change) in self.pair.tokens.items()}
        return clean + times * self.pair.change[:1], tokens

    def _add(self, out: Tensor, grads: dict[int, Tensor], senders: range, times: float) -> None:
        """Adds −change × gradient × `times` for every edge from `senders`."""
        graph = self.pair.graph
        form = "std,rtd->rst" if self.by_position else "std,rtd->rs"
        for _, _, which in graph.places():
            if which.start not in grads:
                continue
            own = graph.receivers[which[0]]
            chosen = range(max(senders.start, own.since), min(senders.stop, own.seen))
            if not chosen:
                continue
            if which.start in self.pair.tokens:
                change = self.pair.tokens[which.start][1][None]
            else:
                change = self.pair.change[chosen.start : chosen.stop]
            cells = torch.einsum(form, change, grads[which.start])
            whole = out[graph.edges_of(which)].view(len(which), own.reads, *out.shape[1:])
            whole[:, chosen.start - own.since : chosen.stop - own.since] -= times * cells.double().cpu()

    def along(self, sums: list[Weights], relevance: bool = False) -> list[Float[Tensor, "edge ..."]]:
        """For each of these sums, change × weighted sum of the gradients with the embeddings moved by a share of the
        change: {share: weight}. A gradient that several sums take is computed once."""
        shares = sorted({share for one in sums for share in one})
        out, everyone = [self.zeros() for _ in sums], range(len(self.pair.graph.senders))
        for low in range(0, len(shares), self.rows):
            self.tick()
            part = slice(low, low + self.rows)
            grads = slopes(self.pair, *self._begun(shares[part]), relevance=relevance)
            for total, one in zip(out, sums, strict=True):
                w = torch.tensor([one.get(share, 0.0) for share in shares[part]], dtype=torch.float64)
                mean = {k: torch.einsum("nrtd,r->ntd", g, w.to(g)) for k, g in grads.items()}
                self._add(total, mean, everyone, 1.0)
        return out

    def adds_up(self, estimate: Float[Tensor, "edge ..."]) -> float:
        """What estimates of edges from the embedding sum to, as a share of the metric's difference: 1 for gradients
        averaged in enough steps (completeness, arXiv:1703.01365)."""
        return float(estimate[self.pair.graph.sender_of == 0].sum()) / self.pair.span

    def with_reliability(self, method: str, steps: int | None) -> list[Float[Tensor, "edge ..."]]:
        """The estimates of a method, the first-order term and the second-order one, of the clean run.

        The second-order term is half the change times how fast the gradient changes while the prompt does: one product
        of the Hessian with a vector, the change of the embeddings, gives it for all edges (arXiv:2606.09899); taken as
        a central difference of gradients.

        Raises:
            UsageError: as `by`.
        """
        nudge = _NUDGE.get(self.pair.change.dtype, 0.25)
        terms: list[Weights] = [{0.0: 1.0}, {nudge: 0.25 / nudge, -nudge: -0.25 / nudge}]
        if method == "eap-ig" and (steps is None or steps >= 1):
            estimate, first, second = self.along([_between(steps or FEW), *terms])
            if steps is None and abs(self.adds_up(estimate) - 1) > OFF:
                estimate = self.by(method, MANY)
            return [estimate, first, second]
        first, second = self.along(terms)
        return [first if method == "eap" else self.by(method, FEW if steps is None else steps), first, second]

    def activations(self, steps: int) -> Float[Tensor, "edge ..."]:
        """Gradients averaged while one part's output at a time goes from corrupted to clean."""
        pair, graph = self.pair, self.pair.graph
        out = self.zeros()
        shares = list(_between(steps))
        self._averaged(out, range(1), lambda some: slopes(pair, *self._begun(some)), shares)
        clean = pair.sent - pair.change
        for (layer, place), senders in graph.sent.items():
            which = slice(senders.start, senders.stop)
            before = pair.clean.forward.entering(layer, pair.here) / pair.apart.reads[layer, MIXER]
            before = widened(before, graph.width)

            def run(
                some: list[float], which: slice = which, layer: int = layer, place: int = place, x: Tensor = before
            ) -> dict[int, Tensor]:
                held = {number: own.expand(len(some), -1, -1).clone() for number, (own, _) in pair.tokens.items()}
                share = torch.tensor(some, dtype=torch.float64).to(clean)[:, None, None]
                moved = clean[which, None] + share * pair.change[which, None]
                return slopes(pair, x.expand(len(some), -1, -1), held, layer, (layer, place, moved))

            self._averaged(out, senders, run, shares)
        return out

    def _averaged(
        self, out: Tensor, senders: range, run: Callable[[list[float]], dict[int, Tensor]], shares: list[float]
    ) -> None:
        for low in range(0, len(shares), self.rows):
            self.tick()
            grads = run(shares[low : low + self.rows])
            self._add(out, {k: g.sum(1) for k, g in grads.items()}, senders, 1 / len(shares))

    def by(self, method: str, steps: int) -> Float[Tensor, "edge ..."]:
        """The estimates of a method.

        Raises:
            UsageError: for an unknown method, or one that says nothing about this metric.
        """
        if method not in METHODS:
            raise UsageError(f"There is no method {method!r}; choose {', '.join(METHODS)}.{near(method, METHODS)}")
        if steps < 1:
            raise UsageError(f"Gradients are averaged over 1 step or more; {steps} is not.")
        if method in LOCAL:
            return self.along([{0.0: 1.0}], relevance=method == "relp")[0]
        if method == "eap-ig":
            return self.along([_between(steps)])[0]
        return self.activations(steps)
