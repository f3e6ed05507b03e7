"""The user's cache on disk: where fetched models and dequantised copies lie, what they weigh, and what may go.

Two folders: ``models/`` holds what the catalogue and the hub gave (or a note of where the hub's own cache keeps it),
``dequantised/`` holds the plain-tensor copies of quantised files that ``gguf.py`` makes. Only the second is capped: the
least recently used copies go first, and never one that a living process has said it uses.

It refuses to know where models come from (``sources.py``) and what is in a file (the readers).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glassformer.errors import SourceError, UsageError
from glassformer.fetch import hub
from glassformer.system import files
from glassformer.system.folders import cache_directory, cache_folder

LIMIT_VARIABLE = "GLASSFORMER_CACHE_LIMIT"
DEFAULT_LIMIT = 20 * 10**9
NOTE = "note.json"
_USED = ".used"
_ABANDONED_AFTER = 24 * 3600  # seconds without a write after which an unfinished file is nobody's
_UNITS = {"": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9}
_UNITS |= {"T": 10**12, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_held: dict[str, int] = {}  # entries this process uses: descriptors whose shared locks live as long as it does


@dataclass(frozen=True)
class Item:
    """One thing in the cache: its name, kind, place, weight in bytes and last use (seconds since the epoch)."""

    name: str
    kind: Literal["model", "hub", "dequantised"]
    path: Path
    bytes: int
    last_use: float
    entry: Path  # the folder or file directly under ``models/`` or ``dequantised/``
    note: dict[str, Any]


def models_directory() -> Path:
    """Where fetched models lie; created when missing. Raises ``SourceError`` when it cannot be."""
    return cache_folder("models")


def dequantised_directory() -> Path:
    """Where dequantised copies lie; created when missing. Raises ``SourceError`` when it cannot be."""
    return cache_folder("dequantised")


def cache_limit() -> int:
    """Bytes that dequantised copies may take together: ``GLASSFORMER_CACHE_LIMIT`` ("5GB", "800 MiB"), else 20 GB."""
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS:
        raise UsageError(
            f'{LIMIT_VARIABLE} is "{text}", which is not a size: write a number of bytes, or one with a unit such as'
            " 5GB or 800MiB."
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


# Uses


def note_use(path: str | Path) -> None:
    """Say that this process uses what lies at ``path`` in the cache: it becomes the latest used, and is not evicted
    while the process lives. Call it before checking that the file is there. Paths outside the cache are ignored."""
    entry = _entry(Path(path))
    if entry is None:
        return
    marker = _marker(entry)
    with contextlib.suppress(OSError):  # a cache that cannot be written can still be read
        if str(entry) not in _held or not marker.exists():
            _held[str(entry)] = _share(marker)
        os.utime(marker)


def forget_use(path: str | Path) -> None:
    """Say that this process no longer uses what lies at ``path``: it may be evicted again."""
    entry = _entry(Path(path))
    if entry is not None and (held := _held.pop(str(entry), None)) is not None:
        os.close(held)


def _share(marker: Path) -> int:
    while True:
        file = os.open(marker, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(file, shared=True)
            if os.name == "nt" or os.fstat(file).st_nlink:
                return file
        except OSError:
            os.close(file)
            raise
        os.close(file)  # an eviction removed the marker between opening and locking it: make it anew


def _flock(file: int, *, shared: bool) -> None:
    """An advisory lock for the life of the open descriptor. On Windows none: there a mapped file cannot be deleted."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _entry(path: Path) -> Path | None:
    """The file or folder directly under ``models/`` or ``dequantised/`` that ``path`` is or lies in."""
    try:
        parts = path.absolute().relative_to(cache_directory()).parts
    except ValueError:
        return None
    return cache_directory().joinpath(*parts[:2]) if len(parts) >= 2 else None


def _marker(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}{_USED}")


# Notes: what a fetched model is and where it lies


def read_note(name: str) -> dict[str, Any] | None:
    """What the cache knows of the model ``name``: ``path``, ``origin``, ``sha256``, ``bytes``, … or None."""
    try:
        note = json.loads((_home(name) / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    sound = isinstance(note, dict) and note.get("name") == name and isinstance(note.get("path"), str)
    return note if sound else None


def write_note(name: str, note: dict[str, Any]) -> None:
    """Record what the model ``name`` is and where it lies, all at once or not at all."""
    note = note | {"name": name}
    files.write_json(home(name) / NOTE, dict(sorted(note.items())), indent=1, raises=SourceError)


def tidy(name: str, keep: Path) -> None:
    """Remove from the model's folder what interrupted downloads left beside the file that was wanted."""
    for path in home(name).iterdir():
        if path not in (keep, _home(name) / NOTE):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def home(name: str) -> Path:
    """The folder of the model ``name`` under ``models/``, created when missing."""
    return cache_folder("models", _home(name).name)


def _home(name: str) -> Path:
    return models_directory() / re.sub(r"[^A-Za-z0-9._-]", "--", name).lstrip(".")


# Listing and deletion


def items() -> list[Item]:
    """Everything in the cache, models first, each kind by last use, latest first."""
    found = [item for entry in _entries("models") if (item := _model(entry)) is not None]
    found += [_copy(entry) for entry in _entries("dequantised")]
    order = {"model": 0, "hub": 0, "dequantised": 1}
    return sorted(found, key=lambda item: (order[item.kind], -item.last_use, item.name))


def _entries(folder: str) -> list[Path]:
    directory = cache_directory() / folder
    try:
        return [entry for entry in directory.iterdir() if not entry.name.startswith(".") and entry.suffix != ".lock"]
    except OSError:
        return []


def _model(entry: Path) -> Item | None:
    if not entry.is_dir():
        return None
    try:
        note = json.loads((entry / NOTE).read_text(encoding="utf-8"))
        path, kind = Path(note["path"]), note.get("kind", "model")
    except (OSError, ValueError, KeyError, TypeError):
        note, path, kind = {}, entry, "model"  # an unfinished download
    weight = weigh(entry) + (0 if path.is_relative_to(entry) else weigh(path))
    return Item(note.get("name", entry.name).removesuffix("@main"), kind, path, weight, _last_use(entry), entry, note)


def _copy(entry: Path) -> Item:
    return Item(entry.name, "dequantised", entry, weigh(entry), _last_use(entry), entry, {})


def _last_use(entry: Path) -> float:
    times = [0.0]
    for path in (_marker(entry), entry):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def weigh(path: Path) -> int:
    """Bytes of a file, or of all files under a folder (links followed, as the hub's cache is made of them)."""
    with contextlib.suppress(OSError):
        if path.is_file():
            return path.stat().st_size
    total = 0
    for root, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total


def delete(item: Item) -> bool:
    """Remove an item from the cache; False when a living process uses it. A model that lies in the hub's own cache
    is removed there too."""
    if not _remove(item.entry):
        return False
    if not item.path.is_relative_to(item.entry):
        hub.delete(item.path)
    return True


def _remove(entry: Path) -> bool:
    marker = _marker(entry)
    forget_use(entry)
    files.sweep(entry.parent)  # what a process left that was killed while it removed
    try:
        with marker.open("ab") as file:
            _flock(file.fileno(), shared=False)
            if entry.is_dir():
                files.remove_folder(entry)
            else:
                entry.unlink(missing_ok=True)
            marker.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except OSError as error:
        if os.name == "nt" and isinstance(error, PermissionError):
            return False  # a mapped file: in use
        raise SourceError(f"{entry} cannot be deleted ({error.strerror or error}).") from None
    return True


def enforce_limit(limit: int | None = None) -> list[Path]:
    """Evict dequantised copies, least recently used first, until they weigh at most ``limit`` bytes (default:
    ``cache_limit()``); a copy that a living process uses stays. Returns what was removed.

    Unfinished writes (names that begin with ``.`` or end in ``.partial``) count nothing and go after a day of silence.
    """
    limit = cache_limit() if limit is None else limit
    _sweep()
    copies = [_copy(entry) for entry in _entries("dequantised") if entry.suffix != ".partial"]
    total = sum(copy.bytes for copy in copies)
    removed: list[Path] = []
    for copy in sorted(copies, key=lambda copy: copy.last_use):
        if total <= limit:
            break
        if str(copy.entry) not in _held and _remove(copy.entry):
            total -= copy.bytes
            removed.append(copy.entry)
    return removed


def _sweep() -> None:
    """Remove what killed processes left unfinished among the dequantised copies."""
    files.sweep(cache_directory() / "dequantised")
    for path in (cache_directory() / "dequantised").glob("*"):
        unfinished = path.suffix == ".partial" or (path.name.startswith(".") and not path.name.endswith(_USED))
        with contextlib.suppress(OSError):
            if unfinished and time.time() - _newest(path) > _ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _newest(path: Path) -> float:
    return max([path.stat().st_mtime, *(inner.stat().st_mtime for inner in path.rglob("*"))])
