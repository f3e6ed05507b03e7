"""Gradient steps in C++: `NativeStep` behind the calls of every stepper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from glassformer.model import Transformer
from glassformer.system import hardware
from glassformer.train.native_step import NativeStep
from glassformer.train.recipe import Recipe
from glassformer.train.stepper import LocalStepper


class NativeStepper(LocalStepper):
    """The whole model on the processor, in C++; the design must be one that `native.refusal` has nothing against.

    Args:
        transformer: float32 weights.
        recipe: the run.
        compute: the dtype of forward and backward.

    Raises:
        NativeUnavailableError: where the library cannot be had.
    """

    def __init__(self, transformer: Transformer, recipe: Recipe, compute: torch.dtype) -> None:
        super().__init__(transformer, recipe, compute)
        self.native = NativeStep(transformer.config, self.weights, recipe.optimizer)
        self.name = f"native, {self.native.arithmetic}"
        hardware.give_back_freed_memory()

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of some rows; see `Stepper`."""
        if self.weights.compute == torch.float32:
            return self.native.loss(tokens, targets)
        return self._exact_loss(tokens, targets)

    def _zero(self) -> None:
        self.native.zero()

    def _accumulate(self, tokens: Tensor, targets: Tensor, scale: float, lengths: Sequence[int] | None) -> Tensor:
        return self.native.accumulate(tokens, targets, scale, self.dropout, lengths)

    def _norm(self) -> float:
        return self.native.norm()

    def _update(self, rate: float, momentum: float) -> None:
        self.native.step(rate, momentum)

    def _optimizer_state(self) -> dict[str, Tensor]:
        return self.native.state()

    def _load_optimizer(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.native.load(tensors, steps)
        self.native.publish()
