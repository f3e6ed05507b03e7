"""Models on this machine: what a directory or a file holds, by its name and first bytes, without opening it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glassformer.errors import SourceError, UnsafeFileError, UsageError, near
from glassformer.fetch import catalogue, gguf_parts

RUNS = "runs"  # where training writes its runs, under the current directory

Kind = Literal["hf", "native", "gguf", "run", "adapter"]

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WHAT_A_DIRECTORY_HOLDS = (
    "A model directory holds config.json, *.safetensors and tokenizer.json (Hugging Face layout), or one .gguf file;"
    " a training run is a directory that glassformer train wrote."
)


@dataclass(frozen=True)
class Resolved:
    """A model found on this machine.

    Attributes:
        name: what to call it: the catalogue's name, ``org/name``, or the last part of the path.
        path: the model directory, GGUF file or run directory.
        kind: ``"hf"``, ``"native"``, ``"gguf"`` or ``"run"``.
        revision: the commit, for a model of the hub.
        sha256: of the file, for a catalogue artifact; verified.
        adapters, adapter_names: folders of adapters that belong into its weights, in order, and what they are called.
    """

    name: str
    path: Path
    kind: Kind
    revision: str | None = None
    sha256: str | None = None
    adapters: tuple[Path, ...] = ()
    adapter_names: tuple[str, ...] = ()


def exists(path: Path) -> bool:
    """Whether there is something at a path that somebody wrote."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a null byte
        return False


def at_path(path: Path, revision: str | None) -> Resolved:
    """The model at a path.

    Raises:
        SourceError: there is none. UnsafeFileError: it is pickled. UsageError: a revision is asked for.
    """
    if revision is not None:
        raise UsageError(f"{path} is on this machine and has no revisions; leave revision out.")
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return _directory(path)
    if path.suffix.lower() in PICKLED:
        raise _pickled(path)
    if _is_gguf(path):
        return Resolved(gguf_parts.stem(path), gguf_parts.paths_of(path)[0], "gguf")
    if path.suffix.lower() == ".safetensors":
        raise SourceError(f"{path} holds weights only; give the directory that holds it, {path.parent}.")
    raise SourceError(f"{path} is a file but no model: it is not GGUF. {_WHAT_A_DIRECTORY_HOLDS}")


def _directory(path: Path) -> Resolved:
    names = sorted(entry.name for entry in path.iterdir())
    kind = directory_kind(path)
    if kind == "run" and not (path / "glassformer.json").is_file():
        raise SourceError(
            f"{path} is a training run that has saved no model yet; go on with it: glassformer train --resume --out"
            f" {path}"
        )
    if kind is not None:
        return Resolved(path.name, path, kind)
    ggufs = gguf_parts.wholes(name for name in names if name.lower().endswith(".gguf"))
    if len(ggufs) == 1:
        return Resolved(path.name, path / ggufs[0], "gguf")
    if ggufs:
        raise SourceError(f"{path} holds {len(ggufs)} GGUF files ({', '.join(ggufs[:6])}); give the path of one.")
    if pickled := [name for name in names if name.lower().endswith(PICKLED)]:
        raise _pickled(path / pickled[0])
    has = f"it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "it is empty"
    entry = catalogue.find(path.name)
    remark = f" (To mean the catalogue's {entry.name}, run this in another directory.)" if entry else ""
    raise SourceError(f"{path} is a directory but no model: {has}. {_WHAT_A_DIRECTORY_HOLDS}{remark}")


def directory_kind(path: Path) -> Kind | None:
    """What a directory is by the files in it, or None: nothing is opened."""
    if (path / "journal.jsonl").is_file():
        alone = (path / "adapter_config.json").is_file() and not (path / "glassformer.json").is_file()
        return "adapter" if alone else "run"
    if (path / "glassformer.json").is_file():
        return "native"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors*")):
        return "hf"
    if (path / "adapter_config.json").is_file():
        return "adapter"
    return None


def run_directory(name: str) -> Path:
    """The directory of a training run, by its name or path.

    Raises:
        SourceError: there is none.
    """
    for path in (Path(RUNS, name), Path(os.path.expanduser(name))):
        if name and exists(path):
            if path.is_dir() and (path / "journal.jsonl").is_file():
                return path
            raise SourceError(
                f"{path} is not a training run: glassformer train writes one, with a journal.jsonl in it."
            )
    try:
        runs = sorted(entry.name for entry in Path(RUNS).iterdir() if entry.is_dir())
    except OSError:
        runs = []
    there = f" There are {', '.join(runs[:8])}." if runs else f" There are no runs under {Path(RUNS).absolute()}."
    raise SourceError(f"There is no training run called {name}.{near(name, runs)}{there}")


def _is_gguf(path: Path) -> bool:
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror or error}).") from None


def _pickled(path: Path) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path} is a pickled PyTorch file, which runs code when it is read, so it is refused; convert it to"
        " safetensors first, for instance with transformers:"
        f' AutoModelForCausalLM.from_pretrained("{path.parent}").save_pretrained(DIRECTORY, safe_serialization=True).'
    )
