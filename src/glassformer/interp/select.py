"""Which numbers of a site a tap means: positions, heads, keys, neurons, rows of the batch.

Positions count from the first token of each text, whatever the padding or the cache, so a tap means
the same place in a single forward and inside generation. This module knows axes and masks, not what
is done with the numbers chosen.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from glassformer.errors import ShapeError, SiteError
from glassformer.model.choices import Attention
from glassformer.model.config import Config, Layer
from glassformer.model.sites import Where, axis_sizes, block_sites, canonical, canonical_part, site_of

Chosen = int | slice | Iterable[int] | None


@dataclass(frozen=True)
class Places:
    """A set of whole numbers from 0 on: listed ones, or all from `start` to before `stop`."""

    listed: tuple[int, ...] | None = None
    start: int = 0
    stop: int | None = None

    @classmethod
    def of(cls, chosen: Chosen, what: str = "positions") -> Places:
        """From a number, a slice, several numbers, or None for all.

        Raises:
            ShapeError: for negative ones, which mean nothing fixed while a text grows.
        """
        if chosen is None:
            return cls()
        if isinstance(chosen, slice):
            if chosen.step not in (None, 1):
                chosen = range(chosen.start or 0, _needed(chosen.stop), chosen.step)
            else:
                _whole([v for v in (chosen.start, chosen.stop) if v is not None], what)
                return cls(None, chosen.start or 0, chosen.stop)
        listed = tuple(int(v) for v in chosen) if isinstance(chosen, Iterable) else (operator.index(chosen),)
        _whole(listed, what)
        if not listed:
            raise ShapeError(f"A tap was given no {what} to act on; name at least one, or leave them out for all.")
        return cls(listed)

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self.listed is None and self.start == 0 and self.stop is None

    def among(self, numbers: Tensor) -> Tensor:
        """True where a number belongs to the set."""
        if self.listed is not None:
            return torch.isin(numbers, torch.tensor(self.listed, device=numbers.device))
        inside = numbers >= self.start
        return inside if self.stop is None else inside & (numbers < self.stop)


def _needed(stop: int | None) -> int:
    if stop is None:
        raise ShapeError("A slice with a step needs its end.")
    return stop


def _whole(values: Sequence[int], what: str) -> None:
    for value in values:
        if value < 0:
            raise ShapeError(
                f"A tap's {what} count from 0, the text's first token; {value} has no fixed meaning while a text grows."
            )


EVERY = Places()


@dataclass(frozen=True)
class Selection:
    """The part of a site's tensor that a tap means; everything by default.

    Args:
        positions: of the query axis (of the new tokens, for keys and values).
        heads: query heads, or key-value heads at sites that carry those.
        keys: positions on the key axis of scores and patterns.
        units: on the last axis (neurons at mlp sites, dimensions elsewhere).
        rows: of the batch.
    """

    positions: Places = EVERY
    heads: Places = EVERY
    keys: Places = EVERY
    units: Places = EVERY
    rows: Places = EVERY

    def check(self, site: str, config: Config) -> None:
        """Raise unless the site has the axes and the indices that are named."""
        axes = site_of(site).axes
        if not self.heads.everything:
            if "head" not in axes and "kv_head" not in axes:
                raise SiteError(f"{site!r} has no heads; its axes are ({', '.join(axes)}).")
            kind = "head" if "head" in axes else "kv_head"
            count = axis_sizes(site, config)[kind]
            _below(self.heads, count, f"{kind}s", site)
        if not self.keys.everything and axes[-1] != "key":
            raise SiteError(f"{site!r} has no key axis; its axes are ({', '.join(axes)}).")
        if not self.units.everything:
            size = axis_sizes(site, config).get(axes[-1])
            if size is None:
                raise SiteError(f"{site!r} has no units to choose; its axes are ({', '.join(axes)}).")
            _below(self.units, size, "units", site)

    def mask(self, site: str, x: Tensor, where: Where) -> Tensor | None:
        """True at the chosen numbers, broadcastable to `x`; None when all are chosen."""
        axes = site_of(site).axes
        parts: list[Tensor] = []
        query = axes.index("query") if "query" in axes else 1
        if not self.positions.everything:
            chosen = self.positions.among(where.positions)
            if where.mask is not None:
                chosen = chosen & where.mask
            parts.append(_on(chosen, (0, query), x.ndim))
        if not self.rows.everything:
            if self.rows.listed is not None and max(self.rows.listed) >= x.shape[0]:
                raise ShapeError(f"A tap means row {max(self.rows.listed)} of a batch of {x.shape[0]}.")
            parts.append(_on(self.rows.among(torch.arange(x.shape[0], device=x.device)), (0,), x.ndim))
        if not self.heads.everything:
            axis = axes.index("head" if "head" in axes else "kv_head")
            parts.append(_on(self.heads.among(torch.arange(x.shape[axis], device=x.device)), (axis,), x.ndim))
        if not self.keys.everything:
            parts.append(_on(self.keys.among(key_positions(where, x.shape[-1])), (0, x.ndim - 1), x.ndim))
        if not self.units.everything:
            units = self.units.among(torch.arange(x.shape[-1], device=x.device))
            parts.append(_on(units, (x.ndim - 1,), x.ndim))
        if not parts:
            return None
        out = parts[0]
        for part in parts[1:]:
            out = out & part
        return out


def _below(places: Places, count: int, what: str, site: str) -> None:
    top = max(places.listed) if places.listed is not None else places.start
    if top >= count:
        raise SiteError(f"{site!r} has {count} {what}, 0 to {count - 1}; there is no {top}.")


def _on(mask: Tensor, axes: tuple[int, ...], ndim: int) -> Tensor:
    """The mask with its axes put at `axes` of a tensor of `ndim` axes."""
    shape = [1] * ndim
    for size, axis in zip(mask.shape, axes, strict=True):
        shape[axis] = size
    return mask.reshape(shape)


def key_positions(where: Where, keys: int) -> Int[Tensor, "batch key"]:
    """The position that each key slot holds in its own text; negative on left padding."""
    slots = torch.arange(keys, device=where.positions.device)
    padding = keys - 1 - where.positions[:, -1:]
    return slots[None, :] - padding


def named(pattern: str, config: Config) -> list[str]:
    """Full site names of one name; ``blocks.*.`` stands for every layer.

    Raises:
        SiteError: when the model has no such place.
    """
    if pattern.startswith("blocks.*."):
        every = [f"blocks.{i}.{pattern[9:]}" for i in range(config.n_layers)]
        own = {pattern[9:], canonical_part(pattern[9:])}
        # where layers are made of different parts, those that have the place are meant
        there = [name for name, layer in zip(every, config.layers, strict=True) if own & set(block_sites(layer))]
        return [canonical(name, config) for name in there or every]
    return [canonical(pattern, config)]


def site_in(part: str, layer: Layer) -> str | None:
    """A place as a layer of this design names it; None where it has none.

    "mixer.z" is `attn.z` or `ssm.z`; "mixer.scores" is where looking can be forbidden: a recurrence's pattern.
    """
    if part.startswith("mixer."):
        leaf = part.removeprefix("mixer.")
        if layer.mixer is None:
            return None
        if leaf == "scores" and not isinstance(layer.mixer, Attention):
            leaf = "pattern"
        part = f"{layer.mixer.prefix}.{leaf}"
    return part if part in block_sites(layer) else None


def layers_of(layer: Chosen, config: Config) -> list[int]:
    """Checked layer numbers; negative ones count from the last.

    Raises:
        SiteError: when the model has no such layer.
    """
    if layer is None:
        return list(range(config.n_layers))
    if isinstance(layer, slice):
        return list(range(config.n_layers))[layer]
    listed = [layer] if isinstance(layer, int) else [int(i) for i in layer]
    for i in listed:
        if not -config.n_layers <= i < config.n_layers:
            raise SiteError(
                f"There is no layer {i}: the model has {config.n_layers} layers, 0 to {config.n_layers - 1}."
            )
    return [i % config.n_layers for i in listed]
