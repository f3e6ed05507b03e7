"""What the verbs find, as plain data with its tensors apart, and back: for a server and whoever asks it.

Dataclasses of a fixed list are taken and nothing else is built from what comes over the wire. A trace becomes its token
ids, a graph of edges what its design gives, and what only computes beside the weights is `Elsewhere` afterwards.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from glassformer.interp.edge_graph import Graph
from glassformer.interp.edge_pair import Pair
from glassformer.interp.elsewhere import Elsewhere
from glassformer.interp.trace import Trace
from glassformer.model.config import Config

# Classes by the module that defines them.
_MODULES: dict[str, tuple[str, ...]] = {
    "interp.cell": ("Cell",),
    "interp.circuit_search": ("Circuit", "Curve"),
    "interp.decompose": ("Parts",),
    "interp.direction": ("Direction",),
    "interp.edges": ("Edges",),
    "interp.experts": ("Experts",),
    "interp.heads": ("Heads",),
    "interp.lens": ("Lens",),
    "interp.lens_edits": ("LensEdit",),
    "interp.logit_target": ("Target", "Direction"),
    "interp.meaning": ("Meaning",),
    "interp.memory": ("Cost",),
    "interp.moved": ("Moved",),
    "interp.neurons": ("Neurons",),
    "interp.patching": ("Patching",),
    "interp.prediction_graph": ("PredictionGraph",),
    "interp.readout": ("Readout",),
    "interp.reasons": ("KeyScore", "Part", "Reasons"),
    "interp.replacement": ("WordEffect",),
    "interp.token_words": ("Word",),
    "interp.why": ("Why",),
    "predict.neighbours": ("Neighbour", "Neighbours", "Term"),
    "predict.next_words": ("WordProbability",),
}
# Attributes of a pair of prompts that an answer needs; what it was measured with stays behind.
_OF_PAIR = ("clean", "corrupted", "first", "at", "answer", "wrong", "unit", "offset", "of_clean", "of_corrupted")
_MARK = "$"


@cache
def _classes() -> dict[str, type]:
    found: dict[str, type] = {}
    for place, names in _MODULES.items():
        module = import_module(f"glassformer.{place}")
        found |= {f"{place}.{name}": getattr(module, name) for name in names}
    return found


def _name(value: object) -> str | None:
    name = f"{type(value).__module__.removeprefix('glassformer.')}.{type(value).__name__}"
    return name if name in _classes() else None


def taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data for JSON; the tensors of a result go into `tensors` by the names that stand in their place."""

    def of(value: object) -> Any:
        return taken_apart(value, tensors)

    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_MARK: "float", "of": str(value)}
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_MARK: "tensor", "of": name}
    if isinstance(value, Trace):
        return {_MARK: "trace", "of": value.ids}
    if isinstance(value, Graph):
        return {_MARK: "graph", "of": None}
    if isinstance(value, Pair):
        return {_MARK: "pair", "of": {name: of(getattr(value, name)) for name in _OF_PAIR}}
    if (kind := _name(value)) is not None:
        fields = getattr(value, "_fields", None) or [field.name for field in dataclasses.fields(value)]
        return {_MARK: kind, "of": {field: of(getattr(value, field)) for field in fields}}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: of(item) for key, item in value.items()}
        return {_MARK: "dict", "of": [[of(key), of(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [of(item) for item in value]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "of": [of(item) for item in value]}
    return {_MARK: "elsewhere", "of": type(value).__name__}


def put_together(told: object, tensors: Mapping[str, Tensor], config: Config, trace: Callable[[Any], Trace]) -> Any:
    """What `taken_apart` took apart.

    Args:
        config: the design that graphs of edges are of.
        trace: a trace of these token ids.

    Raises:
        ValueError, TypeError, KeyError: for what it did not write.
    """

    def of(told: object) -> Any:
        return put_together(told, tensors, config, trace)

    if isinstance(told, list):
        return [of(item) for item in told]
    if not isinstance(told, dict):
        return told
    if _MARK not in told:
        return {key: of(item) for key, item in told.items()}
    kind, inner = told[_MARK], told["of"]
    if kind == "float":
        return float(inner)
    if kind == "tensor":
        return tensors[inner]
    if kind == "trace":
        return trace(inner)
    if kind == "graph":
        return Graph(config)
    if kind == "pair":
        pair = Pair.__new__(Pair)
        pair.__dict__.update({name: of(inner[name]) for name in _OF_PAIR}, graph=Graph(config))
        return pair
    if kind == "dict":
        return {of(key): of(item) for key, item in inner}
    if kind == "tuple":
        return tuple(of(item) for item in inner)
    if kind == "elsewhere":
        return Elsewhere(f"the {inner} of this result")
    return _classes()[kind](**{name: of(item) for name, item in inner.items()})


def packed(value: object, **told: object) -> bytes:
    """A result as a safetensors file whose metadata `json` says what it is, with what else is told."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    rest = {**told, "result": taken_apart(value, tensors)}
    return save(tensors or {"none": torch.zeros(0)}, {"json": json.dumps(rest, ensure_ascii=False)})


def unpacked(data: bytes, config: Config, trace: Callable[[Any], Trace]) -> tuple[Any, dict[str, Any]]:
    """The result in a file that `packed` made, and what else is told.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    size = int.from_bytes(data[:8], "little")
    told = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["json"])
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return put_together(told.pop("result"), tensors, config, trace), told
