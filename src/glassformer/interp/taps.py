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
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from glassformer.errors import SiteError
from glassformer.interp.select import EVERY, Places, named
from glassformer.model.config import Config
from glassformer.model.sites import Tap, Where, canonical, layer_of, site_of

Action = Callable[[str, Tensor, Where], Tensor | None]


@runtime_checkable
class Recorded(Protocol):
    """Whatever holds a site's tensor from an earlier run, batch axis first: a `Trace`, for one."""

    def tensor(self, site: str) -> Tensor:
        """What passed at a site."""


@dataclass(frozen=True)
class SiteAction:
    """One thing a bound tap does at one site."""

    site: str
    action: Action
    writes: bool
    wanted: Places = EVERY  # positions it means
    rows: Places = EVERY  # rows of the batch it means
    added: Tensor | None = None  # the vector that it adds everywhere, where that is all it does


class Bound:
    """Edits bound to a design: a tap, in the sense of `glassformer.model.sites`."""

    def __init__(self, actions: Sequence[SiteAction]) -> None:
        self._actions: dict[str, list[SiteAction]] = {}
        for one in actions:
            self._actions.setdefault(one.site, []).append(one)
        self._writes = frozenset(s.site for s in actions if s.writes)
        self._reads = frozenset(self._actions) - self._writes
        self._pending = {(s.site, p) for s in actions for p in s.wanted.listed or ()}
        for s in actions:
            if s.wanted.listed is None and s.wanted.start:
                self._pending.add((s.site, s.wanted.start))
        self._reach = 0

    @property
    def actions(self) -> list[SiteAction]:
        """Everything it does, grouped by site."""
        return [one for actions in self._actions.values() for one in actions]

    @property
    def reads(self) -> frozenset[str]:
        """Sites it only looks at."""
        return self._reads

    @property
    def writes(self) -> frozenset[str]:
        """Sites it changes."""
        return self._writes

    @property
    def added(self) -> dict[int, Tensor] | None:
        """The vectors that it adds to the stream after layers, where that is all it does."""
        found: dict[int, Tensor] = {}
        for one in self.actions:
            layer = layer_of(one.site)
            if one.added is None or layer is None or not one.site.endswith(".resid_post"):
                return None
            found[layer] = one.added if layer not in found else found[layer] + one.added
        return found or None

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None:
        if self._pending:
            low, high = (int(v) for v in where.positions.aminmax())
            self._reach = max(self._reach, high + 1)
            self._pending = {(s, p) for s, p in self._pending if s != site or not low <= p <= high}
        for one in self._actions[site]:
            y = one.action(site, x, where)
            if one.writes:
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
    def actions(self, config: Config) -> list[SiteAction]:
        """What to do where, with every name, layer and head checked against the design.

        Raises:
            SiteError: for a place, layer or head that the design does not have.
        """

    def bind(self, config: Config) -> Bound:
        """The tap for models of this design."""
        return Bound(self.actions(config))

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

    def actions(self, config: Config) -> list[SiteAction]:
        out: list[SiteAction] = []
        for tap in self.taps:
            if isinstance(tap, Edit):
                out += tap.actions(config)
            elif isinstance(tap, Bound):
                out += tap.actions
            else:
                out += _own_actions(tap, config)
        return out


def compose(*taps: Tap, config: Config) -> Bound:
    """Several taps as one, bound to a design.

    Raises:
        SiteError: for a place, layer or head that the design does not have.
    """
    return Compose(*taps).bind(config)


def _own_actions(tap: Tap, config: Config) -> list[SiteAction]:
    """The actions of a tap that somebody else wrote; it is called with the names it declared."""

    def calling(name: str) -> Action:
        return lambda site, x, where: tap(name, x, where)

    both = [(name, True) for name in sorted(tap.writes)]
    both += [(name, False) for name in sorted(tap.reads - tap.writes)]
    return [SiteAction(canonical(name, config), calling(name), writes) for name, writes in both]


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

    def actions(self, config: Config) -> list[SiteAction]:
        self._config = config
        return [SiteAction(name, self._keep, False) for site in self.sites for name in named(site, config)]

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
