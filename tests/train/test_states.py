"""From every state of a run one printed command leads on: the rows of the table in docs/training.md, one by one."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glassformer.cli.app import main
from glassformer.errors import TrainError, UsageError
from glassformer.system import files, locks
from glassformer.train import checkpoint, journal, processes, train
from glassformer.train.loop import MOST_REFUSED, Run
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import TorchStepper

Make = Callable[..., Recipe]
Place = Callable[[], Path]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def small(small: Make) -> Make:
    """Recipes whose losses do not hang on the memory that is free: else it says how many rows are computed at once."""
    return lambda **settings: small(**{"micro_batch": 4, **settings})


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """A context in which a run ends after so many steps as if it were killed."""
    plain = Run._one_step

    class Dying:
        def __init__(self, step: int) -> None:
            self.step = step

        def __enter__(self) -> None:
            def one_step(run: Run) -> tuple[float, float, int]:
                if run.step == self.step:
                    raise Killed
                return plain(run)

            monkeypatch.setattr(Run, "_one_step", one_step)

        def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
            monkeypatch.setattr(Run, "_one_step", plain)
            return kind is Killed

    return Dying


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps whose loss becomes no number, counted by updates."""
    steps: list[int] = []
    plain = TorchStepper._accumulate

    def accumulate(self: TorchStepper, tokens: Any, targets: Any, scale: float, lengths: Any) -> Any:
        loss = plain(self, tokens, targets, scale, lengths)
        return loss * float("nan") if self.updates + 1 in steps else loss

    monkeypatch.setattr(TorchStepper, "_accumulate", accumulate)
    return steps


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["train", *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def printed(text: str) -> list[str]:
    """The arguments of the command that a message ends with."""
    match = re.search(r"glassformer train (.*)$", text.strip())
    assert match, text
    return shlex.split(match[1])


def losses(directory: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "step"}


def notes(directory: Path) -> str:
    return "\n".join(e["text"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "note")


def recipe_file(recipe: Recipe, tmp_path: Path) -> list[str]:
    """Arguments that give the recipe's settings on the command line."""
    settings = []
    for section in ("model", "data", "optimizer", "schedule", "loop"):
        for key, value in vars(getattr(recipe, section)).items():
            if key not in ("data", "batch_stages", "length_stages"):
                settings += ["--set", f"{key}={value}"]
    return [*settings, "--data", recipe.data.data[0]]


@pytest.fixture
def straight(small: Make, out: Place) -> Iterator[dict[int, float]]:
    """The losses of an uninterrupted run."""
    return losses(train(small(), out=out(), quiet=True).path)


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


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(bytes(raw))


def test_all_checkpoints_damaged(
    small: Make, out: Place, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = train(small(save_every=4), out=out(), quiet=True).path
    for step in (4, 8):
        damage(place / "checkpoints" / checkpoint.folder_name(step) / "state.safetensors")
    assert call("--resume", "--out", str(place)) == 1
    said = capsys.readouterr().err
    assert said.count("does not match the checksum") == 2
    assert call(*printed(said)) == 0
    assert losses(place) == straight


def test_an_altered_state_is_not_believed(small: Make, out: Place, dying: Any, straight: dict[int, float]) -> None:
    place = out()
    with dying(7):
        train(small(save_every=3), out=place, quiet=True)
    state = place / "checkpoints" / "step-000006" / "state.json"
    held = json.loads(state.read_text())
    held["cursor"]["taken"] += 1
    state.write_text(json.dumps(held))
    assert call("--resume", "--out", str(place)) == 0
    assert "state.json does not match the checksum it was saved with. Going back" in notes(place)
    assert losses(place) == straight


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"layers": "many"}}', None])
def test_a_broken_recipe_is_had_from_the_checkpoint_or_the_journal(
    small: Make, out: Place, dying: Any, straight: dict[int, float], content: str | None
) -> None:
    for save_every in (2, 0):
        place = out()
        with dying(5):
            train(small(save_every=save_every), out=place, quiet=True)
        (place / "recipe.json").unlink()
        if content is not None:
            (place / "recipe.json").write_text(content)
        assert call("--resume", "--out", str(place)) == 0
        assert losses(place) == straight


def test_nothing_says_which_recipe_it_was(
    small: Make, out: Place, tmp_path: Path, dying: Any, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = out()
    with dying(2):
        train(small(), out=place, quiet=True)
    (place / "recipe.json").write_text("")
    (place / "journal.jsonl").write_text("")
    assert call("--resume", "--out", str(place)) == 2
    command = printed(capsys.readouterr().err)
    assert command == ["RECIPE", "--resume", "--out", str(place)]
    command[0] = "cpu-minutes"
    assert call(*command, *recipe_file(small(), tmp_path)) == 0
    assert losses(place) == straight


def test_the_tokenizer_of_the_run_is_broken(small: Make, out: Place, dying: Any, straight: dict[int, float]) -> None:
    place = out()
    with dying(5):
        train(small(save_every=2, tokenizer="char"), out=place, quiet=True)
    kept = (place / "tokenizer.json").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_text("")
    train(out=place, resume=True, quiet=True)
    assert (place / "tokenizer.json").read_bytes() == kept
    assert losses(place) == losses(train(small(tokenizer="char"), out=out(), quiet=True).path)


def test_a_checkpoint_of_the_first_format_resumes(
    small: Make, out: Place, dying: Any, straight: dict[int, float]
) -> None:
    place = out()
    with dying(5):
        train(small(save_every=4), out=place, quiet=True)
    folder = place / "checkpoints" / "step-000004"
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]
    for name in [name for name in state["files"] if not name.endswith(".safetensors")]:
        (folder / name).unlink()
        del state["files"][name]
    (folder / "state.json").write_text(json.dumps({**state, "format": 1}))
    assert call("--resume", "--out", str(place)) == 0
    assert losses(place) == straight


@pytest.mark.parametrize("line", ["", "{", "3", '{"event": "step"}', '{"event": "step", "step": 3, "lo\n\x00\xff'])
def test_a_broken_line_in_the_middle_of_the_journal_costs_only_itself(
    small: Make, out: Place, dying: Any, straight: dict[int, float], line: str
) -> None:
    place = out()
    with dying(7):
        train(small(save_every=6), out=place, quiet=True)
    file = place / "journal.jsonl"
    lines = file.read_bytes().splitlines()
    at = next(i for i, text in enumerate(lines) if b'"step", "step": 3' in text)
    file.write_bytes(b"\n".join([*lines[:at], line.encode("latin-1"), *lines[at:]]) + b"\n" + lines[-1][:20])
    assert call("--resume", "--out", str(place)) == 0
    assert losses(place) == straight
    assert all(isinstance(json.loads(text), dict) for text in file.read_text().splitlines())


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
