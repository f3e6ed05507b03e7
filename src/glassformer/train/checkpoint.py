"""Checkpoints of a run: written whole or not at all, verified when read, the newest sound one found.

A checkpoint is a folder `checkpoints/step-000123` of safetensors files and `state.json`, which holds what is not a
tensor and the SHA-256 of every file. It is written beside its place and renamed into it, so a crash or a full disk
leaves the ones before it untouched. Nothing here is pickled. This module knows files; what the tensors mean is the
loop's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from glassformer.errors import CheckpointError, TrainError

FORMAT = 1
_NAME = re.compile(r"step-(\d{6,})$")


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

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, whole, whatever number of processes wrote it."""
        from safetensors import safe_open

        files = sorted(self.path.glob("*.safetensors"))
        if not self.state.get("sharded"):
            found: dict[str, Tensor] = {}
            for file in files:
                with safe_open(file, framework="pt") as opened:
                    found.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
            return found
        from glassformer.train.sharded_stepper import read_whole

        return read_whole(self.path)


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def write(
    directory: Path,
    step: int,
    state: Mapping[str, Any],
    write_tensors: Callable[[Path], None],
) -> Path:
    """Write one checkpoint atomically and return its folder.

    Args:
        directory: the run's `checkpoints` folder.
        step: its number.
        state: what goes into `state.json`.
        write_tensors: writes the safetensors files into the folder it is given.

    Raises:
        TrainError: when the disk is full or refuses; earlier checkpoints stay as they were.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / folder_name(step)
    draft = directory / f".{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir()
        write_tensors(draft)
        seal(draft, target, {**state, "step": step})
    except (OSError, SafetensorError, CheckpointError) as error:
        _remove(draft)
        raise TrainError(
            f"The checkpoint of step {step} could not be written ({_why(error)}); {_left(directory)}"
        ) from error
    except BaseException:
        _remove(draft)
        raise
    return target


def seal(draft: Path, target: Path, state: Mapping[str, Any]) -> None:
    """Give a folder of tensors its `state.json` with checksums, make it durable, and move it into place."""
    files = {file.name: _digest(file) for file in sorted(draft.iterdir())}
    text = json.dumps({"format": FORMAT, **state, "files": files}, indent=1)
    (draft / "state.json").write_text(text, encoding="utf-8")
    for file in draft.iterdir():
        _sync(file)
    _sync(draft)
    if target.exists():
        _remove(target)
    os.rename(draft, target)
    _sync(target.parent)


def all_steps(directory: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, newest first, unverified."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.search(path.name))]
    return sorted(((s, p) for s, p in found if not p.name.startswith(".")), reverse=True)


def verify(path: Path) -> Saved:
    """Read a checkpoint's state and compare every file with its checksum.

    Raises:
        CheckpointError: naming what is missing or changed.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        files, step = dict(state["files"]), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Checkpoint {path} has no readable state.json ({error}).") from None
    if state.get("format") != FORMAT:
        raise CheckpointError(f"Checkpoint {path} has format {state.get('format')!r}; this version reads {FORMAT}.")
    for name, digest in files.items():
        file = path / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"Checkpoint {path} lacks its file {name}.")
        if _digest(file) != digest:
            raise CheckpointError(f"{file} does not match the checksum it was saved with.")
    return Saved(path, step, state)


def newest(directory: Path, note: Callable[[str], None]) -> Saved:
    """The newest checkpoint that verifies; each one passed over is noted.

    Raises:
        CheckpointError: when there is none.
    """
    for _, path in all_steps(directory):
        try:
            return verify(path)
        except CheckpointError as error:
            note(f"{error} Going back to the checkpoint before it.")
    raise CheckpointError(f"There is no sound checkpoint in {directory} to resume; start without --resume.")


def rotate(directory: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one, and what crashes left half-written."""
    for _, path in [item for item in all_steps(directory) if item[0] != best][keep:]:
        _remove(path)
    for path in _drafts(directory):
        _remove(path)


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    _sync(draft)
    os.replace(draft, path)


def _drafts(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from directory.glob(".step-*")


def _why(error: OSError | SafetensorError | CheckpointError) -> str:
    """What the system said; who writes tensors wraps it in words of its own."""
    if isinstance(error, CheckpointError) and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"I/O error: (.+) \(os error", str(error))
    return found[1] if found else str(error)


def _left(directory: Path) -> str:
    steps = all_steps(directory)
    if not steps:
        return "there is no earlier one. Make room, or start again in another place with --out."
    return f"the one of step {steps[0][0]} is intact. Make room, then go on with --resume."


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    # folders cannot be opened everywhere; where they cannot, renaming is durable by itself
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
