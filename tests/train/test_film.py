"""The film of a run: few frames, spaced by logarithm, small, each what the model was at that step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glassformer
from glassformer.errors import CheckpointError
from glassformer.train import film, reading
from glassformer.train.recipe import Recipe, load
from glassformer.views import Session


def test_frames_are_spaced_by_the_logarithm():
    steps = film.steps_of(20, 1000)
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert 17 <= len(steps) <= 20
    late = [b / a for a, b in itertools.pairwise(steps[8:])]
    assert max(late) < 1.1 * min(late)
    assert film.steps_of(20, 3) == [0, 1, 2, 3]
    assert film.steps_of(0, 100) == film.steps_of(20, 0) == []


@pytest.fixture
def folder(small: Callable[..., Recipe], tmp_path: Path) -> Path:
    out = tmp_path / "runs"
    glassformer.train(small(steps=6, film=5, keep=1, sample_tokens=5), out=str(out / "one"), quiet=True)
    return out


def test_a_frame_is_the_model_of_its_step(folder: Path):
    run = reading.read_run(folder, "one")
    assert list(run.frames) == film.steps_of(5, 6)
    assert [s["step"] for s in run.to_dict()["samples"]] == list(run.frames)
    assert run.checkpoints == [6]
    about, held = film.read(run.frames[6])
    assert about["whole"]
    final = glassformer.load(folder / "one", device="cpu", dtype="float32")
    trace = final.trace(about["ids"])
    for head in range(2):
        assert torch.allclose(held["pattern.1"][head].float(), trace.pattern(1, head).float(), atol=2e-3)
    best = final.next(about["ids"]).top(1)[0]
    assert about["next"][0] == [best.token, pytest.approx(best.probability, abs=1e-5)]
    session = Session(final, runs=str(folder))
    early = session.model("run:one@0").transformer
    assert torch.equal(early.embed.weight, film.read(run.frames[0])[1]["model.embed.weight"].float())
    assert not torch.equal(early.embed.weight, final.transformer.embed.weight)


def test_a_resumed_run_has_one_film(folder: Path, small: Callable[..., Recipe]):
    before = {step: path.read_bytes() for step, path in reading.read_run(folder, "one").frames.items()}
    glassformer.train(small(steps=8, film=5, keep=1, sample_tokens=5), out=str(folder / "one"), resume=True, quiet=True)
    after = reading.read_run(folder, "one").frames
    assert {step: after[step].read_bytes() for step in before if step in after} == before
    assert 8 in after


def test_weights_that_do_not_fit_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch, small, tmp_path: Path):
    monkeypatch.setattr(film, "BYTES", 100_000)
    glassformer.train(small(steps=4, film=5, sample_tokens=5), out=str(tmp_path / "runs" / "two"), quiet=True)
    frames = reading.read_run(folder, "two").frames
    about, held = film.read(frames[4])
    assert not about["whole"]
    assert "model.embed.weight" in held
    assert sum(path.stat().st_size for path in frames.values()) < 130_000


def test_a_damaged_frame_is_refused(folder: Path):
    frame = reading.read_run(folder, "one").frames[6]
    raw = bytearray(frame.read_bytes())
    raw[-3] ^= 1
    for damaged, said in ((raw, "not match the checksum"), (raw[:-1], "no readable frame"), (b"no", "no readable")):
        frame.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=said):
            film.read(frame)


def test_small_recipes_keep_a_film():
    assert load("small-text").loop.film == load("cpu-minutes").loop.film == 20
