"""Training: from a recipe and raw text to a run directory, which is a model like any other.

`train(recipe)` is the whole interface; `step(...)` takes one gradient step to look at. Nothing heavy is imported
before a run begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassformer.train.loop import Probe, Result
    from glassformer.train.recipe import Recipe

__all__ = ["train"]


def train(
    recipe: str | Path | Recipe | None = None,
    *,
    data: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    step: int | None = None,
    probes: Sequence[Probe] = (),
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **more: object,
) -> Result:
    """Train a model.

    Args:
        recipe: a recipe's name, a TOML file, or a `Recipe`; None is the default, or with `resume` the run's own.
        data: what to learn from, instead of what the recipe says; see `DataSpec`.
        out: the run directory, `runs/NAME` by default.
        resume: go on from the newest sound checkpoint in `out`; begin where there is none.
        step: go back to the checkpoint of this step, 0 for the beginning.
        probes: called with the transformer, its tokenizer and the step every `probe_every` steps; the journal keeps
            what they give.
        quiet: no live line.
        settings, **more: recipe settings by key, as in `steps=200`.

    Returns:
        What the run came to; `glassformer.load(result.path)` opens the model.

    Raises:
        UsageError, DataError, TrainError, CheckpointError: one sentence each.
    """
    from glassformer.train.run import train as run

    wanted = [data] if isinstance(data, str) else data
    return run(recipe, wanted, out, resume, tuple(probes), quiet, {**(settings or {}), **more}, step)
