"""What a person names as data: files, folders, globs, pipes, hub sets, each resolved to sources to read.

Also the `Findings` in which everything that could not be read as it stood is counted and named. Order never
depends on the machine. This module opens no text; `readers` does.
"""

from __future__ import annotations

import atexit
import glob
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from glassformer.errors import DataError, near
from glassformer.system.files import remove, sweep, temporary

Spec = str | os.PathLike[str] | list[Any] | tuple[Any, ...] | None

NAMED = 100  # names kept per problem; the count is always exact


@dataclass
class Findings:
    """What was read, and by name what could not be read as it stood.

    `problems` maps a sentence part ("empty, left out") to how often it happened and to the first
    `NAMED` names it happened to. `columns` are those with text of rows whose text was not found.
    """

    files: int = 0
    documents: int = 0
    bytes: int = 0
    problems: dict[str, dict[str, Any]] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)

    def note(self, problem: str, name: str) -> None:
        """Count `problem` and name what it happened to."""
        entry = self.problems.setdefault(problem, {"count": 0, "names": []})
        entry["count"] += 1
        if len(entry["names"]) < NAMED:
            entry["names"].append(name)

    def count(self, problem: str) -> int:
        """How often a problem happened, by its beginning: `count("empty")`."""
        return sum(entry["count"] for name, entry in self.problems.items() if name.startswith(problem))

    def sentences(self, names: int = 3) -> list[str]:
        """One line per problem, with its count and the first few names."""
        lines = []
        for problem, entry in self.problems.items():
            shown = entry["names"][:names]
            more = entry["count"] - len(shown)
            listed = ", ".join(shown) + (f" and {more} more" if more else "")
            lines.append(f"{entry['count']} {problem}: {listed}.")
        if self.columns:
            first, listed = min(self.columns), ", ".join(sorted(self.columns))
            how = f"train --set text_field={first}, eval --text-field {first}"
            lines.append(f"These rows have text in {listed}: say which is the text ({how}).")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {"files": self.files, "documents": self.documents, "bytes": self.bytes, "problems": self.problems}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Findings:
        """The findings that `to_dict` gave."""
        return cls(data["files"], data["documents"], data["bytes"], data["problems"])


@dataclass(frozen=True)
class FileSource:
    """One file, and the name it goes by; `listed` when it was found by looking into a folder."""

    path: Path
    name: str
    listed: bool = False


@dataclass(frozen=True)
class HubSource:
    """A data set read row by row through the `datasets` library."""

    name: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    text: str | None = None


Source = FileSource | HubSource


def expand(spec: Spec, findings: Findings) -> list[Source]:
    """The sources a spec names, in an order that does not depend on the machine.

    Args:
        spec: None for Python's own standard library; a file, a folder, a glob, "-" for standard
            input, "hf:NAME[@REVISION][?config=…&split=…&text=…]" for a Hugging Face set; or a list.
        findings: gets what could not be looked into.

    Raises:
        DataError: when something named does not exist or a glob matches nothing.
    """
    if spec is None:
        return list(_standard_library())
    if isinstance(spec, (list, tuple)):
        if not spec:
            raise DataError("The list of data is empty; name at least one file, folder or set.")
        return [source for one in spec for source in expand(_named(one), findings)]
    text = os.fspath(spec)
    if text == "-":
        return [_spool(sys.stdin.buffer)]
    if text.startswith("hf:"):
        return [_hub(text[3:])]
    path = Path(text).expanduser()
    if path.is_dir():
        return list(_folder(path, findings))
    if path.exists():
        return [FileSource(path, text)]
    if any(c in text for c in "*?["):
        found = sorted(p for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not found:
            raise DataError(f"No file matches {text!r}; check the pattern, and quote it against the shell.")
        return [FileSource(Path(p), p) for p in found]
    parent = path.parent
    siblings = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    raise DataError(f"There is no file or folder {text!r}." + near(path.name, siblings))


def _named(one: object) -> Spec:
    if isinstance(one, (str, os.PathLike)):
        return one
    raise DataError(f"Data is named by paths or strings; got {one!r}.")


def _standard_library() -> Iterator[FileSource]:
    """Every module of the standard library, without its tests (some systems ship none)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    if not names:
        raise DataError(f"Python's standard library has no .py files under {root}; name your data instead.")
    for name in sorted(names):
        yield FileSource(root / name, name, listed=True)


def _folder(root: Path, findings: Findings) -> Iterator[FileSource]:
    names = []

    def failed(error: OSError) -> None:
        findings.note("unreadable, left out", str(error.filename))

    for folder, folders, files in os.walk(root, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    if not names:
        raise DataError(f"The folder {str(root)!r} holds no files; hidden files are not read.")
    for name in sorted(names):
        if (root / name).is_file() or not (root / name).exists():  # no pipes or devices; a dangling link is named later
            yield FileSource(root / name, name, listed=True)


_spooled: dict[int, tuple[IO[bytes], FileSource]] = {}


def _spool(stream: IO[bytes]) -> FileSource:
    """Standard input as a file until this process ends: it is hashed, tokenised and perhaps learned from, each once."""
    if id(stream) in _spooled:
        return _spooled[id(stream)][1]
    place = Path(tempfile.gettempdir(), "glassformer-standard-input")
    sweep(place.parent, of=place.name)  # what a process that was killed left
    spooled = temporary(place)
    atexit.register(remove, spooled)
    with open(os.open(spooled, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
    source = FileSource(spooled, "standard input")
    _spooled[id(stream)] = (stream, source)
    return source


def _hub(text: str) -> HubSource:
    name, _, query = text.partition("?")
    name, _, revision = name.partition("@")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = ("config", "split", "text")
    for option in options:
        if option not in known:
            raise DataError(f"hf:{text} has the option {option!r}; known are {', '.join(known)}." + near(option, known))
    if not name:
        raise DataError("hf: needs the name of a Hugging Face set, for example hf:roneneldan/TinyStories.")
    return HubSource(name, revision or None, options.get("config"), options.get("split", "train"), options.get("text"))
