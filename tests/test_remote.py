"""A model on a server answers as the same model here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import glassformer
from glassformer.errors import ContextLengthError, ServerError, SourceError, TextError, UsageError
from glassformer.interp.edits import ablate
from glassformer.lm import Model
from glassformer.remote import _UNREAD, RemoteModel, _arrays
from glassformer.serve.security import Policy
from glassformer.views import VIEWS, Session
from glassformer.views.examples import example
from tests.serve.running import NO_END, TEXT, Running, running, tiny_model, with_experts

OFF = [{"ablate": {"layer": layer, "head": head}} for layer in (0, 1) for head in (0, 1, 2)]


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


def test_text_is_the_model_s(remote, model):
    assert remote.name == "tiny"
    assert remote.encode(TEXT) == model.encode(TEXT)
    assert remote.decode(model.encode(TEXT)) == TEXT
    asked = {"max_tokens": 8, "temperature": 0}
    want = "".join(piece.text for piece in model.generate(TEXT, logit_bias={0: -100}, **asked))
    assert "".join(remote.generate(TEXT, logit_bias=NO_END, **asked)) == want
    assert "".join(remote.generate(model.encode(TEXT), logit_bias=NO_END, **asked)) == want
    messages = [{"role": "user", "content": "Hello"}]
    said = "".join(piece.text for piece in model.chat(messages, logit_bias={0: -100}, **asked))
    assert "".join(remote.chat(messages, logit_bias=NO_END, **asked)) == said


def test_tokens_come_as_here(remote, model):
    asked: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "alternatives": 3}
    mine = [*model.generate(TEXT, logit_bias={0: -100}, **asked)]
    theirs = [*remote.generate(TEXT, logit_bias=NO_END, **asked)]
    assert "".join(one.text for one in theirs) == "".join(one.text for one in mine)
    assert [one.finish for one in theirs] == [None] * 8 + ["length"]
    theirs = [one for one in theirs if one.token]
    assert [one.probability for one in theirs] == pytest.approx([one.probability for one in mine], abs=1e-6)
    assert [len(one.alternatives) >= 3 for one in theirs] == [True] * 8
    messages = [{"role": "user", "content": "Hello"}]
    mine = [*model.chat(messages, logit_bias={0: -100}, **asked)]
    theirs = [one for one in remote.chat(messages, logit_bias=NO_END, **asked) if one.token]
    assert "".join(one.text for one in theirs) == "".join(one.text for one in mine)
    assert [one.probability for one in theirs] == pytest.approx([one.probability for one in mine], abs=1e-6)
    want = model.next(TEXT)
    found = remote.next(TEXT)
    assert [one["id"] for one in found.top(5)] == [one.id for one in want.top(5)]
    assert found.probability(7) == pytest.approx(want.probability(7), abs=1e-6)
    assert found.probability("a") == pytest.approx(want.probability("a"), abs=1e-6)
    assert (found.entropy, found.probabilities.sum()) == pytest.approx((want.entropy, 1), abs=1e-5)
    with pytest.raises(TextError, match="only one comes next"):
        found.probability(TEXT)


def test_what_is_inside_is_the_model_s(remote, model):
    want = model.next(TEXT)
    for one in remote.next(TEXT, top=5):
        assert one["probability"] == pytest.approx(want.probability(one["id"]), abs=1e-6)
    assert numpy.allclose(remote.attention(TEXT, 0, 1), model.trace(TEXT).pattern(0, 1).numpy(), atol=1e-6)
    why = remote.why(TEXT, words=False)
    assert why["tokens"] == model.trace(TEXT).tokens
    assert {view["id"] for view in remote.views()} >= {"next", "attention", "why", "lens", "edges", "circuit"}
    here = model.circuit([("The mole is", "A mole is")], 0.5, metric="kl", exact="none").to_dict()
    there = remote.view(
        "circuit", clean="The mole is", corrupted="A mole is", faithfulness=0.5, metric="kl", exact="none"
    )
    assert there["circuit"]["f"] == pytest.approx(here["circuit"]["f"], abs=1e-4)
    assert [(row["from"], row["to"]) for row in there["edges"][:3]] == [(r["from"], r["to"]) for r in here["edges"][:3]]
    several = remote.view(
        "circuit", pairs=[["The mole is", "A mole is"], ["The shrew is", "A shrew is"]], metric="kl", exact="none"
    )
    both = [("The mole is", "A mole is"), ("The shrew is", "A shrew is")]
    assert several["circuit"]["f"] == pytest.approx(model.circuit(both, metric="kl", exact="none").f, abs=1e-4)
    assert [prompt["clean"] for prompt in several["prompts"]] == ["The mole is", "The shrew is"]
    with pytest.raises(UsageError, match="either pairs, or one clean"):
        remote.view("circuit", pairs=[["The mole is", "A mole is"]], clean="a")
    with pytest.raises(UsageError, match="2 tokens for 1 pairs"):
        remote.view("circuit", clean="The mole is", corrupted="A mole is", answer=["a", "b"])


def test_edits_travel(remote, model):
    off = remote.edited(*OFF)
    here = model.edited(*(ablate(layer=layer, head=head) for layer in (0, 1) for head in (0, 1, 2)))
    want = here.next(TEXT)
    for one in off.next(TEXT, top=3):
        assert one["probability"] == pytest.approx(want.probability(one["id"]), abs=1e-6)
    told = "".join(off.generate(TEXT, max_tokens=5, temperature=0, logit_bias=NO_END))
    assert told == "".join(p.text for p in here.generate(TEXT, max_tokens=5, temperature=0, logit_bias={0: -100}))
    assert "6 edits" in repr(off)
    texts = ["a mole", "the mole"]
    assert off.meaning("mole", texts) == Session(here).view("meaning", {"word": "mole", "texts": texts})
    sides = {"a": {"text": TEXT}, "b": {"text": TEXT, "edits": []}}
    told = off.view("compare", **sides)
    assert told["a"]["next"][0]["probability"] == pytest.approx(want.probability(told["a"]["next"][0]["id"]), abs=1e-6)
    assert told["a"]["next"] != told["b"]["next"] == remote.view("compare", **sides)["b"]["next"]
    assert off.view("vocab", ids=[1])["texts"] == remote.view("vocab", ids=[1])["texts"]
    pair = {"clean": "The mole is", "corrupted": "A mole is"}
    for view, ask in (("patch", pair), ("edges", pair), ("circuit", pair), ("heads", {})):
        with pytest.raises(UsageError, match="reads the model without edits, and this one has 6"):
            off.view(view, **ask)
    assert "edits" not in repr(remote)


UNMOVED = {"tokens", "columns"}  # they end before anything that an edit changes
AS_IT_IS = {"lens_agreement", "lens_edit", "prediction", "run_step"}
OF_A_RUN = {"run", "film", "influence"}  # there is no run here
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
    return _arrays(json.loads(json.dumps(Session(model).view(view, ask))))


@pytest.fixture(scope="module")
def sparse(model: Model) -> Iterator[tuple[RemoteModel, Model]]:
    there = with_experts(model)
    with running(there) as made:
        yield glassformer.connect(made.url), there


@pytest.mark.parametrize("view", sorted(set(VIEWS) - OF_A_RUN))
def test_every_view_is_answered_as_here_with_edits_and_without(request, remote, model, view):
    ask = example(view)
    if view == "experts":
        remote, model = request.getfixturevalue("sparse")
    plain = remote.view(view, **ask)
    assert alike(plain, here(model, view, ask))
    off = remote.edited(MLP)
    if view in AS_IT_IS:
        with pytest.raises(UsageError, match="the model as it is"):
            off.view(view, **ask)
    elif "edits" in VIEWS[view].schema()["properties"]:
        edited = off.view(view, **ask)
        assert alike(edited, here(model, view, {**ask, "edits": [MLP, *ask.get("edits", [])]}))
        assert alike(edited, plain) == (view in UNMOVED)
    elif view in _UNREAD:
        assert alike(off.view(view, **ask), plain)
    elif view not in ("compare", "python"):  # theirs are tested below
        with pytest.raises(UsageError, match="reads the model without edits, and this one has 1"):
            off.view(view, **ask)


def test_lines_of_python_make_the_edits_too(remote):
    asked = {"name": "next", "arguments": {"text": TEXT}}
    off = remote.edited({"ablate": {"layer": 1, "head": 0}})
    assert "model = model.edited(gf.ablate(layer=1, head=0))" in off.view("python", **asked)["lines"]
    assert "edited" not in remote.view("python", **asked)["lines"]
    with pytest.raises(UsageError, match="The view 'heads' reads the model without edits"):
        off.view("python", name="heads")


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
    with pytest.raises(UsageError, match="99"):
        remote.attention(TEXT, 99)
