"""One example of asking for each view: docs/views.md writes it out, and the tests ask it of a server."""

from __future__ import annotations

import json
from typing import Any

_TEXT = "The capital of France is"
_PAIR = {"clean": "The mole is", "corrupted": "A mole is"}
# What a view is asked beside a text, or instead of one.
_MORE: dict[str, dict[str, Any]] = {
    "attention": {"text": _TEXT, "layer": 1, "head": 0},
    "cell": {"text": _TEXT, "layer": 1, "head": 0, "query": 3, "key": 1},
    "maps": {"text": _TEXT, "layer": 1, "head": 0, "query": 3, "key": 1},
    "find": {"text": _TEXT, "what": "heads_reading"},
    "texts": {"texts": ["The capital of France is", "The capital of Italy is"], "metric": "entropy"},
    "reasons": {"text": _TEXT, "layer": 1, "head": 0},
    "carry": {"text": _TEXT, "layer": 1, "head": 0},
    "vector": {"text": _TEXT, "site": "blocks.1.resid_post"},
    "vocab": {"ids": [1, 2]},
    "compare": {"a": {"text": "The mole"}, "b": {"text": "The moles"}},
    "patch": {**_PAIR, "what": "attention"},
    "corpus": {"kind": "head", "layer": 1, "index": 0, "texts": ["The mole digs for worms.", "A mole is small."]},
    "lens_edit": {"text": _TEXT, "layer": 1, "token": 1},
    "edges": {**_PAIR, "metric": "kl", "exact": "none"},
    "graph": {**_PAIR, "metric": "kl", "measure": False},
    "direction": {
        "positive": ["Le chat dort", "Il fait beau"],
        "negative": ["The cat sleeps", "It is fine"],
        "layer": 1,
    },
    "circuit": {"pairs": [list(_PAIR.values())], "metric": "kl", "exact": "none", "faithfulness": 0.5},
    "meaning": {"word": "mole", "texts": ["a mole", "the mole"]},
    "effects": {"text": _TEXT, "edits": [{"ablate": {"layer": 1, "head": 0}}]},
    "python": {"name": "next", "arguments": {"text": _TEXT}},
    "run": {"name": "tiny"},
    "film": {"name": "tiny"},
    "influence": {"name": "tiny", "text": _TEXT},
    "exciting": {"layer": 1, "neuron": 0, "texts": ["The mole digs for worms."]},
    "heads": {},
    "models": {},
    "runs": {},
    "size": {},
    "tasks": {},
    "directions": {"text": _TEXT, "directions": [{"name": "gender", "words": "woman - man"}], "layer": 1},
    "sum": {"words": "king - man + woman"},
    "sums": {},
}


def example(view: str) -> dict[str, Any]:
    """What a view may be asked."""
    return _MORE.get(view, {"text": _TEXT})


def shell(view: str) -> str:
    """The example as a command of the shell, of a server on this machine."""
    asked = json.dumps(example(view), ensure_ascii=False)
    return f"curl -s localhost:8000/v1/inspect/{view} -H 'content-type: application/json' -d '{asked}'"


def python(view: str) -> str:
    """… and as Python, of the model that `gf.connect` gives."""
    asked = example(view)
    more = "".join(f", {name}={value!r}" for name, value in asked.items())
    return f'remote.inspect("{view}"{more})'
