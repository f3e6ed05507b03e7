"""Gradient steps through the model's definition: PyTorch's autograd on one device, whole weights in each process.

With several processes each computes its share of the rows and gradients are summed (data parallel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from glassformer.model import Transformer
from glassformer.system import hardware
from glassformer.train import attention, compiling
from glassformer.train.balance import Balance, Both
from glassformer.train.dropout import Dropout
from glassformer.train.loss import cross_entropy_sum, read_out
from glassformer.train.optimizer import MuonAdamW
from glassformer.train.recipe import Recipe
from glassformer.train.stepper import LocalStepper


class Objective(nn.Module):
    """What is made small: the summed cross-entropy of a batch.

    Args:
        transformer: the model.
        chunk: rows of logits at once, 0 for a choice by vocabulary size.
        run_block: how each block is called, None for plainly.
        dropout: what is left out of the stream while gradients are made, if anything.
        balance: watches experts while gradients are made, and adds its loss to what gradients are of.
    """

    def __init__(
        self,
        transformer: Transformer,
        chunk: int = 0,
        run_block: Callable[..., Tensor] | None = None,
        dropout: Dropout | None = None,
        balance: Balance | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.chunk, self.run_block, self.balance = chunk, run_block, balance
        self.tap = dropout or balance if dropout is None or balance is None else Both(dropout, balance)

    def forward(self, tokens: Tensor, targets: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Sum of −log p(target) over the targets that count; tokens and targets are (batch, query), `lengths` those of
        several documents in one row."""
        learning = torch.is_grad_enabled()
        balance = self.balance if learning else None
        if balance is not None:
            balance.watch()
        tap = self.tap if learning else None
        hidden = self.transformer.hidden(tokens, tap=tap, run_block=self.run_block, lengths=lengths)
        cap = self.transformer.config.logit_softcap
        loss = cross_entropy_sum(*read_out(self.transformer, hidden), targets, softcap=cap, chunk=self.chunk)
        beside = None if balance is None else balance.loss(targets)
        # it is in the gradient and not in the number
        return loss if beside is None else loss + (beside - beside.detach())


def recomputing(block: nn.Module, *args: object) -> Tensor:
    """Call a block and keep only its input; the rest is computed again for the gradient (arXiv:1604.06174)."""
    from torch.utils.checkpoint import checkpoint

    result: Tensor = checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
    return result


class Recomputing:
    """`recomputing` with all kept inputs side by side, made once.

    Left where the blocks make them, they would lie between what is forgotten again, and on a processor's heap the
    next block's tensors would find no place among them: several times the memory.
    """

    def __init__(self, transformer: Transformer) -> None:
        self.numbers = {id(block): i for i, block in enumerate(transformer.blocks)}
        self.places: list[Tensor] = []

    def __call__(self, block: nn.Module, x: Tensor, *args: object) -> Tensor:
        """The block's output."""
        if not torch.is_grad_enabled():
            out: Tensor = block(x, *args)
            return out
        if not self.places or self.places[0].shape != x.shape or self.places[0].dtype != x.dtype:
            self.places.clear()
            self.places.extend(torch.empty_like(x, requires_grad=False) for _ in self.numbers)
        return recomputing(block, _Moved.apply(x, self.places[self.numbers[id(block)]]), *args)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, place: Tensor) -> Tensor:
        return place.copy_(x).detach()

    @staticmethod
    def backward(ctx: object, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


@torch.no_grad()
def initialise(transformer: Transformer, seed: int) -> None:
    """Fresh weights: each matrix at a scale that keeps its output's, parts that write to the stream at zero.

    A block that begins at zero adds nothing, so at first every block sees the embeddings and learns from a clean
    signal; the unembedding at zero starts the loss at log(vocab) exactly.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    config = transformer.config
    for name, p in transformer.named_parameters():
        if name.endswith(("bias", ".sink", ".correction")):
            p.zero_()
        elif p.ndim == 1:
            p.fill_(0.0 if config.norm.one_plus else 1.0)
        elif name.endswith((".o.weight", ".down.weight")) or name == "unembed.weight":
            p.zero_()
        else:
            deviation = (
                0.02 if config.tied and name == "embed.weight" else 0.1 if "embed" in name else p.shape[-1] ** -0.5
            )
            drawn = torch.empty(p.shape, dtype=torch.float32).normal_(0.0, deviation, generator=generator)
            p.copy_(drawn)
    for block in transformer.blocks:
        begin = getattr(block.mixer, "begin", None)
        if begin is not None:
            begin(generator)


def fresh(empty: Transformer, seed: int) -> Transformer:
    """An empty model with memory and first weights, float32 on the processor."""
    # module.to_empty() would do, but imports a library for algebra on the way, a third of a second
    empty.load({name: torch.empty(p.shape, dtype=torch.float32) for name, p in empty.named_parameters()})
    initialise(empty, seed)
    return empty


class TorchStepper(LocalStepper):
    """The whole model on one device, by PyTorch.

    Args:
        transformer: float32 weights, on the device.
        recipe: the run.
        compute: the dtype of forward and backward.
        reduce: sums a tensor over all processes in place, or None for one process.
        run_block: how each block is called, None for plainly.
    """

    def __init__(
        self,
        transformer: Transformer,
        recipe: Recipe,
        compute: torch.dtype,
        reduce: Callable[[Tensor], object] | None = None,
        run_block: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(transformer, recipe, compute)
        self.reduce = reduce
        if self.balance is not None:
            self.balance.reduce = reduce
        self.optimizer = MuonAdamW(
            self.weights.stretches, recipe.optimizer, muon_dtype(compute), recipe.adapter.adapter_lr
        )
        self.compiled = run_block is not None and compiling.is_compiled(run_block)
        if run_block is None and recipe.loop.recompute:
            run_block = Recomputing(transformer)
        if recipe.loop.fused and transformer.device.type == "cpu":
            attention.install(transformer)
        self.objective = Objective(transformer, recipe.loop.loss_chunk, run_block, self.dropout, self.balance)
        # what the weights came in is free now, in pieces that no activation fits into
        hardware.give_back_freed_memory()

    @torch.no_grad()
    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of some rows; see `Stepper`."""
        if self.weights.compute != torch.float32 and self.recipe.adapter.adapter == "none":
            return self._exact_loss(tokens, targets)
        found: Tensor = self.objective(tokens, targets)
        return found

    def _zero(self) -> None:
        self.weights.zero()

    def _accumulate(self, tokens: Tensor, targets: Tensor, scale: float, lengths: Sequence[int] | None) -> Tensor:
        loss: Tensor = self.objective(tokens, targets, lengths)
        loss.backward(torch.full_like(loss, scale))
        self.weights.collect()
        return loss

    def _norm(self) -> float:
        if self.reduce is not None:
            self.reduce(self.weights.grad)
        return float(self.weights.grad.norm())

    def _update(self, rate: float, momentum: float) -> None:
        self.optimizer.step(rate, momentum)
        self.weights.publish()

    def _optimizer_state(self) -> dict[str, Tensor]:
        return self.optimizer.state()

    def _load_optimizer(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.optimizer.load(tensors, steps)


def muon_dtype(compute: torch.dtype) -> torch.dtype:
    """Newton–Schulz needs no more digits than the model's products had."""
    return compute
