"""Pace: learning rate, momentum, batch size and row length at each step.

Pure functions of the recipe and the step, so that a resumed run needs to store none of them.
"""

from __future__ import annotations

import itertools

from glassformer.train.recipe import OptimizerSpec, Recipe, ScheduleSpec


def rate(step: int, spec: ScheduleSpec) -> float:
    """The share of each learning rate used at `step` (0-based): warm-up, stable, linear decay (arXiv:2404.06395)."""
    if step < spec.warmup:
        return (step + 1) / spec.warmup
    falling = max(1, round(spec.decay * spec.steps))
    left = spec.steps - step
    if spec.decay == 0 or left > falling:
        return 1.0
    return spec.final + (1.0 - spec.final) * max(0, left) / falling


def momentum(step: int, spec: OptimizerSpec) -> float:
    """Muon's momentum at `step`: rises linearly over its warm-up."""
    if step >= spec.momentum_warmup:
        return spec.momentum
    return spec.momentum_start + (spec.momentum - spec.momentum_start) * step / spec.momentum_warmup


def batch(step: int, recipe: Recipe) -> int:
    """Rows in the global batch at `step`."""
    return _stage(step, recipe.schedule.batch_stages, recipe.schedule.steps, recipe.schedule.batch)


def length(step: int, recipe: Recipe) -> int:
    """Tokens a row at `step`."""
    return _stage(step, recipe.schedule.length_stages, recipe.schedule.steps, recipe.model.context)


def total_tokens(recipe: Recipe) -> int:
    """Tokens seen over the whole run."""
    if not recipe.schedule.batch_stages and not recipe.schedule.length_stages:
        return recipe.schedule.steps * recipe.schedule.batch * recipe.model.context
    steps = recipe.schedule.steps
    stages = (*recipe.schedule.batch_stages, *recipe.schedule.length_stages)
    ends = sorted({0, steps, *(round(share * steps) for share, _ in stages)})
    return sum((b - a) * batch(a, recipe) * length(a, recipe) for a, b in itertools.pairwise(ends))


def _stage(step: int, stages: tuple[tuple[float, int], ...], steps: int, otherwise: int) -> int:
    for share, value in stages:
        if step < round(share * steps):
            return value
    return otherwise
