"""Checkpoints of a run: written whole or not at all, verified when read, the newest sound one found.

A checkpoint is a folder `checkpoints/step-000123` of safetensors files, the tokenizer's files and `state.json`, which
holds what is not a tensor (the recipe among it), the SHA-256 of every file and one of itself: everything that resuming
needs but the data. It is written beside its place and renamed into it, so that a kill, a crash or a full disk leaves
the ones before it untouched. Nothing here is pickled. This module knows files; what the tensors mean is the loop's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from glassformer.errors import CheckpointError, FileError, TrainError
from glassformer.system import files, sealed

FORMAT, READABLE = 2, (1, 2)
"""Checkpoints of format 1 hold no tokenizer (the run directory does) and no checksum of `state.json` itself."""
ABANDONED = "abandoned"
"""Where checkpoints go that a run turned back from, until the next one is saved."""
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk that has been verified.

    Attributes:
        path: its folder.
        step: optimiser steps taken when it was saved.
        state: what `state.json` holds.
    """

    path: Path
    step: int
    state: dict[str, Any]

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder is one that `Tokenizer.from_directory` reads."""
        return (self.path / "tokenizer.json").is_file()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, whole, whatever number of processes wrote it."""
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        if self.state.get("sharded"):
            import torch
            import torch.distributed.checkpoint as dcp

            reader = dcp.HuggingFaceStorageReader(str(self.path))
            entries: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
            found = {name: torch.empty(e.size, dtype=e.properties.dtype) for name, e in entries.items()}
            dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(self.path)), no_dist=True)
            return found
        for file in sorted(self.path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                found.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
        return found


def folder_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:06d}"


def write(directory: Path, step: int, state: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Write one checkpoint, whole or not at all, and return its folder; one of the same step gives way to it.

    Args:
        directory: the run's `checkpoints` folder.
        step: its number.
        state: what goes into `state.json`.
        fill: writes the other files into the folder it is given.

    Raises:
        TrainError: when the disk is full or refuses; earlier checkpoints stay as they were.
    """
    target = directory / folder_name(step)
    with not_written(directory, step), files.atomic_folder(target, replace=True, raises=CheckpointError) as draft:
        fill(draft)
        describe(draft, {**state, "step": step})
    return target


def describe(draft: Path, state: Mapping[str, Any]) -> None:
    """Give a folder of files its `state.json`, with their checksums and its own. Raises `FileError`, `OSError`."""
    inside = sorted(file for file in draft.rglob("*") if file.is_file())
    sums = {file.relative_to(draft).as_posix(): files.sha256(file) for file in inside}
    content = {"format": FORMAT, **state, "files": sums}
    sealed.write(draft / "state.json", content, indent=1, raises=FileError)


class not_written:
    """Errors of writing the checkpoint of a step as one sentence that says what is left; a `with` block."""

    def __init__(self, directory: Path, step: int) -> None:
        self.directory, self.step = directory, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, SafetensorError, CheckpointError, FileError)):
            raise TrainError(
                f"The checkpoint of step {self.step} could not be written ({_why(error)}); {_left(self.directory)}"
            ) from error


def all_steps(directory: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, newest first, unverified."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def verify(path: Path) -> Saved:
    """Read a checkpoint's state and compare every file, and the state itself, with its checksum.

    Raises:
        CheckpointError: naming what is missing or changed.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        sums, step = dict(state["files"]), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"Checkpoint {path} has no readable state.json ({files.reason(error)}).") from None
    if state.get("format") not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise CheckpointError(f"Checkpoint {path} has format {state.get('format')!r}; this version reads {known}.")
    if state["format"] > 1 and state.get("sha256") != sealed.checksum(state):
        raise CheckpointError(f"{path / 'state.json'} does not match the checksum it was saved with.")
    for name, digest in sums.items():
        file = path / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not file.is_file():
            raise CheckpointError(f"Checkpoint {path} lacks its file {name}.")
        if files.sha256(file) != digest:
            raise CheckpointError(f"{file} does not match the checksum it was saved with.")
    return Saved(path, step, state)


def newest(directory: Path, note: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that verifies, or None where there are none; each one passed over is noted.

    Raises:
        CheckpointError: when there are some and none is sound.
    """
    reasons = []
    for _, path in all_steps(directory):
        try:
            saved = verify(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            note(f"{reason} Going back to the checkpoint before it.")
        return saved
    if reasons:
        raise CheckpointError(f"No checkpoint in {directory} is sound: {' '.join(reasons)}")
    return None


def set_aside(directory: Path, after: int) -> list[int]:
    """Put the checkpoints of steps beyond `after` into `ABANDONED`, newest first; returns their steps."""
    later = [(step, path) for step, path in all_steps(directory) if step > after]
    for _, path in later:
        place = directory / ABANDONED / path.name
        place.parent.mkdir(exist_ok=True)
        files.remove(place)
        path.rename(place)
    return [step for step, _ in later]


def rotate(directory: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, what the run turned back from, and what killed
    processes left half-written. The caller is the only one that writes here."""
    for _, path in [item for item in all_steps(directory) if item[0] != best][keep:]:
        with suppress(OSError):
            files.remove_folder(path)
    files.remove(directory / ABANDONED)
    sweep(directory)


def sweep(directory: Path) -> None:
    """Remove what killed processes left half-written; the caller is the only one that writes here."""
    files.sweep(directory, alone=True)
    for path in _drafts(directory):
        files.remove(path)


def _drafts(directory: Path) -> Iterator[Path]:
    """Drafts of sharded checkpoints, whose name all processes have to know, and those of earlier versions."""
    if directory.is_dir():
        yield from (path for path in directory.glob(".step-*") if not files.is_temporary(path))


def _why(error: BaseException) -> str:
    """What the system said; who writes files wraps it in words of its own."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, (OSError, SafetensorError)):
        seen = seen.__cause__ or seen.__context__
    if isinstance(seen, OSError):
        return seen.strerror or str(seen)
    found = re.search(r"I/O error: (.+) \(os error", str(seen))
    return found[1] if found else str(error)


def _left(directory: Path) -> str:
    steps = all_steps(directory)
    if not steps:
        return "there is no earlier one. Make room, or start again in another place with --out."
    return f"the one of step {steps[0][0]} is intact. Make room, then go on with --resume."
