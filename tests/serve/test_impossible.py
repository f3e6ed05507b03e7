"""What no model or text has is refused by every view and verb before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from glassformer.errors import GlassformerError
from glassformer.lm import Model
from glassformer.model import Transformer
from glassformer.serve.verbs import verbs
from glassformer.views import VIEWS, Session
from glassformer.views.examples import example
from tests.serve.running import TEXT, tiny_model, with_experts

FAR = 1_000_003
NO_WORD = "no such thing at all"
SHARED = {"model", "bos", "edits", "text"}
OF_A_RUN = {"run", "film", "influence"}  # they read files
# Of these every number, or every word, can be meant.
FREE = {"seed", "strength", "temperature", "context", "name", "positive", "negative", "texts", "words", "plus", "minus"}
FREE |= {"letters", "channel", "matrix", "kind", "clean", "corrupted", "pairs", "arguments", "count"}
FREE |= {"start", "stop", "q1", "k1", "matching", "index", "vector", "vocab.ids", "cloud.plane"}
PAIR = {"pairs": [["The mole is", "A mole is"]]}
QUICK = {"metric": "kl", "exact": "none"}
# What a verb is asked beside a text, or instead of one.
SOUND: dict[str, dict[str, Any]] = {
    "neighbours": {"words": "mole"},
    "meaning": {"word": "mole", "texts": ["a mole", "the mole"]},
    "patch": PAIR,
    "direction": {"name": "x", "positive": ["Le chat", "Il fait"], "negative": ["The cat", "It is"], "layer": 1},
    "readout": {"text": "The mole digs " * 20, "steps": 1, "window": 8, "tokens": 32, "rows": 2},
    "circuit": {**PAIR, **QUICK},
    "moved": {"edits": [{"ablate": {"layer": 0, "head": 0}}]},
    "trace.edges": {"text": "The mole is", "corrupted": "A mole is", **QUICK},
    "trace.at": {"site": "embed", "positions": 1},
    "trace.cell": {"layer": 1, "head": 0, "query": 3, "key": 1},
    "trace.reasons": {"layer": 1, "head": 0, "query": 3},
    "trace.contributions": {"layer": 1, "head": 0},
    "trace.lens_edit": {"layer": 1, "token": 5},
    "trace.gradients": {"sites": ["embed"]},
    "trace.experts": {"layer": 0},
} | {f"trace.{one}": {"site": "embed"} for one in ("gradient", "tensor", "mean", "cost")}
SOUND |= {f"trace.{one}": {"layer": 1, "head": 0} for one in ("pattern", "scores", "head_outputs", "weighted")}
EDITS: list[dict[str, Any]] = [
    {"ablate": {"layer": 99, "head": 0}},
    {"ablate": {"layer": 0, "head": 99}},
    {"ablate": {"layer": 0, "neuron": 10**7}},
    {"ablate": {"layer": 0, "head": 0, "position": 999}},
    {"knockout": {"keys": [999]}},
    {"knockout": {"keys": [1], "queries": [999]}},
    {"scale": {"part": "head", "layer": 0, "unit": 99, "by": 2}},
    {"scale": {"part": "word", "source": [999], "by": 2}},
    {"steer": {"layer": 0, "vector": [1.0]}},
    {"steer": {"direction": "nobody"}},
]


class Computed(AssertionError):
    """A forward was run."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Model]:
    """A model, and one with experts."""
    made = tiny_model(tmp_path_factory.mktemp("impossible"))
    return {False: made, True: with_experts(made)}


@pytest.fixture(autouse=True)
def nothing_runs(models: dict[bool, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: Any, **__: Any) -> Any:
        raise Computed

    for name in ("forward", "hidden", "stream", "embedded", "entering"):
        monkeypatch.setattr(Transformer, name, ran)


def wrong(ask: type[BaseModel], of: str) -> Iterator[tuple[str, Any]]:
    """Values that no model or text has, field by field."""
    for name, field in ask.model_fields.items():
        if name in SHARED | FREE or f"{of}.{name}" in FREE:
            continue
        kinds = json.dumps(field.annotation, default=str)
        if "int" in kinds or "float" in kinds:
            yield name, FAR
            yield name, -FAR
        if "str" in kinds and "Literal" not in kinds:
            yield name, NO_WORD
        if "list" in kinds:
            yield name, [FAR]


VERBS = verbs()
ASKS = {f"view {view.name}": view.ask for view in VIEWS.values() if view.name not in OF_A_RUN}
ASKS |= {f"verb {verb.name}": verb.ask for verb in VERBS.values()}
CASES = {what: [*wrong(ask, what.partition(" ")[2])] for what, ask in ASKS.items()}


def asking(models: dict[bool, Model], what: str, /, **more: Any) -> Callable[[], Any]:
    """A view or a verb, asked for its example with something else in it."""
    kind, _, name = what.partition(" ")
    session = Session(models["experts" in name])
    if kind == "view":
        return lambda: session.view(name, {**example(name), **more})
    verb = VERBS[name]
    text = {"text": TEXT} if "text" in verb.ask.model_fields else {}
    body = {**text, **SOUND.get(name, {}), **more}
    return lambda: verb.run(session, verb.ask.model_validate(body), lambda *_: None)


@pytest.mark.parametrize("what", [what for what, found in CASES.items() if found])
def test_what_no_model_or_text_has_is_refused_before_anything_runs(models, what):
    for field, value in CASES[what]:
        with pytest.raises((GlassformerError, ValidationError)):
            asking(models, what, **{field: value})()


def test_most_views_and_verbs_name_something_that_may_not_be_there():
    assert sum(map(len, CASES.values())) > 250


TAKING_EDITS = [
    what for what, ask in ASKS.items() if {"edits", "text"} <= ask.model_fields.keys() and what != "verb readout"
]


@pytest.mark.parametrize("what", TAKING_EDITS)
def test_edits_that_cannot_be_are_refused_before_anything_runs(models, what):
    for edit in EDITS:
        with pytest.raises((GlassformerError, ValidationError)):
            asking(models, what, edits=[edit])()


@pytest.mark.parametrize(
    ("view", "more"),
    [
        ("patch", {"clean": "The mole digs"}),
        ("edges", {"corrupted": "The mole is"}),
        *((view, {side: ""}) for view in ("patch", "edges", "graph", "circuit") for side in ("clean", "corrupted")),
        ("circuit", {"pairs": [["", ""]]}),
        ("meaning", {"texts": ["the mole", ""]}),
        ("compare", {"a": {"text": ""}}),
        ("circuit", {"pairs": [["The mole is", "A mole digs for worms"]]}),
        ("compare", {"a": {"text": "The mole"}, "b": {"text": "The small mole"}, "what": "lens"}),
        ("compare", {"a": {"text": "The mole"}, "b": {"text": "A mole", "edits": [EDITS[0]]}}),
        ("attention", {"q0": 50}),
        ("attention", {"q0": 3, "q1": 3}),
        ("attention", {"k0": -1}),
        ("lens", {"start": 9, "stop": 9}),
        ("lens", {"start": FAR}),
        ("lens_edit", {"edits": [{"ablate": {"layer": 0, "head": 0}}]}),
        ("prediction", {"edits": [{"ablate": {"layer": 0, "head": 0}}]}),
        ("run_step", {"edits": [{"ablate": {"layer": 0, "head": 0}}]}),
        ("meaning", {"word": "worm"}),
        ("vector", {"site": "blocks.0.attn.patern"}),
    ],
    ids=lambda x: str(x)[:40],
)
def test_what_does_not_fit_together_is_refused_before_anything_runs(models, view, more):
    with pytest.raises(GlassformerError):
        asking(models, f"view {view}", **more)()


def test_a_model_without_experts_is_told_so_before_anything_runs(models):
    with pytest.raises(GlassformerError, match="No layer of this model has experts"):
        Session(models[False]).view("experts", {"text": TEXT})


def test_the_sound_ones_do_run(models):
    """The tests above cannot pass by refusing everything."""
    for what in (f"view {view}" for view in VIEWS if "text" in example(view) and view not in ("tokens", "find")):
        if what.partition(" ")[2] not in OF_A_RUN | {"cloud", "size", "sums"}:
            with pytest.raises(Computed):
                asking(models, what)()
