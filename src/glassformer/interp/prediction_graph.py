"""A graph of one prediction: which words, heads and neurons (or experts), at which positions, made it, by which ways.

With norms' divisors and attention patterns held as they ran, and each neuron's input and linear half sharing its
output, a prediction's score is a sum over paths. A node's *direct* effect is what it hands to the score itself; its
*effect* is what it hands over by all paths, and splits exactly into what earlier nodes gave it and its biases. Beside
both stands what was measured: the score's loss when the node is taken away and everything after it is computed anew.
Nothing is approximated by a dictionary, so there are no error nodes: what is not shown is a sum that is stated. Where a
dictionary is laid over a layer, its features stand for the neurons, and what it misses is an error node. Knows one
trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import CheckpointError, SiteError, UsageError
from glassformer.interp.dictionary import Dictionary
from glassformer.interp.edge_graph import ANEW, TOKEN, Graph
from glassformer.interp.edge_parts import widened
from glassformer.interp.edge_run import Apart
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.logit_target import Direction, direction
from glassformer.interp.node_effects import Node, number_of, without
from glassformer.interp.prediction_places import direct_slopes, linear, places, written
from glassformer.model import Transformer
from glassformer.system import sealed

if TYPE_CHECKING:
    from glassformer.interp.edit_ops import Apply
    from glassformer.interp.trace import Trace

FORMAT = "glassformer.graph/1"
# Nodes whose written vectors point the same way as this, at one position, are put in one group.
ALIKE = 0.6


@dataclass(frozen=True)
class PredictionGraph:
    """Nodes, edges and sums.

    Attributes:
        token, against, position, unit: the number explained, in words.
        value: the number; direct: the sum of all nodes' direct effects, shown or not; constant: what biases and the
            unembedding add, so that value = direct + constant.
        coverage: the share of the sum of all nodes' sizes |effect| that the nodes shown have.
        nodes: strongest first, each with its `Node`, effect, direct effect, bias (what its own biases give it) and
            measured effect (None where it was not measured).
        edges: (from, to, share) by number of node; to is None for the score itself.
        others: per node, what it is given by nodes not shown. groups: named sets of nodes.
    """

    token: str
    against: str | None
    position: int
    unit: str
    value: float
    direct: float
    constant: float
    coverage: float
    nodes: list[dict[str, Any]]
    edges: list[tuple[int, int | None, float]]
    others: list[float]
    groups: dict[str, list[int]]
    trace: Trace = field(repr=False, compare=False)
    way: Direction = field(repr=False, compare=False)

    @property
    def correlation(self) -> float | None:
        """Pearson's, of the effects of the nodes shown with what was measured; None where nothing was."""
        both = torch.tensor([(n["effect"], n["measured"]) for n in self.nodes if n["measured"] is not None])
        return None if len(both) < 2 or bool((both.std(0) == 0).any()) else float(torch.corrcoef(both.T)[0, 1])

    def grouped(self, groups: Mapping[str, Sequence[int | str]]) -> PredictionGraph:
        """The same with these groups, of nodes by number or by name, instead of the automatic ones.

        Raises:
            SiteError: for a node that is not there.
        """
        return replace(self, groups={name: self.numbers(members) for name, members in groups.items()})

    def numbers(self, members: Sequence[int | str] | str) -> list[int]:
        """Nodes by number, name, or the name of a group."""
        if isinstance(members, str):
            if members in self.groups:
                return self.groups[members]
            members = [members]
        names = [node["name"] for node in self.nodes]
        out = []
        for one in members:
            if isinstance(one, int) and 0 <= one < len(names):
                out.append(one)
            elif isinstance(one, str) and one in names:
                out.append(names.index(one))
            else:
                raise SiteError(f"The graph shows no node {one!r}; it has {len(names)}, {', '.join(names[:3])} first.")
        return sorted(set(out))

    def taps(self, members: Sequence[int | str] | str, by: float) -> list[Apply]:
        """Edits that multiply what these nodes (or a group) write by a number: `model.edited(*graph.taps("a", 0))`."""
        return [self.nodes[number]["node"].scaled(by) for number in self.numbers(members)]

    def turned(self, members: Sequence[int | str] | str, by: float) -> float:
        """The number explained with these nodes (or a group) multiplied by `by`, measured."""
        from glassformer.interp.taps import compose

        tap = compose(*self.taps(members, by), config=self.trace.config)
        ids = torch.tensor([self.trace.ids[: self.position + 1]], device=self.trace.transformer.device)
        with torch.no_grad():
            return float(number_of(self.way, self.trace.transformer.hidden(ids, tap=tap)[:, -1])[0])

    def save(self, path: str | Path, name: str = "") -> None:
        """Write it as one JSON file, which `opened` reads.

        Raises:
            CheckpointError: it cannot be written.
        """
        told = {"format": FORMAT, "name": name, "weights": fingerprint(self.trace.transformer), "ids": self.trace.ids}
        sealed.write(path, {**told, **self.to_dict()}, raises=CheckpointError)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: nodes stand at layer × position."""
        of_group = {number: name for name, members in self.groups.items() for number in members}
        sums: dict[tuple[str, str], float] = {}
        for start, end, share in self.edges:
            if end is not None and start in of_group and end in of_group and of_group[start] != of_group[end]:
                key = of_group[start], of_group[end]
                sums[key] = sums.get(key, 0.0) + share
        return {
            "token": self.token,
            "against": self.against,
            "position": self.position,
            "unit": self.unit,
            "value": self.value,
            "direct": self.direct,
            "constant": self.constant,
            "coverage": self.coverage,
            "correlation": self.correlation,
            "tokens": list(self.trace.tokens[: self.position + 1]),
            "layers": self.trace.config.n_layers,
            "nodes": [
                {key: x for key, x in node.items() if key != "node"} | {"id": number, "others": others}
                for number, (node, others) in enumerate(zip(self.nodes, self.others, strict=True))
            ],
            "edges": [{"from": a, "to": b, "share": share} for a, b, share in self.edges],
            "groups": [
                {
                    "name": name,
                    "nodes": members,
                    "effect": sum(self.nodes[i]["effect"] for i in members),
                    "direct": sum(self.nodes[i]["direct"] for i in members),
                }
                for name, members in self.groups.items()
            ],
            "group_edges": [{"from": a, "to": b, "share": share} for (a, b), share in sums.items()],
        }


def opened(path: str | Path, transformer: Transformer | None = None) -> dict[str, Any]:
    """A saved graph's plain data.

    Raises:
        CheckpointError: it is none, is broken, or (where a model is given) is of another model.
    """
    told = sealed.read(path, FORMAT, "graph", raises=CheckpointError)
    if transformer is not None and told.get("weights") != fingerprint(transformer):
        raise CheckpointError(f"The graph in {path} is of a model with other weights or in another precision.")
    return told


class _Points:
    """Keeps the stream after every part as a tensor of its own, so that a gradient can be taken there; tokens' own
    vectors, by the number of their receiver, are held."""

    def __init__(self, x: Float[Tensor, "row query d_model"], tokens: Mapping[int, Tensor]) -> None:
        self.x, self.tokens, self.kept = x, tokens, [x]

    def read(self, which: range) -> Tensor:
        """The stream, for every receiver; or the token's own vector."""
        if which.start in self.tokens:
            return self.tokens[which.start]
        return self.x[None].expand(len(which), -1, -1, -1)

    def send(self, added: Tensor, anew: bool = False) -> None:
        """Adds to the stream, or puts it in its place."""
        self.x = added.sum(0) if anew else self.x + added.sum(0)
        self.kept.append(self.x)


@torch.no_grad()
def prediction_graph(
    trace: Trace,
    token: str | int | None = None,
    against: str | int | None = None,
    position: int = -1,
    *,
    coverage: float = 0.8,
    most: int = 60,
    measure: bool = True,
    lay: Sequence[Dictionary] = (),
) -> PredictionGraph:
    """The graph of one prediction.

    Args:
        token, against: the score of a token after a position, less that of another (or the vocabulary's mean).
        coverage: nodes are shown, strongest first, until they have this share of the sum of all sizes,
        most: or until there are so many; what was reached is stated.
        measure: whether each node shown is also taken away and the score computed anew.
        lay: dictionaries whose features stand in place of the neurons of their layers, with a base and an error node.

    Raises:
        UsageError: for a dictionary of another model, a coverage outside (0, 1], or fewer than one node.
    """
    if not 0 < coverage <= 1:
        raise UsageError(f"The coverage is above 0 and at most 1; {coverage} is not.")
    if most < 1:
        raise UsageError(f"A graph shows 1 node or more; {most} is not.")
    if trace.forward.edit is not None:
        raise UsageError("A graph is of the model as it is; trace the text without edits.")
    at = trace.position(position)
    way = direction(trace, token, against, at)
    graph = Graph(trace.config)
    apart = Apart(trace.forward, graph, 0, at)
    for one in lay:
        one.check(trace.config)
        if one.layer in apart.laid:
            raise UsageError(f"Two dictionaries are of layer {one.layer}; lay one over it.")
        apart.laid[one.layer] = one
    here = slice(0, at + 1)
    with torch.enable_grad():
        tokens = {
            which.start: apart.token(layer)
            for layer, place, which in graph.places()
            if layer is not None and place == TOKEN
        }
        begin = widened(trace.forward.entering(0, here), graph.width)
        hub = _Points(begin.detach().clone().requires_grad_(), tokens)
        number = number_of(way, apart.run(hub, 1, relevance=True))[0]
        slopes = torch.autograd.grad(number, hub.kept)
    streams = [x.detach() for x in hub.kept]
    ends = direct_slopes(apart, graph, streams, slopes[-1])
    parts = places(apart, graph, streams, slopes, ends)
    embed = streams[0][0]
    effects = [(embed * slopes[0][0]).sum(-1)[None], *((p.units * p.slope).detach() for p in parts.values())]
    flat = torch.cat([e.double().flatten() for e in effects])
    sizes = flat.abs()
    order = sizes.argsort(descending=True)
    whole = float(sizes.sum())
    reached = sizes[order].cumsum(0) / whole
    count = min(most, int((reached < coverage).sum()) + 1, len(order))
    bounds = torch.tensor([e.numel() for e in effects]).cumsum(0)
    nodes: list[dict[str, Any]] = []
    reads: list[dict[int, Tensor]] = []  # of each node: what each stream that it reads is worth to it
    writes: list[Tensor] = []
    spots, order_of = list(parts), list(graph.sent)
    lands: list[int] = []  # of each node: the first kept stream that holds what it writes
    for cell in order[:count].tolist():
        which = int(torch.searchsorted(bounds, cell, right=True))
        inner = cell - (int(bounds[which - 1]) if which else 0)
        unit, at_query = divmod(inner, at + 1)
        if which == 0:
            node = Node("embed", None, 0, at_query)
            vector, back = embed[at_query], {}
            direct, bias = (vector * ends[0][0, at_query]).sum(), flat[cell]
            lands.append(0)
        else:
            layer, place = spots[which - 1]
            p = parts[layer, place]
            kind, index = p.names[unit]
            node = Node(kind, layer, index, at_query)
            with torch.enable_grad():
                worth = p.units[unit, at_query] * p.slope[unit, at_query]
                found: Sequence[Tensor | None] = [None] * len(p.x)
                if worth.requires_grad:
                    found = torch.autograd.grad(worth, list(p.x.values()), retain_graph=True, allow_unused=True)
            back = {point: x[0].double() for point, x in zip(p.x, found, strict=True) if x is not None}
            lands.append(order_of.index((layer, place)) + 1)
            vector = written(apart, graph, p, layer, place, unit, at_query)
            if p.vectors is not None or kind == "bias":
                here_alone = vector[: trace.config.d_model] * apart.joins[layer, place]
                node = replace(node, vector=here_alone)
            direct = (p.units * p.ends)[unit, at_query].detach()
            bias = flat[cell] - sum((x * streams[point][0]).sum() for point, x in back.items())
        nodes.append(
            {
                "name": node.name(trace.config),
                "kind": node.kind,
                "layer": node.layer,
                "index": node.index,
                "position": node.position,
                "token": trace.tokens[node.position],
                "effect": float(flat[cell]),
                "direct": float(direct),
                "bias": float(bias),
                "measured": None,
                "node": node,
            }
        )
        reads.append(back)
        writes.append(vector.double())
    edges, given = _edges(nodes, reads, _Carried(apart, graph, streams, writes, nodes, lands))
    others = [each["effect"] - each["bias"] - shares for each, shares in zip(nodes, given, strict=True)]
    if measure:
        measured = without(trace, way, [node["node"] for node in nodes], at)
        for told, effect in zip(nodes, measured.tolist(), strict=True):
            told["measured"] = effect
    handed = float((streams[-1][0, -1].double() * ends[-1][0, -1].double()).sum())
    value = float(number)
    return PredictionGraph(
        token=trace.token_text(way.token),
        against=None if way.against is None else trace.token_text(way.against),
        position=at,
        unit=way.unit,
        value=value,
        direct=handed,
        constant=value - handed,
        coverage=float(reached[count - 1]),
        nodes=nodes,
        edges=edges,
        others=others,
        groups=_alike(nodes, writes),
        trace=trace,
        way=way,
    )


class _Carried:
    """What nodes wrote, as it stands at a later point of the stream: where that is made anew, with divisors and shares
    as run. Asked for points in the order of the forward."""

    def __init__(
        self,
        apart: Apart,
        graph: Graph,
        streams: list[Tensor],
        writes: list[Tensor],
        nodes: list[dict[str, Any]],
        lands: list[int],
    ) -> None:
        self.apart, self.streams = apart, streams
        self.now = torch.stack(writes)
        self.positions = torch.tensor([node["position"] for node in nodes])
        self.lands = torch.tensor(lands)
        self.left = [(number, key) for number, key in enumerate(graph.sent) if key[1] in ANEW]

    def at(self, point: int) -> Float[Tensor, "node wide"]:
        """At the stream that so many parts have added to; 0 for nodes that came later."""
        while self.left and self.left[0][0] < point:
            number, key = self.left.pop(0)
            x = self.streams[number][0, self.positions]
            before = (self.lands <= number)[:, None]
            self.now = torch.where(before, linear(self.apart, key, x, self.now), self.now)
        return self.now * (self.lands <= point)[:, None]


def _edges(
    nodes: list[dict[str, Any]], reads: list[dict[int, Tensor]], carried: _Carried
) -> tuple[list[tuple[int, int | None, float]], list[float]]:
    """What each node shown hands to each other and to the score, largest first; and what all others give each."""
    positions = carried.positions
    out: list[tuple[int, int | None, float]] = [
        (number, None, node["direct"]) for number, node in enumerate(nodes) if node["direct"]
    ]
    shares_of = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)  # (end, start)
    for point in sorted({point for back in reads for point in back}):
        wrote = carried.at(point)
        for end, back in enumerate(reads):
            if point in back:
                shares_of[end] += (wrote * back[point][positions]).sum(-1) * (positions <= positions[end])
    for end, shares in enumerate(shares_of):
        starts = shares.nonzero()[:, 0]
        out += [(start, end, share) for start, share in zip(starts.tolist(), shares[starts].tolist(), strict=True)]
    return sorted(out, key=lambda edge: -abs(edge[2])), shares_of.sum(-1).tolist()


def _alike(nodes: list[dict[str, Any]], writes: list[Tensor]) -> dict[str, list[int]]:
    """Nodes at one position whose vectors point the same way, or to each other through such; by the strongest one."""
    unit, positions = (
        torch.nn.functional.normalize(torch.stack(writes), dim=-1),
        torch.tensor([node["position"] for node in nodes]),
    )
    same = (unit @ unit.T >= ALIKE) & (positions[:, None] == positions)
    left, out = torch.ones(len(nodes), dtype=torch.bool), dict[str, list[int]]()
    for first in range(len(nodes)):
        members = torch.zeros_like(left)
        members[first] = left[first]
        while int((grown := same[members].any(0) & left | members).sum()) > int(members.sum()):
            members = grown
        left &= ~members
        if int(members.sum()) > 1:
            out[f"like {nodes[first]['name']}"] = members.nonzero()[:, 0].tolist()
    return out
