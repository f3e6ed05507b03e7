"""Whether to compile the blocks, and why not when not.

Compiling costs tens of seconds before the first step; it is worth that only for long runs, and needs a compiler on
the machine. The choice is told and recorded. It knows recipes and devices.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from glassformer.count import count
from glassformer.kernels.compile import find_compiler
from glassformer.model import Transformer
from glassformer.model.choices import Experts
from glassformer.train import schedule
from glassformer.train.recipe import Recipe

PAYS_AFTER = 600.0
"""Seconds that a run must last before compiling is worth its start (on "auto")."""
GRAPHS = 64
"""Sizes of batches, with and without gradients, that are compiled for; a run's stages ask for a few each."""


class Compiled:
    """Calls blocks through one compiled function."""

    def __init__(self) -> None:
        # torch gives up compiling after 8, and says so to nobody
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        self._call = torch.compile(_plain, dynamic=False)

    def __call__(self, block: Callable[..., Tensor], *args: object) -> Tensor:
        """The block's output."""
        result: Tensor = self._call(block, *args)
        return result


def _plain(block: Callable[..., Tensor], *args: object) -> Tensor:
    return block(*args)


def is_compiled(run_block: object) -> bool:
    """Whether this way of calling blocks is compiled."""
    return isinstance(run_block, Compiled)


def choose(
    recipe: Recipe,
    transformer: Transformer,
    device: torch.device,
    note: Callable[[str], None],
    *,
    sharded: bool = False,
    before: bool | None = None,
) -> Callable[..., Tensor] | None:
    """How blocks are called: compiled where the recipe and the machine say so, None for plainly.

    Args:
        recipe, transformer, device: the run.
        note: is told why not, in a sentence.
        sharded: weights are spread over processes.
        before: when resuming, whether the run was compiled so far; "auto" stays with it.
    """
    wanted = recipe.loop.compile
    if wanted == "off" or (wanted == "auto" and before is False):
        return None
    reason = None
    if recipe.loop.recompute:
        reason = "recompute=true runs blocks twice, which is not compiled"
    elif sharded:
        reason = "sharded blocks are not compiled"
    elif recipe.optimizer.dropout:
        reason = "dropout is not compiled"
    elif any(isinstance(layer.feed_forward, Experts) for layer in transformer.config.layers):
        reason = "experts are not compiled"
    elif wanted == "auto" and before is None:
        from glassformer.system.hardware import pick_precision
        from glassformer.train.peak import peak_flops

        peak, _ = peak_flops(device, pick_precision(recipe.loop.precision, device))
        work = count(transformer.config).training_flops * schedule.total_tokens(recipe)
        if work / peak < PAYS_AFTER / 4:
            reason = "the run is too short for compiling to pay"
    reason = reason or _no_compiler(device)
    if reason is not None:
        note(f"Not compiled: {reason}.")
        return None
    return Compiled()


def _no_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled here, None where it can: the compiler is there, and a trial went well."""
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    if device.type == "cpu" and find_compiler() is None:
        return "there is no C++ compiler on this machine"
    try:
        torch.compile(_doubled, dynamic=False)(torch.ones(4, device=device))
    except Exception as error:  # torch wraps whatever the compiler met
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"torch.compile does not work on this machine ({why})"
    return None


def _doubled(x: Tensor) -> Tensor:
    return x * 2
