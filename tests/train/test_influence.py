"""Which training text taught this: slopes through a run's steps are those of the run, and retraining agrees."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import glassformer as gf
from glassformer.errors import CheckpointError, GlassformerError, TextError, TrainError, UnsupportedError, UsageError
from glassformer.system import files
from glassformer.train import train
from glassformer.train.influence import influence, influences, loss_on
from glassformer.train.recipe import Recipe
from glassformer.train.recorded import Recorded, trained_again
from glassformer.train.replay import Replay
from tests.cli.running import answer
from tests.train.conftest import WORDS


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with passages, and a cache for their tokens."""
    folder = tmp_path_factory.mktemp("influence")
    draw = random.Random(0)
    lines = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(4, 8))) + "." for _ in range(60)]
    (folder / "passages.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "whole.txt").write_text(" ".join(lines))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GLASSFORMER_CACHE", str(folder / "cache"))
        yield folder


def recipe(place: Path, **settings: Any) -> Recipe:
    usual: dict[str, Any] = {
        "layers": 1,
        "width": 16,
        "heads": 2,
        "context": 24,
        "data": (str(place / "passages.jsonl"),),
        "held_out": 0.0,
        "steps": 5,
        "batch": 6,
        "precision": "fp32",
        "threads": 1,
        "eval_every": 0,
        "save_every": 0,
        "muon_lr": 0.01,
        "embed_lr": 0.01,
        "native": "off",
    }
    return Recipe(name="tiny").with_settings({**usual, **settings})


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A recorded run of a few steps."""
    found = train(recipe(place), out=place / "runs" / "one", quiet=True).path
    assert found is not None
    return found


def end(replay: Replay, ids: list[int], number: int, count: float) -> float:
    """The loss on a text after a run in which one passage counts so much."""
    state = replay.begin
    counted = torch.ones(replay.passages, dtype=torch.float64)
    counted[number] = count
    with sdpa_kernel(SDPBackend.MATH):
        for step in range(replay.run.steps):
            leaves = [one[0].detach().requires_grad_() for one in state]
            grads = torch.autograd.grad(replay.loss(leaves, step, counted), leaves)
            with torch.no_grad():
                state = replay.update(state, grads, step)
        with torch.no_grad():
            return float(replay.text_losses([one[0] for one in state], [ids])[0])


@pytest.mark.parametrize("settings", [{}, {"kind": "adamw", "adam_decay": 0.1, "clip": 0.5}, {"dropout": 0.2}])
def test_effects_are_slopes_of_the_whole_run(place: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    made = train(recipe(place, steps=4, **settings), out=tmp_path / "run", quiet=True).path
    assert made is not None
    opened = Recorded(made)
    found = influences(opened, ["the cat sat"])[0]
    assert found.gap < 1e-4
    assert found.recorded == pytest.approx(found.loss, abs=1e-4)
    replay, ids = Replay(opened), opened.ids("the cat sat")
    for passage in found.passages[:2]:
        slope = (end(replay, ids, passage.number, 1 + 1e-4) - end(replay, ids, passage.number, 1 - 1e-4)) / 2e-4
        assert -slope == pytest.approx(passage.effect, rel=1e-3)


def test_training_again_is_the_run_and_leaving_out_changes_it(run: Path) -> None:
    opened = Recorded(run)
    saved, again = opened.weights(), trained_again(opened)
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    found = gf.influence(run, "a bird sang in the tree", top=60)
    ids = opened.ids(found.text)
    before, number = loss_on(opened, saved, ids), found.passages[0].number
    assert before == pytest.approx(found.recorded, abs=1e-6)
    exact = end(Replay(opened), ids, number, 0.0)
    assert loss_on(opened, trained_again(opened, [number]), ids) == pytest.approx(exact, abs=1e-4)


def test_what_it_says(run: Path) -> None:
    found = influence(run, "the cat sat", top=3)
    assert len(found.passages) == 3
    assert len(found.effects) == len(found.gradients) == 60
    assert abs(found.passages[0].effect) == max(map(abs, found.effects))
    assert found.passages[0].origin.endswith(f"passages.jsonl:{found.passages[0].number + 1}")
    two = influence(run, ["the cat sat", "the sea"])
    assert [one.text for one in two] == ["the cat sat", "the sea"]
    assert two[0].effects == pytest.approx(found.effects, rel=1e-6, abs=1e-9)


def test_the_verb_and_the_view(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from glassformer.views.registry import VIEWS

    shown = answer(capsys, "influence", run, "the cat sat", "--top", 2)
    assert len(shown["passages"]) == 2
    assert shown["of"] == 60
    view = VIEWS["influence"]
    ask = view.ask(name="one", text="the cat sat", top=2)
    same = view.answer(SimpleNamespace(runs=str(run.parent)), ask, lambda: None)
    assert [one["number"] for one in same["passages"]] == [one["number"] for one in shown["passages"]]


def test_one_text_is_cut_into_pieces(place: Path, tmp_path: Path) -> None:
    made = train(recipe(place, data=(str(place / "whole.txt"),), steps=2), out=tmp_path / "run", quiet=True).path
    assert made is not None
    found = influence(made, "the cat")
    assert {one.stop - one.start for one in found.passages} <= {256, *range(1, 256)}
    assert len(found.effects) > 3


def test_what_cannot_be_asked_is_one_sentence(run: Path, place: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[GlassformerError], str, Path, dict[str, Any]]] = [
        (UsageError, "is no training run", tmp_path, {"text": "the"}),
        (UsageError, "top must be at least 1", run, {"text": "the", "top": 0}),
        (TextError, "at least 2 tokens", run, {"text": ""}),
        (TextError, "a row of this run has 24", run, {"text": "the cat sat on the mat and the dog ran"}),
    ]
    for kind, sentence, path, asked in cases:
        with pytest.raises(kind, match=sentence):
            influence(path, **asked)
    none = train(recipe(place, steps=1), out=tmp_path / "none", quiet=True).path
    assert none is not None
    files.remove(none / "checkpoints")
    with pytest.raises(CheckpointError, match="has saved no checkpoint"):
        influence(none, "the")
    sparse = train(recipe(place, steps=1, design="olmoe-tiny"), out=tmp_path / "sparse", quiet=True).path
    assert sparse is not None
    with pytest.raises(UnsupportedError, match="experts are chosen"):
        influence(sparse, "the")


def test_changed_text_is_named(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_bytes((place / "passages.jsonl").read_bytes())
    made = train(recipe(place, steps=1, data=(str(data),)), out=tmp_path / "run", quiet=True).path
    assert made is not None
    data.write_text(data.read_text() + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(TrainError, match="has changed since"):
        influence(made, "the")


def test_letters_that_the_run_never_read(place: Path, tmp_path: Path) -> None:
    made = train(recipe(place, steps=1, tokenizer="char"), out=tmp_path / "run", quiet=True).path
    assert made is not None
    with pytest.raises(GlassformerError, match="the text holds others"):
        influence(made, "ΩΩΩ Ω")
