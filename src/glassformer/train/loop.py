"""The training loop: batches in, steps taken, everything told to the journal, nothing lost.

It drives a stepper, an order of rows and a journal. It knows no files beyond its run
directory, and what it samples and probes with is given to it.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import TrainError
from glassformer.model import Transformer
from glassformer.system import hardware
from glassformer.tokenizer.tokenizer import Tokenizer
from glassformer.train import checkpoint, schedule
from glassformer.train.data import Cursor, Order, Rows, held_out_batches
from glassformer.train.directory import CHECKPOINTS, again
from glassformer.train.film import Film
from glassformer.train.journal import Journal
from glassformer.train.loss import IGNORE
from glassformer.train.processes import Processes
from glassformer.train.recipe import Recipe
from glassformer.train.stepper import Stepper

MOST_REFUSED = 10
"""Batches refused one after the other from which on the weights are to blame, not the data (with on_nan=skip)."""
ALONE = 4_000_000
"""Parameters up to which a model is sampled and probed by one processor thread."""

Probe = Callable[[Transformer, Tokenizer, int], Mapping[str, Any]]
"""Looks at the transformer (and its tokenizer) at a step and gives what the journal should keep."""


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        path: the run directory, which is a model: `gf.load(path)`.
        step: steps taken.
        loss: held-out loss at the end, in nats per token (NaN where nothing was held out).
        bits_per_byte: the same per byte of text (NaN where unknown).
        best: the lowest held-out loss, and the step it was seen at.
        seconds: time in this call's loop.
        interrupted: stopped by a signal, with a checkpoint to resume from.
    """

    path: Path | None
    step: int
    loss: float
    bits_per_byte: float
    best: tuple[float, int] | None
    seconds: float
    interrupted: bool


@dataclass
class Run:
    """Everything a run is made of; `execute` takes its steps.

    Args:
        recipe: what is asked.
        stepper: weights and optimiser.
        order: the training rows, in order.
        held_out: rows to measure on, or None.
        journal: who is told.
        processes: who else computes.
        device: where batches go.
        micro_batch: rows computed at once.
        bytes_per_token: of the held-out text, or 0 where unknown.
        directory: the run directory, None to keep nothing.
        facts: what a checkpoint records besides (builds, data hash, …).
        publish: writes the model into the run directory.
        beside: writes into a checkpoint's folder what resuming needs besides (the tokenizer).
        sample: continues a text with the transformer it is given, or None.
        probes, tokenizer: looked through every `probe_every` steps, and what they are given beside the model.
            Samples and probes are the first process's; the others have to name them too, to join in gathering weights.
        film: keeps frames to look back at, or None.
        flops_per_token: of a training step, for MFU.
        peak: of all devices together, and where the figure is from.
    """

    recipe: Recipe
    stepper: Stepper
    order: Order
    held_out: Rows | None
    journal: Journal
    processes: Processes
    device: torch.device
    micro_batch: int
    bytes_per_token: float = 0.0
    directory: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    publish: Callable[[Mapping[str, Tensor]], None] | None = None
    beside: Callable[[Path], None] = lambda folder: None
    sample: Callable[[Transformer], str] | None = None
    probes: tuple[Probe, ...] = ()
    tokenizer: Tokenizer | None = None
    film: Film | None = None
    flops_per_token: Callable[[int], float] = lambda length: 0.0
    peak: Callable[[], tuple[float, str]] = lambda: (0.0, "")

    step: int = 0
    best: tuple[float, int] | None = None
    skipped: int = 0
    _refused: int = 0  # batches refused one after the other
    _save_due: bool = False
    _rotation_due: bool = False
    _measured: int = 0  # targets that the last held-out loss is the mean of
    last: float = float("nan")

    def restore(self, saved: checkpoint.Saved) -> None:
        """Continue from a checkpoint."""
        self.stepper.restore(saved)
        self.step = saved.step
        self.skipped = saved.step - int(saved.state["updates"])
        self.order.cursor = Cursor(**saved.state["cursor"])
        best = saved.state.get("best")
        self.best = (float(best[0]), int(best[1])) if best else None

    def execute(self) -> Result:
        """Take the remaining steps, or as many as a signal allows.

        Raises:
            TrainError: for a loss that is no number or runs away, or a checkpoint that cannot be written.
        """
        recipe, loop = self.recipe, self.recipe.loop
        if self.step >= recipe.schedule.steps and self.directory is not None:
            self.journal.write("note", self.step, text=self._finished())
            with self.processes.listening():
                self._publish()  # a kill may have come between the last checkpoint and this
        began = mark = time.perf_counter()
        tokens_since = 0
        loss = float("nan")
        steps = recipe.schedule.steps
        with _signals() as asked_to_stop, hardware.quiet_collector():
            if self.step == 0 and self._framed():
                self._look(last=False)
                began = mark = time.perf_counter()
            while self.step < steps:
                with self.processes.listening():
                    loss, norm, tokens = self._one_step()
                tokens_since += tokens
                last = self.step == steps
                if last or (loop.log_every and self.step % loop.log_every == 0):
                    now = time.perf_counter()
                    self._log(loss, norm, tokens_since, now - mark)
                    mark, tokens_since = now, 0
                stopping = self.processes.any(asked_to_stop.is_set())
                if self.stepper.settle():
                    self._saved()
                paused = time.perf_counter()
                if last or _due(loop.eval_every, self.step):
                    self._measure(final=last)
                self._look(last)
                self._save_due = self._save_due or _due(loop.save_every, self.step)
                if last or stopping or (self._save_due and not self._refused):
                    self.save()
                mark += time.perf_counter() - paused
                if (stopping or last) and self.stepper.settle(wait=True):
                    self._saved()
                if last:
                    self._rotate()
                if stopping and not last:
                    self.journal.write("stop", self.step, reason="interrupted")
                    return self._result(began, interrupted=True)
        if self.held_out is not None and math.isnan(self.last):
            self._measure(final=True)  # resumed at its end
        self.journal.write("stop", self.step, reason="finished")
        return self._result(began, interrupted=False)

    def _one_step(self) -> tuple[float, float, int]:
        """One optimiser step: mean loss, gradient norm, tokens in the global batch."""
        recipe, ranks = self.recipe, self.processes
        rows, length = schedule.batch(self.step, recipe), schedule.length(self.step, recipe)
        cursor = self.order.cursor.to_dict()
        passes = self.order.passes(rows, length, self.micro_batch, ranks.rank, ranks.world)
        counted = rows * length
        if self.order.rows.masked or self.order.pack != "together":
            counted = round(ranks.sum(float(sum(int((y != IGNORE).sum()) for _, y, _ in passes))))
        # every process has to run as many passes, or they would wait for ever
        if self.stepper.sharded or self.stepper.balance is not None:
            passes += [(*self._nothing(length), None)] * (round(ranks.max(float(len(passes)))) - len(passes))
        self.stepper.zero()
        total = torch.zeros((), device=self.device)
        for x, y, lengths in passes:
            total += self.stepper.accumulate(x.to(self.device), y.to(self.device), 1.0 / max(1, counted), lengths)
        loss = ranks.sum(float(total)) / counted if counted else float("nan")
        norm = self.stepper.finish()
        if not self._sound(loss, norm, cursor, rows):
            self.skipped += 1
            self._refused += 1
        else:
            self._refused = 0
            self._rotate()  # the newest checkpoint has shown that its weights are sound
            updates = self.step - self.skipped
            spec = recipe.optimizer
            self.stepper.step(schedule.rate(self.step, recipe.schedule), schedule.momentum(updates, spec))
        self.step += 1
        return loss, norm, rows * length

    @staticmethod
    def _nothing(length: int) -> tuple[Tensor, Tensor]:
        """A pass without a target."""
        return torch.zeros(1, length, dtype=torch.int64), torch.full((1, length), IGNORE)

    def _sound(self, loss: float, norm: float, cursor: dict[str, int], rows: int) -> bool:
        """Whether a step may be taken on this loss and gradient; False when the recipe says to skip it."""
        limit = 2 * math.log(self.stepper.config.vocab_size)
        if math.isfinite(loss) and math.isfinite(norm) and loss <= max(limit, 4.0):
            return True
        what = f"loss {loss:.4g} and gradient norm {norm:.4g}"
        where = (
            f"step {self.step + 1}, rows {cursor['taken']} to {cursor['taken'] + rows - 1} of the training text's order"
        )
        self.journal.write("unsound", self.step, loss=loss, gradient_norm=norm, cursor=cursor, rows=rows)
        if self.recipe.loop.on_nan == "skip" and self._refused < MOST_REFUSED:
            self.journal.write("note", self.step, text=f"Skipped {where}: {what}.")
            return False
        also = "" if self._refused < MOST_REFUSED else f", and so did the {self._refused} batches before"
        raise TrainError(f"The run went astray at {where}: {what}{also}. {self._lead_on()}")

    def _lead_on(self) -> str:
        """What to do about weights that went astray, with a command: from a checkpoint before it, at lower rates."""
        if self.directory is None:
            return "Lower the learning rates."
        spec = self.recipe.optimizer
        key = "muon_lr" if spec.kind == "muon" else "matrix_lr"
        lower = f"{key}={getattr(spec, key) / 2:g}"
        steps = sorted(step for step, _ in checkpoint.all_steps(self.directory / CHECKPOINTS))
        if not steps:
            return f"Nothing was saved yet; begin anew at lower learning rates. {again(self.directory, lower)}"
        # the newest may be ruined already: it was saved before anything showed that it was not
        best = self.best[1] if self.best and self.best[1] in steps else steps[0]
        skip = "" if self.recipe.loop.on_nan == "skip" else " To pass over single bad batches: --set on_nan=skip."
        listed = f"There are checkpoints of steps {', '.join(map(str, steps))}, and --from 0 begins anew."
        return f"{listed}{skip} Lower the learning rates. {again(self.directory, lower, from_step=best)}"

    def _finished(self) -> str:
        more = again(self.directory, f"steps={2 * self.step}") if self.directory is not None else ""
        return f"The run has taken all its {self.recipe.schedule.steps} steps. To take more: {more}"

    def _log(self, loss: float, norm: float, tokens: int, seconds: float) -> None:
        rate = tokens / seconds if seconds else 0.0
        flops = self.flops_per_token(schedule.length(max(0, self.step - 1), self.recipe))
        peak, _ = self.peak()
        left = self.recipe.schedule.steps - self.step
        per_step = seconds / max(1, self.recipe.loop.log_every)
        values: dict[str, Any] = {
            "loss": loss,
            "gradient_norm": norm,
            "rate": schedule.rate(self.step - 1, self.recipe.schedule),
            "tokens_per_second": rate,
            "eta": per_step * left,
        }
        if peak and flops:
            values["mfu"] = rate * flops / peak
        if self.stepper.balance is not None:
            with self.processes.listening():
                values |= self.stepper.balance.measured(self.processes)[0]
        self.journal.write("step", self.step, **values)

    def _measure(self, final: bool) -> None:
        """Held-out loss, end to end without overlap; every process measures its share."""
        if self.held_out is None:
            return
        budget = self.recipe.loop.eval_tokens * (20 if final else 1)
        loss = self.last = self.held_out_loss(budget)
        values: dict[str, Any] = {"held_out": loss}
        if self.bytes_per_token:
            values["bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        if final and self._measured and not math.isfinite(loss):
            raise TrainError(f"The run went astray by its last step: held-out loss {loss:.4g}. {self._lead_on()}")
        if math.isfinite(loss) and (self.best is None or loss < self.best[0]):
            self.best = (loss, self.step)
        weights, grads = self.stepper.norms()
        if self.stepper.balance is not None:
            with self.processes.listening():
                loads = self.stepper.balance.measured(self.processes)[1]
            self.journal.write("experts", self.step, load=loads)
        self.journal.write("eval", self.step, **values, weight_norms=weights, gradient_norms=grads)

    def held_out_loss(self, budget: int) -> float:
        """Mean loss over up to `budget` held-out tokens."""
        assert self.held_out is not None
        length = self.recipe.model.context
        total, count = 0.0, 0
        if len(self.held_out.grid(length)) == 0:
            return float("nan")
        ranks = self.processes
        rows = max(1, self.micro_batch)
        batches = list(held_out_batches(self.held_out, length, rows, budget, self.order.pack, ranks.rank, ranks.world))
        if self.stepper.sharded:
            batches += [self._nothing(length)] * (round(ranks.max(float(len(batches)))) - len(batches))
        for x, y in batches:
            total += float(self.stepper.loss(x.to(self.device), y.to(self.device)))
            count += int((y != IGNORE).sum())
        self._measured = round(ranks.sum(float(count)))
        total = ranks.sum(total)
        return total / self._measured if self._measured else float("nan")

    def _look(self, last: bool) -> None:
        """A sample and probes where they are due, by the first process."""
        loop, framed = self.recipe.loop, self._framed()
        wanted = loop.sample_every > 0 and (last or _due(loop.sample_every, self.step))
        sampling = self.sample is not None and (wanted or framed)
        probing = bool(self.probes) and (last or framed or _due(loop.probe_every, self.step))
        if not sampling and not probing and not framed:
            return
        with self.processes.listening():
            transformer = self.stepper.visible()
            weights = self.stepper.whole() if framed else {}
        if transformer is None or self.processes.rank:
            return
        text: str | None = None
        small = self.device.type == "cpu" and sum(p.numel() for p in transformer.parameters()) <= ALONE
        with torch.no_grad(), hardware.one_thread() if small else nullcontext():
            if sampling and self.sample is not None:
                text = self.sample(transformer)
                self.journal.write("sample", self.step, text=text)
            for probe in self.probes if probing else ():
                assert self.tokenizer is not None
                self.journal.write("probe", self.step, **dict(probe(transformer, self.tokenizer, self.step)))
            if framed and self.film is not None:
                self.film.write(transformer, weights, self.step, text)

    def _framed(self) -> bool:
        """Whether the film has a frame of this step."""
        return self.film is not None and self.film.due(self.step)

    def save(self) -> None:
        """Write a checkpoint and, beside it, the model as it stands."""
        if self.directory is None:
            return
        with self.processes.listening():
            self._save(self.directory)

    def _save(self, directory: Path) -> None:
        state = {
            "updates": self.step - self.skipped,
            "cursor": self.order.cursor.to_dict(),
            "best": list(self.best) if self.best else None,
            "micro_batch": self.micro_batch,
            "world": self.processes.world,
            "sharded": self.stepper.sharded,
            "recipe": self.recipe.to_dict(),
            **self.facts,
        }
        self._save_due = False
        if self.processes.rank == 0 or self.stepper.sharded:
            self.stepper.save(directory / CHECKPOINTS, self.step, state, self.beside)
        self._publish()
        self.processes.wait()
        if self.stepper.settle():
            self._saved()

    def _publish(self) -> None:
        whole = self.stepper.whole()
        if self.processes.rank == 0 and self.publish is not None:
            self.publish(whole)

    def _saved(self) -> None:
        """A checkpoint is complete: older ones may go once a batch has shown that its weights are sound."""
        self._rotation_due = True
        self.journal.write("save", self.step)

    def _rotate(self) -> None:
        if not self._rotation_due:
            return
        self._rotation_due = False
        if self.processes.rank == 0 and self.directory is not None:
            best = self.best[1] if self.best else None
            checkpoint.rotate(self.directory / CHECKPOINTS, self.recipe.loop.keep, best)

    def _result(self, began: float, interrupted: bool) -> Result:
        loss = bits = float("nan")
        if self.held_out is not None and not interrupted:
            loss = self.last
            bits = loss / math.log(2) / self.bytes_per_token if self.bytes_per_token else bits
        seconds = time.perf_counter() - began
        return Result(self.directory, self.step, loss, bits, self.best, seconds, interrupted)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask for a checkpoint; a second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
