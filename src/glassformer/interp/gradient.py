"""Gradients of one number at any place of a traced forward.

The forward is run again from the lowest layer asked about, with a graph; upstream of it nothing changes,
so nothing is recomputed. Knows which number and which places, and reads nothing into the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glassformer.errors import ShapeError, UsageError
from glassformer.interp import memory
from glassformer.interp.logit_target import direction
from glassformer.interp.taps import Compose, Record
from glassformer.model.sites import Looking, layer_of

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

_INPUTS = ("embed", "pos_embed")


def gradients(
    trace: Trace,
    sites: Sequence[str],
    of: str | int | Callable[[Tensor], Tensor] | None = None,
    *,
    against: str | int | None = None,
    position: int = -1,
) -> dict[str, Tensor]:
    """The gradient of a number at each site, with its batch axis, by one backward pass.

    Args:
        sites: full names.
        of: a token (its text or id): its score before any soft cap, less the vocabulary's mean, or less that of
            `against`, after `position`; None for the most probable token there; or a function from the
            logits (batch, query, vocab) to one number.

    Raises:
        UsageError: no site. MemoryLimitError: when the graph would not fit.
        ShapeError: when a function gives more than one number.
    """
    if not sites:
        raise UsageError("Name at least one site whose gradient is asked for.")
    forward, transformer, config = trace.forward, trace.transformer, trace.config
    layers = [layer for layer in map(layer_of, sites) if layer is not None]
    inputs = any(name in _INPUTS for name in sites)
    first = 0 if inputs else min(layers, default=config.n_layers - 1)
    _require(trace, config.n_layers - first)
    token_of = None if callable(of) else of
    edit = forward.edit
    inner = [name for name in sites if name not in _INPUTS]
    record = Record(*inner) if inner else None
    taps = [t for t in (edit, record) if t is not None]
    looking_tap = Compose(*taps).bind(config) if taps else None
    found: dict[str, Tensor] = {}
    with torch.enable_grad():
        if inputs:
            for name in _INPUTS:
                if name in forward.recorded:
                    found[name] = forward.recorded[name].detach().clone().requires_grad_()
            x = sum(found.values())
            assert isinstance(x, Tensor)
            x = transformer.in_copies(x)
        else:
            x = forward.entering(first).detach().clone().requires_grad_()
        x = transformer.stream(
            x,
            forward.positions,
            layers=range(first, config.n_layers),
            keys_mask=forward.mask,
            tap=looking_tap,
            shared=forward.shared(first),
            inputs=forward.inputs(),
        )
        view = None if looking_tap is None else Looking(looking_tap, config, forward.where).top
        normed = transformer.normed(x, view)
        if callable(of) or any(name.startswith("logits") for name in sites):
            logits = transformer.unembed_hidden(normed, view)
        if callable(of):
            number = of(logits)
            if not isinstance(number, Tensor) or number.numel() != 1:
                raise ShapeError("The function whose gradient is asked for must give one number from the logits.")
        else:
            at = trace.position(position)
            if any(name.startswith("logits") for name in sites):
                number = _of_logits(trace, record, token_of, against, at)
            else:
                ways = [direction(trace.row(i), token_of, against, _last(trace, i, at)) for i in _texts(trace)]
                u = torch.stack([way.vector for way in ways]).to(normed.dtype)
                number = (normed[:, at] * u).sum() + sum(way.offset for way in ways)
        if record is not None:
            found |= {name: record.tensor(name) for name in inner}
        wanted = [found[name] for name in sites]
        grads = torch.autograd.grad(number, wanted, allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for n, x, g in zip(sites, wanted, grads, strict=True)}


def _texts(trace: Trace) -> range:
    return range(len(trace.ids) if trace.batched else 1)


def _last(trace: Trace, row: int, slot: int) -> int:
    """A slot of the batch as a position of one of its texts."""
    pad = trace.length - trace.row(row).length
    if slot < pad:
        raise ShapeError(f"Text {row} has {trace.row(row).length} tokens; count its position from the end (-1 …).")
    return slot - pad


def _of_logits(
    trace: Trace, record: Record | None, token: str | int | None, against: str | int | None, at: int
) -> Tensor:
    """The same number read off the logits themselves, where those are the places asked about."""
    assert record is not None
    name = "logits.precap" if "logits.precap" in record else "logits"
    total = torch.zeros((), dtype=trace.transformer.dtype, device=trace.transformer.device)
    for i in _texts(trace):
        way = direction(trace.row(i), token, against, _last(trace, i, at))
        row = record.tensor(name)[i, at]
        total = total + row[way.token] - (row.mean() if way.against is None else row[way.against])
    return total


def _require(trace: Trace, layers: int) -> None:
    c = trace.config
    wide = max(memory.graph_numbers(layer, c.d_model) for layer in set(c.layers))
    texts = len(trace.ids) if trace.batched else 1
    item = trace.transformer.embed.weight.element_size()
    device = str(trace.transformer.device)
    cost = memory.numbers("The gradient's graph", (texts * trace.length, layers, wide), item, device)
    cost.require("ask about a later layer or a shorter text")
