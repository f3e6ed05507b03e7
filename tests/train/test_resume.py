"""Nothing is lost: runs continue to the bit, damage is found, and what differs is named."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glassformer.errors import CheckpointError, TrainError
from glassformer.train import checkpoint, journal, train
from glassformer.train.loop import Run
from glassformer.train.recipe import Recipe

Make = Callable[..., Recipe]
Place = Callable[[], Path]


def losses(directory: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "step"}


def notes(directory: Path) -> list[str]:
    return [e["text"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "note"]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal when a run has taken so many steps."""
    plain = Run._one_step

    def one_step(self: Run) -> tuple[float, float, int]:
        result = plain(self)
        if self.step == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(Run, "_one_step", one_step)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_continues_to_the_bit(
    small: Make, out: Place, monkeypatch: pytest.MonkeyPatch, precision: str, number: int
) -> None:
    recipe = small(steps=12, precision=precision, length_stages=[[0.6, 8]], micro_batch=3, eval_every=3)
    straight = train(recipe, out=out(), quiet=True)
    place = out()
    with monkeypatch.context() as patched:
        stop_at(patched, 5, number)
        stopped = train(recipe, out=place, quiet=True)
    assert stopped.interrupted
    assert stopped.step == 5
    result = train(out=place, resume=True, quiet=True)
    assert result.step == 12
    assert losses(place) == losses(straight.path)
    assert result.loss == straight.loss
    assert notes(place) == []
    a = checkpoint.newest(place / "checkpoints", print).tensors()
    b = checkpoint.newest(straight.path / "checkpoints", print).tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_adamw_continues_to_the_bit(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(steps=8, kind="adamw", sampling="random", clip=0.5)
    straight = train(recipe, out=out(), quiet=True)
    place = out()
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        train(recipe, out=place, quiet=True)
    train(out=place, resume=True, quiet=True)
    assert losses(place) == losses(straight.path)


def test_what_differs_is_named(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch, corpus_file: Path) -> None:
    place = out()
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        train(small(), out=place, quiet=True)
    corpus_file.write_text("other words entirely\n" * 300)
    train(out=place, resume=True, quiet=True, micro_batch=2, muon_lr=0.001)
    (note,) = notes(place)
    assert note.startswith("Resumed, but not bit for bit, for this differs: ")
    assert "micro batch 4 → 2" in note
    assert "muon_lr 0.02 → 0.001" in note
    assert "data hash" in note


def test_a_damaged_checkpoint_is_passed_over(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(save_every=2)
    straight = train(recipe, out=out(), quiet=True)
    place = out()
    with monkeypatch.context() as patched:
        stop_at(patched, 6)
        train(recipe, out=place, quiet=True)
    newest = place / "checkpoints" / "step-000006" / "state.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-5] ^= 1
    newest.write_bytes(bytes(raw))
    train(out=place, resume=True, quiet=True)
    (note,) = notes(place)
    assert "does not match the checksum it was saved with. Going back to the checkpoint before it." in note
    assert losses(place) == losses(straight.path)


def test_damage_of_every_kind_is_refused(small: Make, out: Place) -> None:
    place = train(small(steps=2), out=out(), quiet=True).path
    folder = place / "checkpoints" / "step-000002"
    assert checkpoint.verify(folder).step == 2
    state = (folder / "state.json").read_text()
    (folder / "state.json").write_text(state[: len(state) // 2])
    with pytest.raises(CheckpointError, match="has no readable state.json"):
        checkpoint.verify(folder)
    (folder / "state.json").write_text(json.dumps({**json.loads(state), "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99; this version reads 1 and 2"):
        checkpoint.verify(folder)
    (folder / "state.json").write_text(state)
    (folder / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks its file state.safetensors"):
        checkpoint.verify(folder)
    with pytest.raises(
        CheckpointError, match="No checkpoint in .* is sound: .* lacks its file state.safetensors. Begin anew with"
    ):
        train(out=place, resume=True, quiet=True)


def test_a_full_disk_stops_the_run_and_keeps_what_was_saved(
    small: Make, out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glassformer.train.torch_stepper import TorchStepper

    recipe = small(save_every=2)
    place = out()
    with monkeypatch.context() as patched:
        plain = TorchStepper.write

        def full(self: TorchStepper, folder: Path) -> None:
            if folder.name.startswith(".step-000004"):
                (folder / "state.safetensors").write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            plain(self, folder)

        patched.setattr(TorchStepper, "write", full)
        with pytest.raises(
            TrainError, match=r"step 4 could not be written \(No space left on device\); the one of step 2"
        ):
            train(recipe, out=place, quiet=True)
    assert [path.name for path in (place / "checkpoints").iterdir()] == ["step-000002"]
    result = train(out=place, resume=True, quiet=True)
    assert result.step == 8
    assert losses(place) == losses(train(recipe, out=out(), quiet=True).path)


@pytest.mark.skipif(os.name != "posix", reason="limits of files are POSIX")
def test_a_disk_that_takes_no_more_of_a_file_is_said_in_a_sentence(
    small: Make, out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    from glassformer.train.torch_stepper import TorchStepper

    plain = TorchStepper.write

    def limited(self: TorchStepper, folder: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            plain(self, folder)  # the tensor library itself meets the limit, and wraps it in an error of its own
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    place = out()
    monkeypatch.setattr(TorchStepper, "write", limited)
    with pytest.raises(
        TrainError, match=r"The checkpoint of step 2 could not be written \(File too large\); there is no earlier one\."
    ):
        train(small(save_every=2), out=place, quiet=True)
    assert list((place / "checkpoints").iterdir()) == []


def test_old_checkpoints_go_and_the_best_stays(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([3.0, 1.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    monkeypatch.setattr(Run, "held_out_loss", lambda self, budget: next(measured))
    place = train(small(save_every=1, eval_every=1, keep=2), out=out(), quiet=True).path
    assert sorted(p.name for p in (place / "checkpoints").iterdir()) == ["step-000002", "step-000007", "step-000008"]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps whose loss becomes no number."""
    from glassformer.train.torch_stepper import TorchStepper

    steps: list[int] = []
    plain = TorchStepper.accumulate
    count = 0

    def accumulate(self: TorchStepper, tokens: Any, targets: Any, scale: float, lengths: Any) -> Any:
        nonlocal count
        count += 1
        loss = plain(self, tokens, targets, scale, lengths)
        return loss * float("nan") if count in steps else loss

    monkeypatch.setattr(TorchStepper, "accumulate", accumulate)
    return steps


def test_a_loss_that_is_no_number_names_its_batch(small: Make, out: Place, poisoned: list[int]) -> None:
    poisoned.append(4)
    place = out()
    with pytest.raises(TrainError, match="went astray at step 4, rows 12 to 15 of the training text's order: loss nan"):
        train(small(save_every=2), out=place, quiet=True)
    last = list(journal.read(place / "journal.jsonl"))[-1]
    assert last["event"] == "error"
    poisoned.clear()
    assert train(out=place, resume=True, quiet=True).step == 8


def test_a_bad_batch_can_be_skipped(small: Make, out: Place, poisoned: list[int]) -> None:
    poisoned.append(4)
    result = train(small(on_nan="skip"), out=out(), quiet=True)
    assert result.step == 8
    assert result.loss < 6
    state = checkpoint.newest(result.path / "checkpoints", print).state
    assert state["updates"] == 7
    assert any("Skipped step 4" in note for note in notes(result.path))


def test_a_loss_that_runs_away_stops(small: Make, out: Place) -> None:
    with pytest.raises(TrainError, match="went astray at step"):
        train(small(muon_lr=300.0, embed_lr=300.0, head_lr=300.0, steps=30, decay=0.0), out=out(), quiet=True)


def test_a_killed_process_leaves_a_run_that_resumes(small: Make, out: Place, tmp_path: Path) -> None:
    recipe = small(steps=150, save_every=5)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_dict()))
    place = out()
    program = (
        "import json,sys; from glassformer.train import train; from glassformer.train.recipe import Recipe; "
        "train(Recipe.from_dict(json.load(open(sys.argv[1]))), out=sys.argv[2], quiet=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(file), str(place)])
    deadline = time.monotonic() + 120
    while not checkpoint.all_steps(place / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert checkpoint.all_steps(place / "checkpoints")
    result = train(out=place, resume=True, quiet=True, steps=150)
    assert result.step == 150
    steps = [e["step"] for e in journal.read(place / "journal.jsonl") if e["event"] == "step"]
    assert steps == list(range(1, 151))
