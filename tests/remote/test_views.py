"""Views of a model on a server are those of the same model here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import glassformer
from glassformer.errors import ContextLengthError, ServerError, SiteError, SourceError, UsageError
from glassformer.interp.edits import ablate
from glassformer.lm import Model
from glassformer.remote.model import UNREAD, RemoteModel
from glassformer.remote.wire import arrays
from glassformer.serve.security import Policy
from glassformer.views import VIEWS, Session
from glassformer.views.examples import example
from tests.serve.running import TEXT, Running, beside_a_run, running, tiny_model, with_experts

OFF = [{"ablate": {"layer": layer, "head": head}} for layer in (0, 1) for head in (0, 1, 2)]


@pytest.fixture(scope="module", autouse=True)
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A run called tiny in the runs folder here."""
    with beside_a_run(tmp_path_factory.mktemp("here")):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("remote"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with running(model, policy=Policy(key="k")) as made:
        yield made


@pytest.fixture(scope="module")
def remote(server: Running) -> RemoteModel:
    return glassformer.connect(server.url, key="k")


def test_what_is_inside_is_the_model_s(remote, model):
    assert remote.name == "tiny"
    tile = remote.inspect("attention", TEXT, layer=0, head=1)["tile"]
    assert numpy.allclose(tile, model.trace(TEXT).pattern(0, 1).numpy(), atol=1e-6)
    assert remote.inspect("why", TEXT, words=False)["tokens"] == model.trace(TEXT).tokens
    assert {view["id"] for view in remote.views()} >= {"next", "attention", "why", "lens", "edges", "circuit"}
    here = model.circuit([("The mole is", "A mole is")], 0.5, metric="kl", exact="none").to_dict()
    there = remote.inspect(
        "circuit", clean="The mole is", corrupted="A mole is", faithfulness=0.5, metric="kl", exact="none"
    )
    assert there["circuit"]["f"] == pytest.approx(here["circuit"]["f"], abs=1e-4)
    assert [(row["from"], row["to"]) for row in there["edges"][:3]] == [(r["from"], r["to"]) for r in here["edges"][:3]]
    several = remote.inspect(
        "circuit", pairs=[["The mole is", "A mole is"], ["The shrew is", "A shrew is"]], metric="kl", exact="none"
    )
    both = [("The mole is", "A mole is"), ("The shrew is", "A shrew is")]
    assert several["circuit"]["f"] == pytest.approx(model.circuit(both, metric="kl", exact="none").f, abs=1e-4)
    assert [prompt["clean"] for prompt in several["prompts"]] == ["The mole is", "The shrew is"]
    with pytest.raises(UsageError, match="either pairs, or one clean"):
        remote.inspect("circuit", pairs=[["The mole is", "A mole is"]], clean="a")
    with pytest.raises(UsageError, match="2 tokens for 1 pairs"):
        remote.inspect("circuit", clean="The mole is", corrupted="A mole is", answer=["a", "b"])


def test_edits_travel(remote, model):
    off = remote.edited(*OFF)
    here = model.edited(*(ablate(layer=layer, head=head) for layer in (0, 1) for head in (0, 1, 2)))
    want = here.next(TEXT)
    assert off.next(TEXT).probability(5) == pytest.approx(want.probability(5), abs=1e-6)
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logit_bias": {0: -100}}
    told, want_told = ([token.id for token in each.generate(TEXT, **asked)] for each in (off, here))
    assert told == want_told
    assert "6 edits" in repr(off)
    texts = ["a mole", "the mole"]
    asked = {"word": "mole", "texts": texts}
    assert off.inspect("meaning", **asked) == Session(here).view("meaning", asked)
    sides = {"a": {"text": TEXT}, "b": {"text": TEXT, "edits": []}}
    told = off.inspect("compare", **sides)
    assert told["a"]["next"][0]["probability"] == pytest.approx(want.probability(told["a"]["next"][0]["id"]), abs=1e-6)
    assert told["a"]["next"] != told["b"]["next"] == remote.inspect("compare", **sides)["b"]["next"]
    assert off.inspect("vocab", ids=[1])["texts"] == remote.inspect("vocab", ids=[1])["texts"]
    pair = {"clean": "The mole is", "corrupted": "A mole is"}
    for view, ask in (("patch", pair), ("edges", pair), ("circuit", pair), ("heads", {})):
        with pytest.raises(UsageError, match="reads the model without edits, and this one has 6"):
            off.inspect(view, **ask)
    assert "edits" not in repr(remote)


UNMOVED = {"tokens", "columns"}  # they end before anything that an edit changes
AS_IT_IS = {"lens_agreement", "lens_edit", "prediction", "run_step"}
MLP = {"ablate": {"layer": 0, "part": "feed_forward"}}  # everything after it changes


def alike(found: Any, want: Any) -> bool:
    """Equal but for float32's rounding: a session that has traced part of a text before sums in another order."""
    if isinstance(want, numpy.ndarray):
        return found.shape == want.shape and numpy.allclose(found, want, rtol=1e-3, atol=1e-5, equal_nan=True)
    if isinstance(want, float):
        return found == pytest.approx(want, rel=1e-3, abs=1e-5, nan_ok=True)
    if isinstance(want, dict):
        return found.keys() == want.keys() and all(alike(found[key], want[key]) for key in want)
    if isinstance(want, list):
        return len(found) == len(want) and all(map(alike, found, want))
    return bool(found == want)


def here(model: Model, view: str, ask: dict[str, Any]) -> Any:
    found = arrays(json.loads(json.dumps(Session(model).view(view, ask))))
    return {name: value for name, value in found.items() if name != "seconds"}


@pytest.fixture(scope="module")
def sparse(model: Model) -> Iterator[tuple[RemoteModel, Model]]:
    there = with_experts(model)
    with running(there) as made:
        yield glassformer.connect(made.url), there


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_is_answered_as_here_with_edits_and_without(request, remote, model, view):
    ask = example(view)
    if view == "experts":
        remote, model = request.getfixturevalue("sparse")
    plain = remote.inspect(view, **ask)
    plain.pop("seconds", None)  # that it took
    assert alike(plain, here(model, view, ask))
    off = remote.edited(MLP)
    if view in AS_IT_IS:
        with pytest.raises(UsageError, match="the model as it is"):
            off.inspect(view, **ask)
    elif "edits" in VIEWS[view].schema()["properties"]:
        edited = off.inspect(view, **ask)
        assert alike(edited, here(model, view, {**ask, "edits": [MLP, *ask.get("edits", [])]}))
        assert alike(edited, plain) == (view in UNMOVED)
    elif view in UNREAD:
        assert alike({**off.inspect(view, **ask), "seconds": 0}, {**plain, "seconds": 0})
    elif view not in ("compare", "python"):  # theirs are tested below
        with pytest.raises(UsageError, match="reads the model without edits, and this one has 1"):
            off.inspect(view, **ask)


def test_lines_of_python_make_the_edits_too(remote):
    asked = {"name": "next", "arguments": {"text": TEXT}}
    off = remote.edited({"ablate": {"layer": 1, "head": 0}})
    assert "model = model.edited(gf.ablate(layer=1, head=0))" in off.inspect("python", **asked)["lines"]
    assert "edited" not in remote.inspect("python", **asked)["lines"]
    with pytest.raises(UsageError, match="The view 'heads' reads the model without edits"):
        off.inspect("python", name="heads")


def test_what_goes_wrong_is_said_as_here(server, remote, tmp_path: Path):
    with pytest.raises(ServerError, match="key is missing or wrong"):
        glassformer.connect(server.url)
    with pytest.raises(SourceError, match="'other' is not served here"):
        glassformer.connect(server.url, key="k", model="other")
    with pytest.raises(ServerError, match="does not answer"):
        glassformer.connect("http://127.0.0.1:9")
    with pytest.raises(ContextLengthError):
        list(remote.generate([5] * 3000))
    with pytest.raises(UsageError, match="temperature"):
        list(remote.generate(TEXT, temperature=-1))
    with pytest.raises(SiteError, match="There is no layer 99"):
        remote.inspect("attention", TEXT, layer=99)
