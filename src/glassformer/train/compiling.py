"""Whether to compile the blocks, and why not when not.

Compiling costs tens of seconds before the first step; it is worth that only for long runs, and needs a compiler on
the machine. The choice is told and recorded. It knows recipes and devices.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glassformer.count import count
from glassformer.model import Transformer
from glassformer.train import schedule
from glassformer.train.recipe import Recipe

PAYS_AFTER = 600.0
"""Seconds that a run must last before compiling is worth its start (on "auto")."""


class Compiled:
    """Calls blocks through one compiled function."""

    def __init__(self) -> None:
        self._call = torch.compile(_plain, dynamic=False)

    def __call__(self, block: Any, *args: Any) -> Tensor:
        """The block's output."""
        result: Tensor = self._call(block, *args)
        return result


def _plain(block: Any, *args: Any) -> Tensor:
    result: Tensor = block(*args)
    return result


def is_compiled(run_block: object) -> bool:
    """Whether this way of calling blocks is compiled."""
    return isinstance(run_block, Compiled)


def choose(
    recipe: Recipe, transformer: Transformer, device: torch.device, note: Callable[[str], None]
) -> Callable[..., Tensor] | None:
    """How blocks are called: compiled where the recipe and the machine say so, None for plainly."""
    wanted = recipe.loop.compile
    if wanted == "off":
        return None
    reason = _no_compiler(device)
    if reason is None and recipe.loop.recompute:
        reason = "recompute=true runs blocks twice, which is not compiled"
    if reason is None and recipe.loop.shard == "full":
        reason = "sharded blocks are not compiled"
    if reason is None and recipe.optimizer.dropout:
        reason = "dropout is not compiled"
    if reason is None and wanted == "auto":
        from glassformer.train.machine import peak_flops, pick_precision

        peak, _ = peak_flops(device, pick_precision(recipe.loop.precision, device))
        work = count(transformer.config).training_flops * schedule.total_tokens(recipe)
        if work / peak < PAYS_AFTER / 4:
            reason = "the run is too short for compiling to pay"
    if reason is not None:
        note(f"Not compiled: {reason}.")
        return None
    return Compiled()


def _no_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton is not installed"
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    return None if any(shutil.which(c) for c in compilers if c) else "there is no C++ compiler on this machine"
