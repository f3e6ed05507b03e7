"""What a run would cost, before it begins: parameters, FLOPs, tokens, memory, time.

Everything but the time is arithmetic; the time is a measured micro-batch on this machine, times how many there are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.count import count
from glassformer.errors import GlassformerError
from glassformer.kernels.compile import NativeUnavailableError
from glassformer.train import memory, schedule
from glassformer.train import recipe as recipes
from glassformer.train.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from glassformer.checkpoint import Checkpoint
    from glassformer.model import Config

MEASURED_TOKENS, MEASURED_FLOPS = 4096, 1e12
"""At most this many tokens (and, beyond one row on a processor, FLOPs) are computed at once to measure the time."""
ENOUGH = 5.0
"""Seconds after which a first measurement is not repeated."""


@dataclass(frozen=True)
class Plan:
    """A run's cost.

    Attributes:
        recipe: its name; expect: what it gives, and how that is known, as the recipe states it.
        changed: settings were changed, and what is expected is of the recipe without them.
        parameters: of the model, with the vocabulary assumed; trained: those that are, fewer where an adapter is.
        vocab: tokens in the vocabulary.
        tokens: seen in training; training_flops: for all of them.
        bytes: of a step with `micro_batch` rows at once.
        seconds: expected here, None where it could not be measured; precision: what it was measured with.
        exports: layouts other libraries load.
        engine: what takes the steps, and why.
    """

    recipe: str
    out: str
    parameters: int
    trained: int
    vocab: int
    steps: int
    tokens: int
    training_flops: float
    flops_formula: str
    micro_batch: int
    bytes: int
    free_bytes: int
    seconds: float | None
    tokens_per_second: float | None
    precision: str
    exports: tuple[str, ...]
    engine: str
    expect: dict[str, str]
    changed: bool
    remark: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        rows = [
            ("recipe", self.recipe),
            ("writes to", self.out),
            ("parameters", f"{self.parameters:,} with a vocabulary of {self.vocab:,}"),
            *([("trained", f"{self.trained:,} of an adapter")] if self.trained != self.parameters else []),
            ("training", f"{self.steps:,} steps, {self.tokens:,} tokens, {self.training_flops:.3g} FLOPs"),
            ("a token", self.flops_formula),
            (
                "memory",
                f"about {self.bytes / 1e9:.2f} GB with {self.micro_batch} rows at once, "
                f"of {self.free_bytes / 1e9:.1f} GB free",
            ),
            ("time", self._time()),
            ("steps by", self.engine),
            ("exports to", " and ".join(self.exports) or "no other library: this design is ours alone"),
        ]
        stated = [(recipes.EXPECTED[key], value) for key, value in self.expect.items() if value]
        if stated and self.changed:
            rows.append(("expected", "what follows is stated of the recipe without your changes"))
        rows += stated
        if self.remark:
            rows.append(("remark", self.remark))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _time(self) -> str:
        if self.seconds is None or self.tokens_per_second is None:
            return "not measured"
        spent = (
            f"{self.seconds:.0f} s"
            if self.seconds < 120
            else f"{self.seconds / 60:.0f} min"
            if self.seconds < 7200
            else f"{self.seconds / 3600:.1f} h"
        )
        return f"about {spent} here, from one micro-batch at {self.tokens_per_second:,.0f} tokens/s in {self.precision}"


def plan(
    source: str | Path | Recipe | None,
    data: Sequence[str] | None,
    out: str | Path | None,
    resume: bool,
    settings: Mapping[str, Any] | Sequence[str],
) -> Plan:
    """What the run with these arguments would cost; nothing is read, trained or written.

    Raises:
        UsageError: as the run itself would.
    """
    from glassformer.system import hardware
    from glassformer.train import adapter as adapters
    from glassformer.train.directory import settle
    from glassformer.train.run_inputs import opened

    place = settle(source, data, out, resume, settings)
    recipe = place.recipe
    start = opened(recipe.model.start) if recipe.model.start else None
    config = start.config if start is not None else recipe.config(_vocab(recipe))
    hardware.keep_freed_memory()
    hardware.set_threads(recipe.loop.threads)
    device = hardware.pick_device(recipe.loop.device)
    compute = hardware.pick_precision(recipe.loop.precision, device)
    free = hardware.free_memory(device)
    counted = count(config, min(recipe.model.context, config.context))
    remark, seconds, speed = "", None, None
    trained = counted.parameters
    if start is not None and recipe.adapter.adapter != "none":
        chosen = adapters.targets(config, adapters.family_of(start), recipe.adapter)
        trained = adapters.parameters(chosen, recipe.adapter)
    by, engine = _engine(recipe, config, compute, device)
    need = memory.estimate(recipe, config, compute, native=by)
    try:
        rows = recipe.loop.micro_batch or memory.rows_that_fit(
            recipe, config, compute, free, recipe.schedule.batch, native=by
        )
        speed = _measure(recipe, config, rows, device, compute, by, start)
        seconds = schedule.total_tokens(recipe) / speed
    except GlassformerError as error:
        rows, remark = 1, str(error)
    return Plan(
        recipe=recipe.name,
        out=str(place.directory),
        parameters=counted.parameters,
        trained=trained,
        vocab=config.vocab_size,
        steps=recipe.schedule.steps,
        tokens=schedule.total_tokens(recipe),
        training_flops=counted.training_flops * schedule.total_tokens(recipe),
        flops_formula=f"{counted.formulas['training']} = {counted.training_flops:.3g} FLOPs",
        micro_batch=rows,
        bytes=need.total(rows),
        free_bytes=free,
        seconds=seconds,
        tokens_per_second=speed,
        precision=str(compute).removeprefix("torch."),
        exports=recipe.exports,
        engine=engine,
        expect=asdict(recipe.expect),
        changed=_changed(source, recipe),
        remark=remark,
    )


def _changed(source: str | Path | Recipe | None, recipe: Recipe) -> bool:
    """Whether the recipe is another than the one that states what is expected; the data may be anybody's own."""
    if isinstance(source, Recipe):
        return source.with_settings({"data": recipe.data.data}) != recipe
    named = str(source) if source is not None and Path(source).is_file() else recipe.name
    if named == recipe.name and named not in recipes.names():
        return False
    return recipes.load(named).with_settings({"data": recipe.data.data}) != recipe


def _engine(recipe: Recipe, config: Config, compute: torch.dtype, device: torch.device) -> tuple[bool, str]:
    """Whether the native step is taken, and a sentence."""
    import torch

    from glassformer.train import native

    chosen, reason = native.decide(recipe, config, device=device.type)
    if chosen:
        try:
            library = native.LIBRARY.get(*native.flags(compute == torch.bfloat16))
        except NativeUnavailableError as error:
            return False, f"torch: {error}"
        return True, f"the native step ({library.gf_arithmetic().decode()}), for {reason}"
    return False, f"torch, for {reason}"


def _vocab(recipe: Recipe) -> int:
    """The vocabulary that the tokenizer will have, as far as its name says."""
    wanted = recipe.data.tokenizer
    if wanted.startswith("bpe:") and wanted[4:].isdecimal():
        return int(wanted[4:])
    # a character vocabulary is only known from the text; 128 is a fair guess for English
    return {"byte": 257, "char": 128, "gpt2": 50257}.get(wanted, 32768)


def _measure(
    recipe: Recipe,
    config: Config,
    rows: int,
    device: torch.device,
    compute: torch.dtype,
    native: bool,
    start: Checkpoint | None,
) -> float:
    """Tokens a second of forward, backward and a share of the optimiser's step."""
    import torch

    from glassformer.model import Transformer
    from glassformer.train import adapter as adapters
    from glassformer.train.native_stepper import NativeStepper
    from glassformer.train.torch_stepper import TorchStepper, fresh

    length = schedule.length(0, recipe)
    tokens = MEASURED_TOKENS
    if device.type == "cpu":
        tokens = min(tokens, int(MEASURED_FLOPS / count(config, min(length, config.context)).training_flops))
    rows = max(1, min(rows, tokens // length))
    if start is None or recipe.adapter.adapter == "none":
        transformer = fresh(Transformer.empty(config), 0)
    else:
        transformer = adapters.adapted(start, config, recipe, compute)
    stepper = (NativeStepper if native else TorchStepper)(transformer.to(device), recipe, compute)
    batch = torch.randint(0, config.vocab_size, (rows, length), device=device)
    spent = []
    for _ in range(2):
        began = time.perf_counter()
        stepper.zero()
        stepper.accumulate(batch, batch, 1.0 / batch.numel())
        passed = time.perf_counter()
        stepper.finish()
        stepper.step(1.0, 0.9)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passes = max(1, recipe.schedule.batch // rows)
        spent.append(passes * (passed - began) + time.perf_counter() - passed)
        if time.perf_counter() - began > ENOUGH:
            break
    return passes * batch.numel() / min(spent)
