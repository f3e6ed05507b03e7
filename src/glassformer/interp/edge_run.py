"""A forward in which every receiver of the graph has an input of its own.

It runs the model's own parts, on what a hub says each receiver reads, and hands the hub what each sender adds. Three
hubs stand here: one that keeps every receiver's input apart so that a gradient can be taken there, and one that runs
sets of edges: what an edge inside the set carries is this run's, what one outside carries is the corrupted run's.
Knows one text's positions and no prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.interp.edge_graph import ANEW, BESIDE, FEED, LOGITS, MIXER, OWN, TOKEN, Graph
from glassformer.interp.edge_parts import (
    added_parts,
    beside,
    embedded,
    first_copy,
    made_anew,
    own_sides,
    read,
    read_out,
    rescaling,
    split_feed,
    split_heads,
    widened,
)
from glassformer.interp.edge_relevance import of_end, of_layer
from glassformer.interp.recording import Recording
from glassformer.interp.run_from import Context
from glassformer.interp.taps import Action, Bound, SiteAction
from glassformer.model.attention import Visible
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.block import Block
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import Looking, View, Where


class Hub(Protocol):
    """Says what receivers read and takes what senders add, or what the stream is anew, rescaling left out."""

    def read(self, which: range) -> Float[Tensor, "receiver row query wide"]:
        """The inputs of these receivers."""

    def send(self, added: Float[Tensor, "sender row query wide"], anew: bool = False) -> None:
        """Take in what the next senders add, or what the stream is anew."""


class Splits(Protocol):
    """Takes what a feed-forward part adds apart: features times the decoder, a base and an error (`dictionary`)."""

    @property
    def decoder(self) -> Float[Tensor, "feature d_model"]:
        """Each feature's direction."""

    def split(
        self, block: Block, stream: Float[Tensor, "row query d_model"], view: View | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The features of a stream, and the base and error that complete what the part adds."""


class Apart:
    """The model run from position `first` to `at`, each receiver on its own input.

    Args:
        forward: a trace of one text, whose keys, values and states before `first` the run continues.
    """

    def __init__(self, forward: Recording, graph: Graph, first: int, at: int) -> None:
        self.transformer, self.config, self.graph = forward.transformer, forward.config, graph
        self.first, self.at = first, at
        self._forward = forward
        self.reads, self.joins = rescaling(forward)
        self.context = Context(forward, at + 1)
        self.laid: dict[int, Splits] = {}  # by layer, what is laid over feed-forward parts where relevance goes back

    def begin(self, rows: int) -> Pass:
        """What the layers of one run share."""
        positions = torch.arange(self.first, self.at + 1, device=self.transformer.device).expand(rows, -1)
        cache = self.context.cut(self.first, rows) if self.first else None
        where = Where(positions, None, self.first)
        lengths = torch.full_like(positions[:, 0], self._forward.length)
        return Pass(where, Visible(self.first, None), self.transformer.angles(positions, lengths), cache)

    def block(self, layer: int) -> Block:
        """The model's block at this layer."""
        return self._forward.block(layer)

    def token(self, layer: int) -> Float[Tensor, "1 1 query d_ple"]:
        """The tokens' own vectors in a layer, as its one receiver of them reads them."""
        return self._forward.recorded[f"blocks.{layer}.ple.input"][None, :, self.first : self.at + 1]

    def run(
        self,
        hub: Hub,
        rows: int,
        start: int = 0,
        given: tuple[int, int, Tensor] | None = None,
        relevance: bool = False,
    ) -> Float[Tensor, "row d_model"]:
        """The normed stream at the last position, which the prediction is read from.

        Args:
            start: the first layer that runs; the hub has the stream before it.
            given: layer, place and what its senders add, instead of what they would.
            relevance: whether a backward pass is to see RelP's rules; the numbers are the same.
        """
        state = self.begin(rows)
        for layer in range(start, self.config.n_layers):
            readers, held = self.graph.read, dict[int, Tensor]()
            for place in self.graph.places_of(layer):
                if place == MIXER:  # what reads beside the mixer reads before it adds to the stream
                    others = (FEED,) if self.config.layers[layer].parallel else (BESIDE,)
                    held = {one: hub.read(readers[layer, one]) for one in others if (layer, one) in readers}
                if given is not None and given[:2] == (layer, place):
                    hub.send(given[2], place in ANEW)
                    continue
                x = held[place] if place in held else hub.read(readers[layer, place])
                token = hub.read(readers[layer, TOKEN]) if place == OWN else None
                hub.send(self.part(layer, place, x, state, relevance, token), place in ANEW)
        last = hub.read(self.graph.logits)[0, :, -1:, : self.config.d_stream] * self.reads[None, LOGITS]
        if not relevance:
            return self.transformer.normed(last)[:, 0]
        return read_out(self.transformer, last, self._view(of_end(self.config), state))[:, 0]

    def part(
        self,
        layer: int,
        place: int,
        x: Float[Tensor, "receiver row query wide"],
        state: Pass,
        relevance: bool = False,
        token: Float[Tensor, "1 row query d_ple"] | None = None,
    ) -> Float[Tensor, "sender row query wide"]:
        """What the senders of a place add, rescaling left out, given what each of its receivers reads."""
        block, times = self.block(layer), self.reads[layer, place]
        if place in ANEW:
            return made_anew(block, place, x[0], times, relevance)[None]
        x = first_copy(block, x) * times
        if place == MIXER:
            added = self.mixer(layer, x, state, relevance)
        elif place == BESIDE:
            added = beside(block, x[0], relevance)[None]
        else:
            view = self._view(of_layer(self.config, layer, place), state, layer) if relevance else None
            if place == OWN:
                assert token is not None
                added = embedded(block, x[0], token[0], view)[None]
                added = added if block.copies is None else block.copies.beside(added)
            elif relevance and layer in self.laid:
                on, base, error = self.laid[layer].split(block, x[0], view)
                added = torch.stack([on @ self.laid[layer].decoder.to(on), base, error])
            else:
                added = split_feed(block, x, view)
        return widened(added / self.joins[layer, place], self.graph.width)

    def _view(self, steps: list[SiteAction], state: Pass, layer: int | None = None) -> View:
        looking = Looking(Bound(steps), self.config, state.where)
        return looking.top if layer is None else looking.at(layer)

    def mixer(
        self,
        layer: int,
        inputs: Float[Tensor, "receiver row query d_model"],
        state: Pass,
        relevance: bool = False,
    ) -> Float[Tensor, "sender row query d_model"]:
        """What a mixer's senders add, given the stream that each of its receivers reads."""
        block = self.block(layer)
        part, x = block.mixer, read(block, MIXER, inputs, relevance)
        assert part is not None
        if not isinstance(part, AttentionPart):
            if relevance:
                return added_parts(block, MIXER, part(x[0], state)[None], relevance)
            return block.add(MIXER, part(x[0], state))[None]
        kept: list[Tensor] = []
        steps = [SiteAction(f"blocks.{layer}.attn.z", lambda site, z, where: kept.append(z), False)]
        for site, side in own_sides(part, x, state).items():
            steps.append(SiteAction(f"blocks.{layer}.attn.{site}", _instead(side), True))
        if relevance:
            steps += of_layer(self.config, layer, MIXER)
        part(x[0], state, self._view(steps, state, layer))
        return split_heads(block, kept[0], relevance)


def _instead(new: Tensor) -> Action:
    return lambda site, old, where: new


class Slopes:
    """Keeps each receiver's input as a tensor of its own, so that a gradient can be taken there.

    Args:
        x: the stream where the run begins.
        tokens: tokens' own vectors, by the number of the receiver that reads them.
    """

    def __init__(
        self, x: Float[Tensor, "row query wide"], tokens: Mapping[int, Float[Tensor, "row query d_ple"]] | None = None
    ) -> None:
        self.x, self.tokens = x, tokens or {}
        self.inputs: dict[int, Tensor] = {}  # by their first receiver

    def read(self, which: range) -> Tensor:
        """The stream, once for each receiver; or the token's own vector."""
        x = self.tokens.get(which.start, self.x)
        self.inputs[which.start] = x[None].expand(len(which), -1, -1, -1).clone()
        return self.inputs[which.start]

    def send(self, added: Tensor, anew: bool = False) -> None:
        """Adds to the stream, or puts it in its place."""
        self.x = added.sum(0) if anew else self.x + added.sum(0)


class Inside:
    """Runs sets of edges, one a row; edges outside a set carry what the corrupted run has there.

    Args:
        streams: the corrupted run's stream, by number of senders before.
        sent: what each sender adds in the corrupted run.
        tokens: by the number of the receiver that reads it, a token's own vector in the corrupted run, and what this
            run's is more.
        sets: True for edges inside; at each position apart where there is one more axis.
    """

    def __init__(
        self,
        graph: Graph,
        streams: dict[int, Float[Tensor, "query wide"]],
        sent: Float[Tensor, "sender query wide"],
        sets: Bool[Tensor, "row edge *query"],
        tokens: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.graph, self.streams, self.sent, self.sets, self.tokens = graph, streams, sent, sets, tokens or {}
        # Senders with an edge inside some set; what the others add changes nothing.
        used = sets.flatten(2).any(-1).any(0) if sets.ndim > 2 else sets.any(0)
        self.counts = torch.zeros(len(sent), dtype=torch.bool, device=sets.device)
        self.counts[graph.sender_of.to(sets.device)[used]] = True
        self.before = [0, *self.counts.cumsum(0).tolist()]
        # This run's senders, those that count, less the corrupted run's.
        self.change = sent.new_zeros(len(sets), self.before[-1], sent[0].numel())
        self.count = 0

    def send(self, added: Tensor, anew: bool = False) -> None:
        """Takes the next senders."""
        new = slice(self.count, self.count + len(added))
        own = self.counts[new]
        if bool(own.any()):
            change = added[own] - self.sent[new][own][:, None]
            self.change[:, self.before[new.start] : self.before[new.stop]] = change.movedim(0, 1).flatten(2)
        self.count = new.stop

    def read(self, which: range) -> Tensor:
        """The corrupted stream, and what the edges inside change in it."""
        own, rows = self.graph.receivers[which[0]], len(self.sets)
        inside = self.sets[:, self.graph.edges_of(which)]
        inside = inside.view(rows, len(which), own.reads, *inside.shape[2:])
        if which.start in self.tokens:
            base, more = self.tokens[which.start]
            change = more.flatten().expand(rows, 1, -1)
        else:
            base, change = self.streams[own.seen], self.change[:, self.before[own.since] : self.before[own.seen]]
            inside = inside[:, :, self.counts[own.since : own.seen]]
        inside = inside.to(change)
        if inside.ndim == 4:
            return base + torch.einsum("nrst,nstd->rntd", inside, change.unflatten(-1, base.shape))
        return base + torch.bmm(inside, change).unflatten(-1, base.shape).movedim(0, 1)
