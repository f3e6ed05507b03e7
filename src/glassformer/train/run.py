"""A run from beginning to end: recipe, processes, tokenizer, corpus, model, checkpoint; then the loop.

Everything that is chosen for this machine is chosen here and recorded, so that a resumed run can repeat it or say
what differs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.count import count
from glassformer.errors import DataError, GlassformerError, TrainError, UsageError
from glassformer.kernels.compile import NativeUnavailableError
from glassformer.model import Config, Transformer
from glassformer.system import hardware
from glassformer.train import checkpoint, compiling, memory, native, processes
from glassformer.train import recipe as recipes
from glassformer.train.data import Order, Rows, rows_of
from glassformer.train.journal import Journal, LiveLine, Sink, TensorBoardSink
from glassformer.train.loop import Probe, Result, Run
from glassformer.train.peak import peak_flops
from glassformer.train.processes import Processes
from glassformer.train.recipe import Recipe
from glassformer.train.run_inputs import corpus_for, opened, tokenizer_for
from glassformer.train.samples import sample
from glassformer.train.stepper import Engine, fresh

RECIPE_FILE = "recipe.json"
JOURNAL = "journal.jsonl"


def train(
    source: str | Path | Recipe | None,
    data: Sequence[str] | None,
    out: str | Path | None,
    resume: bool,
    probes: tuple[Probe, ...],
    quiet: bool,
    settings: Mapping[str, Any] | Sequence[str],
) -> Result:
    """See `glassformer.train.train`."""
    recipe, directory = settle(source, data, out, resume, settings)
    native.begin(recipe)
    ranks, device = processes.join(recipe.loop.device)
    try:
        with _Recording(directory, ranks, recipe, quiet, resume) as (journal, saved):
            run = assemble(recipe, directory, ranks, device, journal, saved, probes)
            return run.execute()
    finally:
        processes.leave()


def settle(
    source: str | Path | Recipe | None,
    data: Sequence[str] | None,
    out: str | Path | None,
    resume: bool,
    settings: Mapping[str, Any] | Sequence[str],
) -> tuple[Recipe, Path]:
    """The recipe with all settings applied, and the run directory.

    Raises:
        UsageError: when the directory holds a run and `resume` is not asked for, or the other way round.
    """
    directory = Path(out) if out is not None else None
    named = source is None or (isinstance(source, str) and source in recipes.names())
    if resume and named:
        # a name only says where the run is; what it was started with stands there
        directory = directory or Path("runs") / (str(source) if source else recipes.DEFAULT)
        recipe = _recipe_of(directory)
    elif isinstance(source, Recipe):
        recipe = source
    else:
        recipe = recipes.load(source if source is not None else recipes.DEFAULT)
    if data is not None:
        recipe = recipe.with_settings({"data": tuple(data)})
    recipe = recipe.with_settings(settings)
    directory = directory or Path("runs") / recipe.name
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; a run needs a directory of its own.")
    begun = (directory / JOURNAL).exists() or bool(checkpoint.all_steps(directory / "checkpoints"))
    if begun and not resume:
        raise UsageError(
            f"{directory} holds a run already; go on with it by --resume, or name another place with --out."
        )
    if resume and not begun:
        raise UsageError(f"There is no run in {directory} to resume; start it without --resume.")
    if not begun and directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty and holds no run; name another place with --out.")
    return recipe, directory


class _Recording:
    """The journal of a run, open while the run lasts; an error's sentence becomes its last entry."""

    def __init__(self, directory: Path, ranks: Processes, recipe: Recipe, quiet: bool, resume: bool) -> None:
        self.notes: list[str] = []
        self.saved = checkpoint.newest(directory / "checkpoints", self.notes.append) if resume else None
        sinks: list[Sink] = []
        if ranks.rank == 0:
            with_directory(directory)
            if not quiet:
                sinks.append(LiveLine(recipe.schedule.steps))
            if recipe.loop.tensorboard:
                sinks.append(TensorBoardSink(directory / "tensorboard"))
        path = directory / JOURNAL if ranks.rank == 0 else None
        self.journal = Journal(path, tuple(sinks), upto=self.saved.step if self.saved else None)

    def __enter__(self) -> tuple[Journal, checkpoint.Saved | None]:
        step = self.saved.step if self.saved else 0
        for text in self.notes:
            self.journal.write("note", step, text=text)
        return self.journal, self.saved

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GlassformerError):
            with suppress(OSError):
                self.journal.write("error", self.saved.step if self.saved else 0, reason=str(error))
        self.journal.close()


def with_directory(directory: Path) -> None:
    """Make the run directory.

    Raises:
        TrainError: when it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"The run directory {directory} cannot be made ({error.strerror or error}).") from None


def assemble(
    recipe: Recipe,
    directory: Path,
    ranks: Processes,
    device: torch.device,
    journal: Journal,
    saved: checkpoint.Saved | None,
    probes: tuple[Probe, ...] = (),
) -> Run:
    """Everything built and, when resuming, restored; the run is ready to `execute`."""
    before = saved.state if saved else {}
    hardware.keep_freed_memory()
    threads = hardware.set_threads(recipe.loop.threads or int(before.get("builds", {}).get("threads", 0)))
    compute = hardware.pick_precision(recipe.loop.precision, device)
    if device.type == "cuda" and recipe.loop.deterministic:
        hardware.be_deterministic()
    start = opened(recipe.model.start) if recipe.model.start and saved is None else None
    if ranks.world > 1 and "-" in recipe.data.data:
        raise DataError("Several processes cannot share standard input; write the text to a file first.")
    trained = recipe.data.tokenizer.startswith("bpe:") and start is None
    if trained and ranks.rank and saved is None:
        ranks.wait_for(directory / RECIPE_FILE)  # the first process trains the tokenizer for all
    tokenizer = tokenizer_for(recipe, directory if saved or (trained and ranks.rank) else None, start, journal)
    if ranks.rank == 0:
        if saved is None:
            tokenizer.save(directory)  # before any checkpoint, so that each one can be resumed
        checkpoint.replace_text(directory / RECIPE_FILE, json.dumps(recipe.to_dict(), indent=1))
    corpus = corpus_for(recipe, tokenizer, journal)
    config = _config(recipe, tokenizer, before, start)
    if not recipe.exports:
        journal.write("note", 0, text="No other library can load this design: the model stays in Glassformer's layout.")
    transformer = _transformer(config, recipe, start).to(device)
    start = None  # its tensors are in memory as well
    engine, engine_reason, compiled = _engine(transformer, recipe, compute, ranks, device, journal, before)
    by_native = not engine.sharded and engine.native is not None
    micro = _micro_batch(recipe, config, compute, device, ranks, before, by_native)
    facts = {
        "builds": hardware.builds(device),
        "compute": str(compute).removeprefix("torch."),
        "data_hash": corpus.hash,
        "compiled": compiled,
        "engine": "torch" if engine.sharded or engine.native is None else f"native, {engine.native.arithmetic}",
        "config": config.to_dict(),
    }
    rows = rows_of(corpus.train)
    held: Rows | None = rows_of(corpus.held_out) if len(corpus.held_out) > 1 else None
    if held is not None and len(held.grid(recipe.model.context)) == 0:
        held = None
        journal.write("note", 0, text="The held-out text is shorter than one row, so no held-out loss is measured.")

    def publish(tensors: Mapping[str, Tensor]) -> None:
        from glassformer.checkpoint.native import write_native

        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        write_native(directory, config, tensors, tokenizer=tokenizer, metadata={"recipe": recipe.name})

    per_token = 0.0 if rows.masked else (corpus.held_out.bytes_per_token or corpus.bytes_per_token)
    run = Run(
        recipe=recipe,
        engine=engine,
        order=Order(rows, recipe.loop.seed, recipe.data.sampling, noise=recipe.data.noise),
        held_out=held,
        journal=journal,
        processes=ranks,
        device=device,
        micro_batch=micro,
        bytes_per_token=per_token,
        directory=directory,
        facts=facts,
        publish=publish,
        sample=lambda visible: sample(visible, tokenizer, recipe.loop),
        probes=probes if recipe.loop.probe_every else (),
        tokenizer=tokenizer,
        flops_per_token=lambda length: count(config, min(length, config.context)).training_flops,
        peak=lambda: _peak(device, compute, ranks.world),
    )
    if saved is not None:
        run.restore(saved)
        for text in differences(before, {**facts, "world": ranks.world, "micro_batch": micro}, recipe):
            journal.write("note", saved.step, text=text)
    peak, peak_source = run.peak()
    journal.write(
        "start",
        run.step,
        recipe=recipe.to_dict(),
        parameters=sum(tensor.numel() for tensor in transformer.parameters()),
        training_tokens=len(corpus.train),
        held_out_tokens=len(corpus.held_out),
        micro_batch=micro,
        world=ranks.world,
        threads=threads,
        mfu_formula="tokens/s × training FLOPs a token / peak",
        training_flops_per_token=run.flops_per_token(recipe.model.context),
        peak_flops=peak,
        peak_source=peak_source,
        warnings=corpus.report.sentences(),
        engine_reason=engine_reason,
        **facts,
    )
    for text in corpus.report.sentences():
        journal.write("note", run.step, text=text)
    return run


def _engine(
    transformer: Transformer,
    recipe: Recipe,
    compute: torch.dtype,
    ranks: Processes,
    device: torch.device,
    journal: Journal,
    before: Mapping[str, Any],
) -> tuple[Any, str, bool]:
    """What takes the steps, why it and not another, and whether its blocks are compiled."""
    asked = before.get("engine", "torch") if before else None
    chosen, reason = native.decide(recipe, transformer.config, device=device.type, processes=ranks.world, before=asked)
    if chosen:
        try:
            return Engine(transformer, recipe, compute, native=True), reason, False
        except NativeUnavailableError as error:
            if recipe.loop.native == "on":
                raise UsageError(f"native=on cannot be had. {error}") from None
            reason = str(error)
            journal.write("note", 0, text=reason)
    sharded = recipe.loop.shard == "full" and ranks.world > 1
    run_block = compiling.choose(
        recipe,
        transformer,
        device,
        lambda text: journal.write("note", 0, text=text),
        sharded=sharded,
        before=before.get("compiled"),
    )
    compiled = run_block is not None and compiling.is_compiled(run_block)
    if sharded:
        from glassformer.train.sharded_stepper import ShardedEngine

        return ShardedEngine(transformer, recipe, compute, ranks, run_block), reason, compiled
    return Engine(transformer, recipe, compute, ranks.reduce if ranks.world > 1 else None, run_block), reason, compiled


def differences(before: Mapping[str, Any], now: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """One sentence when a resumed run cannot be the same to the bit, naming everything that differs."""
    changed: list[str] = []
    before = {"engine": "torch", **before}  # checkpoints of earlier versions do not say
    for key in ("world", "micro_batch", "compute", "compiled", "engine", "data_hash"):
        if before.get(key) != now.get(key):
            changed.append(f"{key.replace('_', ' ')} {before.get(key)} → {now.get(key)}")
    old, new = before.get("builds", {}), now.get("builds", {})
    changed += [f"{key.replace('_', ' ')} {old.get(key)} → {new.get(key)}" for key in new if old.get(key) != new[key]]
    old_recipe, new_recipe = before.get("recipe", {}), recipe.to_dict()
    for section, values in new_recipe.items():
        if isinstance(values, dict):
            was = old_recipe.get(section, {})
            changed += [f"{key} {was.get(key)} → {value}" for key, value in values.items() if was.get(key) != value]
    if not changed:
        return []
    return [f"Resumed, but not bit for bit, for this differs: {'; '.join(changed)}."]


def _recipe_of(directory: Path) -> Recipe:
    try:
        return Recipe.from_dict(json.loads((directory / RECIPE_FILE).read_text(encoding="utf-8")), str(directory))
    except (OSError, ValueError) as error:
        raise UsageError(f"There is no run in {directory} to resume ({error}).") from None


def _config(recipe: Recipe, tokenizer: Any, before: Mapping[str, Any], start: Any) -> Config:
    if "config" in before:
        return Config.from_dict(before["config"])
    if start is not None:
        config: Config = start.config
        if recipe.model.context > config.context and config.position.kind == "learned":
            raise UsageError(
                f"{recipe.model.start} has {config.context} trained positions; context={recipe.model.context} is more."
            )
        # positions that are turned, not learned, go on past what the model was made for
        return dataclasses.replace(config, context=max(config.context, recipe.model.context))
    return recipe.config(tokenizer.vocab_size)


def _transformer(config: Config, recipe: Recipe, start: Any) -> Transformer:
    transformer = Transformer.empty(config)
    if start is not None:
        copied = {name: start.tensors[name].to(torch.float32, copy=True) for name in start.tensors}
        return transformer.load(copied)
    return fresh(transformer, recipe.loop.seed)


def _micro_batch(
    recipe: Recipe,
    config: Config,
    compute: torch.dtype,
    device: torch.device,
    ranks: Processes,
    before: Mapping[str, Any],
    by_native: bool,
) -> int:
    """Rows at once: the recipe's, the resumed run's, or as many as fit."""
    if recipe.loop.micro_batch:
        return recipe.loop.micro_batch
    if before.get("world") == ranks.world and before.get("micro_batch"):
        return int(before["micro_batch"])
    rows = max([recipe.schedule.batch, *(value for _, value in recipe.schedule.batch_stages)])
    share = -(-rows // ranks.world)
    fits = memory.rows_that_fit(recipe, config, compute, hardware.free_memory(device), share, ranks.world, by_native)
    fits = int(-ranks.max(-float(fits)))
    # the same number of passes with even shares
    return -(-share // -(-share // fits))


def _peak(device: torch.device, compute: torch.dtype, world: int) -> tuple[float, str]:
    peak, source = peak_flops(device, compute)
    return (peak * world, f"{source}, × {world} processes") if world > 1 else (peak, source)
