"""The progress bar of a download, on standard error: drawn only when bytes really come.

On a terminal a bar of rich; elsewhere (a log) one line for each thing fetched. It refuses to know what is fetched.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

Progress = Callable[[int, int | None, str], None]
"""Called with how much is done (bytes, texts, steps), how much there is (None when unknown), and what is being done."""


def quiet(done: int, total: int | None, what: str) -> None:
    """A progress callback that shows nothing."""


def size_text(count: float) -> str:
    """A number of bytes for people: ``98.4 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


@contextlib.contextmanager
def shown(progress: Progress | None) -> Iterator[Progress]:
    """The callback to report to: ``progress`` itself, or for None a display on standard error."""
    if progress is not None:
        yield progress
    elif sys.stderr is None:
        yield quiet
    elif sys.stderr.isatty():
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield _Lines()


class _Lines:
    """One line for each thing, when it begins."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, done: int, total: int | None, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            print(what + (f" ({size_text(total)})" if total else ""), file=sys.stderr, flush=True)


class _Bar:
    """A bar with bytes, speed and time left; started by the first report."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._what: str | None = None

    def __call__(self, done: int, total: int | None, what: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                ProgressColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
            columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._what, self._task = what, self._bar.add_task(what, total=total, completed=done)
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
