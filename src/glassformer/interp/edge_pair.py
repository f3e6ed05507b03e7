"""Two prompts made ready for edges: what every sender adds in both, and how a prediction is measured.

Knows traces of one text each, of equal length, in one model without edits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.errors import UsageError, near
from glassformer.interp import memory
from glassformer.interp.edge_graph import TOKEN, Graph
from glassformer.interp.edge_parts import widened
from glassformer.interp.edge_run import Apart, Inside
from glassformer.interp.edge_sent import sent, streams
from glassformer.interp.logit_target import direction
from glassformer.interp.patch_sweep import Measure
from glassformer.interp.patching import aligned, answers
from glassformer.model.sites import Where

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

METRICS = ("logit_difference", "probability", "kl")
Metric = str | Callable[[Float[Tensor, "row vocab"], int], Float[Tensor, " row"]]


class Pair:
    """One pair of prompts.

    Attributes:
        clean, corrupted: traces; first: the first position where their tokens differ; at: the position measured.
        answer, wrong: token ids compared, where the metric compares tokens.
        unit: what the numbers are, in words.
        change: (sender, query, wide), what each sender adds in the corrupted run less what it adds in the clean one,
            from `first` to `at`.
        tokens: by the number of the receiver that reads it, a token's own vector in the clean run and its change, each
            (query, d_ple).
        of_clean, of_corrupted: the metric of the two runs.
    """

    def __init__(
        self,
        graph: Graph,
        clean: Trace,
        corrupted: Trace,
        metric: Metric,
        answer: str | int | None,
        wrong: str | int | None,
        position: int,
        number: int,
    ) -> None:
        aligned(clean, corrupted)
        if clean.forward.edit is not None or corrupted.forward.edit is not None:
            raise UsageError("Edges are those of the model as it is; trace both prompts without edits.")
        self.graph, self.clean, self.corrupted = graph, clean, corrupted
        self.at = clean.position(position)
        differs = [i for i, (a, b) in enumerate(zip(clean.ids, corrupted.ids, strict=True)) if a != b]
        self.first = differs[0]
        if self.first > self.at:
            raise UsageError(
                f"The prompts differ from position {self.first} on, and the answer is measured after position "
                f"{self.at}, where nothing differs yet."
            )
        self.here = slice(self.first, self.at + 1)
        self.answer: int | None = None
        self.wrong: int | None = None
        self.offset = 0.0
        self.measure = self._measure(metric, answer, wrong, number)
        self.of_clean, self.of_corrupted = (self.measure.run(t, self.at) + self.offset for t in (clean, corrupted))
        if self.of_clean == self.of_corrupted:
            raise UsageError(
                f"Pair {number + 1} gives {self.of_clean:.4g} both ways ({self.unit}), so there is no difference that "
                "edges could carry; compare other tokens or take another metric."
            )
        queries = self.at + 1 - self.first
        wide = (len(graph.senders) * 2 + len(graph.receivers) * 2, queries, graph.width)
        item = clean.transformer.embed.weight.element_size()
        cost = memory.numbers("What all senders add and receivers read", wide, item, str(clean.transformer.device))
        cost.require("give prompts that differ later, or shorter ones")
        self.apart = Apart(clean.forward, graph, self.first, self.at)
        with torch.no_grad():
            self.sent = sent(corrupted.forward, graph, self.here)
            self.change = self.sent - sent(clean.forward, graph, self.here)
        self.tokens: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, place, which in graph.places():
            if place == TOKEN:
                own, other = (t.forward.recorded[f"blocks.{layer}.ple.input"][0, self.here] for t in (clean, corrupted))
                self.tokens[which.start] = own, other - own

    @property
    def span(self) -> float:
        """Metric of the clean run less that of the corrupted one."""
        return self.of_clean - self.of_corrupted

    def _measure(self, metric: Metric, answer: str | int | None, wrong: str | int | None, number: int) -> Measure:
        if callable(metric):
            self.unit = "the caller's metric"
            return Measure(None, metric, number)
        if metric not in METRICS:
            raise UsageError(f"There is no metric {metric!r}; choose {', '.join(METRICS)}.{near(metric, METRICS)}")
        if metric == "kl":
            wanted = torch.log_softmax(self.clean.logits(self.at).double(), -1)
            self.unit = "minus the KL divergence from the clean prediction, in nats"

            def minus_kl(logits: Tensor, pair: int) -> Tensor:
                return -(wanted.exp() * (wanted - torch.log_softmax(logits.double(), -1))).sum(-1)

            return Measure(None, minus_kl, number)
        if metric == "probability":
            right = int(self.clean.logits(self.at).argmax()) if answer is None else self.clean.token_id(answer)
            self.answer, self.unit = right, "probability of the answer"
            return Measure(None, lambda logits, pair: torch.softmax(logits.double(), -1)[:, right], number)
        self.answer, self.wrong = answers(self.clean, self.corrupted, answer, wrong, self.at)
        way = direction(self.clean, self.answer, self.wrong, self.at)
        self.unit, self.offset = way.unit, way.offset
        return Measure(way.vector, None, number)

    def entering(self) -> Float[Tensor, "query wide"]:
        """What the embedding adds in the clean run."""
        return widened(self.clean.forward.entering(0, self.here)[0], self.graph.width)

    def set_runs(
        self, streams: dict[int, Float[Tensor, "query wide"]], sets: Bool[Tensor, "row edge *query"]
    ) -> Float[Tensor, " row"]:
        """The metric when each of these sets of edges runs alone; `streams` are those of the corrupted run."""
        tokens = {which: (own + change, -change) for which, (own, change) in self.tokens.items()}
        hub = Inside(self.graph, streams, self.sent, sets, tokens)
        hub.send(self.entering().expand(1, len(sets), -1, -1))
        return self.numbers(self.apart.run(hub, len(sets)))

    def numbers(self, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The metric of each row, float64, from the normed stream at the position measured."""
        where = Where(torch.full((len(normed), 1), self.at, device=normed.device), None, self.at)
        return self.measure.of(self.clean, normed, where) + self.offset

    def streams(self, trace: Trace) -> dict[int, Float[Tensor, "query d_model"]]:
        """The stream of a traced run at every place that is read, by the number of senders before it; rescaling left
        out."""
        return streams(trace.forward, self.graph, self.here)
