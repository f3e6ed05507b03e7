"""Which training text taught this: the run is differentiated, from the loss on a text back to every passage it read.

A recorded run is replayed through the model's definition from its seed, with its rows, schedule and optimiser, and
compared with what it saved. From the loss on the text the gradient is then taken backwards through every step: through
the optimiser's update as it was (Muon and AdamW), and through the gradient that went into it by a product with the
Hessian. What comes out for a passage is the slope of that loss in the weight that the passage had in training, so its
negative is what leaving it out would change, to first order (for plain gradient descent: arXiv:1906.08473). Beside it
stands the form that looks at gradients alone: the passage's against the text's, summed over all steps (TracIn,
arXiv:2002.08484).

States between are kept at the borders of segments and replayed inside them. Runs are opened by `recorded`, steps taken
and taken back by `replay`; what a verb or a page shows of it is theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from glassformer.errors import MemoryLimitError, TrainError, UsageError
from glassformer.model import Transformer
from glassformer.system import hardware
from glassformer.train.recorded import Recorded
from glassformer.train.replay import Replay, State


@dataclass(frozen=True)
class Passage:
    """A passage of the training text.

    Attributes:
        number: its place among all.
        start, stop: its tokens in the training text.
        origin: the file it is from, with a line where that means something.
        text: its beginning.
        effect: by how much the loss on the text, in nats a token, would rise without it, to first order.
        gradient: the same by gradients alone; its scale means nothing.
    """

    number: int
    start: int
    stop: int
    origin: str
    text: str
    effect: float
    gradient: float


@dataclass(frozen=True)
class Influence:
    """What taught a run a text.

    Attributes:
        text: asked about; tokens: of it that are foretold; loss: the replayed run's on it, in nats a token.
        passages: those that change it most, the largest absolute effect first.
        effects, gradients: of all passages, by number.
        steps: differentiated through; precision: they were computed in.
        recorded: the loss on the text of the weights that the run saved at `step`; replayed: the replay's there.
        gap: largest difference of a weight between the two, relative to the largest weight.
        seconds: it took.
    """

    text: str
    tokens: int
    loss: float
    passages: tuple[Passage, ...]
    effects: tuple[float, ...]
    gradients: tuple[float, ...]
    steps: int
    precision: str
    step: int
    recorded: float
    replayed: float
    gap: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; of all passages only those listed."""
        listed = [{**vars(p)} for p in self.passages]
        shown = {k: v for k, v in vars(self).items() if k not in ("passages", "effects", "gradients")}
        return {**shown, "of": len(self.effects), "passages": listed}


def influence(
    run: str | Path,
    text: str | Sequence[str],
    *,
    top: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Which passages of its training text taught a run a text: see `Influence`.

    Args:
        run: a run directory; small, and with its training text as it was.
        text: what is asked about, at the beginning of a document; several share one replay.
        top: passages listed.
        progress: called with steps done and steps in all (forward and back).

    Returns:
        An `Influence`, or a list of them for several texts.

    Raises:
        UsageError, TextError, CheckpointError, TrainError, UnsupportedError, MemoryLimitError: one sentence each.
    """
    if top < 1:
        raise UsageError(f"top must be at least 1; got {top}.")
    recorded = Recorded(_place(run))
    texts = [text] if isinstance(text, str) else list(text)
    found = influences(recorded, texts, top, progress)
    return found[0] if isinstance(text, str) else found


def _place(run: str | Path) -> Path:
    """The directory of a run that is named by its path, or by its name under `runs`."""
    named = Path(str(run).removeprefix("run:"))
    return named if named.exists() or not Path("runs", named).is_dir() else Path("runs", named)


def influences(
    run: Recorded,
    texts: Sequence[str],
    top: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> list[Influence]:
    """`influence` of several texts on a run that is open."""
    began = time.perf_counter()
    ids = [run.ids(text) for text in texts]
    replay = Replay(run)
    steps = run.steps
    segment = max(1, math.isqrt(steps))
    size = sum(x.nbytes for one in replay.begin for x in one)
    need, free = size * (segment + -(-steps // segment) + 4 * len(texts)), hardware.free_memory(torch.device("cpu"))
    if need > free // 2:
        raise MemoryLimitError(
            f"Replaying this run of {steps:,} steps would take about {need / 1e9:.1f} GB, and {free / 2e9:.1f} GB may "
            "be used; ask about a smaller one."
        )
    done = 0

    def told(step: int) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, 3 * steps)

    kept: dict[int, State] = {}

    def keep(step: int, state: State) -> None:
        told(step)
        if step % segment == 0:
            kept[step] = state

    end = replay.forward(replay.begin, 0, steps, keep)
    gap, saved = _gap(replay, [one[0] for one in end], run.weights())
    adjoints, losses = [], []
    leaves = [s[0].detach().requires_grad_() for s in end]
    for loss in replay.text_losses(leaves, ids):
        slopes = torch.autograd.grad(loss, leaves, retain_graph=True)
        losses.append(float(loss.detach()))
        adjoints.append([(g, *(torch.zeros_like(x) for x in s[1:])) for g, s in zip(slopes, end, strict=True)])
    effects = torch.zeros(len(ids), replay.passages, dtype=replay.dtype)
    lines = torch.zeros_like(effects)
    for first in sorted(kept, reverse=True):
        states: dict[int, State] = {}

        def hold(step: int, state: State, into: dict[int, State] = states) -> None:
            told(step)
            into[step] = state

        replay.forward(kept.pop(first), first, min(first + segment, steps), hold)
        for step in sorted(states, reverse=True):
            adjoints = replay.back(states.pop(step), step, adjoints, ids, effects, lines)
            told(step)
    if not bool(effects.isfinite().all()):
        raise TrainError(
            "The slopes grew beyond all numbers: this run's steps are too wild to be differentiated through."
        )
    with torch.no_grad():
        recorded = [float(loss) for loss in replay.text_losses(saved, ids)]
    seconds = time.perf_counter() - began
    found = []
    for i, text in enumerate(texts):
        order = effects[i].abs().argsort(descending=True)[:top].tolist()
        passages = tuple(
            Passage(**run.passage(n), effect=float(effects[i, n]), gradient=float(lines[i, n]))
            for n in order
            if effects[i, n] != 0
        )
        found.append(
            Influence(
                text=text,
                tokens=len(ids[i]) - 1,
                loss=losses[i],
                passages=passages,
                effects=tuple(effects[i].tolist()),
                gradients=tuple(lines[i].tolist()),
                steps=steps,
                precision="float64",
                step=steps,
                recorded=recorded[i],
                replayed=losses[i],
                gap=gap,
                seconds=seconds,
            )
        )
    return found


def _gap(replay: Replay, weights: Sequence[Tensor], saved: dict[str, Tensor]) -> tuple[float, list[Tensor]]:
    """How far the replay's weights are from those that the run saved, and these as stretches."""
    theirs = []
    for stretch, w in zip(replay.stretches, weights, strict=True):
        whole = torch.zeros_like(w)
        for name, view in stretch.split(whole).items():
            view.copy_(saved[name])
        theirs.append(whole)
    largest = max(float(w.abs().max()) for w in theirs)
    gap = max(float((a - b).abs().max()) for a, b in zip(weights, theirs, strict=True)) / largest
    return gap, theirs


def loss_on(run: Recorded, weights: dict[str, Tensor], ids: Sequence[int]) -> float:
    """A text's loss by some weights, in float64."""
    model = Transformer.empty(run.config).load({name: w.double() for name, w in weights.items()})
    row = torch.tensor([list(ids)])
    with torch.no_grad():
        logits = model(row[:, :-1])[0]
    return float(F.cross_entropy(logits, row[0, 1:]))
