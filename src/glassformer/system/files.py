"""Files written whole or not at all, and their checksums: the one place where the house writes a file.

A file or folder is written under a temporary name beside its own, made durable, and renamed into place, so that a
reader (and a process killed with SIGKILL, or a full disk) sees the old one or the new one, never a part. The temporary
name says which process writes it; `sweep` removes what dead processes left, and so does whoever writes into the same
folder next. This module knows no format.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from glassformer.errors import FileError, GlassformerError

ABANDONED = 24 * 3600.0  # seconds of silence after which a temporary file of another machine is taken for a stray
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp$", re.DOTALL)
_mine: set[str] = set()  # the temporary names that this process is writing now


def reason(error: Exception) -> str:
    """Why something cannot be read, without number and path where the system says them too."""
    return getattr(error, "strerror", None) or str(error)


def unwritable(path: str | Path, error: OSError) -> str:
    """That something cannot be written, why, and what to do, as a sentence."""
    then = "name another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        then = "make room there or name another place"
    elif error.errno == errno.EISDIR:
        then = "it is a folder: name a file in it"
    return f"{path} cannot be written ({error.strerror or error}); {then}."


def folder(path: str | Path, *, raises: type[GlassformerError] = FileError) -> Path:
    """A folder, made with all above it where it is missing.

    Raises:
        raises: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise raises(unwritable(path, error)) from error
    return Path(path)


def writable(path: str | Path, *, raises: type[GlassformerError] = FileError) -> None:
    """Refuse a place where no file can be written, before the work whose result it is to hold; leaves nothing there.

    Raises:
        raises: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        if _is_stream(target):
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        above = next(one for one in target.parents if one.exists())
        draft = temporary(above / target.name)
        draft.touch(exist_ok=False)
        remove(draft)
    except OSError as error:
        raise raises(unwritable(path, error)) from error


@contextmanager
def atomic(path: str | Path, *, raises: type[GlassformerError] = FileError) -> Iterator[Path]:
    """A temporary file that becomes `path` when the block ends well; a failure leaves `path` as it was.

    The block may write the file in place or put another one under the temporary name. Parent folders are made. A link
    is followed; into a device or a pipe the finished file is copied.

    Raises:
        raises: the folder or the file cannot be written, or the disk is full; the cause is the `OSError`.
    """
    path = Path(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    draft: Path | None = None
    try:
        if _is_stream(target):
            with scratch() as folder:
                yield folder / "file"
                with (folder / "file").open("rb") as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        draft = temporary(target)
        draft.touch(exist_ok=False)
        yield draft
        if target.exists():
            shutil.copymode(target, draft)
        publish(draft, target)
    except OSError as error:
        raise raises(unwritable(path, error)) from error
    finally:
        if draft is not None:
            remove(draft)


@contextmanager
def atomic_folder(
    path: str | Path, *, replace: bool = False, raises: type[GlassformerError] = FileError
) -> Iterator[Path]:
    """A temporary folder that becomes `path`, with everything in it, when the block ends well.

    Args:
        replace: whether a folder of that name gives way (exchanged in one step where the system can do that);
            otherwise it is an error.

    Raises:
        raises: the folder cannot be written, the disk is full, or the name is taken.
    """
    path = Path(path)
    draft: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        draft = temporary(path)
        draft.mkdir()
        yield draft
        sync_tree(draft)
        _put_folder(draft, path, replace)
        sync(path.parent)
    except OSError as error:
        raise raises(unwritable(path, error)) from error
    finally:
        if draft is not None:
            remove(draft)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for this process among the system's temporary ones, gone when the block ends; those of processes that
    were killed go at the next call. Raises `OSError`."""
    draft = temporary(Path(tempfile.gettempdir(), "glassformer"))
    sweep(draft.parent, of="glassformer")
    draft.mkdir(mode=0o700)
    try:
        yield draft
    finally:
        remove(draft)


def write_bytes(path: str | Path, data: bytes, *, raises: type[GlassformerError] = FileError) -> None:
    """Write a file of bytes, whole or not at all. Raises `raises`."""
    with atomic(path, raises=raises) as draft:
        draft.write_bytes(data)


def write_text(path: str | Path, text: str, *, raises: type[GlassformerError] = FileError) -> None:
    """Write a UTF-8 file with its line ends as they are, whole or not at all. Raises `raises`."""
    write_bytes(path, text.encode("utf-8", "surrogatepass"), raises=raises)


def write_json(
    path: str | Path, value: object, *, indent: int | None = 2, raises: type[GlassformerError] = FileError
) -> None:
    """Write a value as JSON with a last newline, whole or not at all. Raises `raises`, and `ValueError` for a NaN."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n", raises=raises)


def write_with(
    path: str | Path, writer: Callable[[Path], object], *, raises: type[GlassformerError] = FileError
) -> None:
    """Let `writer` write the file it is given the path of; the result is `path`, whole or not at all."""
    with atomic(path, raises=raises) as draft:
        writer(draft)


def publish(draft: str | Path, target: str | Path) -> None:
    """Make a finished file or folder durable and rename it to `target` on the same file system. Raises `OSError`."""
    sync_tree(Path(draft)) if Path(draft).is_dir() else sync(draft)
    os.replace(draft, target)
    sync(Path(target).parent)


def temporary(path: Path) -> Path:
    """A fresh name beside `path` that says which process writes it; `sweep` finds it when that process is dead."""
    name = f".{path.name[:150]}.{_machine()}-{os.getpid()}-{secrets.token_hex(6)}.tmp"
    _mine.add(name)
    return path.with_name(name)


def is_temporary(path: str | Path) -> bool:
    """Whether a name is one that `temporary` gives."""
    return _TEMPORARY.fullmatch(Path(path).name) is not None


def sweep(folder: str | Path, *, of: str = "", alone: bool = False) -> list[Path]:
    """Remove the temporary files and folders that dead processes left in `folder`, and return them.

    Args:
        of: only those that were to become the file of this name.
        alone: the caller holds a lock under which only it writes here, so whatever this process is not writing is a
            stray. Otherwise a living process of this machine keeps its files, and those of other machines stay for a
            day after their last change.
    """
    removed = []
    try:
        found = [entry for entry in Path(folder).iterdir() if is_temporary(entry)]
    except OSError:
        return []
    for entry in found:
        if (
            entry.name.startswith(f".{of[:150]}." if of else ".")
            and entry.name not in _mine
            and (alone or _abandoned(entry))
        ):
            remove(entry)
            removed.append(entry)
    return removed


def remove(path: str | Path) -> None:
    """Remove a file or a folder, as far as the system lets us; nothing there is no error."""
    path = Path(path)
    _mine.discard(path.name)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no reader (and nobody after a crash) finds it with half of its files gone.

    Raises `OSError` when it cannot be renamed.
    """
    doomed = temporary(path)
    os.rename(path, doomed)
    remove(doomed)


def sync(path: str | Path) -> None:
    """Have the system write a file or a folder to the disk."""
    # folders cannot be opened everywhere; where they cannot, renaming is durable by itself
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EBADF):  # a file system without it
                raise
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and everything in it, the innermost first."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(os.path.join(place, name))
        sync(place)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(data: bytes | str) -> str:
    """The SHA-256 of bytes or of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _is_stream(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _put_folder(draft: Path, path: Path, replace: bool) -> None:
    if not replace or not path.exists():
        if path.exists() or path.is_symlink():  # an empty folder would give way in silence
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(draft, path)
    elif _exchange(draft, path):
        remove(draft)  # what stood there
    else:
        old = temporary(path)
        os.rename(path, old)
        os.rename(draft, path)
        remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot (anything but Linux, and some file systems)."""
    if not sys.platform.startswith("linux"):
        return False
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return swap is not None and swap(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _abandoned(entry: Path) -> bool:
    match = _TEMPORARY.fullmatch(entry.name)
    assert match is not None
    if match[1] == _machine():
        return int(match[2]) == os.getpid() or not _alive(int(match[2]))
    try:
        newest = max([entry.stat().st_mtime, *(inner.stat().st_mtime for inner in entry.rglob("*"))])
    except OSError:
        return False
    return time.time() - newest > ABANDONED


def _alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # there a file that is being written cannot be removed, and a stray goes after a day
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@functools.cache
def _machine() -> str:
    """Eight digits for this machine and its process numbers; a container has its own."""
    import platform

    names = ""
    with contextlib.suppress(OSError):
        names = os.readlink("/proc/self/ns/pid")
    return f"{zlib.crc32(f'{platform.node()} {names}'.encode()):08x}"
