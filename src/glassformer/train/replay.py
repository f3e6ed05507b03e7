"""A recorded run's steps again in float64, as functions that gradients go through.

The forward is the model's definition, the rows, schedule and optimiser are the run's. Backwards, a step takes slopes of
losses in the state after it to slopes in the state before it and in the weight of each passage. It knows steps; which
losses, and what their slopes say, is `influence`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from glassformer.model import Transformer
from glassformer.train import schedule
from glassformer.train.data import Lengths, Order, Passes
from glassformer.train.dropout import Dropout
from glassformer.train.loss import IGNORE
from glassformer.train.optimizer import orthogonalise, shape_scale
from glassformer.train.recipe import OptimizerSpec
from glassformer.train.recorded import Recorded, Tagged
from glassformer.train.torch_stepper import fresh
from glassformer.train.weights import FlatWeights

State = list[tuple[Tensor, ...]]
"""Of each stretch of the weights: the weights, and the optimiser's numbers."""


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
        self.stretches = flat.stretches
        self.begin: State = [
            self._fresh(stretch.value.detach().to(self.dtype), stretch.kind) for stretch in self.stretches
        ]
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
        """Parameters by name, as views of the stretches."""
        return {
            name: view
            for stretch, w in zip(self.stretches, weights, strict=True)
            for name, view in stretch.split(w).items()
        }

    def token_losses(
        self,
        weights: Sequence[Tensor],
        tokens: Tensor,
        targets: Tensor,
        tap: object = None,
        lengths: Lengths | None = None,
    ) -> Tensor:
        """−log p of each target that counts, in order."""
        how = {"tap": tap, "lengths": lengths}
        hidden = torch.func.functional_call(self.model, self.named(weights), (tokens,), how)
        counts = targets.flatten() != IGNORE
        return F.cross_entropy(hidden.flatten(0, 1)[counts], targets.flatten()[counts], reduction="none")

    def batch(self, step: int) -> Passes:
        """The passes of a step (0-based), targets tagged by passage."""
        order = self._order()
        if not self._cursors:
            for at in range(self.run.steps):
                self._cursors.append(order.cursor.to_dict())
                order._next(*self._asked(at), 0, 1)  # moves the cursor alone
        order.cursor = type(order.cursor)(**self._cursors[step])
        rows, length = self._asked(step)
        passes = order.passes(rows, length, self.run.micro_batch)
        # dropout is by the place in a pass
        return passes if self.dropout is not None else [(*_as_one([(x, y) for x, y, _ in passes]), None)]

    def _asked(self, step: int) -> tuple[int, int]:
        return schedule.batch(step, self.recipe), schedule.length(step, self.recipe)

    def _order(self) -> Order:
        spec, data = self.recipe, self.recipe.data
        rows = Tagged(self.run.rows, self.run.edges, self.run.config.vocab_size)
        packed = self.run.packed and self.dropout is not None
        return Order(rows, spec.loop.seed, data.sampling, None, data.noise, data.pack, packed)

    def loss(self, weights: Sequence[Tensor], step: int, counted: Tensor) -> Tensor:
        """A step's mean loss, where each passage counts so much."""
        total, many = torch.zeros((), dtype=self.dtype), torch.zeros((), dtype=self.dtype)
        if self.dropout is not None:
            self.dropout.begin(step)
        for x, y, lengths in self.batch(step):
            keep = y != IGNORE
            who = counted[(y[keep] // self.run.config.vocab_size)]
            plain = torch.where(keep, y % self.run.config.vocab_size, IGNORE)
            total = total + (who * self.token_losses(weights, x, plain, self.dropout, lengths)).sum()
            many = many + who.sum()
            if self.dropout is not None:
                self.dropout.passed(x.numel())
        return total / many

    def gradients(self, weights: Sequence[Tensor], step: int) -> list[Tensor]:
        """A step's gradients of all stretches."""
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
        for stretch, old, grad in zip(self.stretches, state, grads, strict=True):
            if self._muon(stretch.kind):
                after.append(_muon(old, grad, rate * spec.muon_lr, momentum, spec))
            else:
                after.append(_adamw(old, grad, stretch.kind, rate, step + 1, spec))
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
