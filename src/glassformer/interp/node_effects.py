"""Nodes of a prediction's graph: what they are called, how they are scaled, and what taking one away does, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edit_ops import Apply
from glassformer.interp.logit_target import Direction
from glassformer.interp.run_from import Context
from glassformer.interp.select import Places, Selection, site_in
from glassformer.interp.taps import Bound, SiteAction
from glassformer.model.choices import Attention
from glassformer.model.config import Config
from glassformer.model.sites import Where

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# Runs of the model in one batch.
_ROWS = 64


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        kind: "embed", "head", "mixer" (a recurrence), "neuron", "bias" (of a feed-forward part), "expert", "shared"
            (the part beside experts), "own" (a layer's own embedding of the token), "laurel" (what stands beside
            attention where the stream is in copies) or "norm" (the bias of a norm of the sum); or, where a dictionary
            is laid over a layer, "feature", "base" or "error".
        layer: None for the embedding; position: of its token.
        index: head, neuron, expert or feature; of a norm, 1 where it stands amid the layer and 2 at its end.
        vector: what it adds at its place, where that is no fixed share of what stands there.
    """

    kind: str
    layer: int | None
    index: int
    position: int
    vector: Tensor | None = field(default=None, compare=False, repr=False)

    def name(self, config: Config) -> str:
        """As edges name parts, with the position after an @."""
        if self.layer is None:
            return f"embed@{self.position}"
        prefix = "x" if self.kind != "mixer" else config.mixer(self.layer).prefix
        forms = {
            "head": f"a{self.layer}.h{self.index}",
            "mixer": f"{prefix}{self.layer}",
            "neuron": f"m{self.layer}.n{self.index}",
            "expert": f"m{self.layer}.e{self.index}",
            "feature": f"m{self.layer}.f{self.index}",
            "own": f"e{self.layer}",
            "laurel": f"l{self.layer}",
            "norm": f"{self._normed(config)}{self.layer}.norm",
        }
        return f"{forms.get(self.kind, f'm{self.layer}.{self.kind}')}@{self.position}"

    def _normed(self, config: Config) -> str:
        """The part whose sum with the stream is normed, as edges name it."""
        assert self.layer is not None
        choice = config.layers[self.layer]
        if choice.mixer is None or (self.index == 2 and choice.feed_forward is not None):
            return "m"
        return "a" if isinstance(choice.mixer, Attention) else choice.mixer.prefix

    @property
    def part(self) -> str:
        """The place of its layer at which it is scaled."""
        return "resid_mid" if self.kind == "norm" and self.index == 1 else _PARTS[self.kind]

    def scaled(self, by: float) -> Apply:
        """An edit that multiplies what it writes."""
        chosen = Selection(
            positions=Places.of(self.position),
            heads=Places.of(self.index if self.kind == "head" else None, "heads"),
            units=Places.of(self.index if self.kind in ("neuron", "expert") else None, "units"),
        )
        vector = self.vector
        if vector is not None:
            return Apply((), self.layer, (self.part,), chosen, lambda x, where: x + (by - 1) * vector.to(x))
        return Apply((), 0 if self.layer is None else self.layer, (self.part,), chosen, lambda x, where: x * by)


_PARTS = {
    "embed": "resid_pre",
    "head": "attn.z",
    "mixer": "mixer.out",
    "neuron": "mlp.post",
    "expert": "mlp.weights",
    "shared": "mlp.shared",
    "own": "ple.out",
    "laurel": "laurel.out",
    "norm": "resid_post",
    "bias": "mlp.out",
    "feature": "mlp.out",
    "base": "mlp.out",
    "error": "mlp.out",
}


def number_of(way: Direction, normed: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
    """The number explained, from the normed stream at its position, in float64."""
    return normed.double() @ way.vector + way.offset


@torch.no_grad()
def without(trace: Trace, way: Direction, nodes: Sequence[Node], at: int) -> Float[Tensor, " node"]:
    """What the number loses when each node, alone, writes nothing, everything after it computed anew.

    Rows of one layer run together, from that layer on and from the first of their positions.
    """
    forward, transformer, config = trace.forward, trace.transformer, trace.config
    whole = Context(forward, at + 1)
    before = number_of(way, transformer.normed(forward.get(_last(config), slice(at, at + 1)))[:, 0])[0]
    out = torch.zeros(len(nodes), dtype=torch.float64)
    layers = sorted({node.layer or 0 for node in nodes})
    for layer in layers:
        mine = sorted((i for i, n in enumerate(nodes) if (n.layer or 0) == layer), key=lambda i: nodes[i].position)
        for low in range(0, len(mine), _ROWS):
            rows = mine[low : low + _ROWS]
            first = min(nodes[i].position for i in rows)
            x = forward.entering(layer, slice(first, at + 1)).expand(len(rows), -1, -1)
            at_site: dict[str, list[tuple[int, Node]]] = {}
            for row, i in enumerate(rows):
                place = site_in(nodes[i].part, config.layers[layer])
                at_site.setdefault(f"blocks.{layer}.{place}", []).append((row, nodes[i]))
            steps = [SiteAction(site, _silenced(chosen, first), True) for site, chosen in at_site.items()]
            shared = {
                donor: (
                    k[:, :, : at + 1].expand(len(rows), -1, -1, -1),
                    v[:, :, : at + 1].expand(len(rows), -1, -1, -1),
                )
                for donor, (k, v) in forward.shared(layer).items()
            }
            x = transformer.stream(
                x,
                torch.arange(first, at + 1, device=x.device).expand(len(rows), -1),
                layers=range(layer, config.n_layers),
                start=first,
                cache=whole.cut(first, len(rows)) if first else None,
                tap=Bound(steps),
                shared=shared,
                inputs=forward.inputs(slice(first, at + 1), len(rows)),
            )
            out[rows] = before - number_of(way, transformer.normed(x[:, -1:])[:, 0])
    return out


def _last(config: Config) -> str:
    return f"blocks.{config.n_layers - 1}.resid_post"


def _silenced(chosen: list[tuple[int, Node]], first: int) -> Callable[[str, Tensor, Where], Tensor]:
    def action(site: str, x: Tensor, where: Where) -> Tensor:
        x = x.clone()
        for row, node in chosen:
            if node.kind in ("head", "neuron", "expert"):
                x[row, node.position - first, node.index] = 0
            elif node.vector is not None:
                x[row, node.position - first] -= node.vector.to(x)
            else:
                x[row, node.position - first] = 0
        return x

    return action
