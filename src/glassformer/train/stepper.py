"""What takes a run's gradient steps: one protocol, and what its forms in one process have in common.

`TorchStepper` computes through the model's definition, `NativeStepper` in C++, `ShardedStepper` with weights spread
over processes. The loop drives any of them by the same calls and does not know which; `run.py` picks one.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.model import Config, Transformer
from glassformer.train import checkpoint
from glassformer.train.balance import Balance, balance_of
from glassformer.train.dropout import Dropout
from glassformer.train.loss import cross_entropy_sum, read_out
from glassformer.train.recipe import Recipe
from glassformer.train.weights import FlatWeights, norms


class Stepper(Protocol):
    """Weights, gradients and an optimiser. Tokens and targets are (batch, query) int64."""

    name: str
    """What it is, for journal and checkpoint: "torch", or "native, …" with its arithmetic."""
    compiled: bool
    """Whether its blocks were compiled by torch."""
    sharded: bool
    """Whether its checkpoints are written by shard."""
    balance: Balance | None
    """What this step's tokens chose, where the model has experts."""

    @property
    def config(self) -> Config:
        """The model's design."""
        ...

    def zero(self) -> None:
        """Begin a step: forget the gradients."""
        ...

    @property
    def packs(self) -> bool:
        """Whether `accumulate` takes a row of several documents by their lengths."""
        ...

    def accumulate(self, tokens: Tensor, targets: Tensor, scale: float, lengths: Sequence[int] | None = None) -> Tensor:
        """Forward and backward of some rows, or of one that holds documents of these lengths apart; `scale` times the
        loss's gradient is added. Returns the summed loss."""
        ...

    def finish(self) -> float:
        """The norm of the gradients, summed over all processes, and clipped if the recipe says so."""
        ...

    def step(self, rate: float, momentum: float) -> None:
        """The optimiser's step, at `rate` times each learning rate."""
        ...

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of some rows, without gradient, by the float32 weights."""
        ...

    def whole(self) -> dict[str, Tensor]:
        """The float32 weights by name; nothing on all but the first process where they are sharded."""
        ...

    def visible(self) -> Transformer | None:
        """The model as it stands, to sample from and look into; None on all but the first process where sharded."""
        ...

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Norms of weights and gradients of each component."""
        ...

    def save(self, folder: Path, step: int, state: Mapping[str, Any], beside: Callable[[Path], None]) -> None:
        """Begin a checkpoint of a step: `state` for `state.json`, `beside` writes further files into its folder.

        Raises:
            TrainError: it cannot be written.
        """
        ...

    def settle(self, wait: bool = False) -> bool:
        """Whether a checkpoint that was begun has been completed since the last call; waits for it if asked.

        Raises:
            TrainError: it could not be written.
        """
        ...

    def restore(self, saved: checkpoint.Saved) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: it is of another model.
        """
        ...


class LocalStepper(abc.ABC):
    """The whole model in this process's memory, in flat buffers.

    Args:
        transformer: float32 weights, on the device; or frozen ones with an adapter, if the recipe says so.
        recipe: the run.
        compute: the dtype of forward and backward.
    """

    name = "torch"
    compiled = False
    sharded = False

    def __init__(self, transformer: Transformer, recipe: Recipe, compute: torch.dtype) -> None:
        self.transformer, self.recipe = transformer, recipe
        if recipe.adapter.adapter == "none":
            transformer.requires_grad_(True)
        self.weights = FlatWeights(transformer, compute, tied=transformer.config.tied)
        rate = recipe.optimizer.dropout
        self.dropout = Dropout(rate, recipe.loop.seed, transformer.config) if rate else None
        self.balance = balance_of(transformer.config, recipe.optimizer.balance)
        self.updates = 0
        self._completed = False

    @property
    def config(self) -> Config:
        """The model's design."""
        return self.transformer.config

    def zero(self) -> None:
        """Begin a step."""
        self._zero()
        if self.dropout is not None:
            self.dropout.begin(self.updates)
        if self.balance is not None:
            self.balance.begin()

    @property
    def packs(self) -> bool:
        """Whether a row of several documents is taken: what is compiled would be compiled for every set of lengths."""
        return self.config.packs and not self.compiled

    def accumulate(self, tokens: Tensor, targets: Tensor, scale: float, lengths: Sequence[int] | None = None) -> Tensor:
        """Forward and backward of some rows; see `Stepper`."""
        loss = self._accumulate(tokens, targets, scale, lengths)
        if self.dropout is not None:
            self.dropout.passed(tokens.numel())
        return loss.detach()

    @torch.no_grad()
    def finish(self) -> float:
        """The norm of the gradients, and clips them if the recipe says so."""
        norm = self._norm()
        clip = self.recipe.optimizer.clip
        if clip and norm > clip:
            self.weights.grad.mul_(clip / norm)
        return norm

    def step(self, rate: float, momentum: float) -> None:
        """The optimiser's step."""
        self._update(rate, momentum)
        self.updates += 1

    def whole(self) -> dict[str, Tensor]:
        """The float32 weights by name."""
        return self.weights.named()

    def visible(self) -> Transformer | None:
        """The model as it stands, to sample from and to look into."""
        return self.transformer

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Norms of weights and gradients of each component."""
        return norms(self.weights.named()), norms(self.weights.named_grads())

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs that is a tensor."""
        return {**{f"model.{k}": v for k, v in self.weights.named().items()}, **self._optimizer_state()}

    def write(self, folder: Path) -> None:
        """Write `state` into a folder, one tensor after the other, so that nothing of it is held twice."""
        from glassformer.checkpoint.tensorfile import write_tensors

        tensors = self.state()
        write_tensors(folder / "state.safetensors", {name: t.shape for name, t in tensors.items()}, tensors.__getitem__)

    def save(self, folder: Path, step: int, state: Mapping[str, Any], beside: Callable[[Path], None]) -> None:
        """Write a checkpoint; see `Stepper`."""

        def fill(draft: Path) -> None:
            self.write(draft)
            beside(draft)

        checkpoint.write(folder, step, state, fill)
        self._completed = True

    def settle(self, wait: bool = False) -> bool:
        """Whether a checkpoint was written since the last call."""
        completed, self._completed = self._completed, False
        return completed

    def restore(self, saved: checkpoint.Saved) -> None:
        """Continue from a checkpoint; see `Stepper`."""
        self.load(saved.tensors(), int(saved.state["updates"]))

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `state` gave.

        Raises:
            CheckpointError: when a tensor is missing or has another shape.
        """
        for name, target in self.weights.named().items():
            saved = tensors.get(f"model.{name}")
            if saved is None or saved.shape != target.shape:
                raise CheckpointError(
                    f"The checkpoint does not hold {name} with shape {tuple(target.shape)}; it is of another model."
                )
            target.copy_(saved)
        self.weights.publish()
        self._load_optimizer(tensors, steps)
        self.updates = steps

    @torch.no_grad()
    def _exact_loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The summed loss by the float32 weights and the model's definition."""
        model = self.transformer
        with self.weights.exact():
            hidden = model.hidden(tokens)
            cap = model.config.logit_softcap
            return cross_entropy_sum(*read_out(model, hidden), targets, softcap=cap, chunk=self.recipe.loop.loss_chunk)

    @abc.abstractmethod
    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of some rows, without gradient; see `Stepper`."""

    @abc.abstractmethod
    def _zero(self) -> None: ...

    @abc.abstractmethod
    def _accumulate(self, tokens: Tensor, targets: Tensor, scale: float, lengths: Sequence[int] | None) -> Tensor: ...

    @abc.abstractmethod
    def _norm(self) -> float: ...

    @abc.abstractmethod
    def _update(self, rate: float, momentum: float) -> None: ...

    @abc.abstractmethod
    def _optimizer_state(self) -> dict[str, Tensor]: ...

    @abc.abstractmethod
    def _load_optimizer(self, tensors: Mapping[str, Tensor], steps: int) -> None: ...
