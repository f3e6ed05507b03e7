"""Settings of a recipe: read from text, and refused where they cannot be meant.

It knows what each value may be and says so by the setting's name; what the settings do is told in `recipe.py`.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError, near
from glassformer.train import designs

if TYPE_CHECKING:
    from glassformer.train.recipe import Recipe

MOST_THREADS = 1024
"""Far more of them end the process: each has a stack of its own."""
MOST_LAYERS = 100_000
"""Far more take for ever to be counted."""


def pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"A setting is written key=value, as in steps=200; got {text!r}.")
    return key.strip(), value.strip()


def coerce(kind: Any, value: Any, key: str) -> Any:
    """`value` as the setting's type; text (from the command line) is read, anything else must already fit."""
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
            return value.lower() in ("true", "yes", "on")
        if isinstance(value, bool):
            return value
        raise UsageError(f"{key} is true or false; got {value!r}.")
    if kind in (int, float):
        try:
            if isinstance(value, bool):
                raise ValueError
            text = str(value).replace("_", "")
            if kind is int and text.lstrip("+-").isdecimal():
                return int(text)  # not by way of a float, which would round large ones
            number = float(text)
            if not math.isfinite(number) or (kind is int and number != int(number)):
                raise ValueError
            return int(number) if kind is int else number
        except ValueError:
            raise UsageError(f"{key} is a {'whole ' if kind is int else ''}number; got {value!r}.") from None
    if kind is str:
        if isinstance(value, str):
            return value
        raise UsageError(f"{key} is text; got {value!r}.")
    if isinstance(value, str) and "stages" not in key:
        return tuple(part for part in value.split(",") if part)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise UsageError(f"{key} is a list such as [[0.3, 64], [0.6, 128]]; got {value!r}.") from None
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{key} is a list; got {value!r}.")
    if "stages" not in key:
        return tuple(coerce(str, item, key) for item in value)
    stages = []
    for item in value:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise UsageError(f"{key} is a list such as [[0.3, 64], [0.6, 128]]; got {value!r}.")
        stages.append((coerce(float, item[0], key), coerce(int, item[1], key)))
    return tuple(stages)


def check(r: Recipe) -> None:
    """Refuse values that cannot be meant, by name, before anything is built.

    Raises:
        UsageError: naming the setting, what it may be, and what it is.
    """
    sections = (r.model, r.data, r.optimizer, r.schedule, r.loop, r.adapter)
    values = {key: v for section in sections for key, v in vars(section).items()}
    choices = {
        "design": designs.DESIGNS,
        "split": ("document", "tail"),
        "sampling": ("epoch", "random"),
        "pack": ("apart", "together"),
        "kind": ("muon", "adamw"),
        "precision": ("auto", "bf16", "fp32"),
        "compile": ("off", "on", "auto"),
        "native": ("off", "on", "auto"),
        "shard": ("none", "full"),
        "on_nan": ("stop", "skip"),
        "adapter": ("none", "lora", "dora"),
        "base": ("float", "q8_0", "q4_0"),
    }
    for key, known in choices.items():
        if (value := values[key]) not in known:
            raise UsageError(f"{key} is one of {', '.join(known)}; got {value!r}." + near(value, known))
    at_least = {
        1: ("layers", "width", "heads", "context", "steps", "batch", "newton_schulz", "keep", "eval_tokens")
        + ("rank",),
        0: (
            "kv_heads",
            "head_dims",
            "d_ff",
            "experts",
            "active",
            "warmup",
            "momentum_warmup",
            "threads",
            "micro_batch",
            "loss_chunk",
            "seed",
        )
        + ("log_every", "eval_every", "sample_every", "save_every", "probe_every", "film", "sample_tokens")
        + ("muon_lr", "embed_lr", "head_lr", "vector_lr", "matrix_lr", "muon_decay", "adam_decay", "clip")
        + ("balance", "adapter_lr"),
    }
    for least, keys in at_least.items():
        for key in keys:
            if values[key] < least:
                raise UsageError(f"{key} must be at least {least}; got {values[key]}.")
    for key, most in (("seed", 2**63 - 1), ("threads", MOST_THREADS), ("layers", MOST_LAYERS)):
        if values[key] > most:
            raise UsageError(f"{key} must be at most {most}; got {values[key]}.")
    if values["eps"] <= 0:
        raise UsageError(f"eps must be above 0; got {values['eps']}.")
    for key in ("momentum", "momentum_start", "beta1", "beta2", "held_out", "noise", "dropout"):
        if not 0 <= values[key] < 1:
            raise UsageError(f"{key} must be at least 0 and below 1; got {values[key]}.")
    for key in ("decay", "final", "memory"):
        if not 0 <= values[key] <= 1:
            raise UsageError(f"{key} is a share between 0 and 1; got {values[key]}.")
    if not r.model.head_dims and r.model.width % r.model.heads:
        raise UsageError(
            f"width {r.model.width} does not divide into {r.model.heads} heads; set head_dims or change one."
        )
    if r.model.design not in designs.SPARSE and (r.model.experts or r.model.active):
        raise UsageError(
            f"experts and active are for designs with experts ({', '.join(designs.SPARSE)}); design is "
            f"{r.model.design}."
        )
    if r.model.active and r.model.active > (r.model.experts or designs.EXPERTS):
        raise UsageError(f"active is {r.model.active} of {r.model.experts or designs.EXPERTS} experts; take fewer.")
    if idle := designs.idle(r.model.design, r.shape(256)):
        raise UsageError(f"The design {r.model.design} has no place for {' and '.join(idle)}; leave them at 0.")
    if r.model.design in designs.SPARSE and r.loop.shard == "full" and r.optimizer.kind == "muon":
        raise UsageError("Sharded weights of experts are trained by AdamW: set kind=adamw, or shard=none.")
    if r.adapter.alpha <= 0:
        raise UsageError(f"alpha must be above 0; got {r.adapter.alpha}.")
    if r.adapter.adapter == "none" and (r.adapter.base != "float" or r.adapter.targets):
        raise UsageError("base and targets are for an adapter that is trained alone; set adapter=lora or adapter=dora.")
    if r.adapter.adapter != "none":
        if not r.model.start:
            raise UsageError(f"adapter={r.adapter.adapter} needs start=SOURCE: the model that it is an adapter for.")
        if r.loop.shard == "full":
            raise UsageError("An adapter is small: every process holds it; set shard=none.")
        if r.loop.native == "on":
            raise UsageError("The native step trains whole models; set native=auto for an adapter.")
    if r.data.noise and r.data.chat:
        raise UsageError("noise is for plain text, not for conversations (chat=true).")
    if r.optimizer.dropout and r.loop.shard == "full":
        raise UsageError("dropout needs shard=none: sharded weights are trained without it.")
    if r.schedule.warmup > r.schedule.steps:
        raise UsageError(f"warmup of {r.schedule.warmup} steps is longer than the run of {r.schedule.steps}.")
    for key in ("batch_stages", "length_stages"):
        last = 0.0
        for share, value in getattr(r.schedule, key):
            if not last < share <= 1 or value < 1:
                raise UsageError(f"{key} needs rising shares up to 1 and values of at least 1.")
            if key == "length_stages" and value > r.model.context:
                raise UsageError(f"length_stages asks for {value} tokens a row; context is {r.model.context}.")
            last = share
    r.config(256)  # the design contradicts itself here or nowhere
