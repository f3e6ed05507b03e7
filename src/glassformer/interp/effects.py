"""Total effects: a part is taken out where it enters the stream, and everything downstream runs again.

A part of one position's stream is seen by no earlier position, so only that position runs again, from the
part's own layer on, against the keys and values of the trace: one row per part, all rows through each
layer together. It measures; it claims nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.interp.decompose import KINDS, Parts, Reads, bias_parts, expert_parts, feed_forward_part
from glassformer.interp.logit_target import Target
from glassformer.interp.run_from import Context, Sharing, finish, tap_of
from glassformer.interp.taps import Bound, Step
from glassformer.model.choices import Attention
from glassformer.model.config import Layer
from glassformer.model.sites import Where

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# Bytes of one layer's work on the rows in flight.
_WORK = 96 << 20


def row_numbers(layer: Layer, seen: int, d_model: int) -> int:
    """Numbers of work that one row of one layer takes, with `seen` keys before it."""
    numbers, mixer, feed = 6 * d_model, layer.mixer, layer.feed_forward
    if isinstance(mixer, Attention):
        numbers += seen * (mixer.n_kv_heads * (mixer.d_head + mixer.value_size) + mixer.n_heads * 2)
    elif mixer is not None:
        numbers += 2 * mixer.state_numbers + 8 * mixer.out_size
    return numbers + (0 if feed is None else 3 * feed.active_neurons)


class Rows:
    """Many variants of one position's residual stream, carried through the layers together."""

    def __init__(self, trace: Trace, position: int) -> None:
        self.trace = trace
        self.position = position
        self.context = Context(trace.forward, position)
        self.sharing = Sharing(trace.forward, position, position + 1)
        per_row = max(row_numbers(layer, position + 1, trace.config.d_model) for layer in set(trace.config.layers))
        self.step = max(8, _WORK // (per_row * trace.transformer.embed.weight.element_size()))

    def layer(self, layer: int, x: Float[Tensor, "row d_model"], taken: Tensor | None) -> Float[Tensor, "row d_model"]:
        """The rows after a layer; `taken` (row, d_model) is subtracted from what its attention adds."""
        out = torch.empty_like(x)
        for a in range(0, len(x), self.step):
            part = x[a : a + self.step, None]
            tap = self.trace.forward.edit
            if taken is not None and bool(taken[a : a + self.step].any()):
                tap = tap_of(tap, self._taking(layer, taken[a : a + self.step, None]))
            shared = self.sharing.given(layer, slice(a, a + len(part)))
            out[a : a + self.step] = self.trace.transformer.stream(
                part,
                self._positions(len(part)),
                start=self.position,
                layers=range(layer, layer + 1),
                cache=self.context,
                tap=tap,
                shared=shared,
            )[:, 0]
            self.sharing.take(layer, shared)
        return out

    def _taking(self, layer: int, taken: Tensor) -> Bound:
        name = f"blocks.{layer}.{self.trace.forward.prefix(layer)}.out"
        return Bound([Step(name, lambda site, x, where: x - taken, True)])

    def _positions(self, rows: int) -> Int[Tensor, "row 1"]:
        return torch.full((rows, 1), self.position, device=self.trace.transformer.device)

    def numbers(self, x: Float[Tensor, "row d_model"], goal: Target) -> Float[Tensor, " row"]:
        """The explained number of every row, given the stream after the last layer."""
        where = Where(self._positions(len(x)), None, self.position)
        normed = finish(self.trace.transformer, x[:, None], where, self.trace.forward.edit)
        return (normed[:, 0].double() @ goal.way.vector + goal.way.offset).cpu()


@torch.no_grad()
def measure_totals(trace: Trace, goal: Target, parts: Parts, chosen: Int[Tensor, " part"]) -> None:
    """Fill in the total effects of the chosen parts."""
    rows = Rows(trace, goal.position)
    forward, dtype = trace.forward, trace.transformer.dtype
    at = slice(goal.position, goal.position + 1)
    order: list[Tensor] = [torch.tensor([-1])]  # the first row is the unchanged one
    x = forward.entering(0, at)[0]
    mine = set(chosen.tolist())

    def enter(which: Tensor, streams: Tensor) -> None:
        nonlocal x
        order.append(which)
        x = torch.cat([x, streams.to(x)])

    def picked(kind: str, layer: int | None = None) -> Tensor:
        found = parts.of(kind, layer)
        return found if len(mine) == len(parts) else found[torch.isin(found, chosen)]

    for kind, site in (("embedding", "embed"), ("position", "pos_embed")):
        found = picked(kind)
        if len(found):
            enter(found, x[:1].double() - forward.recorded[site][0, at].double())
    for layer in range(trace.config.n_layers):
        found = picked("head", layer)
        taken = [torch.zeros(len(x), trace.config.d_model, dtype=torch.float64, device=x.device)]
        if len(found):
            vectors = Reads(trace, layer, goal.position).vectors(parts.head[found], parts.source[found])
            enter(found, x[:1].expand(len(found), -1))
            taken.append(vectors)
        biases = dict(bias_parts(trace, layer, goal.position))
        found = picked("attention_bias", layer)
        if len(found):
            enter(found, x[:1])
            taken.append(biases["attention_bias"][None])
        x = rows.layer(layer, x, torch.cat(taken).to(dtype) if trace.config.layers[layer].mixer is not None else None)
        found = picked("expert", layer)
        if len(found):
            experts = expert_parts(trace, layer, goal.position)
            taken_out = torch.stack([experts[i] for i in parts.head[found].tolist()])
            enter(found, x[:1].double() - taken_out * forward.within(layer, 2))
        for kind in ("feed_forward", "feed_forward_bias"):
            found = picked(kind, layer)
            if len(found):
                part = biases[kind] if kind in biases else feed_forward_part(trace, layer, goal.position)
                enter(found, x[:1].double() - part * forward.within(layer, 2))
    numbers = rows.numbers(x, goal)
    which = torch.cat(order)[1:]
    parts.total[which] = numbers[0] - numbers[1:]
    found = picked("final_bias")
    parts.total[found] = parts.direct[found]


def rank(parts: Parts) -> str:
    """Each part's percentile: how many of its kind have no larger effect, in percent.

    By total effect when that was measured for every part, else by the measured direct one; says which.
    """
    measured = bool(torch.isfinite(parts.total).logical_or(parts.kind == KINDS.index("edit")).all())
    for code in range(len(KINDS)):
        chosen = (parts.kind == code).nonzero()[:, 0]
        if len(chosen):
            total = measured and code != KINDS.index("edit")
            size = (parts.total if total else parts.direct)[chosen].abs()
            ordered = size.sort().values
            parts.percentile[chosen] = torch.searchsorted(ordered, size, right=True).double() * (100.0 / len(chosen))
    return "total" if measured else "direct"
