"""A run from beginning to end: recipe, processes, tokenizer, corpus, model, checkpoint; then the loop.

Everything that is chosen for this machine is chosen here and recorded, so that a resumed run can repeat it or say
what differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.count import count
from glassformer.errors import CheckpointError, DataError, GlassformerError, SourceError, TrainError, UsageError
from glassformer.kernels.compile import NativeUnavailableError
from glassformer.model import Config, Transformer
from glassformer.system import hardware
from glassformer.train import adapter as adapters
from glassformer.train import checkpoint, compiling, directory, memory, native, processes
from glassformer.train.data import Order, Rows, rows_of
from glassformer.train.directory import Place
from glassformer.train.film import TOKENS, Film
from glassformer.train.journal import Journal, LiveLine, Sink, TensorBoardSink
from glassformer.train.loop import Probe, Result, Run
from glassformer.train.native_stepper import NativeStepper
from glassformer.train.peak import peak_flops
from glassformer.train.processes import Processes
from glassformer.train.recipe import Recipe
from glassformer.train.run_inputs import answers_lost, corpus_for, opened, tokenizer_for
from glassformer.train.samples import sample
from glassformer.train.stepper import Stepper
from glassformer.train.torch_stepper import TorchStepper, fresh

if TYPE_CHECKING:
    from glassformer.checkpoint import Checkpoint
    from glassformer.checkpoint.adapter_writer import LowRankPart
    from glassformer.data.corpus import Corpus
    from glassformer.tokenizer.tokenizer import Tokenizer


def train(
    source: str | Path | Recipe | None,
    data: Sequence[str] | None,
    out: str | Path | None,
    resume: bool,
    probes: tuple[Probe, ...],
    quiet: bool,
    settings: Mapping[str, Any] | Sequence[str],
    step: int | None = None,
) -> Result:
    """See `glassformer.train.train`."""
    asked = (source, data, out, resume, settings, step)
    place = directory.settle(*asked)
    native.begin(place.recipe)
    ranks, device = processes.join(place.recipe.loop.device)
    made = directory.missing_above(place.directory)
    try:
        with place.locked(quiet) if ranks.rank == 0 else nullcontext():
            ranks.wait()  # nobody looks again before the first process is alone here
            place = directory.settle(*asked)  # another one may have trained here since
            return _run(place, made, ranks, device, probes, quiet)
    finally:
        processes.leave()


def _run(
    place: Place, made: Path | None, ranks: Processes, device: torch.device, probes: tuple[Probe, ...], quiet: bool
) -> Result:
    begun = False
    try:
        with _Recording(place, ranks, quiet) as recording:
            run = assemble(place.recipe, place.directory, ranks, device, recording.journal, recording.saved, probes)
            begun = True
            return run.execute()
    except DataError as error:
        if not begun:
            raise
        raise DataError(f"{error} {directory.again(place.directory)}") from error
    finally:
        if not begun and ranks.rank == 0:
            directory.discard(place, made)


class _Recording:
    """The journal of a run, open while the run lasts; an error's sentence becomes its last entry."""

    def __init__(self, place: Place, ranks: Processes, quiet: bool) -> None:
        notes: list[str] = []
        self.saved = place.saved(notes.append)
        sinks: list[Sink] = []
        if ranks.rank == 0:
            notes += directory.prepare(place, self.saved)
            if not quiet:
                sinks.append(LiveLine(place.recipe.schedule.steps))
            if place.recipe.loop.tensorboard:
                sinks.append(TensorBoardSink(place.directory / "tensorboard"))
        ranks.wait()  # from here on the directory is as the first process has left it
        self.step = self.saved.step if self.saved else 0
        path = place.directory / directory.JOURNAL if ranks.rank == 0 else None
        self.journal = Journal(path, tuple(sinks), upto=self.step)
        for text in notes:
            self.journal.write("note", self.step, text=text)

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, GlassformerError):
            with suppress(OSError, TrainError):
                self.journal.write("error", self.step, reason=str(error))
        self.journal.close()


def assemble(
    recipe: Recipe,
    place: Path,
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
    alone = recipe.adapter.adapter != "none"
    start = None
    if recipe.model.start and (saved is None or alone):
        try:
            start = opened(recipe.model.start)
        except (SourceError, CheckpointError) as error:
            if saved is None:
                raise
            raise type(error)(
                f"{error} The run trains an adapter of that model; put it back, or say where it lies. "
                f"{directory.again(place, 'start=MODEL')}"
            ) from None
    if alone and start is not None and start.adapters:
        raise UsageError(
            f"{recipe.model.start} has an adapter already; merge it first (glassformer export) and start from that."
        )
    if ranks.world > 1 and "-" in recipe.data.data:
        raise DataError("Several processes cannot share standard input; write the text to a file first.")
    trained = recipe.data.tokenizer.startswith("bpe:") and start is None
    made = None
    if saved is not None:
        made = saved.path if saved.has_tokenizer else place
    elif trained and ranks.rank:
        ranks.wait_for(place / "tokenizer.json")  # the first process trains the tokenizer for all
        made = place
    tokenizer = tokenizer_for(recipe, made, start, journal)
    if ranks.rank == 0 and saved is None:
        tokenizer.save(place)
    corpus = corpus_for(recipe, tokenizer, journal)
    config = _config(recipe, tokenizer, before, start)
    if not recipe.exports:
        journal.write("note", 0, text="No other library can load this design: the model stays in Glassformer's layout.")
    transformer = _transformer(config, recipe, start, compute).to(device)
    base = adapters.digest(start.tensors.__getitem__, sorted(start.tensors)) if alone and start is not None else ""
    origin, start = start if alone else None, None  # its tensors are in memory as well
    stepper, why = _stepper(transformer, recipe, compute, ranks, device, journal, before)
    by_native = isinstance(stepper, NativeStepper)
    micro = _micro_batch(recipe, config, compute, device, ranks, before, by_native)
    # a run that began with its documents in rectangles goes on so, to the bit
    packed = stepper.packs and recipe.data.pack == "apart" and (not before or bool(before.get("packed")))
    facts = {
        "builds": hardware.builds(device),
        "compute": str(compute).removeprefix("torch."),
        "data_hash": corpus.hash,
        "compiled": stepper.compiled,
        "engine": stepper.name,
        "packed": packed,
        "config": config.to_dict(),
        **({"base_digest": base} if alone else {}),
    }
    separator = None if getattr(tokenizer, "adds_bos", False) else getattr(tokenizer, "eos_id", None)
    rows = rows_of(corpus.train, separator)
    held: Rows | None = rows_of(corpus.held_out, separator) if len(corpus.held_out) > 1 else None
    for text in answers_lost(rows, held, recipe, corpus):
        journal.write("note", saved.step if saved else 0, text=text)
    if held is not None and len(held.grid(recipe.model.context)) == 0:
        held = None
        what = "No held-out answer fits into a row" if rows.masked else "The held-out text is shorter than one row"
        journal.write("note", 0, text=f"{what}, so no held-out loss is measured.")

    def publish(tensors: Mapping[str, Tensor]) -> None:
        from glassformer.checkpoint.native import write_native

        if alone:
            assert origin is not None
            _write_adapter(place, recipe, config, origin, adapters.parts(transformer, tensors))
            tokenizer.save(place)
            return
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        write_native(place, config, tensors, tokenizer=tokenizer, metadata={"recipe": recipe.name})

    per_token = 0.0 if rows.masked else (corpus.held_out.bytes_per_token or corpus.bytes_per_token)
    run = Run(
        recipe=recipe,
        stepper=stepper,
        order=Order(rows, recipe.loop.seed, recipe.data.sampling, None, recipe.data.noise, recipe.data.pack, packed),
        held_out=held,
        journal=journal,
        processes=ranks,
        device=device,
        micro_batch=micro,
        bytes_per_token=per_token,
        directory=place,
        facts=facts,
        publish=publish,
        beside=tokenizer.save,
        sample=lambda visible: sample(visible, tokenizer, recipe.loop),
        probes=probes if recipe.loop.probe_every or recipe.loop.film else (),
        tokenizer=tokenizer,
        film=_film(recipe, place, corpus, tokenizer, saved.step if saved else 0) if recipe.loop.film else None,
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
        parameters=count(config).parameters,
        trained=sum(p.numel() for p in transformer.parameters() if p.requires_grad),
        training_tokens=len(corpus.train),
        held_out_tokens=len(corpus.held_out),
        micro_batch=micro,
        world=ranks.world,
        threads=threads,
        mfu_formula="tokens/s × training FLOPs a token / peak",
        training_flops_per_token=run.flops_per_token(recipe.model.context),
        peak_flops=peak,
        peak_source=peak_source,
        warnings=corpus.findings.sentences(),
        engine_reason=why,
        **facts,
    )
    for text in corpus.findings.sentences():
        journal.write("note", run.step, text=text)
    return run


def _stepper(
    transformer: Transformer,
    recipe: Recipe,
    compute: torch.dtype,
    ranks: Processes,
    device: torch.device,
    journal: Journal,
    before: Mapping[str, Any],
) -> tuple[Stepper, str]:
    """What takes the steps, and why it and not another."""
    asked = before.get("engine", "torch") if before else None
    chosen, reason = native.decide(recipe, transformer.config, device=device.type, processes=ranks.world, before=asked)
    if chosen:
        try:
            return NativeStepper(transformer, recipe, compute), reason
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
    if sharded:
        from glassformer.train.sharded_stepper import ShardedStepper

        return ShardedStepper(transformer, recipe, compute, ranks, run_block), reason
    return TorchStepper(transformer, recipe, compute, ranks.reduce if ranks.world > 1 else None, run_block), reason


_BEFORE = {"pack": "together", "text_field": "", "experts": 0, "active": 0, "balance": 0.0, "film": 0}
"""Settings as they were before they were settings."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """One sentence when a resumed run cannot be the same to the bit, naming everything that differs."""
    changed: list[str] = []
    before = {"engine": "torch", **before}  # checkpoints of earlier versions do not say
    for key in ("world", "micro_batch", "compute", "compiled", "engine", "data_hash", "base_digest"):
        if before.get(key) != now.get(key):
            changed.append(f"{key.replace('_', ' ')} {before.get(key)} → {now.get(key)}")
    old, new = before.get("builds", {}), now.get("builds", {})
    changed += [f"{key.replace('_', ' ')} {old.get(key)} → {new.get(key)}" for key in new if old.get(key) != new[key]]
    old_recipe, new_recipe = before.get("recipe", {}), recipe.to_dict()
    for section, values in new_recipe.items():
        if isinstance(values, dict):
            was = {**_BEFORE, **old_recipe.get(section, {})}
            changed += [f"{key} {was.get(key)} → {value}" for key, value in values.items() if was.get(key) != value]
    if not changed:
        return []
    return [f"Resumed, but not bit for bit, for this differs: {'; '.join(changed)}."]


def _config(recipe: Recipe, tokenizer: Tokenizer, before: Mapping[str, Any], start: Checkpoint | None) -> Config:
    if "config" in before:
        return Config.from_dict(before["config"])
    if start is not None:
        config = start.config
        if recipe.model.context > config.context and config.learned_positions:
            raise UsageError(
                f"{recipe.model.start} has {config.context} trained positions; context={recipe.model.context} is more."
            )
        # positions that are turned, not learned, go on past what the model was made for
        return dataclasses.replace(config, context=max(config.context, recipe.model.context))
    return recipe.config(tokenizer.vocab_size)


def _write_adapter(
    place: Path, recipe: Recipe, config: Config, start: Checkpoint, parts: Mapping[str, LowRankPart]
) -> None:
    """The adapter as it stands, in PEFT's layout, into the run directory."""
    from glassformer.checkpoint.adapter_writer import write_adapter

    spec, source = recipe.adapter, recipe.model.start
    base = str(Path(source).absolute()) if Path(source).exists() else source
    write_adapter(
        place,
        config,
        adapters.family_of(start),
        parts,
        start.tensors.__getitem__,
        base=base,
        alpha=spec.alpha,
        stable=spec.rank_stable,
    )


def _transformer(config: Config, recipe: Recipe, start: Checkpoint | None, compute: torch.dtype) -> Transformer:
    if recipe.adapter.adapter != "none":
        assert start is not None
        return adapters.adapted(start, config, recipe, compute)
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


def _film(recipe: Recipe, place: Path, corpus: Corpus, tokenizer: Tokenizer, step: int) -> Film:
    """The film of the run, which looks at the beginning of the held-out text, or of the training text."""
    text = corpus.held_out if len(corpus.held_out) > TOKENS else corpus.train
    ids = text.slice(0, min(TOKENS, len(text)))
    return Film(place, recipe.loop.film, recipe.schedule.steps, ids.tolist(), tokenizer, step)


def _peak(device: torch.device, compute: torch.dtype, world: int) -> tuple[float, str]:
    peak, source = peak_flops(device, compute)
    return (peak * world, f"{source}, × {world} processes") if world > 1 else (peak, source)
