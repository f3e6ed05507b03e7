"""The runs of activation patching: every variant of one corrupted run, carried through the layers together.

A variant is the corrupted run with one place as in the clean run. Upstream of the place nothing changes and
positions before it do not see it, so a variant starts at its layer and position, on the keys and values of the
trace. Variants of neighbouring positions share a batch, which grows layer by layer as later places join it.
Where the two runs are equal bit by bit nothing is run: such a place changes nothing. Knows two traces and how to
measure a row; reads nothing into the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.effects import row_numbers
from glassformer.interp.run_from import Context, Sharing, finish, tap_of
from glassformer.interp.select import site_in
from glassformer.interp.taps import Bound, SiteAction
from glassformer.model.sites import Looking, Where

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

# Bytes of the rows in flight, of one layer's work on them, and of their logits.
_HELD = 256 << 20
_WORK = 96 << 20

Metric = Callable[[Float[Tensor, "row vocab"], int], Float[Tensor, " row"]]


@dataclass(frozen=True)
class Measure:
    """How a row's number is read: by a direction of the normed stream, or by a function of the logits.

    Attributes:
        vector: float64 direction, or None; metric: the function, called with logits and the pair's number.
    """

    vector: Float[Tensor, " d_model"] | None
    metric: Metric | None
    pair: int

    def logits(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """The metric's numbers.

        Raises:
            ShapeError: unless it gives one number per row.
        """
        from glassformer.errors import ShapeError

        assert self.metric is not None
        out = self.metric(logits, self.pair)
        if not isinstance(out, Tensor) or out.shape != logits.shape[:1]:
            got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(
                f"The metric must give one number for each row of the logits it is handed, shape "
                f"({logits.shape[0]},); it gave {got}."
            )
        return out

    def of(self, trace: Trace, normed: Float[Tensor, "row d_model"], where: Where) -> Float[Tensor, " row"]:
        """Each row's number, float64, from the normed stream at the position measured."""
        if self.vector is not None:
            return (normed.double() @ self.vector).cpu()
        transformer = trace.transformer
        step = max(1, _HELD // (transformer.config.vocab_size * normed.element_size()))
        out = []
        for low in range(0, len(normed), step):
            part = normed[low : low + step, None]
            here = Where(where.positions[low : low + step], None, where.start)
            edit = trace.forward.edit
            view = None if edit is None else Looking(edit, transformer.config, here).top
            out.append(self.logits(transformer.unembed_hidden(part, view)[:, 0]).double().cpu())
        return torch.cat(out)

    @torch.no_grad()
    def run(self, trace: Trace, at: int) -> float:
        """The number of a trace as it ran."""
        here = slice(at, at + 1)
        if self.vector is not None:
            return float(trace.forward.get("final.normed", here)[0, 0].double() @ self.vector)
        return float(self.logits(trace.forward.get("logits", here)[0])[0])


class Sweep:
    """All variants of one pair of prompts.

    Args:
        part: the site within each block; `heads`: its columns are heads, else positions.
        at: the position whose prediction is measured.
    """

    def __init__(self, clean: Trace, corrupted: Trace, part: str, at: int, measure: Measure, *, heads: bool) -> None:
        self.trace, self.part, self.at, self.heads, self.measure = corrupted, part, at, heads, measure
        self.config = corrupted.config
        self.edit = corrupted.forward.edit
        self.context = Context(corrupted.forward, at + 1)
        whole = slice(0, at + 1)
        self.names = [site_in(part, layer) for layer in self.config.layers]
        mine, theirs = self._sites(corrupted, whole), self._sites(clean, whole)
        same = torch.zeros(at + 1, dtype=torch.bool, device=corrupted.transformer.device)
        differs = torch.stack(
            [same if a is None or b is None else (a != b).flatten(1).any(1) for a, b in zip(mine, theirs, strict=True)]
        )  # (layer, position)
        if self.edit is None and clean.forward.edit is None:
            # Before the first other token the runs are the same whatever their rounding.
            differs[:, : next(i for i, (a, b) in enumerate(zip(clean.ids, corrupted.ids, strict=True)) if a != b)] = (
                False
            )
        places = differs.any(0).nonzero()[:, 0].tolist()
        self.first = places[0] if places else at + 1
        self.wanted = [None if x is None else x[self.first :] for x in theirs]
        rest = slice(self.first, at + 1)
        self.entering = [corrupted.forward.entering(0, rest)[0]]
        self.entering += [x[0] for name, x in corrupted.forward.walk(rest) if name.endswith("resid_post")][:-1]
        item = corrupted.transformer.embed.weight.element_size()
        self._row = item * self.config.d_model
        work = [row_numbers(layer, at + 1, self.config.d_model) for layer in set(self.config.layers)]
        widths = [layer.mixer.out_size for layer in set(self.config.layers) if layer.mixer is not None]
        self._keys = item * (at + 1) * 4 * max(widths, default=0)
        self._query = item * (max(work) + 2 * self.config.d_model)

    def _sites(self, trace: Trace, at: slice) -> list[Tensor | None]:
        """The site's numbers in every layer, (position, …); None where a layer has no such place."""
        if self.part.startswith("resid"):
            found = dict(trace.forward.walk(at))
            return [found[f"blocks.{i}.{name}"][0] if name else None for i, name in enumerate(self.names)]
        get = trace.forward.get
        return [get(f"blocks.{i}.{name}", at)[0] if name else None for i, name in enumerate(self.names)]

    def batches(self) -> Iterator[tuple[range, range]]:
        """Columns and layers of each batch; later positions share one when little is run in vain."""
        low, end = (0, self.config.most_heads) if self.heads else (self.first, self.at + 1)
        if self.first > self.at:
            return
        while low < end:
            start = self.first if self.heads else low
            held = max(1, _HELD // ((self.at + 1 - start) * self._row))
            width = min(held, end - low if self.heads else max(1, (end - low) // 4))
            columns, deep = range(low, low + width), max(1, held // width)
            for layer in range(0, self.config.n_layers, deep):
                yield columns, range(layer, min(layer + deep, self.config.n_layers))
            low += width

    @torch.no_grad()
    def grid(self, base: float, progress: Callable[[float], None]) -> Float[Tensor, "layer column"]:
        """The measured number of every variant, float64; `base` where nothing differs."""
        columns = self.config.most_heads if self.heads else self.trace.length
        out = torch.full((self.config.n_layers, columns), base, dtype=torch.float64)
        batches = list(self.batches())
        total, done = sum(self.config.n_layers - layers.start for _, layers in batches) or 1, 0
        for chosen, layers in batches:
            start = self.first if self.heads else chosen.start
            sharing = Sharing(self.trace.forward, start, self.at + 1)
            x = self.entering[0].new_empty(0, self.at + 1 - start, self.config.d_stream)
            for layer in range(layers.start, self.config.n_layers):
                fresh = chosen if layer in layers else range(0)
                if fresh:
                    new = self.entering[layer][start - self.first :]
                    x = torch.cat([x, new.expand(len(fresh), -1, -1)])
                x = self._layer(layer, x, start, fresh, sharing)
                done += 1
                progress(done / total)
            where = Where(torch.full((len(x), 1), self.at, device=x.device), None, self.at)
            normed = finish(self.trace.transformer, x[:, -1:], where, self.edit)
            numbers = self.measure.of(self.trace, normed[:, 0], where)
            out[layers.start : layers.stop, chosen.start : chosen.stop] = numbers.view(len(layers), len(chosen))
        progress(1.0)
        return out

    def _layer(
        self, layer: int, x: Tensor, start: int, fresh: range, sharing: Sharing
    ) -> Float[Tensor, "row query d_model"]:
        """The rows after a layer; the last `len(fresh)` of them are given their clean place in it."""
        queries = x.shape[1]
        step = max(1, _WORK // (self._keys + queries * self._query))
        old = len(x) - len(fresh)
        out = []
        for low in range(0, len(x), step):
            part = x[low : low + step]
            positions = torch.arange(start, self.at + 1, device=x.device).expand(len(part), -1)
            put = None
            if low + len(part) > old and self.names[layer] is not None:
                rows = torch.arange(max(low, old), low + len(part), device=x.device)
                columns = rows - old + fresh.start
                put = Bound([self._put(layer, rows - low, columns, start)])
            shared = sharing.given(layer, slice(low, low + len(part)))
            out.append(
                self.trace.transformer.stream(
                    part,
                    positions,
                    start=start,
                    layers=range(layer, layer + 1),
                    cache=self.context.cut(start, len(part)) if start else None,
                    tap=tap_of(self.edit, put),
                    shared=shared,
                    inputs=self.trace.forward.inputs(slice(start, self.at + 1), len(part)),
                )
            )
            sharing.take(layer, shared)
        return out[0] if len(out) == 1 else torch.cat(out)

    def _put(self, layer: int, rows: Tensor, columns: Tensor, start: int) -> SiteAction:
        wanted = self.wanted[layer]
        assert wanted is not None

        def put(site: str, x: Tensor, where: Where) -> Tensor:
            x = x.clone()
            if self.heads:
                there = columns < x.shape[2]  # other layers may have more heads
                at = columns[there]
                x[rows[there], :, at] = wanted[:, at].transpose(0, 1).to(x.dtype)
            else:
                x[rows, columns - start] = wanted[columns - self.first].to(x.dtype)
            return x

        return SiteAction(f"blocks.{layer}.{self.names[layer]}", put, True)
