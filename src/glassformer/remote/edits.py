"""Edits of a model as requests hold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from glassformer.errors import UsageError

_PARTS = {("mixer.out",): "attention", ("mlp.out",): "feed_forward"}


def told(tap: object, layers: int) -> list[dict[str, Any]]:
    """A tap as the `edits` of a request; several where it means several places.

    Args:
        layers: of the model.

    Raises:
        UsageError: what does not travel: a function or another run's numbers, places without an end.
    """
    from glassformer.interp.circuit_edit import RunCircuit
    from glassformer.interp.edit_ops import Ablate, Knockout, Steer

    if isinstance(tap, Mapping):
        return [dict(tap)]
    if isinstance(tap, RunCircuit):
        edges = [list(edge) for edge in tap.edges]
        return [{"circuit": {"edges": edges, "counterfactual": list(tap.counterfactual)}}]
    if not isinstance(tap, (Ablate, Knockout, Steer)) or tap.sites or not tap.selection.rows.everything:
        raise UsageError(
            f"{type(tap).__name__} cannot be sent to a server: what travels are ablate, knockout and steer of layers, "
            "heads and neurons, and circuits. Load the model here for others."
        )
    chosen, places = tap.selection, list(_layers(tap.layer, layers))
    positions = _listed(chosen.positions, "positions")
    heads = _listed(chosen.heads, "heads")
    if isinstance(tap, Knockout):
        keys = _listed(chosen.keys, "keys")
        every = [None] if tap.layer is None else places
        more = {} if positions == [None] else {"queries": positions}
        return [
            {"knockout": {"keys": keys, "layer": layer, "head": head, **more}}
            for layer, head in itertools.product(every, heads)
        ]
    each = itertools.product(places, positions)
    if isinstance(tap, Steer):
        if heads != [None] or tap.vector.ndim != 1:
            raise UsageError("Steering that is sent to a server adds one vector to the stream after a layer.")
        vector = tap.vector.double().tolist()
        return [
            {"steer": {"layer": layer, "vector": vector, "strength": tap.strength, "position": position}}
            for layer, position in each
        ]
    if tap.method != "zero":
        raise UsageError("An ablation to the mean or by resampling needs another run; load the model here for it.")
    return list(_ablations(tap, list(each), heads))


def _ablations(tap: Any, places: list[tuple[int, int | None]], heads: list[int | None]) -> Iterator[dict[str, Any]]:
    keys, units = _listed(tap.selection.keys, "keys"), _listed(tap.selection.units, "neurons")
    for layer, position in places:
        at = {"layer": layer, "position": position}
        if tap.part == ("mixer.pattern",):
            if position is None or heads == [None]:
                raise UsageError(
                    "What a head reads is taken away on a server at positions and of heads that are named."
                )
            for head, key in itertools.product(heads, keys):
                yield {"kind": "ablate_read", "head": head, "source": key, **at}
        elif tap.part == ("mixer.z",):
            yield from ({"ablate": {"head": head, **at}} for head in heads)
        elif tap.part in (("mlp.post",), ("mlp.weights",)):
            name = "neuron" if tap.part == ("mlp.post",) else "expert"
            yield from ({"ablate": {name: unit, **at}} for unit in units)
        else:
            parts = [_PARTS[tap.part]] if tap.part in _PARTS else list(_PARTS.values())
            yield from ({"ablate": {"part": part, **at}} for part in parts)


def _layers(layer: Any, layers: int) -> Iterator[int]:
    if layer is None:
        yield from range(layers)
        return
    for one in range(layers)[layer] if isinstance(layer, slice) else [layer] if isinstance(layer, int) else layer:
        yield int(one)


def _listed(places: Any, what: str) -> list[int | None]:
    """The numbers of a set of places; None alone for all of them.

    Raises:
        UsageError: a stretch without an end.
    """
    if places.everything:
        return [None]
    if places.listed is not None:
        return list(places.listed)
    if places.stop is None:
        raise UsageError(f"Edits that are sent to a server name their {what}; a slice without an end cannot travel.")
    return list(range(places.start, places.stop))
