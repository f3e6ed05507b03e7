"""Reading runs back: what a folder of runs holds, a run's curves and samples, the weights at each checkpoint.

It only reads, also while a run is being written; a line that is half there is left out. How the numbers came
about is the loop's business, and nothing here draws.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import CheckpointError, SourceError, near
from glassformer.train import checkpoint, film, journal

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.model import Config

JOURNAL = "journal.jsonl"
RECIPE = "recipe.json"
# A run that has written nothing for this long, and did not say that it stopped, is taken for interrupted.
SILENT = 120.0
# Points of a curve at most; longer ones are thinned evenly, first and last kept.
POINTS = 2000
_CURVES = {
    "step": ("loss", "rate", "gradient_norm", "tokens_per_second", "balance", "busiest", "idle"),
    "eval": ("held_out", "bits_per_byte"),
}


@dataclass(frozen=True)
class StoredRun:
    """A training run on disk.

    Attributes:
        name: of its folder.
        path: its folder.
    """

    name: str
    path: Path

    def events(self) -> Iterator[dict[str, Any]]:
        """The journal's events, in order."""
        yield from journal.read(self.path / JOURNAL)

    @property
    def checkpoints(self) -> list[int]:
        """Steps that have a checkpoint, in order; unverified."""
        return sorted(step for step, _ in checkpoint.all_steps(self.path / "checkpoints"))

    @property
    def frames(self) -> dict[int, Path]:
        """The frames of its film, by their steps, in order."""
        return dict(film.frames_in(self.path))

    def summary(self) -> dict[str, Any]:
        """Name, steps taken and planned, last losses, state, checkpoints."""
        return self._summary(list(self.events()))

    def _summary(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        start: dict[str, Any] = next((e for e in reversed(events) if e["event"] == "start"), {})
        recipe = start.get("recipe") or self._recipe()
        return {
            "name": self.name,
            "about": recipe.get("about", ""),
            "step": max((e["step"] for e in events), default=0),
            "steps": recipe.get("schedule", {}).get("steps"),
            "loss": _last(events, "loss"),
            "held_out": _last(events, "held_out"),
            "parameters": start.get("parameters"),
            "state": self._state(events),
            "checkpoints": self.checkpoints,
        }

    def _state(self, events: list[dict[str, Any]]) -> str:
        last = events[-1] if events else {}
        if last.get("event") == "stop":
            return str(last.get("reason", "stopped"))
        if last.get("event") == "error":
            return "failed"
        silent = time.time() - (self.path / JOURNAL).stat().st_mtime > SILENT
        return "interrupted" if silent else "running"

    def _recipe(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / RECIPE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def to_dict(self) -> dict[str, Any]:
        """The summary, the recipe, the curves, experts' loads, samples, probes and remarks: plain data."""
        events = list(self.events())
        start: dict[str, Any] = next((e for e in reversed(events) if e["event"] == "start"), {})
        curves = {name: _curve(events, kind, name) for kind, names in _CURVES.items() for name in names}
        return {
            **self._summary(events),
            "recipe": start.get("recipe") or self._recipe(),
            "film": list(self.frames),
            "facts": {k: start.get(k) for k in ("training_tokens", "held_out_tokens", "threads", "world", "compute")},
            "curves": {name: points for name, points in curves.items() if points["steps"]},
            "experts": [{"step": e["step"], "load": e.get("load", {})} for e in events if e["event"] == "experts"],
            "samples": [{"step": e["step"], "text": str(e.get("text", ""))} for e in events if e["event"] == "sample"],
            "probes": [
                {k: v for k, v in e.items() if k not in ("event", "seconds")} for e in events if e["event"] == "probe"
            ],
            "notes": [
                {"step": e["step"], "text": str(e.get("text") or e.get("reason") or "")}
                for e in events
                if e["event"] in ("note", "error", "stop")
            ],
        }

    def weights(self, step: int | None = None) -> tuple[int, Config, dict[str, Tensor]]:
        """The step, the design and the weights of a checkpoint (the newest when no step is given), verified.

        Where no checkpoint was kept of a step, a frame of the film that holds every weight (in 16 bits) serves.

        Raises:
            SourceError: for a step without checkpoint.
            CheckpointError: for one that is damaged.
        """
        from glassformer.model import Config

        steps = self.checkpoints
        if not steps:
            raise SourceError(f"The run {self.name} has saved no checkpoint yet.")
        at = steps[-1] if step is None else step
        if at not in steps and at in self.frames:
            about, held = film.read(self.frames[at])
            if about["whole"]:
                named = {n.removeprefix("model."): x.float() for n, x in held.items() if n.startswith("model.")}
                return at, Config.from_dict(about["config"]), named
        if at not in steps:
            there = ", ".join(map(str, steps))
            raise SourceError(f"The run {self.name} has no checkpoint of step {at}; it has {there}.")
        saved = checkpoint.verify(self.path / "checkpoints" / checkpoint.folder_name(at))
        if "config" not in saved.state:
            raise CheckpointError(f"Checkpoint {saved.path} does not say of which design it is.")
        if saved.state.get("recipe", {}).get("adapter", {}).get("adapter", "none") != "none":
            raise SourceError(f"The run {self.name} trains an adapter; open it as a model by its path, {self.path}.")
        tensors = {
            name.removeprefix("model."): tensor for name, tensor in saved.tensors().items() if name.startswith("model.")
        }
        return at, Config.from_dict(saved.state["config"]), tensors


def list_runs(folder: str | Path) -> list[StoredRun]:
    """The runs in a folder, those written last first."""
    try:
        inside = [path for path in Path(folder).iterdir() if (path / JOURNAL).is_file()]
    except OSError:
        return []
    return [StoredRun(p.name, p) for p in sorted(inside, key=lambda p: (-(p / JOURNAL).stat().st_mtime, p.name))]


def read_run(folder: str | Path, name: str) -> StoredRun:
    """A run of a folder by its name.

    Raises:
        SourceError: when there is none of this name; a name never leads out of the folder.
    """
    runs = {run.name: run for run in list_runs(folder)}
    if name in runs:
        return runs[name]
    there = f" There are {', '.join(list(runs)[:8])}." if runs else f" There are no runs in {folder}."
    raise SourceError(f"There is no training run called {name}.{near(name, runs)}{there}")


def _last(events: list[dict[str, Any]], name: str) -> float | None:
    return next((e[name] for e in reversed(events) if isinstance(e.get(name), (int, float))), None)


def _curve(events: list[dict[str, Any]], kind: str, name: str) -> dict[str, list[float]]:
    points = [(e["step"], e[name]) for e in events if e["event"] == kind and isinstance(e.get(name), (int, float))]
    if len(points) > POINTS:
        gap = (len(points) - 1) / (POINTS - 1)
        points = [points[round(i * gap)] for i in range(POINTS)]
    return {"steps": [s for s, _ in points], "values": [v for _, v in points]}
