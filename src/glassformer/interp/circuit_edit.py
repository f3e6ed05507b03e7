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
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import CheckpointError, UnsupportedError, UsageError
from glassformer.interp.edge_graph import (
    BESIDE,
    CORRECTED,
    FEED,
    LOGITS,
    MIXER,
    NORMED_FEED,
    NORMED_MIXER,
    OWN,
    PREDICTED,
    TOKEN,
    Graph,
)
from glassformer.interp.edge_parts import (
    beside,
    first_copy,
    made_anew,
    own_sides,
    rescaling,
    split_feed,
    split_heads,
    widened,
)
from glassformer.interp.edge_run import Inside
from glassformer.interp.edge_sent import sent, streams
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.taps import Action, Edit, SiteAction
from glassformer.interp.trace_run import run
from glassformer.model import Config, Transformer
from glassformer.model.attention import Visible
from glassformer.model.choices import Attention, Experts
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.block import Block
from glassformer.model.parts.passing import Pass
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

            def at(site: str, action: Action, writes: bool = True, prefix: str = prefix) -> None:
                out.append(SiteAction(prefix + site, action, writes))

            first = choice.parallel or choice.mixer is None
            follows = choice.mixer is not None and choice.feed_forward is not None and not first
            if choice.copies is not None:
                at("resid_pre", self._anew(i, PREDICTED))
                at("laurel.out", self._beside(i))
            if choice.feed_forward is not None and first:
                at("resid_pre", self._enters(i, FEED))
            if isinstance(choice.mixer, Attention):
                own = choice.mixer.keys_from is None
                names = ["q", *(["k", "v"] if own else []), *(["gate"] if choice.mixer.gate is not None else [])]
                if getattr(choice.mixer, "index", None) is not None:
                    names += ["index_q", "index_k", "index_weights"]
                for name in names:
                    at(f"attn.{name}", self._side(i, name))
                at("attn.z", self._heads(i), False)
            elif choice.mixer is not None:
                at("resid_pre", self._enters(i, MIXER))
                at(f"{choice.mixer.prefix}.out", self._sends(i, MIXER), False)
            if choice.norms == "sum" and choice.mixer is not None:
                at("resid_mid" if follows else "resid_post", self._anew(i, NORMED_MIXER))
            if choice.feed_forward is not None:
                if follows:
                    at("resid_mid", self._enters(i, FEED))
                at("mlp.out", self._sends(i, FEED), isinstance(choice.feed_forward, Experts))
                if choice.norms == "sum":
                    at("resid_post", self._anew(i, NORMED_FEED))
            if choice.copies is not None:
                at("resid_late", self._anew(i, CORRECTED))
            if choice.embedding is not None:
                at("resid_late", self._enters(i, OWN))
                at("ple.input", self._token(i))
                at("ple.out", self._sends(i, OWN), False)
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
        tokens = {}
        for layer, place, which in self.graph.places():
            if place == TOKEN:
                other = forward.recorded[f"blocks.{layer}.ple.input"][0, here]
                tokens[which.start] = other, torch.zeros_like(other)
        hub = Inside(
            self.graph,
            streams(forward, self.graph, here),
            sent(forward, self.graph, here),
            self.inside.to(x.device),
            tokens,
        )
        hub.send(widened(x, self.graph.width)[None])
        self.hub, self.feeds, self.aside, self.sides = hub, x, x, dict[str, Tensor]()
        self.angles = self.transformer.angles(where.positions)

    def _block(self, layer: int) -> Block:
        block = self.transformer.blocks[layer]
        assert isinstance(block, Block)
        return block

    def _read(self, layer: int | None, place: int) -> Tensor:
        """What the receivers of a place read, as the model computes with it."""
        x = self.hub.read(self.graph.read[layer, place])
        if layer is not None and place != OWN:
            x = first_copy(self._block(layer), x)
        return x[..., : self.config.d_stream] * self.reads[layer, place]

    def _enters(self, layer: int | None, place: int) -> Action:
        """The stream as the one receiver of a place reads it, or the first; experts' own inputs come in at the end."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            self.feeds = self._read(layer, place)
            return self.feeds[0]

        return action

    def _anew(self, layer: int, place: int) -> Action:
        """The stream made anew, or, of copies that are predicted, what it is made of."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            read = self.hub.read(self.graph.read[layer, place])
            made = made_anew(self._block(layer), place, read[0], self.reads[layer, place])
            self.hub.send(made[None])
            return (read[0] if place == PREDICTED else made)[..., : self.config.d_stream]

        return action

    def _beside(self, layer: int) -> Action:
        """What stands beside the mixer, from its own input; it joins after the heads."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            self.aside = beside(self._block(layer), self._read(layer, BESIDE)[0])
            return self.aside

        return action

    def _token(self, layer: int) -> Action:
        """The token's own vector, this text's or the counterfactual's."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            which = self.graph.read[layer, TOKEN]
            inside = bool(self.inside[0, self.graph.edges_of(which)])
            return x if inside else self.hub.read(which)[0]

        return action

    def _side(self, layer: int, name: str) -> Action:
        """Queries, keys, values or gates, each head's from its own input; an index's queries, keys and weights."""

        def action(site: str, x: Tensor, where: Where) -> Tensor:
            if name == "q":
                block = self._block(layer)
                part = block.mixer
                assert isinstance(part, AttentionPart)
                read = block.read(MIXER, self._read(layer, MIXER))
                state = Pass(where, Visible(where.start, None), self.angles)
                self.sides = own_sides(part, read, state)
            return self.sides[name]

        return action

    def _heads(self, layer: int) -> Action:
        def action(site: str, z: Tensor, where: Where) -> None:
            self._send(layer, MIXER, split_heads(self._block(layer), z))
            if (layer, BESIDE) in self.graph.sent:
                self._send(layer, BESIDE, self.aside[None])

        return action

    def _sends(self, layer: int, place: int) -> Action:
        def action(site: str, added: Tensor, where: Where) -> Tensor:
            block, each = self._block(layer), added[None]
            if place == FEED and isinstance(self.config.layers[layer].feed_forward, Experts):
                each = split_feed(block, self.feeds)
            if place == OWN and block.copies is not None:
                self._send(layer, place, block.copies.beside(each))
            else:
                self._send(layer, place, each)
            return each.sum(0)

        return action

    def _send(self, layer: int, place: int, added: Float[Tensor, "sender row query d"]) -> None:
        self.hub.send(widened(added / self.joins[layer, place], self.graph.width))
