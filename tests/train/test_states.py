"""From every state of a run one printed command leads on: the rows of the table in docs/training.md, one by one."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glassformer.errors import TrainError, UsageError
from glassformer.system import files, locks
from glassformer.train import checkpoint, journal, processes, train
from glassformer.train.loop import MOST_REFUSED
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import TorchStepper
from tests.train.states import (  # noqa: F401  (fixtures)
    Make,
    Place,
    always_small,
    call,
    damage,
    dying_runs,
    losses,
    notes,
    poisoned_steps,
    printed,
    recipe_file,
    straight_losses,
)


def test_nothing_there_and_resume_begins(small: Make, out: Place, tmp_path: Path, straight: dict[int, float]) -> None:
    place = out()
    assert call("cpu-minutes", "--resume", "--out", str(place), *recipe_file(small(), tmp_path)) == 0
    assert losses(place) == straight


def test_nothing_there_and_nothing_that_says_what_to_train(
    small: Make, out: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place = out()
    train(small(steps=1), out=place, quiet=True)
    assert call("--resume", "--out", str(place) + "x") == 2
    said = capsys.readouterr().err
    assert f"There is no run in {place}x to resume. Did you mean {place}?" in said
    assert printed(said) == ["cpu-minutes", "--out", f"{place}x"]
    assert not Path(f"{place}x").exists()


def test_killed_before_the_first_checkpoint(
    small: Make, out: Place, dying: Any, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["--resume"], None):
        place = out()
        with dying(3):
            train(small(), out=place, quiet=True)
        assert sorted(losses(place)) == [1, 2, 3]
        if command is not None:
            assert call(*command, "--out", str(place)) == 0  # what a requeued job says again and again
        else:
            train(small(), out=place, quiet=True)  # nothing is lost: there is no checkpoint
        assert losses(place) == straight
        assert sorted(e["step"] for e in journal.read(place / "journal-before.jsonl") if e["event"] == "step") == [
            1,
            2,
            3,
        ]


def test_killed_while_it_started(small: Make, out: Place, straight: dict[int, float]) -> None:
    place = out()
    (place / "checkpoints").mkdir(parents=True)
    files.write_json(place / "recipe.json", small().to_dict())
    (place / "tokenizer.json").write_text("")
    assert call("--resume", "--out", str(place)) == 0
    assert losses(place) == straight


def test_mistyped_data_leave_nothing_behind(
    small: Make, out: Place, tmp_path: Path, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "never" / "made"
    arguments = recipe_file(small(), tmp_path)
    assert call("--out", str(place), *arguments[:-1], arguments[-1] + "x") == 1
    assert "Did you mean text.txt?" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()
    assert call("--out", str(place), *arguments) == 0
    assert losses(place) == straight


def test_a_start_that_fails_in_a_directory_of_yours_leaves_it_as_it_was(small: Make, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    with pytest.raises(UsageError, match="tokenizer"):
        train(small(tokenizer="bpe:few"), out=place, quiet=True)
    assert list(place.iterdir()) == []


def test_no_number_before_the_first_save(
    small: Make, out: Place, poisoned: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = out()
    poisoned.append(3)
    assert call("--out", str(place), *recipe_file(small(), tmp_path)) == 1
    command = printed(capsys.readouterr().err)
    assert command == ["--resume", "--out", str(place), "--set", "muon_lr=0.01"]
    poisoned.clear()
    assert call(*command) == 0
    assert Recipe.from_dict(json.loads((place / "recipe.json").read_text())).optimizer.muon_lr == 0.01


def test_no_number_after_saves_goes_back_before_the_newest(
    small: Make, out: Place, poisoned: list[int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = out()
    poisoned.append(6)
    assert call("--out", str(place), *recipe_file(small(save_every=1, kind="adamw"), tmp_path)) == 1
    said = capsys.readouterr().err
    assert "There are checkpoints of steps 3, 4, 5, and --from 0 begins anew." in said
    command = printed(said)
    assert command == ["--resume", "--from", "3", "--out", str(place), "--set", "matrix_lr=0.0005"]
    poisoned.clear()
    assert call(*command) == 0
    assert "what came later (steps 4, 5)" in notes(place)
    assert sorted(losses(place)) == list(range(1, 9))
    assert [p.name for p in (place / "checkpoints").iterdir() if not p.name.startswith("step-")] == []


def test_an_earlier_checkpoint_is_named(small: Make, out: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place = out()
    first = losses(train(small(save_every=2, keep=3), out=place, quiet=True).path)
    assert call("--from", "7", "--out", str(place)) == 2
    said = capsys.readouterr().err
    assert "has no checkpoint of step 7; it has 2, 4, 6, 8." in said
    assert call(*printed(said)) == 0
    assert call("--from", "4", "--out", str(place)) == 0
    assert losses(place) == first
    assert call("--from", "0", "--out", str(place)) == 0
    assert losses(place) == first


def test_a_finished_run_says_so_and_how_to_go_on(
    small: Make, out: Place, capsys: pytest.CaptureFixture[str], straight: dict[int, float]
) -> None:
    place = train(small(), out=out(), quiet=True).path
    (place / "model.safetensors").unlink()  # killed between the last checkpoint and the model beside it
    assert call("--resume", "--out", str(place)) == 0
    said = capsys.readouterr()
    assert "8 steps" in said.out
    assert (place / "model.safetensors").is_file()
    assert losses(place) == straight
    line = next(line for line in said.err.splitlines() if "has taken all its 8 steps" in line)
    assert call(*printed(line)) == 0
    assert sorted(losses(place)) == list(range(1, 17))


TRAINING = """
import sys
from glassformer.system import locks
with locks.locked(sys.argv[1]):
    print("training", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_is_under_way_is_waited_for(
    small: Make, out: Place, dying: Any, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = out()
    with dying(5):
        train(small(save_every=4), out=place, quiet=True)
    other = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(place / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"training\n"
        threading.Timer(0.5, other.kill).start()
        assert call("--resume", "--out", str(place)) == 0
        assert other.poll() is not None, "it went on while the other one was there"
    assert f"Another process is training in {place}: waiting until it ends." in capsys.readouterr().err
    assert losses(place) == straight


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen once between a start's first look at its directory and its turn to write there."""
    plain, once = processes.join, [happens]

    def join(device: str) -> Any:
        while once:
            once.pop()()
        return plain(device)

    monkeypatch.setattr(processes, "join", join)


def test_who_comes_second_takes_nothing_of_the_first(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place = out()
    with contextlib.ExitStack() as other:

        def begins() -> None:
            other.enter_context(locks.locked(place / "run"))
            (place / "journal.jsonl").write_text("what the first has written so far")

        meanwhile(monkeypatch, begins)
        with pytest.raises(UsageError, match=f"Another process is training in {place}; wait for it with --resume"):
            train(small(), out=place, quiet=True)
        assert sorted(path.name for path in place.iterdir()) == ["journal.jsonl", "run.lock"]


def test_who_comes_second_goes_by_what_the_first_has_left(
    small: Make, out: Place, straight: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for resume in (False, True):
        place = out()
        meanwhile(monkeypatch, lambda place=place: train(small(), out=place, quiet=True))  # type: ignore[misc]
        if resume:
            assert train(small(), out=place, resume=True, quiet=True).step == 8
        else:
            with pytest.raises(UsageError, match="holds a run already, of 8 steps"):
                train(small(), out=place, quiet=True)
        assert losses(place) == straight
        assert not (place / "journal-before.jsonl").exists()


def test_shards_that_were_damaged_are_made_anew_by_the_printed_command(
    small: Make, out: Place, tmp_path: Path, dying: Any, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = out()
    with dying(5):
        train(small(save_every=4), out=place, quiet=True)
    (shard,) = (tmp_path / "cache" / "corpora").glob("*/all-00000.bin")
    damage(shard)
    assert call("--resume", "--out", str(place)) == 1
    said = capsys.readouterr().err
    assert "is damaged in its block at byte 0; run again, and it is made anew from the data." in said
    assert call(*printed(said)) == 0
    assert losses(place) == straight


def test_batches_refused_without_end_stop_the_run_and_keep_good_checkpoints(
    small: Make, out: Place, poisoned: list[int]
) -> None:
    place = out()
    poisoned.append(5)
    with pytest.raises(TrainError, match=f"and so did the {MOST_REFUSED} batches before.*--from 2 "):
        train(small(steps=40, on_nan="skip", save_every=1), out=place, quiet=True)
    assert [step for step, _ in checkpoint.all_steps(place / "checkpoints")] == [4, 3, 2]
    poisoned.clear()
    assert math.isfinite(train(out=place, step=3, quiet=True, steps=8).loss)


def test_a_run_does_not_finish_with_ruined_weights(small: Make, out: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = TorchStepper.step

    def step(self: TorchStepper, rate: float, momentum: float) -> None:
        plain(self, rate, momentum)
        if self.updates == 8:
            self.weights.master.fill_(float("nan"))

    monkeypatch.setattr(TorchStepper, "step", step)
    place = out()
    with pytest.raises(TrainError, match="astray by its last step: held-out loss nan.*--resume --from 4"):
        train(small(save_every=4), out=place, quiet=True)
    assert [step for step, _ in checkpoint.all_steps(place / "checkpoints")] == [4]


def test_a_full_disk_at_the_start_of_a_resumed_run_is_one_sentence(
    small: Make, out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = train(small(save_every=4), out=out(), quiet=True).path
    before = sorted(path.name for path in place.rglob("*"))

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(TrainError, match=r"cannot be written \(No space left on device\)"):
            train(out=place, resume=True, quiet=True)
    assert sorted(path.name for path in place.rglob("*")) == before
    assert train(out=place, resume=True, quiet=True).step == 8
