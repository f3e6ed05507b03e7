"""What a run tells: one live line for people, one JSON line per event for programs.

The journal is append-only and holds every number the live line shows. When a run resumes, what came after its
checkpoint is dropped, so that the journal of an interrupted run reads like that of one that never stopped. It knows
numbers and events, not where they come from.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TextIO

from glassformer.errors import TrainError, UsageError
from glassformer.system import files


class Sink(Protocol):
    """Where events go besides the journal file."""

    def write(self, event: dict[str, Any]) -> None:
        """Take one event."""

    def close(self) -> None:
        """No more events come."""


class Journal:
    """Append events to `path`, one JSON object a line, each with `event`, `step` and seconds since the start.

    Args:
        path: the file; None keeps nothing.
        sinks: what else is told.
        upto: on resuming, the step after which earlier lines are dropped.

    Raises:
        TrainError: the file cannot be written, now or at any event.
    """

    def __init__(self, path: Path | None, sinks: tuple[Sink, ...] = (), upto: int | None = None) -> None:
        self.sinks = sinks
        self._file: TextIO | None = None
        self.began = time.monotonic()
        if path is not None:
            if upto is not None and path.exists():
                _drop_after(path, upto)
            try:
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise _unwritable(path, error) from error

    def write(self, event: str, step: int, **values: object) -> None:
        """Record one event."""
        record = {"event": event, "step": step, "seconds": round(time.monotonic() - self.began, 3), **values}
        if self._file is not None:
            try:
                self._file.write(json.dumps(_finite(record), ensure_ascii=False) + "\n")
                self._file.flush()
            except OSError as error:
                raise _unwritable(Path(self._file.name), error) from error
        for sink in self.sinks:
            sink.write(record)

    def progress(self, stage: str, done: int, total: int | None = None) -> None:
        """Tell those who watch how far reading the data has come, in bytes; the file does not keep it."""
        for sink in self.sinks:
            if isinstance(sink, LiveLine):
                sink.progress(stage, done, total)

    def close(self) -> None:
        """Finish the file and the sinks."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been said
                self._file.close()
            self._file = None
        for sink in self.sinks:
            sink.close()


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """The events of a journal; lines that are no event (cut short by a crash, or damaged) are passed over."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("step"), int):
                yield event


def _drop_after(path: Path, step: int) -> None:
    try:
        kept = [event for event in read(path) if event["step"] <= step and event["event"] != "stop"]
    except OSError as error:
        raise _unwritable(path, error) from error
    files.write_text(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept), raises=TrainError)


def _unwritable(path: Path, error: OSError) -> TrainError:
    return TrainError(
        f"The journal {path} cannot be written ({error.strerror or error}); checkpoints are as they were. Make room, "
        "then go on with --resume."
    )


def _finite(value: object) -> object:
    """JSON has no NaN and no infinities: they become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


class LiveLine:
    """The one line on standard error: redrawn in place on a terminal, a plain line now and then elsewhere."""

    def __init__(self, steps: int, *, every: float = 15.0, stream: TextIO | None = None) -> None:
        self.steps, self.every, self.stream = steps, every, stream or sys.stderr
        self.interactive = self.stream.isatty()
        self._values: dict[str, Any] = {}
        self._last, self._told = -math.inf, time.monotonic()
        self._live: Any = None

    def write(self, event: dict[str, Any]) -> None:
        """Take in an event and show what changed."""
        kind = event["event"]
        if kind in ("step", "eval"):
            self._values.update({k: v for k, v in event.items() if k not in ("event", "seconds")})
            self._show(force=kind == "eval" or event["step"] >= self.steps)
        elif kind == "sample":
            self._print(f"  {event['text']!r}")
        elif kind in ("note", "save"):
            self._print(event.get("text", ""))

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Show how far reading the data has come: at once on a terminal, elsewhere only when it takes long."""
        now = time.monotonic()
        if now - self._told >= (0.1 if self.interactive else self.every):
            self._told = now
            self._draw(f"{stage}  {_bar(done, total)}")

    def close(self) -> None:
        """Leave the last state of the line standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def text(self) -> str:
        """The line as it stands."""
        v = self._values
        parts = [f"step {v.get('step', 0)}/{self.steps}"]
        if "loss" in v:
            parts.append(f"loss {v['loss']:.4f}")
        if "held_out" in v:
            parts.append(f"held-out {v['held_out']:.4f}")
        if "bits_per_byte" in v:
            parts.append(f"{v['bits_per_byte']:.3f} bits/byte")
        if "tokens_per_second" in v:
            parts.append(f"{_short(v['tokens_per_second'])} tokens/s")
        if "busiest" in v:
            parts.append(f"busiest expert {v['busiest']:.1f}×")
        if "mfu" in v:
            parts.append(f"MFU {100 * v['mfu']:.0f} %")
        if "eta" in v:
            parts.append(f"{_clock(v['eta'])} left")
        return "  ".join(parts)

    def _show(self, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._last >= (0.1 if self.interactive else self.every):
            self._last = now
            self._draw(self.text())

    def _draw(self, text: str) -> None:
        if not self.interactive:
            print(text, file=self.stream, flush=True)
            return
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self.stream), auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(text, refresh=True)

    def _print(self, text: str) -> None:
        if not text:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)


class TensorBoardSink:
    """The journal's numbers for TensorBoard, under the run's folder.

    Raises:
        UsageError: when TensorBoard is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "tensorboard=true needs the package tensorboard; install it with: pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(directory))

    def write(self, event: dict[str, Any]) -> None:
        for key, value in event.items():
            numbers = value.items() if isinstance(value, dict) else [("", value)]
            for name, number in numbers:
                if isinstance(number, (int, float)) and not isinstance(number, bool) and key not in ("step", "seconds"):
                    tag = f"{event['event']}/{key}" + (f"/{name}" if name else "")
                    self._writer.add_scalar(tag, number, event["step"])
        if event["event"] == "sample":
            self._writer.add_text("sample", event["text"], event["step"])

    def close(self) -> None:
        self._writer.close()


def _bar(done: int, total: int | None, cells: int = 24) -> str:
    """Bytes done, and of how many where that is known."""
    if total is None:
        return f"{done / 1e6:,.1f} MB"
    full = min(cells, cells * done // max(1, total))
    return f"{'━' * full}{'╌' * (cells - full)}  {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    total = int(max(0, seconds))
    hours, rest = divmod(total, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
