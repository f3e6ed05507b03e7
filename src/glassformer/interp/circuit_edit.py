"""Running only a circuit: every edge outside it carries what a counterfactual text has there, in generation too.

The counterfactual is a text of its own. Where the text that runs goes on beyond it, the counterfactual goes on with the
same tokens, so that what is generated stands in both. A saved circuit is one JSON file. Knows edges by name, and not
how they were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError, UnsupportedError, UsageError
from glassformer.interp.edge_graph import FEED, LOGITS, MIXER, Graph
from glassformer.interp.edge_run import Inside, own_sides, rescaling, split_feed, split_heads
from glassformer.interp.edge_sent import sent, streams
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.taps import Action, Edit, SiteAction
from glassformer.interp.trace_run import run
from glassformer.model import Config, Transformer
from glassformer.model.choices import Attention, Experts
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.block import Block
from glassformer.model.sites import Where
from glassformer.system import sealed

if TYPE_CHECKING:
    from glassformer.interp.circuit_search import Circuit

FORMAT = "glassformer.circuit/1"


@dataclass(frozen=True, eq=False)
class RunCircuit(Edit):
    """The model runs only these edges.

    Attributes:
        transformer: whose edges they are; edges: their names, (from, to).
        counterfactual: token ids of the text whose values all other edges carry.
        facts: what else is known of it, plain data.
    """

    transformer: Transformer
    edges: tuple[tuple[str, str], ...]
    counterfactual: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def actions(self, config: Config) -> list[SiteAction]:
        if config != self.transformer.config:
            raise UsageError("The circuit is of a model of another design; run it in the model that it was found in.")
        for id in self.counterfactual:
            if not 0 <= id < config.vocab_size:
                raise UsageError(f"Token id {id} of the counterfactual is not in this model's vocabulary.")
        if not self.counterfactual:
            raise UsageError("A circuit needs a counterfactual: the text whose values all other edges carry.")
        graph = Graph(config)
        inside = torch.zeros(1, graph.total, dtype=torch.bool)
        inside[0, [graph.edge(*names) for names in self.edges]] = True
        return _Running(self.transformer, graph, inside, self.counterfactual).actions()

    def require_of(self, transformer: Transformer) -> None:
        """Raise UsageError where the circuit is of another model."""
        if transformer is not self.transformer and fingerprint(transformer) != fingerprint(self.transformer):
            raise UsageError("The circuit is of another model; run it in the one that it was found in.")

    def save(self, path: str | Path) -> None:
        """Write it as one JSON file, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        told = {
            "format": FORMAT,
            "weights": fingerprint(self.transformer),
            "counterfactual": list(self.counterfactual),
            "edges": [list(names) for names in self.edges],
            "facts": self.facts,
        }
        sealed.write(path, told, raises=CheckpointError)

    @classmethod
    def load(cls, path: str | Path, transformer: Transformer) -> RunCircuit:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it is no circuit, is broken, or is of another model.
        """
        told = sealed.read(path, FORMAT, "circuit", raises=CheckpointError)
        if told.get("weights") != fingerprint(transformer):
            raise CheckpointError(
                f"The circuit in {path} is of a model with other weights or in another precision; open it with the "
                "model that it was found in."
            )
        try:
            edges = tuple((str(a), str(b)) for a, b in told["edges"])
            return cls(transformer, edges, tuple(int(i) for i in told["counterfactual"]), dict(told["facts"]))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"The circuit in {path} lacks its edges or its counterfactual.") from None


def circuit(found: Circuit | RunCircuit, counterfactual: Sequence[int] | None = None, *, pair: int = 0) -> RunCircuit:
    """The edit that runs a circuit alone: `model.edited(gf.circuit(model.circuit(pairs)))`.

    Args:
        found: what `model.circuit` found, or `model.load_circuit` read.
        counterfactual: token ids of the text whose values all other edges carry; by default the corrupted prompt of one
            of the circuit's pairs, whose number is `pair`.
    """
    if isinstance(found, RunCircuit):
        ids = found.counterfactual if counterfactual is None else tuple(counterfactual)
        return RunCircuit(found.transformer, found.edges, ids, found.facts)
    if found.edges.positions is not None:
        raise UsageError("A circuit by position is of its two prompts alone; find one without by_position to run it.")
    pairs = found.edges.pairs
    if counterfactual is None and not -len(pairs) <= pair < len(pairs):
        raise UsageError(f"The circuit was found on {len(pairs)} pairs; there is no pair {pair}.")
    first = pairs[pair if counterfactual is None else 0]
    ids = tuple(first.corrupted.ids if counterfactual is None else counterfactual)
    graph = found.edges.graph
    facts = {"f": found.f, "target": found.target, "metric": found.edges.metric, "clean": first.clean.ids}
    return RunCircuit(first.clean.transformer, tuple(graph.names(int(edge)) for edge in found.chosen), ids, facts)


class _Running:
    """One use of it: what a forward's senders add, and what its receivers read, place by place."""

    def __init__(self, transformer: Transformer, graph: Graph, inside: Tensor, counterfactual: Sequence[int]) -> None:
        self.transformer, self.graph, self.inside = transformer, graph, inside
        self.config, self.counterfactual = transformer.config, list(counterfactual)
        for layer in self.config.layers:
            if layer.parallel and not isinstance(layer.mixer, Attention):
                raise UnsupportedError(
                    "In this model a recurrence and a feed-forward part read one stream side by side, so a circuit "
                    "cannot be run alone."
                )
        self.text: list[int] = []

    def actions(self) -> list[SiteAction]:
        """What is done at which site, in the order of the forward."""
        out: list[SiteAction] = [SiteAction("blocks.0.resid_pre", self._begin, False)]
        for i, choice in enumerate(self.config.layers):
            prefix = f"blocks.{i}."
            first = choice.parallel or choice.mixer is None
            if choice.feed_forward is not None and first:
                out.append(SiteAction(f"{prefix}resid_pre", self._enters(i, FEED), True))
            if isinstance(choice.mixer, Attention):
                own = choice.mixer.keys_from is None
                names = ["q", *(["k", "v"] if own else []), *(["gate"] if choice.mixer.gate is not None else [])]
                out += [SiteAction(f"{prefix}attn.{name}", self._side(i, name), True) for name in names]
                out.append(SiteAction(f"{prefix}attn.z", self._heads(i), False))
            elif choice.mixer is not None:
                out.append(SiteAction(f"{prefix}resid_pre", self._enters(i, MIXER), True))
                out.append(SiteAction(f"{prefix}{choice.mixer.prefix}.out", self._sends(i, MIXER), False))
            if choice.feed_forward is not None:
                if not first:
                    out.append(SiteAction(f"{prefix}resid_mid", self._enters(i, FEED), True))
                runs_experts = isinstance(choice.feed_forward, Experts)
                out.append(SiteAction(f"{prefix}mlp.out", self._sends(i, FEED), runs_experts))
        out.append(SiteAction(f"blocks.{self.config.n_layers - 1}.resid_post", self._enters(None, LOGITS), True))
        return out

    def _begin(self, site: str, x: Tensor, where: Where) -> None:
        """The counterfactual read as far as this forward goes."""
        if where.tokens is None:
            raise UnsupportedError(
                "A circuit runs from the text's tokens on; what begins in the middle of the model cannot run it."
            )
        if len(where.tokens) > 1:
            raise UnsupportedError("A circuit runs one text at a time; this forward holds several.")
        if where.start > len(self.text):
            raise UnsupportedError("A circuit runs a text from its start; this forward goes on with an earlier one.")
        self.text = self.text[: where.start] + where.tokens[0].tolist()
        ids = (self.counterfactual + self.text[len(self.counterfactual) :])[: len(self.text)]
        forward = run(self.transformer, [ids], len(ids), None)
        here = slice(where.start, len(self.text))
        self.reads, self.joins = rescaling(forward)
        hub = Inside(
            self.graph,
            streams(forward, self.graph, here),
            sent(forward, self.graph, here),
            self.inside.to(x.device),
        )
        hub.send(x[None])
        self.hub, self.feeds, self.sides = hub, x, dict[str, Tensor]()

    def _block(self, layer: int) -> Block:
        block = self.transformer.blocks[layer]
        assert isinstance(block, Block)
        return block

    def _read(self, layer: int | None, place: int) -> Tensor:
        return self.hub.read(self.graph.read[layer, place]) * self.reads[layer, place]

    def _enters(self, layer: int | None, place: int) -> Action:
        """The stream as the one receiver of a place reads it, or the first; experts' own inputs come in at the end."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            self.feeds = self._read(layer, place)
            return self.feeds[0]

        return action

    def _side(self, layer: int, name: str) -> Action:
        """Queries, keys, values or gates, each head's from its own input."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            if name == "q":
                block = self._block(layer)
                part = block.mixer
                assert isinstance(part, AttentionPart)
                self.sides = own_sides(part, block.read(MIXER, self._read(layer, MIXER)))
            return self.sides[name]

        return action

    def _heads(self, layer: int) -> Action:
        def action(site: str, z: Tensor, where: Where) -> None:
            self.hub.send(split_heads(self._block(layer), z) / self.joins[layer, MIXER])

        return action

    def _sends(self, layer: int, place: int) -> Action:
        def action(site: str, added: Tensor, where: Where) -> Tensor:
            each = added[None]
            if place == FEED and isinstance(self.config.layers[layer].feed_forward, Experts):
                each = split_feed(self._block(layer), self.feeds)
            self.hub.send(each / self.joins[layer, place])
            return each.sum(0)

        return action
