"""Rows of a layout spelled out for one design: which of their tensors there are, what each holds, what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property

from glassformer.checkpoint.keys import Shape, native_shapes
from glassformer.checkpoint.tables import (
    Array,
    Place,
    Row,
    concatenated,
    crossed_shape,
    join,
    stacked,
    take,
    their_shape,
)
from glassformer.errors import CheckpointError, near
from glassformer.model.choices import recurrence_of
from glassformer.model.config import Config


class Table:
    """The rows spelled out for one design."""

    def __init__(self, rows: tuple[Row, ...], config: Config, rename: Callable[[str], str] = lambda name: name):
        self.config = config
        self._rows = rows
        self._rename = rename

    @cached_property
    def places(self) -> dict[str, Place]:
        """Every tensor of theirs that this design has, by its name there."""
        shapes = native_shapes(self.config)
        places: dict[str, Place] = {}
        for line, layer in self._lines():
            ours = tuple(self._key(key, layer) for key in line.ours)
            if not all(key in shapes for key in ours):
                continue
            theirs = self._rename(line.theirs.replace("{i}", str(layer)))
            parts = tuple(shapes[key] for key in ours)
            if line.spread:
                places.update(self._spread(line, theirs, ours, parts[0], layer))
                continue
            if "{e}" not in theirs:
                shape = their_shape(line, parts, self._cuts(line, layer))
                if line.crossed:
                    shape = crossed_shape(line, parts[0], self.config.attention(layer))
                places[theirs] = Place(line, theirs, shape, ours, parts)
                continue
            each = tuple(part[1:] for part in parts)
            for expert in range(parts[0][0]):
                name = theirs.replace("{e}", str(expert))
                places[name] = Place(line, name, their_shape(line, each), ours, each, expert)
        return places

    def _key(self, key: str, layer: int) -> str:
        """One of ours: "{i}" is the layer, "{h}" the one before it, "{last}" the last."""
        last = str(self.config.n_layers - 1)
        return key.replace("{i}", str(layer)).replace("{h}", str(layer - 1)).replace("{last}", last)

    def _spread(
        self, line: Row, theirs: str, ours: tuple[str, ...], shape: Shape, layer: int
    ) -> Iterator[tuple[str, Place]]:
        """The tensors that hold one of ours together."""
        share = -(-shape[0] // len(line.spread))
        widths = [share] * len(line.spread) if line.evenly else self.config.mixer(layer).widths  # type: ignore[union-attr]
        start = 0
        for name, width in zip(line.spread, widths, strict=True):
            stop = min(start + width, shape[0])
            part = (stop - start, *shape[1:])
            found = theirs.replace("{p}", name)
            yield found, Place(line, found, their_shape(line, (part,)), ours, (part,), rows=(start, stop))
            start = stop

    def _cuts(self, line: Row, layer: int) -> int:
        if line.cut == "parts":
            return len(line.ours)
        if line.cut == "heads":
            return self.config.attention(layer).n_heads
        return getattr(recurrence_of(self.config.mixer(layer)), "n_groups", 1) if line.cut else 1

    @cached_property
    def pieces(self) -> dict[str, list[tuple[Place, int]]]:
        """For every native key, the tensors of theirs that hold it and which part of each: several for experts that
        have one each."""
        found: dict[str, list[tuple[Place, int]]] = {}
        for place in self.places.values():
            for part, key in enumerate(place.ours):
                found.setdefault(key, []).append((place, part))
        return {key: found[key] for key in native_shapes(self.config) if key in found}

    @cached_property
    def homes(self) -> dict[str, tuple[Place, int]]:
        """For every native key, the (first) tensor of theirs that holds it and which part of it."""
        return {key: pieces[0] for key, pieces in self.pieces.items()}

    def unplaced(self) -> list[str]:
        """Native keys of this design that their layout has no tensor for."""
        return [key for key in native_shapes(self.config) if key not in self.homes]

    def check(self, found: Mapping[str, Shape], ignored: Collection[str], where: str) -> None:
        """Compares what a file holds with what the design needs, from names and shapes alone.

        Args:
            found: shapes by name in the file.
            ignored: patterns of names that may be there and are not needed.
        Raises:
            CheckpointError: naming what is missing, what has another shape, or what is left over.
        """
        missing = [name for name in self.places if name not in found]
        if missing:
            raise CheckpointError(
                f"{where} lacks {_some(missing)}, which its config calls for."
                f"{near(missing[0], [name for name in found if name not in self.places])}"
                " The file is incomplete or belongs to another config."
            )
        for name, place in self.places.items():
            if tuple(found[name]) != place.shape:
                raise CheckpointError(
                    f"{where} holds {name} with shape {tuple(found[name])}; its config calls for {place.shape}."
                )
        extra = [n for n in found if n not in self.places and not any(re.search(pattern, n) for pattern in ignored)]
        if extra:
            raise CheckpointError(
                f"{where} holds {_some(extra)}, which its config has no place for; "
                "loading without would give wrong answers."
            )

    def ours(self, key: str, fetch: Callable[[str], Array]) -> Array:
        """One native tensor; ``fetch`` gives theirs by name."""
        found = [take(place, part, fetch(place.theirs), self.config) for place, part in self.pieces[key]]
        first = self.pieces[key][0][0]
        if first.rows is not None:
            return concatenated(found, 0)
        return found[0] if first.expert is None else stacked(found)

    def theirs(self, name: str, fetch: Callable[[str], Array]) -> Array:
        """One tensor of theirs; ``fetch`` gives ours by native key."""
        place = self.places[name]
        parts = [fetch(key) for key in place.ours]
        if place.rows is not None:
            parts = [x[slice(*place.rows)] for x in parts]
        return join(place, parts if place.expert is None else [x[place.expert] for x in parts], self.config)

    def _lines(self) -> Iterator[tuple[Row, int]]:
        for line in self._rows:
            if line.when is not None and not line.when(self.config):
                continue
            for layer in range(self.config.n_layers if "{i}" in line.theirs else 1):
                yield line, layer


def _some(names: list[str]) -> str:
    """A few names and how many more."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more tensors"
