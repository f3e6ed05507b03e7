"""Which runs the native training step is for, and compiling it early.

The library is `kernels/train_abi.py`. This module knows designs and recipes and does not import torch, so that
compiling can begin while torch is still being imported.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from glassformer.errors import GlassformerError, UsageError
from glassformer.kernels.compile import NativeUnavailableError
from glassformer.kernels.train_abi import ACTIVATIONS, LIBRARY, flags
from glassformer.model.choices import FeedForward
from glassformer.system.hardware import processor_flags

if TYPE_CHECKING:
    from glassformer.model.config import Config
    from glassformer.train.recipe import Recipe

PAYS_AFTER = 100
"""Steps that a run must have before compiling is worth its few seconds (on "auto")."""
LARGEST = 60_000_000
"""Parameters up to which it is quicker than torch (on "auto"); beyond, both spend their time in large products."""
LONGEST = 1024
"""Tokens a row up to which one head's scores stay in cache (on "auto")."""


def refusal(config: Config) -> str | None:
    """What of a design the native step does not do, as the end of "native does not train …"; None when it does all."""
    layer = config.alike
    if layer is None or not config.all_softmax:
        return "layers that differ, or are made of other parts than attention and a dense feed-forward"
    a, f, n = config.attention(0), config.feed_forward(0), config.norm
    assert isinstance(f, FeedForward)
    learned = config.learned_positions
    reasons = {
        "norms elsewhere than before the parts": layer.norms != "before",
        "positions that turn by the text's length": config.turns_by_length,
        "norms inside feed-forward parts": f.out_norm is not None,
        "cut, shifted or sparse neurons": f.clamp is not None or f.linear_shift != 0 or f.sparsity != 0,
        "a layer before the final norm": config.head is not None,
        "fixed vectors of positions": config.sinusoids is not None,
        "scaled residuals": layer.residual_scale is not None
        or layer.averaged is not None
        or layer.scalar
        or (layer.stream_scales, layer.part_scales) != ((1, 1), (1, 1)),
        "embeddings of tokens in every layer": layer.embedding is not None,
        "scaled feed-forward parts": isinstance(f, FeedForward) and (f.pre_scale, f.out_scale) != (1, 1),
        "norms without weights or with other biases": not n.weight or n.biased != (n.kind == "layer"),
        "positions of another kind": (a.rotary is None) != learned or bool(a.alibi),
        "gates, sinks and other forms of attention": a.plain != a,
        "outputs with a bias, a scale or no norm": config.unembed_bias
        or config.logit_scale is not None
        or not config.final_norm
        or config.final_eps is not None
        or config.embedding_norm
        or config.d_embed is not None,
        "norm scales of 1 + weight": n.one_plus,
        "parts side by side": layer.parallel,
        "sliding windows": any(config.window(i) is not None for i in range(config.n_layers)),
        "soft caps": a.softcap is not None or config.logit_softcap is not None,
        "scaled embeddings": config.embedding_scale is not None,
        "partly turned heads": a.rotary is not None and a.rotary_dims != a.d_head,
        f"the activation {f.activation}": f.activation not in ACTIVATIONS,
        f"heads of {a.d_head} dimensions": a.d_head > 512 or (a.rotary is not None and a.d_head % 2 == 1),
    }
    return next((reason for reason, there in reasons.items() if there), None)


def decide(
    recipe: Recipe, config: Config, *, device: str = "cpu", processes: int = 1, before: str | None = None
) -> tuple[bool, str]:
    """Whether a run is for the native step, and why (not): the same answer on every start of the same recipe.

    Args:
        recipe, config: the run and its design.
        device: what it computes on.
        processes: how many share it.
        before: when resuming, what the run was trained by so far; "auto" stays with it.

    Raises:
        UsageError: for native="on" where the design or the machine is not for it.
    """
    loop = recipe.loop
    if loop.native == "off":
        return False, "native is off"
    reason = None
    unsupported = refusal(config) if recipe.adapter.adapter == "none" else "an adapter alone"
    if device != "cpu":
        reason = f"the native step is for processors, and this run is on {device}"
    elif processes > 1:
        reason = f"the native step is for one process, and {processes} share this run"
    elif unsupported is not None:
        reason = f"the native step does not train {unsupported}"
    elif loop.compile == "on":
        reason = "compile is on"
    if loop.native == "on":
        if reason is not None:
            raise UsageError(f"native=on cannot be had: {reason}. Set native=auto.")
        return True, "native is on"
    if reason is None and not loop.fused:
        reason = "fused is off"
    if reason is None and before is not None:
        return before.startswith("native"), "the run began so"
    if reason is None and recipe.schedule.steps < PAYS_AFTER:
        reason = f"a run of {recipe.schedule.steps} steps is too short to compile for"
    if reason is None and _parameters(config) > LARGEST:
        reason = f"at {_parameters(config) / 1e6:.0f} M parameters torch's own products are as quick"
    if reason is None and config.context > LONGEST:
        reason = f"rows of {config.context} tokens are longer than the native step is made for"
    return (False, reason) if reason is not None else (True, "the design is plain and small")


def _parameters(config: Config) -> int:
    from glassformer.count import count

    return count(config).parameters


def begin_for(source: str | None, settings: Sequence[str]) -> None:
    """`begin` for a recipe that is still to be read; whatever is wrong with it is for others to say."""
    from glassformer.train import recipe as recipes

    with suppress(GlassformerError, OSError):
        begin(recipes.load(source or recipes.DEFAULT).with_settings(settings))


def begin(recipe: Recipe) -> None:
    """Start compiling in the background if this run may want it; whoever needs the library then waits for less.

    Which precision a recipe's "auto" will mean is guessed here from the processor's name for its instructions; a
    wrong guess costs time only.
    """
    with suppress(GlassformerError):
        config = recipe.config(256)
        if recipe.model.start or recipe.loop.device not in ("auto", "cpu") or not decide(recipe, config)[0]:
            return
        bf16 = recipe.loop.precision == "bf16"
        if recipe.loop.precision == "auto":
            bf16 = bool(processor_flags() & {"avx512_bf16", "amx_bf16"})
        threading.Thread(target=_try, args=flags(bf16), daemon=True, name="glassformer-compile").start()


def _try(*extra: str) -> None:
    with suppress(NativeUnavailableError):
        LIBRARY.get(*extra)
