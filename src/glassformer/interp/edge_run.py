"""A forward in which every receiver of the graph has an input of its own.

It runs the model's own parts, on what a hub says each receiver reads, and hands the hub what each sender adds. Three
hubs stand here: one that keeps every receiver's input apart so that a gradient can be taken there, and one that runs
sets of edges: what an edge inside the set carries is this run's, what one outside carries is the corrupted run's.
Knows one text's positions and no prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.interp.edge_graph import FEED, LOGITS, MIXER, Graph
from glassformer.interp.edge_relevance import of_end, of_layer
from glassformer.interp.head_outputs import gain
from glassformer.interp.recording import Recording
from glassformer.interp.run_from import Context
from glassformer.interp.taps import Action, Bound, SiteAction
from glassformer.model.attention import Visible
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.block import Block
from glassformer.model.parts.experts import ExpertsPart
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import Looking, View, Where


class Hub(Protocol):
    """Says what receivers read and takes what senders add, rescaling left out."""

    def read(self, which: range) -> Float[Tensor, "receiver row query d_model"]: ...

    def send(self, added: Float[Tensor, "sender row query d_model"]) -> None: ...


class Splits(Protocol):
    """Takes what a feed-forward part adds apart: features times the decoder, a base and an error (`dictionary`)."""

    @property
    def decoder(self) -> Float[Tensor, "feature d_model"]: ...

    def split(
        self, block: Block, stream: Float[Tensor, "row query d_model"], view: View | None = None
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def through(norm: NormLayer | None, parts: Float[Tensor, "part *batch d_model"], held: bool = False) -> Tensor:
    """Parts after a norm of their sum: each divided by what that divides by, its bias shared out evenly; where `held`,
    nothing goes back through the divisor."""
    if norm is None:
        return parts
    scale = norm.scale(parts.sum(0)).to(parts.dtype)
    scale = scale.detach() if held else scale
    parts = parts - parts.mean(-1, keepdim=True) if norm.centred else parts
    parts = parts / scale * gain(norm, parts)
    return parts if norm.bias is None else parts + norm.bias / len(parts)


def read(block: Block, place: int, stream: Float[Tensor, "*batch d_model"], held: bool = False) -> Tensor:
    """What a place reads of the stream; where `held`, nothing goes back through its norm's divisor."""
    norm = block.norm(place)
    if not held or norm is None:
        return block.read(place, stream)
    return norm.apply_scale(stream, norm.scale(stream).detach())


def added_parts(
    block: Block, place: int, parts: Float[Tensor, "part *batch d_model"], held: bool = False
) -> Float[Tensor, "part *batch d_model"]:
    """Parts that add up to a mixer's or feed-forward part's output, as they enter the stream."""
    parts, times = through(block.post_norm(place), parts, held), block.choice.part_scale(place)
    return parts if times == 1 else parts * times


def split_heads(
    block: Block, z: Float[Tensor, "row query head d_head"], held: bool = False
) -> Float[Tensor, "head row query d_model"]:
    """What each attention head adds to the stream; the output's bias is shared out evenly."""
    part = block.mixer
    assert part is not None
    heads = z.shape[2]
    if isinstance(part, AttentionPart):
        columns = part.head_columns
    else:
        columns = part.o.weight.view(-1, heads, z.shape[3]).transpose(0, 1)
    out = torch.einsum("rthe,hde->hrtd", z, columns)
    if part.o.bias is not None:
        out = out + part.o.bias / heads
    return added_parts(block, MIXER, out, held)


def fed(block: Block, stream: Float[Tensor, "row query d_model"]) -> Float[Tensor, "row query d_model"]:
    """What the feed-forward part adds to the stream, given the stream it reads."""
    part, x = block.feed_forward, block.read(FEED, stream)
    assert part is not None
    return block.add(FEED, part(x, None, stream) if isinstance(part, ExpertsPart) else part(x))


def split_feed(
    block: Block, streams: Float[Tensor, "receiver row query d_model"], view: View | None = None
) -> Float[Tensor, "sender row query d_model"]:
    """The same from each of its senders: the part, or each expert and the part beside them.

    Args:
        streams: what each receiver reads: one for all, or the router's, each expert's, and that of the part beside.
        view: where relevance is propagated, and then divisors and experts' weights are held.
    """
    part, held = block.feed_forward, view is not None
    assert part is not None
    if not isinstance(part, ExpertsPart):
        if not held:
            return fed(block, streams[0])[None]
        return added_parts(block, FEED, part(read(block, FEED, streams[0], held), view)[None], held)
    x = read(block, FEED, streams, held)
    weights = part.weights(part.scored(x[0], streams[0]))
    weights = weights.detach() if held else weights
    own = slice(1, 1 + part.choice.n_experts) if len(x) > 1 else slice(None)
    inner = part.narrowed(part.entering(x[own], streams[own]))
    post = part.watched(inner, weights, view).unflatten(-1, (part.choice.n_experts, -1))
    down = part.experts.down
    out = torch.einsum("rtef,edf->ertd", post, down.weight)
    if down.bias is not None:
        out = out + part.outer(weights).movedim(-1, 0)[..., None] * down.bias[:, None, None]
    if part.widen is not None:
        out = out @ part.widen.weight.T
        if part.widen.bias is not None:
            out = out + part.widen.bias / len(out)
    out = through(part.ln_out, out, held)
    if part.bias is not None:
        out = out + part.bias / len(out)
    if part.shared is not None:
        out = torch.cat([out, part.beside(x[-1], view)[None]])
    return added_parts(block, FEED, out, held)


def rescaling(forward: Recording) -> tuple[dict[tuple[int | None, int], float], dict[tuple[int, int], float]]:
    """What the stream has been multiplied by, from the embedding on: where each place reads it, and where each place's
    senders join it. Everything is 1 in designs that only add.

    Numbers of senders and streams are kept divided by it, so that what a sender adds is the same wherever it is read.
    """
    reads: dict[tuple[int | None, int], float] = {}
    joins: dict[tuple[int, int], float] = {}
    for layer, choice in enumerate(forward.config.layers):
        times = forward.carried(-1, 0, layer)
        reads[layer, MIXER] = times
        first = times * choice.stream_scale(MIXER)
        reads[layer, FEED] = times if choice.parallel else first
        joins[layer, MIXER], joins[layer, FEED] = first, first * choice.stream_scale(FEED)
    reads[None, LOGITS] = forward.carried(-1, 0)
    return reads, joins


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
            choice, readers = self.config.layers[layer], self.graph.read
            feed_reads = None
            if choice.parallel:
                feed_reads = hub.read(readers[layer, FEED])
            for place, part in ((MIXER, choice.mixer), (FEED, choice.feed_forward)):
                if part is None:
                    continue
                if given is not None and given[:2] == (layer, place):
                    hub.send(given[2])
                elif place == MIXER:
                    x = hub.read(readers[layer, MIXER]) * self.reads[layer, MIXER]
                    hub.send(self.mixer(layer, x, state, relevance) / self.joins[layer, MIXER])
                else:
                    x = hub.read(readers[layer, FEED]) if feed_reads is None else feed_reads
                    x = x * self.reads[layer, FEED]
                    view = self._view(of_layer(self.config, layer, FEED), state, layer) if relevance else None
                    added = split_feed(self.block(layer), x, view)
                    if relevance and layer in self.laid:
                        on, base, error = self.laid[layer].split(self.block(layer), x[0], view)
                        added = torch.stack([on @ self.laid[layer].decoder.to(on), base, error])
                    hub.send(added / self.joins[layer, FEED])
        last = hub.read(self.graph.logits)[0, :, -1:] * self.reads[None, LOGITS]
        end = self._view(of_end(self.config), state) if relevance else None
        return self.transformer.normed(last, end)[:, 0]

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
        for site, side in own_sides(part, x).items():
            steps.append(SiteAction(f"blocks.{layer}.attn.{site}", _instead(side), True))
        if relevance:
            steps += of_layer(self.config, layer, MIXER)
        part(x[0], state, self._view(steps, state, layer))
        return split_heads(block, kept[0], relevance)


def _instead(new: Tensor) -> Action:
    return lambda site, old, where: new


def own_sides(part: AttentionPart, x: Float[Tensor, "receiver row query d_model"]) -> dict[str, Tensor]:
    """Queries, gates, keys and values by site, each head's from its own input."""
    heads, groups = part.heads, part.kv_heads
    if _only_projects(part):
        read = {"q": (part.q, x[:heads]), "k": (part.k, x[heads : heads + groups]), "v": (part.v, x[heads + groups :])}
        return {site: _rows_of_heads(linear, own) for site, (linear, own) in read.items() if linear is not None}
    reading: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {"q": (part.queries, x[:heads])}
    if part.gate is not None:
        reading["gate"] = (part.gates, x[:heads])
    if part.choice.keys_from is None:
        reading["k"] = (lambda y: part.keys_and_values(y)[0], x[heads : heads + groups])
        reading["v"] = (lambda y: part.keys_and_values(y)[1], x[heads + groups :])
    out = {}
    for site, (project, own) in reading.items():
        y = project(own.flatten(0, 1)).unflatten(0, own.shape[:2])
        out[site] = torch.stack([y[i, :, :, i] for i in range(len(own))], dim=2)
    return out


def _only_projects(part: AttentionPart) -> bool:
    """Whether each head's query, key and value is a product with its own rows of a matrix, and nothing more."""
    choice = part.choice
    more = (choice.qk_norm, choice.value_norm, choice.values_are_keys, choice.gate)
    return type(part) is AttentionPart and not any(more) and choice.clip is None and choice.value_scale is None


def _rows_of_heads(
    linear: Linear, x: Float[Tensor, "head row query d_model"]
) -> Float[Tensor, "row query head d_head"]:
    """Each head's rows of a projection of its own input."""
    out = torch.einsum("hrtd,hed->rthe", x, linear.weight.view(len(x), -1, x.shape[-1]))
    return out if linear.bias is None else out + linear.bias.view(len(x), -1)


class Slopes:
    """Keeps each receiver's input as a tensor of its own, so that a gradient can be taken there."""

    def __init__(self, x: Float[Tensor, "row query d_model"]) -> None:
        self.x = x
        self.inputs: dict[int, Tensor] = {}  # by their first receiver

    def read(self, which: range) -> Tensor:
        """The stream, once for each receiver."""
        self.inputs[which.start] = self.x[None].expand(len(which), -1, -1, -1).clone()
        return self.inputs[which.start]

    def send(self, added: Tensor) -> None:
        """Adds to the stream."""
        self.x = self.x + added.sum(0)


class Inside:
    """Runs sets of edges, one a row; edges outside a set carry what the corrupted run has there.

    Args:
        streams: the corrupted run's stream, by number of senders before.
        sent: what each sender adds in the corrupted run.
        sets: True for edges inside; at each position apart where there is one more axis.
    """

    def __init__(
        self,
        graph: Graph,
        streams: dict[int, Float[Tensor, "query d_model"]],
        sent: Float[Tensor, "sender query d_model"],
        sets: Bool[Tensor, "row edge *query"],
    ) -> None:
        self.graph, self.streams, self.sent, self.sets = graph, streams, sent, sets
        self.change = sent.new_zeros(len(sets), len(sent), sent[0].numel())  # this run's senders less the corrupted's
        self.count = 0

    def send(self, added: Tensor) -> None:
        """Takes the next senders."""
        new = slice(self.count, self.count + len(added))
        self.change[:, new] = (added - self.sent[new, None]).movedim(0, 1).flatten(2)
        self.count = new.stop

    def read(self, which: range) -> Tensor:
        """The corrupted stream, and what the edges inside change in it."""
        seen, rows = self.graph.receivers[which[0]].seen, len(self.sets)
        inside = self.sets[:, self.graph.edges_of(which)].to(self.change)
        inside = inside.view(rows, len(which), seen, *inside.shape[2:])
        base, change = self.streams[seen], self.change[:, :seen]
        if inside.ndim == 4:
            return base + torch.einsum("nrst,nstd->rntd", inside, change.unflatten(-1, base.shape))
        return base + torch.bmm(inside, change).unflatten(-1, base.shape).movedim(0, 1)
