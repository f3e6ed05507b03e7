"""Settings as plain data for JSON, and back.

Reading checks every field's name and type, and says where in the data what is wrong stands.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from glassformer.errors import ConfigError, near
from glassformer.model.choices import (
    FEEDS,
    MIXERS,
    Copies,
    Head,
    Index,
    LayerEmbedding,
    Norm,
    Parallel,
    RopeScaling,
    Rotary,
    Sinusoids,
)
from glassformer.model.choices.common import positive
from glassformer.model.choices.layer import Layer

MOST_LAYERS = 10_000

# Field -> what its object of named fields becomes.
_NESTED: Mapping[str, type] = {
    "norm": Norm,
    "qk_norm_kind": Norm,
    "embedding": LayerEmbedding,
    "copies": Copies,
    "rotary": Rotary,
    "scaling": RopeScaling,
    "sinusoids": Sinusoids,
    "out_norm": Norm,
    "head": Head,
    "index": Index,
}
_CLASSES = {cls.__name__: cls for cls in _NESTED.values()}
_TEXTS = ("str", "Activation", "Placement", 'Literal["', "Literal['")


def plain(value: object) -> Any:
    """A setting, or settings within each other, as JSON has them; an infinity becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = getattr(value, "kind", None) if type(value) in (*MIXERS.values(), *FEEDS.values()) else None
        return fields if kind is None else {"kind": kind, **fields}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return None
    return value


def plain_layers(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Layers as plain data; equal neighbours are written once with a count."""
    found: list[dict[str, Any]] = []
    for i, layer in enumerate(layers):
        if i and layer == layers[i - 1]:
            found[-1]["count"] += 1
        else:
            found.append({"count": 1, **plain(layer)})
    return found


def build_layers(entries: object) -> tuple[Layer, ...]:
    """What `plain_layers` gave, as layers again.

    Raises:
        ConfigError: it is no list of layers, or a layer's fields are wrong.
    """
    if not isinstance(entries, list) or not entries:
        raise ConfigError("config.layers must be a list of at least one layer.")
    layers: list[Layer] = []
    for i, entry in enumerate(entries):
        where = f"config.layers[{i}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} must be an object of named fields, not {type(entry).__name__}.")
        count = entry.get("count", 1)
        positive(where, count=count)
        if len(layers) + count > MOST_LAYERS:
            raise ConfigError(f"{where}: a model has at most {MOST_LAYERS:,} layers.")
        layers += [build(Layer, {k: v for k, v in entry.items() if k != "count"}, where)] * count
    return tuple(layers)


def build(cls: Any, data: Any, where: str) -> Any:
    """An object of this dataclass from its named fields.

    Args:
        where: the place of `data`, as errors name it.

    Raises:
        ConfigError: a field is missing, unknown or wrongly typed.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object of named fields, not {type(data).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ConfigError(f"{where} has no field {name!r}." + near(str(name), fields))
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name not in data:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where} lacks the field {name!r}.")
            continue
        value, place = data[name], f"{where}.{name}"
        if name == "mixer" or (cls is Parallel and name in ("attention", "recurrence")):
            value = _kind(MIXERS, value, place)
        elif name in ("feed_forward", "shared"):
            value = _kind(FEEDS, value, place)
        elif name in _NESTED and isinstance(value, dict):
            value = build(_NESTED[name], value, place)
        elif name == "dt_limit" and isinstance(value, (list, tuple)):
            value = tuple(float("inf") if v is None else v for v in value)
        elif isinstance(value, list):
            value = tuple(value)
        check_type(place, str(spec.type), value)
        values[name] = value
    return cls(**values)


def _kind(table: Mapping[str, type], data: object, where: str) -> Any:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object of named fields, not {type(data).__name__}.")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in table:
        raise ConfigError(f"{where}.kind {kind!r} is unknown; known are {', '.join(table)}." + near(str(kind), table))
    return build(table[kind], {k: v for k, v in data.items() if k != "kind"}, where)


def check_type(where: str, annotation: str, value: object) -> None:
    """Check a field's value against its annotation.

    Raises:
        ConfigError: it is of another type.
    """
    if value is None:
        sound = "None" in annotation
    elif annotation.startswith("int"):
        sound = isinstance(value, int) and not isinstance(value, bool)
    elif annotation.startswith("float"):
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    elif annotation.startswith("bool"):
        sound = isinstance(value, bool)
    elif annotation.startswith("tuple[int"):
        sound = isinstance(value, tuple) and all(v is None or type(v) is int for v in value)
    elif annotation.startswith("tuple[float"):
        sound = isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
    elif annotation.startswith("tuple[Layer"):
        sound = isinstance(value, tuple) and all(isinstance(v, Layer) for v in value)
    elif annotation.startswith(_TEXTS):
        sound = isinstance(value, str)
    else:
        wanted = _CLASSES.get(annotation.partition(" ")[0])
        sound = wanted is None or isinstance(value, wanted)
    if not sound:
        raise ConfigError(f"{where} must be {annotation}; got {value!r}.")
