"""Runs read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glassformer
from glassformer.errors import SourceError
from glassformer.train import reading
from glassformer.train.recipe import Recipe
from glassformer.views import Session


@pytest.fixture
def folder(small: Callable[..., Recipe], tmp_path: Path) -> Path:
    out = tmp_path / "runs"
    recipe = small(steps=6, save_every=3, eval_every=3, sample_every=3, log_every=1, keep=5)
    glassformer.train(recipe, out=str(out / "one"), quiet=True)
    return out


def test_a_run_is_read_back(folder: Path):
    (run,) = reading.list_runs(folder)
    summary = run.summary()
    assert (summary["name"], summary["step"], summary["steps"], summary["state"]) == ("one", 6, 6, "finished")
    assert summary["checkpoints"] == [3, 6]
    data = reading.read_run(folder, "one").to_dict()
    json.dumps(data, allow_nan=False)
    assert data["curves"]["loss"]["steps"] == [1, 2, 3, 4, 5, 6]
    assert data["curves"]["held_out"]["steps"] == [3, 6]
    assert [sample["step"] for sample in data["samples"]] == [3, 6]


def test_a_checkpoint_is_a_model(folder: Path):
    newest = glassformer.load(folder / "one", device="cpu")
    session = Session(newest, runs=str(folder))
    at_end, earlier = session.model("run:one@6"), session.model("run:one@3")
    assert torch.equal(at_end.transformer.embed.weight, newest.transformer.embed.weight)
    assert not torch.equal(earlier.transformer.embed.weight, newest.transformer.embed.weight)
    assert torch.equal(session.model("run:one").transformer.embed.weight, newest.transformer.embed.weight)
    for wrong in ("run:two@3", "run:one@4", "run:one@x", "run:../runs/one@3"):
        with pytest.raises(SourceError):
            session.model(wrong)


def test_a_run_that_is_being_written(folder: Path):
    path = folder / "one" / "journal.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + '{"event": "ste', "utf-8")
    assert reading.read_run(folder, "one").summary()["state"] == "running"
    assert reading.list_runs(folder / "nowhere") == []


def test_long_curves_are_thinned(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reading, "POINTS", 3)
    steps = reading.read_run(folder, "one").to_dict()["curves"]["loss"]["steps"]
    assert steps[0] == 1
    assert steps[-1] == 6
    assert len(steps) == 3
