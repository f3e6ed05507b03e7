"""Total effects: a part is taken out where it enters the stream, and everything downstream runs again.

A part of one position's stream is seen by no earlier position, so only that position runs again, from the
part's own layer on, against the keys and values of the trace: one row per part, all rows through each
layer together. It measures; it claims nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.interp.decompose import (
    KINDS,
    Parts,
    Reads,
    bias_parts,
    expert_parts,
    feed_forward_part,
    layer_embedding_part,
)
from glassformer.interp.logit_target import Target
from glassformer.interp.normed_sums import norm_biases
from glassformer.interp.run_from import Context, Sharing, finish, tap_of
from glassformer.interp.taps import Bound, SiteAction
from glassformer.model.choices import recurrence_of, softmax_of
from glassformer.model.config import Layer
from glassformer.model.sites import Where

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# Bytes of one layer's work on the rows in flight.
_WORK = 96 << 20


def row_numbers(layer: Layer, seen: int, d_model: int) -> int:
    """Numbers of work that one row of one layer takes, with `seen` keys before it."""
    numbers, mixer, feed = 6 * d_model, layer.mixer, layer.feed_forward
    if (attention := softmax_of(mixer)) is not None:
        a = attention
        numbers += seen * (a.n_kv_heads * (a.d_head + a.value_size) + a.n_heads * 2)
    if (recurrence := recurrence_of(mixer)) is not None:
        numbers += 2 * recurrence.state_numbers + 8 * recurrence.out_size
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

    def layer(
        self, layer: int, x: Float[Tensor, "row d_model"], taken: Mapping[str, Tensor]
    ) -> Float[Tensor, "row d_model"]:
        """The rows after a layer; `taken` (row, d_model) is subtracted at the layer's sites, by name."""
        out = torch.empty_like(x)
        for a in range(0, len(x), self.step):
            part = x[a : a + self.step, None]
            tap = self.trace.forward.edit
            for site, all_rows in taken.items():
                if bool((mine := all_rows[a : a + self.step, None]).any()):
                    tap = tap_of(tap, _taking(layer, site, mine))
            shared = self.sharing.given(layer, slice(a, a + len(part)))
            out[a : a + self.step] = self.trace.transformer.stream(
                part,
                self._positions(len(part)),
                start=self.position,
                layers=range(layer, layer + 1),
                cache=self.context,
                tap=tap,
                shared=shared,
                inputs=self.trace.forward.inputs(slice(self.position, self.position + 1), len(part)),
            )[:, 0]
            self.sharing.take(layer, shared)
        return out

    def _positions(self, rows: int) -> Int[Tensor, "row 1"]:
        return torch.full((rows, 1), self.position, device=self.trace.transformer.device)

    def numbers(self, x: Float[Tensor, "row d_model"], goal: Target) -> Float[Tensor, " row"]:
        """The explained number of every row, given the stream after the last layer."""
        where = Where(self._positions(len(x)), None, self.position)
        normed = finish(self.trace.transformer, x[:, None], where, self.trace.forward.edit)
        return (normed[:, 0].double() @ goal.way.vector + goal.way.offset).cpu()


def _taking(layer: int, site: str, taken: Tensor) -> Bound:
    return Bound([SiteAction(f"blocks.{layer}.{site}", lambda site, x, where: x - taken, True)])


@torch.no_grad()
def measure_totals(trace: Trace, goal: Target, parts: Parts, chosen: Int[Tensor, " part"]) -> None:
    """Fill in the total effects of the chosen parts."""
    rows = Rows(trace, goal.position)
    forward = trace.forward
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
            gone = forward.transformer.in_copies(forward.recorded[site][0, at])
            enter(found, x[:1].double() - gone.double())
    for layer, choice in enumerate(trace.config.layers):
        taken: dict[str, list[tuple[int, Tensor]]] = {}
        later = []
        last = "resid_post" if choice.norms == "sum" else f"{choice.parts[-1]}.out"
        for site, found, vectors in _given(trace, layer, goal.position, parts, picked):
            if site == last:  # nothing in this layer sees it
                later.append((found, vectors))
                continue
            taken.setdefault(site, []).append((len(x), vectors))
            enter(found, x[:1].expand(len(found), -1))
        x = rows.layer(layer, x, {site: _rows(len(x), pairs).to(x) for site, pairs in taken.items()})
        copies = rows.trace.forward.block(layer).copies
        for found, vectors in later:
            times = 1.0 if copies is not None or choice.norms == "sum" else forward.within(layer, 2)
            enter(found, x[:1].double() - (vectors * times if copies is None else copies.beside(vectors)))
    numbers = rows.numbers(x, goal)
    which = torch.cat(order)[1:]
    parts.total[which] = numbers[0] - numbers[1:]
    found = picked("final_bias")
    parts.total[found] = parts.direct[found]


def _given(
    trace: Trace, layer: int, position: int, parts: Parts, picked: Callable[[str, int], Tensor]
) -> Iterator[tuple[str, Tensor, Float[Tensor, "part d_model"]]]:
    """The measured parts of a layer, kind by kind: where they enter, which, and what each adds to the stream."""
    choice, biases = trace.config.layers[layer], dict(bias_parts(trace, layer, position))
    mixer = None if choice.mixer is None else f"{choice.mixer.prefix}.out"
    if mixer is not None and len(found := picked("head", layer)):
        yield mixer, found, Reads(trace, layer, position).vectors(parts.head[found], parts.source[found])
    if mixer is not None and len(found := picked("attention_bias", layer)):
        yield mixer, found, biases["attention_bias"][None]
    if len(found := picked("laurel", layer)):
        yield "laurel.out", found, trace.forward.recorded[f"blocks.{layer}.laurel.out"][0, position].double()[None]
    if len(found := picked("expert", layer)):
        experts = expert_parts(trace, layer, position)
        yield "mlp.out", found, torch.stack([experts[i] for i in parts.head[found].tolist()])
    if len(found := picked("feed_forward", layer)):
        yield "mlp.out", found, feed_forward_part(trace, layer, position)[None]
    if len(found := picked("feed_forward_bias", layer)):
        yield "mlp.out", found, biases["feed_forward_bias"][None]
    if len(found := picked("layer_embedding", layer)):
        yield "ple.out", found, layer_embedding_part(trace, layer, position)[None]
    wanted = picked("norm_bias", layer)
    for one, (site, bias) in zip(parts.of("norm_bias", layer), norm_biases(trace.forward, layer), strict=True):
        if one in wanted:
            yield site, one[None], bias


def _rows(count: int, pairs: list[tuple[int, Tensor]]) -> Float[Tensor, "row d_model"]:
    """What each row loses: the given vectors from the row at which each begins on, nothing elsewhere."""
    out = torch.zeros(count, pairs[0][1].shape[1], dtype=torch.float64, device=pairs[0][1].device)
    for first, vectors in pairs:
        out[first : first + len(vectors)] = vectors
    return out


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
