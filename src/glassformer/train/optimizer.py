"""Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum U S Vᵀ by about
U Vᵀ, every direction with equal weight, through a few Newton–Schulz rounds. Ours takes all matrices of one shape
as one stack, so a model with hundreds of small matrices pays a handful of batched products; query, key and value
projections are separate matrices and are orthogonalised apart. This module knows gradients and rates; it knows
neither schedule nor loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.train.recipe import OptimizerSpec
from glassformer.train.weights import Part

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x ← a x + b (x xᵀ) x + c (x xᵀ)² x, chosen for the steepest rise at 0 (Jordan et al.)."""


WIDE, LARGE = 2, 256
"""From this ratio of columns to rows, and from so many rows on, the products of `_by_gram` are fewer and count."""
CARRIED = 3


def orthogonalise(stack: Tensor, rounds: int, dtype: torch.dtype = torch.bfloat16, eps: float = 1e-7) -> Tensor:
    """Each matrix of a stack (…, rows, columns) with its singular values pushed towards 1 (0.7 to 1.2).

    Returns a stack of the same shape in `dtype`. A matrix of zeros stays zeros.
    """
    x = stack.to(dtype).reshape(-1, *stack.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    wide = x.shape[-2] >= LARGE and x.shape[-1] >= WIDE * x.shape[-2]
    x = _by_gram(x, rounds) if wide and not torch.is_grad_enabled() else _newton_schulz(x, rounds)
    return (x.mT if tall else x).reshape(stack.shape)


def _newton_schulz(x: Tensor, rounds: int) -> Tensor:
    a, b, c = NEWTON_SCHULZ
    for _ in range(rounds):
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x


def _by_gram(x: Tensor, rounds: int) -> Tensor:
    """The same of wide matrices, with fewer products: all rounds are polynomials of one small matrix, x xᵀ.

    Rounding in it weighs more with every round that it is carried on for, so it is made anew after `CARRIED`.
    """
    a, b, c = NEWTON_SCHULZ
    for first in range(0, rounds, CARRIED):
        some = min(CARRIED, rounds - first)
        gram, product = torch.bmm(x, x.mT), None
        for i in range(some):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=-2, dim2=-1).add_(a)
            product = factor if product is None else torch.bmm(factor, product)
            if i + 1 < some:
                gram = torch.bmm(factor, torch.bmm(factor, gram))
        x = x if product is None else torch.bmm(product, x)
    return x


def shape_scale(rows: int, columns: int) -> float:
    """What multiplies an orthogonal update: sqrt(max(1, rows / columns))."""
    return max(1.0, rows / columns) ** 0.5


def muon_direction(grad: Tensor, buffer: Tensor, momentum: float) -> Tensor:
    """Nesterov momentum, elementwise: `buffer` moves towards `grad`; returns what is then orthogonalised."""
    buffer.lerp_(grad, 1 - momentum)
    return grad.lerp(buffer, momentum)


def apply_update(value: Tensor, update: Tensor, lr: float, decay: float, cautious: bool, scale: float) -> None:
    """value ← value − lr · (decay · value + scale · update), the decay where it agrees with the step if cautious."""
    if decay and cautious:
        agrees = (update * value) > 0
        value.sub_(value * agrees, alpha=lr * decay)
    elif decay:
        value.mul_(1 - lr * decay)
    value.add_(update, alpha=-lr * scale)


class MuonAdamW:
    """Both optimisers over parts of flat weights.

    Args:
        parts: what `FlatWeights` lays out.
        spec: rates and the rest.
        dtype: of the Newton–Schulz products.
        adapter_lr: AdamW's rate for an adapter.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        spec: OptimizerSpec,
        dtype: torch.dtype = torch.bfloat16,
        adapter_lr: float = 0.0,
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self.muon = [part for part in parts if part.kind == "matrix" and spec.kind == "muon"]
        self.rest = [part for part in parts if part not in self.muon]
        self.buffers = [torch.zeros_like(part.value) for part in self.muon]
        self.adamw = adamw([(part.kind, part.value) for part in self.rest], spec, adapter_lr)
        for part, group in zip(self.rest, self.adamw.param_groups, strict=True):
            group["params"][0].grad = part.grad
        # at once: made in the first step they would lie in holes between activations, which then find none again
        self._begin(0)

    def _begin(self, steps: int) -> None:
        """AdamW's state after `steps` steps, its numbers still zero."""
        for part, group in zip(self.rest, self.adamw.param_groups, strict=False):
            parameter = group["params"][0]
            self.adamw.state[parameter] = {
                "step": torch.tensor(float(steps), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(part.value),
                "exp_avg_sq": torch.zeros_like(part.value),
            }

    @torch.no_grad()
    def step(self, rate: float, momentum: float) -> None:
        """One step at `rate` times each learning rate."""
        spec = self.spec
        set_rates(self.adamw, rate)
        self.adamw.step()
        lr = spec.muon_lr * rate
        for part, buffer in zip(self.muon, self.buffers, strict=True):
            direction = muon_direction(part.grad, buffer, momentum)
            update = orthogonalise(direction, spec.newton_schulz, self.dtype)
            scale = shape_scale(*part.value.shape[-2:])
            apply_update(part.value, update, lr, spec.muon_decay, spec.cautious, scale)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by stable names that do not depend on how weights are laid out."""
        tensors: dict[str, Tensor] = {}
        for part, buffer in zip(self.muon, self.buffers, strict=True):
            tensors.update({f"muon.momentum.{name}": view for name, view in part.split(buffer).items()})
        for part, group in zip(self.rest, self.adamw.param_groups, strict=True):
            state = self.adamw.state[group["params"][0]]
            for key in ("exp_avg", "exp_avg_sq"):
                tensors.update({f"adamw.{key}.{name}": view for name, view in part.split(state[key]).items()})
        return tensors

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Continue after `steps` steps from what `state` gave.

        Raises:
            CheckpointError: when a tensor is absent or has another shape.
        """
        self._begin(steps)
        for name, target in self.state().items():
            if name not in tensors or tensors[name].shape != target.shape:
                raise CheckpointError(f"The checkpoint lacks {name} with shape {tuple(target.shape)}.")
            target.copy_(tensors[name])


def adamw(parameters: Sequence[tuple[str, Tensor]], spec: OptimizerSpec, adapter_lr: float = 0.0) -> torch.optim.AdamW:
    """torch's AdamW, one group per (kind, tensor), fused into one pass where the device has it."""
    rates = {"embed": spec.embed_lr, "head": spec.head_lr, "vector": spec.vector_lr, "matrix": spec.matrix_lr}
    rates["adapter"] = adapter_lr
    groups: list[dict[str, Any]] = []
    for kind, tensor in parameters:
        # vectors (norm scales, biases) are never decayed: a scale of 0 switches a part off
        decay = 0.0 if kind == "vector" else spec.adam_decay
        groups.append({"params": [tensor], "lr": rates[kind], "base_lr": rates[kind], "weight_decay": decay})
    if not groups:
        groups = [{"params": [torch.zeros(0)], "lr": 0.0, "base_lr": 0.0}]
    return torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group's learning rate becomes `rate` times its own."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate
