"""Locks between processes: one waits for another that makes the same thing, and says so.

A lock is a file beside what it guards (`NAME.lock`), held through the system, so that it is free again when its holder
dies, however it dies. The file itself stays: removing it would let two processes hold two locks of one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from glassformer.errors import FileError, GlassformerError
from glassformer.system import files


@contextmanager
def locked(
    target: str | Path,
    waiting: Callable[[], None] | None = None,
    *,
    taken: Callable[[], GlassformerError] | None = None,
    raises: type[GlassformerError] = FileError,
) -> Iterator[None]:
    """Hold the lock of `target` (the file `TARGET.lock`) inside the block.

    Args:
        target: what is guarded; it need not exist, its folder is made.
        waiting: called once when another process holds the lock, before waiting for it.
        taken: makes the error that is raised when another process holds the lock, instead of waiting.

    Raises:
        raises: the folder cannot be written; or what `taken` makes.
    """
    from filelock import FileLock, Timeout

    path = Path(f"{target}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if taken is not None:
                raise taken() from None
            if waiting is not None:
                waiting()
            lock.acquire()
    except OSError as error:
        raise raises(files.unwritable(path.parent, error)) from None
    try:
        yield
    finally:
        lock.release()
