"""Taps: reading and changing the model at its named places, without changing the model.

    model.edited(gf.ablate(layer=3, head=5), gf.steer(vector, layer=8))

An edit is written without a model (`ablate(layer=-1)`) and bound to a design, where its names,
layers and heads are checked; bound, it declares what it reads and writes. Several edits of one place
act in the order given. Positions are those of the text, so an edit means the same inside generation,
in batches and under padding. Nothing here knows how the model computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from glassformer.errors import ShapeError, SiteError, UsageError
from glassformer.inspect.select import EVERY, Chosen, Places, Selection, key_positions, layers_of, named
from glassformer.model.config import Config
from glassformer.model.sites import Tap, Where, canonical, site_of

Action = Callable[[str, Tensor, Where], Tensor | None]


@runtime_checkable
class Recorded(Protocol):
    """Whatever holds a site's tensor from an earlier run, batch axis first: a `Trace`, for one."""

    def tensor(self, site: str) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """One thing a bound tap does at one site."""

    site: str
    action: Action
    writes: bool
    wanted: Places = EVERY  # positions it means
    rows: Places = EVERY  # rows of the batch it means


class Bound:
    """Edits bound to a design: a tap, in the sense of `glassformer.model.sites`."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps: dict[str, list[Step]] = {}
        for step in steps:
            self._steps.setdefault(step.site, []).append(step)
        self._writes = frozenset(s.site for s in steps if s.writes)
        self._reads = frozenset(self._steps) - self._writes
        self._pending = {(s.site, p) for s in steps for p in s.wanted.listed or ()}
        for s in steps:
            if s.wanted.listed is None and s.wanted.start:
                self._pending.add((s.site, s.wanted.start))
        self._reach = 0

    @property
    def steps(self) -> list[Step]:
        """Everything it does, grouped by site."""
        return [step for steps in self._steps.values() for step in steps]

    @property
    def reads(self) -> frozenset[str]:
        """Sites it only looks at."""
        return self._reads

    @property
    def writes(self) -> frozenset[str]:
        """Sites it changes."""
        return self._writes

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None:
        if self._pending:
            low, high = (int(v) for v in where.positions.aminmax())
            self._reach = max(self._reach, high + 1)
            self._pending = {(s, p) for s, p in self._pending if s != site or not low <= p <= high}
        for step in self._steps[site]:
            y = step.action(site, x, where)
            if step.writes:
                if y is None or y.shape != x.shape:
                    got = "nothing" if y is None else f"shape {tuple(y.shape)}"
                    raise SiteError(f"A tap that writes {site!r} returned {got}; it needs {tuple(x.shape)}.")
                x = y
        return x

    def finish(self) -> None:
        """Raise for a position that was named and never came, so that no edit is silently without effect.

        Raises:
            SiteError: naming the place and the position.
        """
        for site, position in sorted(self._pending):
            raise SiteError(
                f"The tap at {site!r} means position {position}, and the text ended at position {self._reach - 1}, "
                "so nothing was read or changed there."
            )


class Edit(ABC):
    """A tap not yet bound to a design. `bind(config)` gives the tap; `Model.edited` does it for you."""

    @abstractmethod
    def steps(self, config: Config) -> list[Step]:
        """What to do where, with every name, layer and head checked against the design.

        Raises:
            SiteError: for a place, layer or head that the design does not have.
        """

    def bind(self, config: Config) -> Bound:
        """The tap for models of this design."""
        return Bound(self.steps(config))

    @property
    def reads(self) -> frozenset[str]:
        """Known only once bound."""
        raise SiteError("This tap is not bound to a model yet; use model.edited(tap), or tap.bind(model.config).")

    @property
    def writes(self) -> frozenset[str]:
        """Known only once bound."""
        raise SiteError("This tap is not bound to a model yet; use model.edited(tap), or tap.bind(model.config).")

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None:
        raise SiteError("This tap is not bound to a model yet; use model.edited(tap), or tap.bind(model.config).")


class Compose(Edit):
    """Several taps as one, acting in the order given; a user's own may be among them."""

    def __init__(self, *taps: Tap) -> None:
        self.taps = taps

    def steps(self, config: Config) -> list[Step]:
        out: list[Step] = []
        for tap in self.taps:
            if isinstance(tap, Edit):
                out += tap.steps(config)
            elif isinstance(tap, Bound):
                out += tap.steps
            else:
                out += _own_steps(tap, config)
        return out


def compose(*taps: Tap, config: Config) -> Bound:
    """Several taps as one, bound to a design.

    Raises:
        SiteError: for a place, layer or head that the design does not have.
    """
    return Compose(*taps).bind(config)


def _own_steps(tap: Tap, config: Config) -> list[Step]:
    """The steps of a tap that somebody else wrote; it is called with the names it declared."""

    def calling(name: str) -> Action:
        return lambda site, x, where: tap(name, x, where)

    both = [(name, True) for name in sorted(tap.writes)]
    both += [(name, False) for name in sorted(tap.reads - tap.writes)]
    return [Step(canonical(name, config), calling(name), writes) for name, writes in both]


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
            full = [canonical(f"blocks.{i}.{part}", config) for i in layers for part in self.part]
        for name in full:
            self.selection.check(name, config)
        return full

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        """What the chosen numbers become, broadcastable to `x`."""
        raise NotImplementedError

    def act(self, site: str, x: Tensor, where: Where) -> Tensor:
        """`x` with the chosen numbers changed."""
        chosen = self.selection.mask(site, x, where)
        new = self.change(site, x, where).to(x.dtype)
        return new.expand(x.shape) if chosen is None else torch.where(chosen, new, x)

    def steps(self, config: Config) -> list[Step]:
        chosen = self.selection
        return [Step(name, self.act, True, chosen.positions, chosen.rows) for name in self.names(config)]


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

    def steps(self, config: Config) -> list[Step]:
        if self.method not in ("zero", "mean", "resample"):
            raise UsageError(f"Ablation method {self.method!r} is unknown; choose zero, mean or resample.")
        if (self.method == "zero") is (self.reference is not None):
            raise UsageError(
                "Ablation to zero takes no reference; ablation to the mean or by resampling needs one, a trace of "
                "other text."
            )
        return super().steps(config)

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

    def steps(self, config: Config) -> list[Step]:
        steps = super().steps(config)
        for step in steps:
            axis = site_of(step.site).axes[-1]
            size = {"d_model": config.d_model, "d_ff": config.feed_forward.d_ff, "d_head": config.attention.d_head}.get(
                axis, config.vocab_size
            )
            if self.vector.shape[-1:] != (size,):
                raise ShapeError(
                    f"A vector steering {step.site!r} needs {size} numbers ({axis}); got {tuple(self.vector.shape)}."
                )
        return steps

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        return x + self.strength * self.vector.to(x.device, x.dtype)


@dataclass(frozen=True)
class Knockout(At):
    """Forbid attention: the row's other weights are renormalised, and the diagonal always stays."""

    def change(self, site: str, x: Tensor, where: Where) -> Tensor:
        hidden = torch.full((), float("-inf"), dtype=x.dtype, device=x.device)
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


class Record(Edit):
    """Keep what passes: `record["blocks.3.attn.z"]` afterwards.

    Over several forwards (generation) the pieces are joined along the query axis; `pieces(site)` gives
    them one by one. `clear()` forgets them.
    """

    def __init__(self, *sites: str) -> None:
        if not sites:
            raise SiteError("A record needs the names of the sites to keep.")
        self.sites = sites
        self._kept: dict[str, list[Tensor]] = {}
        self._config: Config | None = None

    def steps(self, config: Config) -> list[Step]:
        self._config = config
        return [Step(name, self._keep, False) for site in self.sites for name in named(site, config)]

    def _keep(self, site: str, x: Tensor, where: Where) -> None:
        self._kept.setdefault(site, []).append(x)

    def pieces(self, site: str) -> list[Tensor]:
        """What passed at each forward, in order.

        Raises:
            SiteError: for a site that was not recorded.
        """
        name = canonical(site, self._config) if self._config is not None else site
        if name not in self._kept:
            there = ", ".join(sorted(self._kept)[:4]) or "nothing yet"
            raise SiteError(f"{site!r} was not recorded; recorded is {there}.")
        return self._kept[name]

    def tensor(self, site: str) -> Tensor:
        """Everything that passed, joined along the query axis (batch axis first)."""
        pieces = self.pieces(site)
        if len(pieces) == 1:
            return pieces[0]
        axes = site_of(canonical(site, self._config) if self._config is not None else site).axes
        if axes[-1] == "key":
            wide = max(p.shape[-1] for p in pieces)
            hidden = float("-inf") if site.endswith("scores") else 0.0
            pieces = [torch.nn.functional.pad(p, (0, wide - p.shape[-1]), value=hidden) for p in pieces]
        return torch.cat(pieces, dim=axes.index("query") if "query" in axes else 1)

    def __getitem__(self, site: str) -> Tensor:
        return self.tensor(site)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def clear(self) -> None:
        """Forget everything kept."""
        self._kept.clear()
