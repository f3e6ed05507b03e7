"""Training from the page: one run at a time, in a process of its own, started on pasted text and stopped on request.

A run is what `glassformer train` makes and is read like any other; here stands only who starts and who ends it. The
text is kept beside the run, so that `glassformer train --resume` goes on from it.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from glassformer.errors import TrainError, UsageError
from glassformer.system import files

RECIPE = "small-text"
SHORTEST = 300
_BEGUN = (b'"event": "sample"', b'"event": "step"')
_LOOK = 0.1  # seconds between looks at a process that begins
_PATIENCE = 20.0  # seconds that a run has to save what it has when the server ends


class Training:
    """The page's runs, in a folder of runs."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self.name: str | None = None

    @property
    def running(self) -> str | None:
        """The run that is going on, if one is."""
        return self.name if self._process is not None and self._process.poll() is None else None

    def start(self, text: str, steps: int, check: Callable[[], None]) -> str:
        """Begin a run on `text`, and return its name once its journal says that it has begun.

        Args:
            check: called while waiting; raises to give up, which ends the run.

        Raises:
            UsageError: there is no text, or a run is going on.
            TrainError: in the run's own sentence, when it did not begin.
        """
        if not text.strip():
            raise UsageError("Paste a text to learn from first.")
        if (size := len(text.encode("utf-8", "replace"))) < SHORTEST:
            raise UsageError(f"A text of {size} bytes is too short to learn from; paste at least {SHORTEST}.")
        with self._lock:
            if self.running:
                raise UsageError(f"{self.running} is still learning; stop it before another begins.")
            name = self._free()
            source = self.folder / f"{name}.txt"
            try:
                files.write_text(source, text, raises=TrainError)
                self._begin(name, ["--data", str(source.resolve()), "--set", f"steps={steps}"])
            except BaseException:
                source.unlink(missing_ok=True)
                raise
        try:
            self._begun(check)
        except BaseException:
            self.stop()
            if not (self.folder / name).is_dir():
                source.unlink(missing_ok=True)
            raise
        return name

    def stop(self) -> None:
        """Ask the run to save a checkpoint and end; nothing when none is going on."""
        if self._process is not None and self._process.poll() is None:
            with suppress(OSError):
                self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """`stop`, and wait for it."""
        self.stop()
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._said is not None:
            self._said.close()

    def _free(self) -> str:
        """A name that no run has, taken by its empty text: another server may look at the same folder."""
        files.folder(self.folder, raises=TrainError)
        for number in itertools.count(1):
            if not (self.folder / f"page-{number}").exists():
                with suppress(FileExistsError):
                    (self.folder / f"page-{number}.txt").touch(exist_ok=False)
                    return f"page-{number}"
        raise AssertionError

    def _begin(self, name: str, more: list[str]) -> None:
        command = [sys.executable, "-m", "glassformer", "train", RECIPE, "--out", str(self.folder / name), *more]
        if self._said is not None:
            self._said.close()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the run
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said, start_new_session=True
        )
        self.name = name

    def _begun(self, check: Callable[[], None]) -> None:
        process, said, name = self._process, self._said, self.name
        assert process is not None
        assert said is not None
        assert name is not None
        journal = self.folder / name / "journal.jsonl"
        while True:
            check()
            with suppress(OSError):
                if any(mark in journal.read_bytes() for mark in _BEGUN):
                    return
            with suppress(subprocess.TimeoutExpired):
                if process.wait(_LOOK):
                    said.seek(0)
                    lines = said.read().decode("utf-8", "replace").strip().splitlines()
                    told = lines[-1].removeprefix("glassformer: ") if lines else ""
                    raise TrainError(told or f"The run ended with status {process.returncode} before it began.")
                return
