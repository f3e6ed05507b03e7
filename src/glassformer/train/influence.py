"""Which training text taught this: the run is differentiated, from the loss on a text back to every passage it read.

''A recorded run is replayed through the model's definition from its seed, with its rows, schedule and optimiser, and
compared with what it saved. From the loss on the text the gradient is then taken backwards through every step: through
the optimiser's update as it was (Muon and AdamW), and through the gradient that went into it by a product with the
Hessian. What comes out for a passage is the slope of that loss in the weight that the passage had in training, so its
negative is what leaving it out would change, to first order (for plain gradient descent: arXiv:1906.08473). Beside it
stands the form that looks at gradients alone: the passage's against the text's, summed over all steps (TracIn,
arXiv:2002.08484).

States between are kept at the borders of segments and replayed inside them. It knows runs, rows and optimisers; what a
verb or a page shows of it is theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from glassformer.data.corpus import Corpus
from glassformer.errors import CheckpointError, MemoryLimitError, TextError, TrainError, UnsupportedError, UsageError
from glassformer.model import Config, Transformer
from glassformer.model.choices import Experts
from glassformer.system import files, hardware
from glassformer.train import checkpoint, schedule
from glassformer.train.data import Ints, Order, Rows, rows_of
from glassformer.train.directory import CHECKPOINTS
from glassformer.train.dropout import Dropout
from glassformer.train.journal import Journal
from glassformer.train.loss import IGNORE
from glassformer.train.optimizer import orthogonalise, shape_scale
from glassformer.train.recipe import OptimizerSpec, Recipe
from glassformer.train.run_inputs import corpus_for
from glassformer.train.torch_stepper import fresh
from glassformer.train.weights import FlatWeights

LARGEST = 20_000_000
"""Parameters from which on a run is not replayed: it would take hours."""
FEWEST = 20
"""Documents from which on they are the passages; fewer are cut into pieces."""
PIECE = 256
"""Tokens of a piece."""
State = list[tuple[Tensor, ...]]
"""Of each part of the weights: the weights, and the optimiser's numbers."""


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


class Tagged:
    """Rows of text whose targets say also which passage they are of: passage · vocab + token.

    Args:
        rows: of plain text.
        edges: where passages begin, and the end.
        vocab: tokens in the vocabulary.
        without: passages whose tokens do not count.
    """

    masked = False

    def __init__(self, rows: Rows, edges: Ints, vocab: int, without: Sequence[int] = (), tag: bool = True) -> None:
        self.rows, self.edges, self.vocab, self.tag = rows, edges, vocab, tag
        self.gone = np.zeros(len(edges) - 1, dtype=bool)
        self.gone[list(without)] = True
        self.masked = bool(self.gone.any())

    def grid(self, length: int) -> Ints:
        return self.rows.grid(length)

    def starts(self, numbers: Ints, length: int, seed: int, anywhere: bool) -> Ints:
        return self.rows.starts(numbers, length, seed, anywhere)

    def epoch(self, number: int, length: int) -> int:
        return self.rows.epoch(number, length)

    def borders(self, starts: Ints, length: int) -> list[list[tuple[int, bool]]]:
        return self.rows.borders(starts, length)

    def fetch(self, starts: Ints, length: int) -> tuple[Tensor, Tensor]:
        tokens, targets = self.rows.fetch(starts, length)
        places = starts[:, None] + np.arange(1, length + 1)
        passage = np.searchsorted(self.edges, places, side="right") - 1
        counts = torch.from_numpy(~self.gone[passage]) & (targets != IGNORE)
        tagged = targets + self.vocab * torch.from_numpy(passage) if self.tag else targets
        return tokens, torch.where(counts, tagged, IGNORE)


class Recorded:
    """A run on disk, with everything that its steps were made from.

    Args:
        path: the run directory.

    Raises:
        UsageError: there is no run.
        CheckpointError, TrainError, DataError, UnsupportedError: it cannot be replayed; one sentence says why.
    """

    def __init__(self, path: str | Path) -> None:
        from glassformer.tokenizer.tokenizer import Tokenizer

        self.path = Path(path)
        if not (self.path / "journal.jsonl").is_file():
            raise UsageError(
                f"{self.path} is no training run: glassformer train writes one, with a journal.jsonl in it."
            )
        if not checkpoint.all_steps(self.path / CHECKPOINTS):
            raise CheckpointError(
                f"The run {self.path} has saved no checkpoint, so there is nothing to hold a replay of it to."
            )
        saved = checkpoint.newest(self.path / CHECKPOINTS, lambda text: None)
        assert saved is not None
        self.saved, state = saved, saved.state
        self.recipe = Recipe.from_dict(state["recipe"], str(saved.path))
        self.config = Config.from_dict(state["config"])
        if reason := _refusal(self.recipe, self.config, state, saved.step):
            raise UnsupportedError(f"The run {self.path} is not differentiated through: {reason}.")
        self.tokenizer = Tokenizer.from_directory(saved.path if saved.has_tokenizer else self.path)
        self.corpus: Corpus = corpus_for(self.recipe, self.tokenizer, Journal(None))
        if self.corpus.hash != state["data_hash"]:
            raise TrainError(
                f"The text that {self.path} was trained on has changed since; its steps cannot be replayed."
            )
        separator = None if self.tokenizer.adds_bos else self.tokenizer.eos_id
        self.rows = rows_of(self.corpus.train, separator)
        documents = np.asarray(self.corpus.train.documents, dtype=np.int64)
        whole = len(documents) - 1 >= FEWEST
        self.edges: Ints = (
            documents if whole else np.append(np.arange(0, len(self.corpus.train), PIECE), len(self.corpus.train))
        )
        self.documents = documents
        self.micro_batch = int(state["micro_batch"])

    @property
    def steps(self) -> int:
        """Steps that the newest checkpoint has behind it."""
        return self.saved.step

    def weights(self) -> dict[str, Tensor]:
        """The weights that the newest checkpoint holds."""
        tensors = self.saved.tensors()
        return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}

    def passage(self, number: int, effect: float, gradient: float, characters: int = 240) -> Passage:
        """A passage with its text."""
        start, stop = int(self.edges[number]), int(self.edges[number + 1])
        ids = self.corpus.train.slice(start, min(stop - start, characters)).tolist()
        document = int(np.searchsorted(self.documents, start, side="right")) - 1
        origin = self.corpus.origins(self.corpus.train, [document])[0]
        text = self.tokenizer.decode(ids, specials=False)[:characters]
        return Passage(number, start, stop, origin, text, effect, gradient)

    def ids(self, text: str) -> list[int]:
        """A text as the run would read it at the beginning of a document.

        Raises:
            TextError: it holds nothing to foretell, is longer than a row, or has letters that the run has no token for.
        """
        ids = self.tokenizer.encode(text)
        if self.tokenizer.decode(ids, specials=False).strip() != text.strip():
            raise TextError(
                f"The run knows no tokens for all of {text[:40]!r}; ask about text in the letters it has read."
            )
        if self.tokenizer.eos_id is not None and not self.tokenizer.adds_bos:
            ids = [self.tokenizer.eos_id, *ids]
        if len(ids) < 2:
            raise TextError("The text must have at least 2 tokens, one to foretell from another.")
        if len(ids) > self.config.context:
            raise TextError(f"The text has {len(ids)} tokens; a row of this run has {self.config.context}.")
        return ids


def _refusal(recipe: Recipe, config: Config, state: dict[str, Any], step: int) -> str | None:
    parameters = sum(math.prod(c.shape) for c in config.components().values())
    reasons = {
        "its weights were sharded over several processes": bool(state.get("sharded")) or state.get("world", 1) != 1,
        "it began from another model, whose training is not recorded": bool(recipe.model.start),
        "it learned from conversations": recipe.data.chat,
        "its text came from standard input": "-" in recipe.data.data,
        "experts are chosen, which has no slope": any(isinstance(x.feed_forward, Experts) for x in config.layers),
        "it passed over batches": int(state["updates"]) != step,
        "weights that decay only where steps agree have no slope": recipe.optimizer.cautious
        and bool(recipe.optimizer.muon_decay),
        f"with {parameters / 1e6:.0f} M parameters it is too large to be replayed": parameters > LARGEST,
    }
    return next((reason for reason, there in reasons.items() if there), None)


class Replay:
    """A run's steps again, as functions that gradients go through.

    Args:
        run: what is replayed.
    """

    dtype = torch.float64  # what is quick in float32 is not differentiable twice

    def __init__(self, run: Recorded) -> None:
        self.run, self.recipe = run, run.recipe
        self.model: Transformer = fresh(Transformer.empty(run.config), run.recipe.loop.seed)
        flat = FlatWeights(self.model.requires_grad_(True), torch.float32, tied=run.config.tied)
        self.parts = flat.parts
        self.begin: State = [self._fresh(part.value.detach().to(self.dtype), part.kind) for part in self.parts]
        rate = run.recipe.optimizer.dropout
        self.dropout = Dropout(rate, run.recipe.loop.seed, run.config) if rate else None
        self.passages = len(run.edges) - 1
        self._cursors: list[dict[str, int]] = []
        self.model.to(self.dtype)

    def _muon(self, kind: str) -> bool:
        return kind == "matrix" and self.recipe.optimizer.kind == "muon"

    def _fresh(self, value: Tensor, kind: str) -> tuple[Tensor, ...]:
        return (value, *(torch.zeros_like(value) for _ in range(1 if self._muon(kind) else 2)))

    def named(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """Parameters by name, as views of the parts."""
        return {name: view for part, w in zip(self.parts, weights, strict=True) for name, view in part.split(w).items()}

    def token_losses(self, weights: Sequence[Tensor], tokens: Tensor, targets: Tensor, tap: Any = None) -> Tensor:
        """−log p of each target that counts, in order."""
        hidden = torch.func.functional_call(self.model, self.named(weights), (tokens,), {"tap": tap})
        counts = targets.flatten() != IGNORE
        return F.cross_entropy(hidden.flatten(0, 1)[counts], targets.flatten()[counts], reduction="none")

    def batch(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The passes of a step (0-based), targets tagged by passage."""
        order = self._order()
        if not self._cursors:
            for at in range(self.run.steps):
                self._cursors.append(order.cursor.to_dict())
                order._next(*self._asked(at), 0, 1)  # moves the cursor alone
        order.cursor = type(order.cursor)(**self._cursors[step])
        rows, length = self._asked(step)
        passes = order.passes(rows, length, self.run.micro_batch)
        return passes if self.dropout is not None else [_as_one(passes)]

    def _asked(self, step: int) -> tuple[int, int]:
        return schedule.batch(step, self.recipe), schedule.length(step, self.recipe)

    def _order(self) -> Order:
        spec, data = self.recipe, self.recipe.data
        rows = Tagged(self.run.rows, self.run.edges, self.run.config.vocab_size)
        return Order(rows, spec.loop.seed, data.sampling, noise=data.noise, pack=data.pack)

    def loss(self, weights: Sequence[Tensor], step: int, counted: Tensor) -> Tensor:
        """A step's mean loss, where each passage counts so much."""
        total, many = torch.zeros((), dtype=self.dtype), torch.zeros((), dtype=self.dtype)
        if self.dropout is not None:
            self.dropout.begin(step)
        for x, y in self.batch(step):
            keep = y != IGNORE
            who = counted[(y[keep] // self.run.config.vocab_size)]
            plain = torch.where(keep, y % self.run.config.vocab_size, IGNORE)
            total = total + (who * self.token_losses(weights, x, plain, self.dropout)).sum()
            many = many + who.sum()
            if self.dropout is not None:
                self.dropout.passed(x.numel())
        return total / many

    def gradients(self, weights: Sequence[Tensor], step: int) -> list[Tensor]:
        """A step's gradients of all parts."""
        leaves = [w.detach().requires_grad_() for w in weights]
        ones = torch.ones(self.passages, dtype=self.dtype)
        return list(torch.autograd.grad(self.loss(leaves, step, ones), leaves))

    def update(self, state: State, grads: Sequence[Tensor], step: int) -> State:
        """The optimiser's step, as the run took it."""
        spec = self.recipe.optimizer
        rate, momentum = schedule.rate(step, self.recipe.schedule), schedule.momentum(step, spec)
        if spec.clip:
            norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            if float(norm.detach()) > spec.clip:
                grads = [g * (spec.clip / norm) for g in grads]
        after: State = []
        for part, old, grad in zip(self.parts, state, grads, strict=True):
            if self._muon(part.kind):
                after.append(_muon(old, grad, rate * spec.muon_lr, momentum, spec))
            else:
                after.append(_adamw(old, grad, part.kind, rate, step + 1, spec))
        return after

    @sdpa_kernel(SDPBackend.MATH)
    def forward(self, state: State, first: int, stop: int, keep: Callable[[int, State], None]) -> State:
        """Steps `first` to `stop` from a state; each state before a step is given to `keep`."""
        for step in range(first, stop):
            keep(step, state)
            grads = self.gradients([s[0] for s in state], step)
            with torch.no_grad():
                state = [tuple(x.detach() for x in one) for one in self.update(state, grads, step)]
        return state

    @sdpa_kernel(SDPBackend.MATH)
    def text_losses(self, weights: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Mean −log p of each text's tokens after the first."""
        rows = [torch.tensor([list(ids)]) for ids in texts]
        x, y = _as_one([(row[:, :-1], row[:, 1:]) for row in rows])
        parts = self.token_losses(weights, x, y).split([row.shape[1] - 1 for row in rows])
        return [part.mean() for part in parts]

    @sdpa_kernel(SDPBackend.MATH)
    def back(
        self,
        state: State,
        step: int,
        adjoints: list[State],
        texts: Sequence[Sequence[int]],
        effects: Tensor,
        lines: Tensor,
    ) -> list[State]:
        """One step backwards: the slopes of each text's loss in the state before it, from those in the state after.

        Args:
            effects, lines: (text, passage); what the step's passages had to do with it is added.
        """
        weights = [one[0].detach().requires_grad_() for one in state]
        counted = torch.ones(self.passages, dtype=self.dtype, requires_grad=True)
        grads = torch.autograd.grad(self.loss(weights, step, counted), weights, create_graph=True)
        leaves = [[x.detach().requires_grad_() for x in one] for one in state]
        inner = [g.detach().requires_grad_() for g in grads]
        after = self.update([tuple(one) for one in leaves], inner, step)
        outputs, inputs = [x for one in after for x in one], [x for one in leaves for x in one]
        rate, found = schedule.rate(step, self.recipe.schedule), []
        losses = self.text_losses(weights, texts)
        for i, adjoint in enumerate(adjoints):
            wanted = [x for one in adjoint for x in one]
            slopes = torch.autograd.grad(outputs, [*inputs, *inner], wanted, retain_graph=True, allow_unused=True)
            before = [torch.zeros_like(x) if s is None else s for x, s in zip(inputs, slopes, strict=False)]
            through = [
                torch.zeros_like(g) if s is None else s for g, s in zip(inner, slopes[len(inputs) :], strict=True)
            ]
            turned = torch.autograd.grad(grads, [*weights, counted], through, retain_graph=True)
            effects[i] -= turned[-1]
            text = torch.autograd.grad(losses[i], weights, retain_graph=True)
            lines[i] += rate * torch.autograd.grad(grads, [counted], text, retain_graph=True)[0]
            stepped, at = [], 0
            for k, one in enumerate(state):
                own = before[at : at + len(one)]
                stepped.append((own[0] + turned[k], *own[1:]))
                at += len(one)
            found.append(stepped)
        return found


def _as_one(passes: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Passes side by side, the shorter ones filled up: small models spend their time between operations."""
    longest = max(x.shape[1] for x, _ in passes)
    tokens = [F.pad(x, (0, longest - x.shape[1])) for x, _ in passes]
    targets = [F.pad(y, (0, longest - y.shape[1]), value=IGNORE) for _, y in passes]
    return torch.cat(tokens), torch.cat(targets)


def _muon(old: tuple[Tensor, ...], grad: Tensor, lr: float, momentum: float, spec: OptimizerSpec) -> tuple[Tensor, ...]:
    value, buffer = old
    buffer = buffer.lerp(grad, 1 - momentum)
    direction = grad.lerp(buffer, momentum)
    update = orthogonalise(direction, spec.newton_schulz, value.dtype)
    value = value * (1 - lr * spec.muon_decay) - lr * shape_scale(*value.shape[-2:]) * update
    return value, buffer


def _adamw(
    old: tuple[Tensor, ...], grad: Tensor, kind: str, rate: float, step: int, spec: OptimizerSpec
) -> tuple[Tensor, ...]:
    value, mean, square = old
    rates = {"embed": spec.embed_lr, "head": spec.head_lr, "vector": spec.vector_lr, "matrix": spec.matrix_lr}
    lr, decay = rate * rates[kind], 0.0 if kind == "vector" else spec.adam_decay
    mean = mean.lerp(grad, 1 - spec.beta1)
    square = spec.beta2 * square + (1 - spec.beta2) * grad.square()
    # a number that no gradient has reached yet does not move, and has no slope
    moved = square > 0
    root = torch.where(moved, square, 1.0).sqrt() / (1 - spec.beta2**step) ** 0.5 + spec.eps
    update = torch.where(moved, mean / root, 0.0) / (1 - spec.beta1**step)
    return value * (1 - lr * decay) - lr * update, mean, square


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
        passages = tuple(run.passage(n, float(effects[i, n]), float(lines[i, n])) for n in order if effects[i, n] != 0)
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
    """How far the replay's weights are from those that the run saved, and these as parts."""
    theirs = []
    for part, w in zip(replay.parts, weights, strict=True):
        whole = torch.zeros_like(w)
        for name, view in part.split(whole).items():
            view.copy_(saved[name])
        theirs.append(whole)
    largest = max(float(w.abs().max()) for w in theirs)
    gap = max(float((a - b).abs().max()) for a, b in zip(weights, theirs, strict=True)) / largest
    return gap, theirs


def trained_again(run: Recorded, without: Sequence[int] = ()) -> dict[str, Tensor]:
    """The weights that really training again gives, by the run's own loop and stepper, where some passages' tokens
    count for nothing: with none left out, those that the run saved."""
    from glassformer.train.processes import Processes
    from glassformer.train.run import assemble

    device = torch.device("cpu")
    with files.scratch() as folder:
        again = assemble(run.recipe, folder, Processes(), device, Journal(None), None)
        again.directory = again.held_out = again.sample = None
        again.micro_batch = run.micro_batch
        again.order.rows = Tagged(again.order.rows, run.edges, run.config.vocab_size, without, tag=False)
        again.execute()
        return {name: tensor.clone() for name, tensor in again.stepper.whole().items()}


def loss_on(run: Recorded, weights: dict[str, Tensor], ids: Sequence[int]) -> float:
    """A text's loss by some weights, in float64."""
    model = Transformer.empty(run.config).load({name: w.double() for name, w in weights.items()})
    row = torch.tensor([list(ids)])
    with torch.no_grad():
        logits = model(row[:, :-1])[0]
    return float(F.cross_entropy(logits, row[0, 1:]))
