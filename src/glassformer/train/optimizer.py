"""Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum U S Vᵀ by about
U Vᵀ, every direction with equal weight, through a few Newton–Schulz rounds. Ours takes all matrices of one shape
as one stack, so a model with hundreds of small matrices pays a handful of batched products; query, key and value
projections are separate matrices and are orthogonalised apart. This module knows gradients and rates; it knows
neither schedule nor loop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.kernels.ops import newton_schulz
from glassformer.train.recipe import OptimizerSpec
from glassformer.train.weights import Stretch

JORDAN = (3.4445, -4.7750, 2.0315)
"""Jordan et al.'s (a, b, c), the same in each of five rounds or more."""
SPREAD, MARGIN = 0.3, 1.02
"""How far from 1 fewer rounds may end, and how far rounding may carry singular values beyond what a rule expects."""


@functools.cache
def newton_schulz_rules(rounds: int) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of each round x ← a x + b (x xᵀ) x + c (x xᵀ)² x.

    Fewer than five rounds have polynomials of their own, each the nearest to 1 where the round before leaves singular
    values, as in the Polar Express (Amsel et al. 2025, arXiv:2505.16932); the first expects them between a floor and 1.
    The floor is the lowest that ends within `SPREAD` of 1: 0.04 in two rounds, 0.0096 in three, 0.0023 in four.
    """
    if rounds >= 5:
        return (JORDAN,) * rounds
    low, high = -40.0, 0.0  # logarithms of the floor
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _chain(math.exp(middle), rounds)[1] > SPREAD else (low, middle)
    return _chain(math.exp(high), rounds)[0]


def _chain(low: float, rounds: int) -> tuple[tuple[tuple[float, float, float], ...], float]:
    """The rules from a floor on, and how far from 1 the last one ends."""
    rules, high, error = [], MARGIN, 0.0
    for _ in range(rounds):
        rule, error = _nearest_one(low, high)
        rules.append(rule)
        low, high = 1 - error, (1 + error) * MARGIN
    return tuple(rules), error


def _nearest_one(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """a, b, c of the polynomial a x + b x³ + c x⁵ that is nearest 1 between two numbers, and its error (Remez)."""
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]  # where it turns
    for _ in range(60):
        x = torch.tensor([low, *inner, high], dtype=torch.float64)
        sides = torch.tensor([1, -1, 1, -1], dtype=torch.float64)
        a, b, c, error = torch.linalg.solve(torch.stack([x, x**3, x**5, sides], 1), torch.ones_like(x)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        turns = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
        if max(abs(old - new) for old, new in zip(inner, turns, strict=True)) < 1e-12:
            break
        inner = turns
    return (a, b, c), error


def orthogonalise(stack: Tensor, rounds: int, dtype: torch.dtype = torch.bfloat16, eps: float = 1e-7) -> Tensor:
    """Each matrix of a stack (…, rows, columns) with its singular values pushed towards 1 (0.7 to 1.3).

    Returns a stack of the same shape in `dtype`. A matrix of zeros stays zeros.
    """
    x = stack.to(dtype).reshape(-1, *stack.shape[-2:])
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    x = newton_schulz(x, newton_schulz_rules(rounds))
    return (x.mT.contiguous() if tall else x).reshape(stack.shape)


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
    """Both optimisers over stretches of flat weights.

    Args:
        stretches: what `FlatWeights` lays out.
        spec: rates and the rest.
        dtype: of the Newton–Schulz products.
        adapter_lr: AdamW's rate for an adapter.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        spec: OptimizerSpec,
        dtype: torch.dtype = torch.bfloat16,
        adapter_lr: float = 0.0,
    ) -> None:
        self.spec, self.dtype = spec, dtype
        self.muon = [stretch for stretch in stretches if stretch.kind == "matrix" and spec.kind == "muon"]
        self.rest = [stretch for stretch in stretches if stretch not in self.muon]
        self.buffers = [torch.zeros_like(stretch.value) for stretch in self.muon]
        self.adamw = adamw([(stretch.kind, stretch.value) for stretch in self.rest], spec, adapter_lr)
        for stretch, group in zip(self.rest, self.adamw.param_groups, strict=True):
            group["params"][0].grad = stretch.grad
        # at once: made in the first step they would lie in holes between activations, which then find none again
        self._begin(0)

    def _begin(self, steps: int) -> None:
        """AdamW's state after `steps` steps, its numbers still zero."""
        for stretch, group in zip(self.rest, self.adamw.param_groups, strict=False):
            parameter = group["params"][0]
            self.adamw.state[parameter] = {
                "step": torch.tensor(float(steps), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(stretch.value),
                "exp_avg_sq": torch.zeros_like(stretch.value),
            }

    @torch.no_grad()
    def step(self, rate: float, momentum: float) -> None:
        """One step at `rate` times each learning rate."""
        spec = self.spec
        set_rates(self.adamw, rate)
        self.adamw.step()
        lr = spec.muon_lr * rate
        for stretch, buffer in zip(self.muon, self.buffers, strict=True):
            direction = muon_direction(stretch.grad, buffer, momentum)
            update = orthogonalise(direction, spec.newton_schulz, self.dtype)
            scale = shape_scale(*stretch.value.shape[-2:])
            apply_update(stretch.value, update, lr, spec.muon_decay, spec.cautious, scale)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by stable names that do not depend on how weights are laid out."""
        tensors: dict[str, Tensor] = {}
        for stretch, buffer in zip(self.muon, self.buffers, strict=True):
            tensors.update({f"muon.momentum.{name}": view for name, view in stretch.split(buffer).items()})
        for stretch, group in zip(self.rest, self.adamw.param_groups, strict=True):
            state = self.adamw.state[group["params"][0]]
            for key in ("exp_avg", "exp_avg_sq"):
                tensors.update({f"adamw.{key}.{name}": view for name, view in stretch.split(state[key]).items()})
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
