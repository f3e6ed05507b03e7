"""The parts of a traced model as nodes of a prediction's graph: what each hands over, by all paths and directly.

Knows a model run with its gates held (`edge_run`), and slopes at every point of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edge_graph import FEED, MIXER, OWN, Graph
from glassformer.interp.edge_parts import added_parts, read, split_feed
from glassformer.interp.edge_relevance import of_layer
from glassformer.interp.edge_run import Apart, Splits
from glassformer.interp.taps import Action, Bound, SiteAction
from glassformer.model.choices import Attention
from glassformer.model.parts.experts import ExpertsPart
from glassformer.model.sites import Looking, Where


@dataclass
class Place:
    """The parts of one layer's mixer or feed-forward part, with a graph from the stream that they read.

    Attributes:
        x: the stream read; units: numbers (unit, query) whose sum times `slope` is what the part hands over;
        slope: what one of them is worth, by all paths; ends: what it is worth to the score directly.
        vectors: what each unit adds to the stream at each query, where a dictionary says so.
    """

    x: Tensor
    units: Tensor
    slope: Tensor
    ends: Tensor
    names: list[tuple[str, int]]  # kind and number of each unit
    vectors: Float[Tensor, "unit query d_model"] | None = None


def _keeping(kept: list[Tensor]) -> Action:
    def action(site: str, x: Tensor, where: Where) -> None:
        kept.append(x)

    return action


def before(graph: Graph, apart: Apart, layer: int, place: int) -> int:
    """Which of the kept streams a place reads."""
    parts = [key for key in graph.sent if key < (layer, place)]
    if place == FEED and apart.config.layers[layer].parallel:
        parts = [key for key in parts if key[0] < layer]
    return len(parts)


def places(
    apart: Apart, graph: Graph, streams: list[Tensor], slopes: Sequence[Tensor], final: Tensor
) -> dict[tuple[int, int], Place]:
    """Every part's units, what each is worth, and a graph to what they read."""
    out = {}
    for number, (layer, place) in enumerate(graph.sent):
        after = slopes[number + 1][0]
        state = apart.begin(1)
        block, config = apart.block(layer), apart.config
        times = apart.reads[layer, place]
        with torch.enable_grad():
            x = streams[before(graph, apart, layer, place)].clone().requires_grad_()
            if place == MIXER:
                many = len(graph.read[layer, MIXER])
                added = apart.mixer(layer, (x * times)[None].expand(many, -1, -1, -1), state, relevance=True)
                added = added[:, 0] / apart.joins[layer, MIXER]
                kind = "head" if isinstance(config.layers[layer].mixer, Attention) else "mixer"
            elif place == OWN:
                added = apart.part(layer, place, x[None], state, True, apart.token(layer))[:, 0]
                kind = "own"
            elif layer in apart.laid:
                view = Looking(Bound(of_layer(config, layer, FEED)), config, state.where).at(layer)
                on, base, error = (y[0] for y in apart.laid[layer].split(block, x * times, view))
                out[layer, place] = _laid(
                    x, on, base, error, apart.laid[layer], after, final[0], apart.joins[layer, FEED]
                )
                continue
            else:
                kept: list[Tensor] = []
                experts = isinstance(block.feed_forward, ExpertsPart)
                steps = of_layer(config, layer, FEED)
                if not experts:
                    steps.append(SiteAction(f"blocks.{layer}.mlp.post", _keeping(kept), False))
                view = Looking(Bound(steps), config, state.where).at(layer)
                added = split_feed(block, (x * times)[None], view)[:, 0] / apart.joins[layer, FEED]
                kind = "expert" if experts else "neuron"
                if not experts:
                    post = kept[0]
                    worth = [(added * g[None]).sum() for g in (after, final[0])]
                    each = [torch.autograd.grad(w, [post], retain_graph=True)[0][0].T for w in worth]
                    names = [(kind, i) for i in range(post.shape[-1])]
                    out[layer, place] = Place(x, post[0].T, each[0], each[1], names)
                    continue
            units = (added * after[None]).sum(-1)
        ends = (added * final[0][None]).sum(-1).detach()
        share = torch.where(units == 0, torch.zeros_like(ends), ends / units.detach())
        names = [(kind, i) for i in range(len(added))]
        if kind == "expert" and graph.senders[graph.sent[layer, place][-1]].endswith(".shared"):
            names[-1] = ("shared", 0)
        out[layer, place] = Place(x, units, torch.ones_like(ends), share, names)
    return out


def written(
    apart: Apart, graph: Graph, p: Place, layer: int, place: int, unit: int, query: int
) -> Float[Tensor, " d_model"]:
    """What a node adds to the stream."""
    if p.vectors is not None:
        return p.vectors[unit, query]
    block = apart.block(layer)
    if place == OWN:
        return apart.part(layer, place, p.x.detach()[None], apart.begin(1), token=apart.token(layer))[0, 0, query]
    x = p.x.detach() * apart.reads[layer, place]
    if p.names[unit][0] == "neuron":
        part = block.feed_forward
        assert part is not None
        assert not isinstance(part, ExpertsPart)
        mine = p.units[unit, query].detach() * part.columns[:, unit]
        total = part(read(block, FEED, x[:, query : query + 1]))[0, 0]
        return added_parts(block, FEED, torch.stack([mine, total - mine]))[0] / apart.joins[layer, FEED]
    if place == FEED:
        return split_feed(block, x[None, :, query : query + 1])[unit, 0, 0] / apart.joins[layer, FEED]
    many = len(graph.read[layer, MIXER])
    added = apart.mixer(layer, x[None].expand(many, -1, -1, -1), apart.begin(1))
    return added[unit, 0, query] / apart.joins[layer, MIXER]


def _laid(
    x: Tensor,
    on: Float[Tensor, "query feature"],
    base: Float[Tensor, "query d_model"],
    error: Float[Tensor, "query d_model"],
    dictionary: Splits,
    after: Float[Tensor, "query d_model"],
    final: Float[Tensor, "query d_model"],
    joins: float,
) -> Place:
    """Features that are on anywhere, then the base and the error."""
    used = (on.detach() != 0).any(0).nonzero()[:, 0]
    decoder = dictionary.decoder[used.to(dictionary.decoder.device)].to(on) / joins
    rest = torch.stack([base, error]) / joins
    units = torch.cat([on[:, used].T, (rest * after).sum(-1)])
    direct = (rest * final).sum(-1).detach()
    share = torch.where(units[-2:] == 0, torch.zeros_like(direct), direct / units[-2:].detach())
    slope = torch.cat([decoder @ after.T, torch.ones_like(direct)])
    names = [*(("feature", i) for i in used.tolist()), ("base", 0), ("error", 0)]
    vectors = torch.cat([on.detach()[:, used].T[..., None] * decoder[:, None], rest.detach()])
    return Place(x, units, slope, torch.cat([decoder @ final.T, share]), names, vectors)
