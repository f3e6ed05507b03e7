"""Runs that die or go wrong at a chosen step, what they wrote, and the command that they printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glassformer.cli.app import main
from glassformer.train import journal, train
from glassformer.train.loop import Run
from glassformer.train.recipe import Recipe
from glassformer.train.torch_stepper import TorchStepper

Make = Callable[..., Recipe]
Place = Callable[[], Path]


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(name="small")
def always_small(small: Make) -> Make:
    """Recipes whose losses do not hang on the memory that is free: else it says how many rows are computed at once."""
    return lambda **settings: small(**{"micro_batch": 4, **settings})


@pytest.fixture(name="dying")
def dying_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
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


@pytest.fixture(name="poisoned")
def poisoned_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
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


@pytest.fixture(name="straight")
def straight_losses(small: Make, out: Place) -> Iterator[dict[int, float]]:
    """The losses of an uninterrupted run."""
    return losses(train(small(), out=out(), quiet=True).path)


def damage(path: Path) -> None:
    """Turn one bit of the file over, near its end."""
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(bytes(raw))
