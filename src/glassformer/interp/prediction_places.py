"""The parts of a traced model as nodes of a prediction's graph: what each hands over, by all paths and directly.

Knows a model run with its gates held (`edge_run`), and slopes at every point of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edge_graph import ANEW, BESIDE, FEED, MIXER, NORMED_MIXER, OWN, Graph
from glassformer.interp.edge_parts import anew_bias, first_copy, made_anew, one_of, read, split_feed, widened
from glassformer.interp.edge_relevance import of_layer
from glassformer.interp.edge_run import Apart, Splits
from glassformer.interp.taps import Action, Bound, SiteAction
from glassformer.model.choices import Attention
from glassformer.model.parts.experts import ExpertsPart
from glassformer.model.parts.feed_forward import FeedForwardPart
from glassformer.model.sites import Looking, Where


@dataclass
class Place:
    """The parts of one layer's mixer or feed-forward part, with a graph from the stream that they read.

    Attributes:
        x: the stream read, by its number among the kept ones: with keys of an earlier layer, also what that read;
        units: numbers (unit, query) whose sum times `slope` is what the part hands over;
        slope: what one of them is worth, by all paths; ends: what it is worth to the score directly.
        vectors: what each unit adds to the stream at each query, where a dictionary says so.
        added: what each sender adds at each query, or of neurons all of them together; filled when first asked for.
    """

    x: dict[int, Tensor]
    units: Tensor
    slope: Tensor
    ends: Tensor
    names: list[tuple[str, int]]  # kind and number of each unit
    vectors: Float[Tensor, "unit query d_model"] | None = None
    added: Float[Tensor, "sender query wide"] | None = None


def _keeping(kept: list[Tensor]) -> Action:
    def action(site: str, x: Tensor, where: Where) -> None:
        kept.append(x)

    return action


def before(graph: Graph, apart: Apart, layer: int, place: int) -> int:
    """Which of the kept streams a place reads."""
    if place == BESIDE or (place == FEED and apart.config.layers[layer].parallel):
        place = MIXER
    return list(graph.sent).index((layer, place))


def points(graph: Graph, apart: Apart, layer: int, place: int) -> list[int]:
    """The kept streams that a place reads: the one that it stands at, and with keys of an earlier layer that one's."""
    found = [before(graph, apart, layer, place)]
    donor = getattr(apart.config.layers[layer].mixer, "keys_from", None) if place == MIXER else None
    return found if donor is None else [*found, before(graph, apart, donor, MIXER)]


def mixed(
    apart: Apart, graph: Graph, layer: int, reads: dict[int, Tensor], relevance: bool = False
) -> Float[Tensor, "sender query wide"]:
    """What a mixer's senders add, from the streams at its `points`."""
    state, donor, added = apart.begin(1), getattr(apart.config.layers[layer].mixer, "keys_from", None), None
    for at in (layer,) if donor is None else (donor, layer):
        stream = first_copy(apart.block(at), reads[before(graph, apart, at, MIXER)]) * apart.reads[at, MIXER]
        many = len(graph.read[at, MIXER])
        added = apart.mixer(at, stream[None].expand(many, -1, -1, -1), state, relevance)[:, 0]
    assert added is not None
    return widened(added / apart.joins[layer, MIXER], graph.width)


def linear(apart: Apart, key: tuple[int, int], like: Tensor, x: Float[Tensor, "*batch wide"]) -> Tensor:
    """What something in the stream comes to where the stream is made anew, divisors and shares those of `like`."""
    (layer, place), block = key, apart.block(key[0])
    out = made_anew(block, place, x, apart.reads[layer, place], True, like)
    bias = anew_bias(block, place)
    return out if bias is None else out - bias


def direct_slopes(apart: Apart, graph: Graph, streams: Sequence[Tensor], final: Tensor) -> list[Tensor]:
    """What the stream at every kept point is worth to the score by no further part, last one first made."""
    ends, now = [final], final
    for number, key in reversed(list(enumerate(graph.sent))):
        if key[1] in ANEW:
            with torch.enable_grad():
                x = torch.zeros_like(streams[number]).requires_grad_()
                [now] = torch.autograd.grad(linear(apart, key, streams[number], x), x, now)
        ends.append(now)
    return ends[::-1]


def places(
    apart: Apart, graph: Graph, streams: list[Tensor], slopes: Sequence[Tensor], ends: Sequence[Tensor]
) -> dict[tuple[int, int], Place]:
    """Every part's units, what each is worth, and a graph to what they read."""
    out = {}
    for number, (layer, place) in enumerate(graph.sent):
        after, final = slopes[number + 1][0], ends[number + 1][0]
        state = apart.begin(1)
        block, config = apart.block(layer), apart.config
        times = apart.reads[layer, place]
        if place in ANEW:
            if (bias := anew_bias(block, place)) is not None:
                named = "norm", _norm_number(graph, layer, place)
                out[layer, place] = _constant(bias, after, final, named)
            continue
        with torch.enable_grad():
            read_at = points(graph, apart, layer, place)
            reads = {point: streams[point].clone().requires_grad_() for point in read_at}
            x = reads[read_at[0]]
            stream = first_copy(block, x) * times
            if place == MIXER:
                added = mixed(apart, graph, layer, reads, relevance=True)
                kind = "head" if isinstance(config.layers[layer].mixer, Attention) else "mixer"
            elif place in (OWN, BESIDE):
                token = apart.token(layer) if place == OWN else None
                added = apart.part(layer, place, x[None], state, True, token)[:, 0]
                kind = "own" if place == OWN else "laurel"
            elif layer in apart.laid:
                view = Looking(Bound(of_layer(config, layer, FEED)), config, state.where).at(layer)
                on, base, error = (y[0] for y in apart.laid[layer].split(block, stream, view))
                joins = apart.joins[layer, FEED]
                out[layer, place] = _laid(reads, on, base, error, apart.laid[layer], after, final, joins)
                continue
            else:
                kept: list[Tensor] = []
                experts = isinstance(block.feed_forward, ExpertsPart)
                steps = of_layer(config, layer, FEED)
                if not experts:
                    steps.append(SiteAction(f"blocks.{layer}.mlp.post", _keeping(kept), False))
                view = Looking(Bound(steps), config, state.where).at(layer)
                added = split_feed(block, stream[None], view)[:, 0] / apart.joins[layer, FEED]
                added, kind = widened(added, graph.width), "expert" if experts else "neuron"
                if not experts:
                    part, post_norm = block.feed_forward, block.post_norm(FEED)
                    assert isinstance(part, FeedForwardPart)
                    more = part.down.bias is not None or (post_norm is not None and post_norm.bias is not None)
                    out[layer, place] = _neurons(reads, kept[0], added[0], after, final, more)
                    continue
            units = (added * after[None]).sum(-1)
        direct = (added * final[None]).sum(-1).detach()
        share = torch.where(units == 0, torch.zeros_like(direct), direct / units.detach())
        names = [(kind, i) for i in range(len(added))]
        if kind == "expert" and graph.senders[graph.sent[layer, place][-1]].endswith(".shared"):
            names[-1] = ("shared", 0)
        out[layer, place] = Place(reads, units, torch.ones_like(direct), share, names)
    return out


def _norm_number(graph: Graph, layer: int, place: int) -> int:
    """1 for a norm amid its layer, 2 for one at its end."""
    return 1 if place == NORMED_MIXER and (layer, FEED) in graph.sent else 2


def _neurons(x: dict[int, Tensor], post: Tensor, added: Tensor, after: Tensor, final: Tensor, more: bool) -> Place:
    """Neurons by what the down projection reads of them, and last (where there is `more`) what it adds whatever they
    are."""
    slopes = [torch.autograd.grad((added * g).sum(), [post], retain_graph=True)[0][0].T for g in (after, final)]
    units, names = post[0].T, [("neuron", i) for i in range(post.shape[-1])]
    if not more:
        return Place(x, units, slopes[0], slopes[1], names)
    for i, g in enumerate((after, final)):
        rest = (added * g).sum(-1).detach() - (units.detach() * slopes[i]).sum(0)
        slopes[i] = torch.cat([slopes[i], rest[None]])
    units = torch.cat([units, torch.ones_like(units[:1])])
    return Place(x, units, slopes[0], slopes[1], [*names, ("bias", 0)])


def _constant(bias: Tensor, after: Tensor, final: Tensor, name: tuple[str, int]) -> Place:
    """A vector that is added whatever was read."""
    ones = torch.ones_like(after[None, :, 0])
    vectors = bias.expand(1, len(after), -1)
    return Place({}, ones, (after @ bias)[None], (final @ bias)[None], [name], vectors)


def written(
    apart: Apart, graph: Graph, p: Place, layer: int, place: int, unit: int, query: int
) -> Float[Tensor, " d_model"]:
    """What a node adds to the stream."""
    if p.vectors is not None:
        return p.vectors[unit, query]
    if p.added is None:
        p.added = _added(apart, graph, p, layer, place)
    block = apart.block(layer)
    if place != FEED or not isinstance(part := block.feed_forward, FeedForwardPart):
        return p.added[unit, query]
    total, bias = p.added[0, query], p.names[unit][0] == "bias"
    if bias:
        mine = torch.zeros_like(total) if part.down.bias is None else part.down.bias
    else:
        mine = p.units[unit, query].detach() * part.columns[:, unit]
    return widened(one_of(block, FEED, mine, total, bias) / apart.joins[layer, place], graph.width)


def _added(apart: Apart, graph: Graph, p: Place, layer: int, place: int) -> Float[Tensor, "sender query wide"]:
    """What each sender of a place adds to the stream; of neurons, what the whole part gives before its norm."""
    block, read_here = apart.block(layer), {point: x.detach() for point, x in p.x.items()}
    if place == MIXER:
        return mixed(apart, graph, layer, read_here)
    x = next(iter(read_here.values()))
    if place in (OWN, BESIDE):
        token = apart.token(layer) if place == OWN else None
        return apart.part(layer, place, x[None], apart.begin(1), token=token)[:, 0]
    x = first_copy(block, x) * apart.reads[layer, place]
    if isinstance(part := block.feed_forward, FeedForwardPart):
        return part(read(block, FEED, x))
    return widened(split_feed(block, x[None])[:, 0] / apart.joins[layer, place], graph.width)


def _laid(
    x: dict[int, Tensor],
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
    wide = after.shape[-1]
    after, final = after[:, : decoder.shape[1]], final[:, : decoder.shape[1]]  # of the first copy, where there are more
    rest = torch.stack([base, error]) / joins
    units = torch.cat([on[:, used].T, (rest * after).sum(-1)])
    direct = (rest * final).sum(-1).detach()
    share = torch.where(units[-2:] == 0, torch.zeros_like(direct), direct / units[-2:].detach())
    slope = torch.cat([decoder @ after.T, torch.ones_like(direct)])
    names = [*(("feature", i) for i in used.tolist()), ("base", 0), ("error", 0)]
    vectors = torch.cat([on.detach()[:, used].T[..., None] * decoder[:, None], rest.detach()])
    vectors = widened(vectors, wide)
    return Place(x, units, slope, torch.cat([decoder @ final.T, share]), names, vectors)
