"""What edits do to a site's numbers: replace, ablate, steer, forbid attention, hold, or a function of one's own.

Each is a tap on some numbers of some sites (`select`), bound to a design like any other (`taps`); how people
write them is in `edits`. Nothing here knows how the model computes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from glassformer.errors import ShapeError, SiteError, UsageError
from glassformer.interp.direction import Direction
from glassformer.interp.select import Chosen, Selection, key_positions, layers_of, named, site_in
from glassformer.interp.taps import Edit, Recorded, SiteAction
from glassformer.model.config import Config
from glassformer.model.sites import Where, axis_sizes, canonical, site_of


@dataclass(frozen=True)
class At(Edit):
    """An edit of some numbers at some sites: what the edits below share.

    Args:
        sites: names, aliases, or ``blocks.*.`` for every layer; or nothing, when `layer` and `part` say it.
        layer: one or several layers, negative from the last; None for all.
        part: the place within each layer.
        selection: which numbers there.
    """

    sites: tuple[str, ...]
    layer: Chosen
    part: tuple[str, ...]
    selection: Selection

    def names(self, config: Config) -> list[str]:
        """Full names of the sites, each checked."""
        full = [name for site in self.sites for name in named(site, config)]
        if not self.sites:
            layers = layers_of(self.layer, config)
            full = [name for i in layers for part in self.part for name in self._in_layer(part, i, config)]
        for name in full:
            self.selection.check(name, config)
        return full

    def _in_layer(self, part: str, layer: int, config: Config) -> list[str]:
        """The place as this layer names it; none where all layers are meant and this one has no such part."""
        place = site_in(part, config.layers[layer])
        if place is not None:
            return [f"blocks.{layer}.{place}"]
        if self.layer is None or len(self.part) > 1:
            return []
        return [canonical(f"blocks.{layer}.{part.replace('mixer.', 'attn.')}", config)]

    @abstractmethod
    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        """What the chosen numbers become, broadcastable to `x`."""

    def act(self, site: str, x: Tensor, where: Where) -> Tensor:
        """`x` with the chosen numbers changed."""
        chosen = self.selection.mask(site, x, where)
        new = self.change(site, x, where).to(x.dtype)
        return new.expand(x.shape) if chosen is None else torch.where(chosen, new, x)

    def actions(self, config: Config) -> list[SiteAction]:
        chosen = self.selection
        return [SiteAction(name, self.act, True, chosen.positions, chosen.rows) for name in self.names(config)]


@dataclass(frozen=True)
class Replace(At):
    """Put given numbers in place of the chosen ones."""

    value: Any

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        if isinstance(self.value, Recorded):
            return at_positions(self.value.tensor(site), site, where, x, strict=True)
        value = torch.as_tensor(self.value, device=x.device)
        listed = self.selection.positions.listed
        axis = site_of(site).axes.index("query") if "query" in site_of(site).axes else 1
        if listed is not None and axis == 1 and value.ndim >= x.ndim - 1 and value.shape[value.ndim - x.ndim + 1] > 1:
            value = _spread(value, listed, where, x, site)
        try:
            torch.broadcast_shapes(value.shape, x.shape)
        except RuntimeError:
            raise ShapeError(
                f"The value given for {site!r} has shape {tuple(value.shape)}, which does not fit {tuple(x.shape)}, "
                f"({', '.join(site_of(site).axes)})."
            ) from None
        return value


def _spread(value: Tensor, listed: tuple[int, ...], where: Where, x: Tensor, site: str) -> Tensor:
    """Values given one per listed position, laid out along the query axis."""
    if value.ndim == x.ndim - 1:
        value = value[None]
    if value.shape[1] != len(listed):
        raise ShapeError(f"{len(listed)} positions of {site!r} were named and {value.shape[1]} values given.")
    order = torch.tensor(listed, device=x.device)
    hit = where.positions[..., None] == order  # (batch, query, listed)
    index = hit.long().argmax(-1)
    rows = torch.arange(x.shape[0], device=x.device)[:, None] if value.shape[0] > 1 else torch.zeros_like(index[:, :1])
    return value.to(x.device)[rows, index]


def at_positions(recorded: Tensor, site: str, where: Where, x: Tensor, *, strict: bool) -> Tensor:
    """A recorded tensor's numbers at this forward's positions; `strict` refuses positions it does not have.

    Where not strict, numbers beyond the record are those of `x`.
    """
    axes = site_of(site).axes
    recorded = recorded.to(x.device)
    length = recorded.shape[axes.index("query") if "query" in axes else 1]
    live = where.positions if where.mask is None else where.positions[where.mask]
    last = int(live.max())
    if last >= length and strict:
        raise ShapeError(
            f"The recorded text has {length} tokens, and position {last} of {site!r} was to be taken from it."
        )
    if recorded.shape[0] not in (1, x.shape[0]):
        raise ShapeError(f"The record holds {recorded.shape[0]} texts and this forward {x.shape[0]}.")
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    rows = rows if recorded.shape[0] > 1 else torch.zeros_like(rows)
    query = where.positions.clamp(max=length - 1)
    known = where.positions < length
    if axes[-1] == "key":
        keys = key_positions(where, x.shape[-1])
        known_keys = (keys >= 0) & (keys < length)
        picked = recorded.transpose(1, 2)[rows, query]  # (batch, query, head, key)
        index = keys.clamp(0, length - 1)[:, None, None, :].expand(*picked.shape[:3], -1)
        grid = picked.gather(-1, index).transpose(1, 2)
        return torch.where((known[:, None, :, None] & known_keys[:, None, None, :]), grid, x)
    picked = recorded[rows, query]
    return torch.where(known.view(*known.shape, *[1] * (x.ndim - 2)), picked, x)


@dataclass(frozen=True)
class Ablate(At):
    """Take the chosen numbers away: to zero, to their mean over another run, or to another prompt's."""

    method: Literal["zero", "mean", "resample"]
    reference: Any

    def actions(self, config: Config) -> list[SiteAction]:
        if self.method not in ("zero", "mean", "resample"):
            raise UsageError(f"Ablation method {self.method!r} is unknown; choose zero, mean or resample.")
        if (self.method == "zero") is (self.reference is not None):
            raise UsageError(
                "Ablation to zero takes no reference; ablation to the mean or by resampling needs one, a trace of "
                "other text."
            )
        return super().actions(config)

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        if self.method == "zero":
            return torch.zeros((), dtype=x.dtype, device=x.device)
        if self.method == "resample":
            recorded = self.reference.tensor(site) if isinstance(self.reference, Recorded) else self.reference
            return at_positions(recorded, site, where, x, strict=True)
        if site_of(site).axes[-1] == "key":
            raise SiteError(f"{site!r} has no mean over positions that could be put in; resample it, or use zero.")
        mean = getattr(self.reference, "mean", None)
        if isinstance(self.reference, Recorded) and mean is not None:
            return mean(site).to(x.device)
        return self.reference.to(x.device).mean(dim=(0, 1), keepdim=True)


@dataclass(frozen=True)
class Steer(At):
    """Add a vector, times a strength, at the chosen positions."""

    vector: Tensor
    strength: float
    direction: Direction | None = None

    def actions(self, config: Config) -> list[SiteAction]:
        if self.direction is not None:
            self.direction.check(config)
        actions = super().actions(config)
        for one in actions:
            axis = site_of(one.site).axes[-1]
            size = axis_sizes(one.site, config).get(axis, config.vocab_size)
            if self.vector.shape[-1:] != (size,):
                raise ShapeError(
                    f"A vector steering {one.site!r} needs {size} numbers ({axis}); got {tuple(self.vector.shape)}."
                )
        if self.selection == Selection() and self.vector.ndim == 1:
            return [replace(one, added=self.strength * self.vector) for one in actions]
        return actions

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        return x + self.strength * self.vector.to(x.device, x.dtype)


@dataclass(frozen=True)
class Knockout(At):
    """Forbid attention: the row's other weights are renormalised, and the diagonal always stays."""

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        nothing = float("-inf") if site.endswith("scores") else 0.0
        hidden = torch.full((), nothing, dtype=x.dtype, device=x.device)
        keys = key_positions(where, x.shape[-1])
        diagonal = where.positions[:, None, :, None] == keys[:, None, None, :]
        return torch.where(diagonal, x, hidden)


@dataclass(frozen=True)
class Freeze(At):
    """Hold sites to what they were in another run of texts of the same positions; later ones run free."""

    reference: Recorded

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        return at_positions(self.reference.tensor(site), site, where, x, strict=False)


@dataclass(frozen=True)
class Apply(At):
    """A function of the tensor, put in place of the chosen numbers."""

    function: Callable[[Tensor, Where], Tensor]

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        return self.function(x, where)
