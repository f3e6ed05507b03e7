"""What a run directory holds, and how a command goes on from there.

From every state of a directory one command leads on: `--resume` goes on from the newest sound checkpoint, and begins a
run that has none; `--from STEP` goes back to an earlier one, and to the beginning with 0. This module reads a
directory and decides; it builds nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassformer.errors import CheckpointError, GlassformerError, TrainError, UsageError, near
from glassformer.system import files, locks
from glassformer.train import checkpoint, journal
from glassformer.train import recipe as recipes
from glassformer.train.recipe import Recipe

RECIPE_FILE = "recipe.json"
JOURNAL = "journal.jsonl"
EARLIER_JOURNAL = "journal-before.jsonl"
CHECKPOINTS = "checkpoints"
_LOCK = "run"


@dataclass(frozen=True)
class Place:
    """Where a run goes, and from where.

    Attributes:
        recipe: with all settings applied.
        directory: the run directory; it need not exist.
        resume: whether to go on from a checkpoint where there is one.
        step: the step whose checkpoint to go on from, 0 for the beginning; None for the newest sound one.
        empty: whether nothing of a run was there when this was found out.
    """

    recipe: Recipe
    directory: Path
    resume: bool
    step: int | None
    empty: bool

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.directory / CHECKPOINTS

    def saved(self, note: Callable[[str], None]) -> checkpoint.Saved | None:
        """The checkpoint to go on from, verified; None to begin. What was passed over is noted.

        Raises:
            CheckpointError: the checkpoint asked for, or all of them, are damaged; the message names a command.
        """
        if not self.resume or self.step == 0:
            return None
        steps = [step for step, _ in checkpoint.all_steps(self.checkpoints)]
        try:
            if self.step is not None:
                return checkpoint.verify(self.checkpoints / checkpoint.folder_name(self.step))
            return checkpoint.newest(self.checkpoints, note)
        except CheckpointError as error:
            others = [step for step in steps if step != self.step] if self.step is not None else []
            raise CheckpointError(f"{error} {_other_steps(others)}{again(self.directory, from_step=0)}") from None

    def locked(self, quiet: bool) -> AbstractContextManager[None]:
        """The right to write here, which one process has at a time; a run that is to go on waits for it, and says so
        unless `quiet`.

        Raises:
            UsageError: another process has it, and this one was to begin a run.
            TrainError: the directory cannot be made.
        """
        told = f"Another process is training in {self.directory}"
        if self.resume:
            say = (lambda: None) if quiet else lambda: print(f"{told}: waiting until it ends.", file=sys.stderr)
            return locks.locked(self.directory / _LOCK, say, raises=TrainError)
        other = f"{told}; wait for it with --resume, stop it, or name another place by --out."
        return locks.locked(self.directory / _LOCK, taken=lambda: UsageError(other), raises=TrainError)


def settle(
    source: str | Path | Recipe | None,
    data: Sequence[str] | None,
    out: str | Path | None,
    resume: bool,
    settings: Mapping[str, Any] | Sequence[str],
    step: int | None = None,
) -> Place:
    """The recipe with all settings applied, and the run directory with what is there.

    A recipe's name only says where a run is that is resumed; what it was started with stands in its directory.

    Raises:
        UsageError: the directory holds a run that has come somewhere and `resume` is not asked for, or something else;
            or nothing says what to train. The message names the command that leads on.
    """
    resume = resume or step is not None
    named = source is None or (isinstance(source, str) and source in recipes.names())
    directory = Path(out) if out is not None else None
    if directory is None and named:
        directory = Path("runs") / (str(source) if source else recipes.DEFAULT)
    recipe = _stored(directory) if resume and named and directory is not None else None
    if recipe is None:
        if resume and source is None and data is None and directory is not None:
            raise UsageError(_nothing_known(directory))
        recipe = (
            source if isinstance(source, Recipe) else recipes.load(source if source is not None else recipes.DEFAULT)
        )
    if data is not None:
        recipe = recipe.with_settings({"data": tuple(data)})
    recipe = recipe.with_settings(settings)
    directory = directory or Path("runs") / recipe.name
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; a run needs a directory of its own.")
    steps = [at for at, _ in checkpoint.all_steps(directory / CHECKPOINTS)]
    if steps and not resume:
        raise UsageError(
            f"{directory} holds a run already, of {steps[0]:,} steps; name another place with --out for another run. "
            f"{again(directory)}"
        )
    if step and step not in steps:
        there = f"it has {', '.join(map(str, sorted(steps)))}" if steps else "it has none"
        raise UsageError(f"{directory} has no checkpoint of step {step}; {there}. {again(directory)}")
    empty = not _holds_something(directory)
    if not empty and not _is_run(directory):
        raise UsageError(f"{directory} is not empty and holds no run; name another place with --out.")
    return Place(recipe, directory, resume, step, empty)


def again(directory: Path, *settings: str, from_step: int | None = None) -> str:
    """The sentence with the command that goes on."""
    parts = ["glassformer", "train", "--resume", "--out", str(directory)]
    if from_step is not None:
        parts[3:3] = ["--from", str(from_step)]
    for setting in settings:
        parts += ["--set", setting]
    begin = "Begin anew" if from_step == 0 else "Go on"
    return f"{begin} with: {shlex.join(parts)}"


def prepare(place: Place, saved: checkpoint.Saved | None) -> list[str]:
    """Make the directory ready for the run's first process, which holds its lock; returns what is to be noted.

    Checkpoints beyond the one to go on from are set aside, and so is the journal of a run that is begun anew.

    Raises:
        TrainError: the directory cannot be written.
    """
    notes = []
    try:
        place.checkpoints.mkdir(parents=True, exist_ok=True)
        files.sweep(place.directory, alone=True)
        checkpoint.sweep(place.checkpoints)
        aside = []
        if place.step is not None:
            aside = checkpoint.set_aside(place.checkpoints, place.step)
        if aside:
            listed = ", ".join(map(str, sorted(aside)))
            notes.append(
                f"Going back to step {place.step}; what came later (steps {listed}) is in "
                f"{place.checkpoints / checkpoint.ABANDONED} until the next checkpoint is saved."
            )
        if saved is None:
            with suppress(FileNotFoundError):
                files.publish(place.directory / JOURNAL, place.directory / EARLIER_JOURNAL)
            (place.directory / "tokenizer.json").unlink(missing_ok=True)  # the other processes wait for the new one
            if place.resume and not aside:
                notes.append("There is no checkpoint yet: the run begins.")
    except OSError as error:
        raise TrainError(files.unwritable(f"The run directory {place.directory}", error)) from None
    files.write_json(place.directory / RECIPE_FILE, place.recipe.to_dict(), indent=1, raises=TrainError)
    return notes


def discard(place: Place, made: Path | None) -> None:
    """Remove what a start that failed left in a directory that was empty before; the caller holds its lock.

    Args:
        made: the outermost folder that did not exist before, or None when `directory` did.
    """
    if not place.empty:
        return
    inside = list(place.directory.iterdir()) if place.directory.is_dir() else []
    for path in inside:
        files.remove(path)
    if made is not None:
        folder = place.directory
        while True:
            try:
                folder.rmdir()
            except OSError:
                return
            if folder == made:
                return
            folder = folder.parent


def missing_above(directory: Path) -> Path | None:
    """The outermost folder on the way to `directory`, itself included, that does not exist; None when all do."""
    made = None
    for folder in (directory, *directory.parents):
        if folder.exists():
            return made
        made = folder
    return made


def _holds_something(directory: Path) -> bool:
    if not directory.is_dir():
        return False
    ours = {f"{_LOCK}.lock"}
    return any(path.name not in ours and not files.is_temporary(path) for path in directory.iterdir())


def _is_run(directory: Path) -> bool:
    named = (JOURNAL, EARLIER_JOURNAL, RECIPE_FILE)
    return any((directory / name).exists() for name in named) or (directory / CHECKPOINTS).is_dir()


def _stored(directory: Path) -> Recipe | None:
    """The recipe that a run was started with: its file's, or what a checkpoint or the journal says of it."""
    with suppress(OSError, ValueError, RecursionError, GlassformerError):
        return _recipe(json.loads((directory / RECIPE_FILE).read_text(encoding="utf-8")), directory)
    for _, path in checkpoint.all_steps(directory / CHECKPOINTS):
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, GlassformerError):
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return _recipe(state["recipe"], path)
    for name in (JOURNAL, EARLIER_JOURNAL):
        with suppress(OSError):
            for event in journal.read(directory / name):
                if event["event"] == "start":
                    with suppress(KeyError, TypeError, GlassformerError):
                        return _recipe(event["recipe"], directory)
    return None


def _recipe(stored: Mapping[str, Any], where: Path) -> Recipe:
    recipe = Recipe.from_dict(stored, str(where))
    # a run from before documents were taken apart, or experts balanced, goes on as it began
    before = {} if "pack" in stored.get("data", {}) else {"pack": "together"}
    if "balance" not in stored.get("optimizer", {}):
        before["balance"] = "0"
    return recipe.with_settings(before)


def _nothing_known(directory: Path) -> str:
    if _is_run(directory):
        return (
            f"Nothing in {directory} says which recipe its run is of ({RECIPE_FILE} is missing or broken, and so are "
            f"journal and checkpoints); name it: glassformer train RECIPE --resume --out {shlex.quote(str(directory))}"
        )
    beside = []
    with suppress(OSError):
        beside = [str(path) for path in directory.parent.iterdir() if path.is_dir() and _is_run(path)]
    return (
        f"There is no run in {directory} to resume.{near(str(directory), beside)} To begin one there: glassformer "
        f"train {recipes.DEFAULT} --out {shlex.quote(str(directory))}"
    )


def _other_steps(steps: Sequence[int]) -> str:
    return f"There are also checkpoints of steps {', '.join(map(str, sorted(steps)))} (--from STEP). " if steps else ""
