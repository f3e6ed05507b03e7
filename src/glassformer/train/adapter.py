"""An adapter alone in training: low-rank parts beside frozen matrices (LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353).

The model's own weights are kept as they compute, or in blocks of 8 or 4 bits (`frozen.py`), and get no gradient. The
weights that are trained are the adapter's, and so are checkpoints and what the run writes (PEFT's layout). This module
knows parts of a model and a recipe; files are the checkpoint package's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassformer.errors import UnsupportedError, UsageError
from glassformer.model import Config, Transformer
from glassformer.model.layers import Linear
from glassformer.model.parts.experts import Product, Stack
from glassformer.train.frozen import BITS, Frozen
from glassformer.train.recipe import AdapterSpec, Recipe, short

if TYPE_CHECKING:
    from glassformer.checkpoint import Checkpoint
    from glassformer.checkpoint.adapter_writer import LowRankPart
    from glassformer.checkpoint.families.family import Family

KINDS = ("query", "key", "value", "output", "up", "down", "gate")
"""What matrices must be for an adapter to take them where the recipe names none."""


class LowRank(nn.Module):
    """A frozen matrix with a low-rank part beside it: x Wᵀ + scale · (x Aᵀ) Bᵀ, rows then scaled for DoRA.

    DoRA's lengths of rows are kept as what they differ by from the frozen matrix's, so that the adapter begins as no
    change in any number format; their divisor gets no gradient, as its authors have it.
    """

    own: Tensor | None

    def __init__(self, frozen: Frozen, bias: Tensor | None, spec: AdapterSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.frozen, self.scale = frozen, spec.scale
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        d_out, d_in = frozen.shape
        drawn = (2 * torch.rand(spec.rank, d_in, generator=generator) - 1) * d_in**-0.5
        self.lora_A = nn.Parameter(drawn)
        self.lora_B = nn.Parameter(torch.zeros(d_out, spec.rank))
        self.lora_length = nn.Parameter(torch.zeros(d_out)) if spec.adapter == "dora" else None
        own = None if self.lora_length is None else frozen.matrix().float().norm(dim=1)
        self.register_buffer("own", own, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d_in) through the matrix and its adapter: (…, d_out)."""
        y = self.frozen(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale
        if self.lora_length is not None:
            assert self.own is not None
            y = y * ((self.own + self.lora_length.float()) / self._length()).to(y.dtype)
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def _length(self) -> Tensor:
        """Lengths of the rows of W + scale · B A, without making it."""
        assert self.own is not None
        a, b = self.lora_A.float(), self.lora_B.float()
        across = (self.frozen.times(self.lora_A.T).float() * b).sum(1)
        within = ((b @ (a @ a.T)) * b).sum(1)
        return (self.own.square() + 2 * self.scale * across + self.scale**2 * within).clamp(min=1e-24).sqrt()

    @property
    def weight(self) -> Tensor:
        """The matrix with the adapter in it."""
        with torch.no_grad():
            whole = self.frozen.matrix().float() + self.scale * (self.lora_B.float() @ self.lora_A.float())
            if self.lora_length is not None and self.own is not None:
                whole = whole * ((self.own + self.lora_length.float()) / whole.norm(dim=1))[:, None]
            return whole.to(self.lora_A.dtype)


class LowRankStack(nn.Module):
    """Experts' frozen matrices with a low-rank part beside each: x W_eᵀ + scale · (x A_eᵀ) B_eᵀ."""

    def __init__(self, frozen: Frozen, bias: Tensor | None, spec: AdapterSpec, generator: torch.Generator, n: int):
        super().__init__()
        self.frozen, self.scale, self.n_experts = frozen, spec.scale, n
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        rows, d_in = frozen.shape
        drawn = (2 * torch.rand(n, spec.rank, d_in, generator=generator) - 1) * d_in**-0.5
        self.lora_A = nn.Parameter(drawn)
        self.lora_B = nn.Parameter(torch.zeros(n, rows // n, spec.rank))

    def each(self) -> Product:
        """As `Stack.each`."""
        own, a, b = _products(self.frozen, self.bias, self.n_experts), self.lora_A.unbind(0), self.lora_B.unbind(0)
        return lambda e, x: own(e, x) + F.linear(F.linear(x, a[e]), b[e]) * self.scale

    @property
    def weight(self) -> Tensor:
        """The matrices with the adapter in them."""
        with torch.no_grad():
            own = self.frozen.matrix().unflatten(0, (self.n_experts, -1)).float()
            return (own + self.scale * (self.lora_B.float() @ self.lora_A.float())).to(self.lora_A.dtype)


def _products(frozen: Frozen, bias: Tensor | None, n_experts: int) -> Product:
    """The products with frozen matrices, which stand one after another in one."""
    size = frozen.shape[0] // n_experts

    def product(expert: int, x: Tensor) -> Tensor:
        y: Tensor = frozen(x, slice(expert * size, (expert + 1) * size))
        return y if bias is None else y + bias[expert]

    return product


def targets(config: Config, family: Family, spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """The matrices that an adapter is trained for: native key -> (d_out, d_in), or (expert, d_out, d_in).

    `spec.targets` names matrices as this package calls them, such as `attn.q`, with `*` for any. Where it names none
    all are meant but experts' and routers'.

    Raises:
        UsageError: a name means none.
        UnsupportedError: the model has none that PEFT's layout holds an adapter for, or experts or a router are named
            for DoRA, which PEFT has not for them.
    """
    from glassformer.checkpoint.adapter_experts import OUTSIDE, experts_homes, routers
    from glassformer.checkpoint.adapter_writer import places

    able, parameters = places(config, family), {**experts_homes(config, family), **routers(config, family)}
    possible = {
        key: tuple(map(int, component.shape))
        for key, component in config.components().items()
        if key in parameters
        or (key.startswith("blocks.") and component.counted in KINDS and len(component.shape) == 2 and key in able)
    }
    if not possible:
        raise UnsupportedError(f"No matrix of this {family.name} can be adapted; fine-tune it whole.")
    if not spec.targets:
        return {key: shape for key, shape in possible.items() if key not in parameters}
    names = {key: short(key) for key in possible}
    for pattern in spec.targets:
        if not any(fnmatch(name, pattern) for name in names.values()):
            closed = {short(key) for key in config.components() if ".mlp.experts." in key and key.endswith(".weight")}
            if found := sorted(name for name in closed - set(names.values()) if fnmatch(name, pattern)):
                raise UnsupportedError(f"targets names {found[0]} of a part of this {family.name} {OUTSIDE}.")
            there = ", ".join(sorted(set(names.values())))
            raise UsageError(f"targets names {pattern}, and no matrix is called so; there are {there}.")
    chosen = {key: shape for key, shape in possible.items() if spec.names(key)}
    if spec.adapter == "dora" and (inside := [names[key] for key in chosen if key in parameters]):
        raise UnsupportedError(
            f"targets names {inside[0]}, and PEFT has no DoRA of experts and routers; set adapter=lora, or name others."
        )
    return chosen


def family_of(start: Checkpoint) -> Family:
    """The family in whose layout an adapter of this checkpoint is written."""
    from glassformer.checkpoint.families import for_config, named

    return for_config(start.config) if start.family == "native" else named(start.family)


def parameters(shapes: Mapping[str, tuple[int, ...]], spec: AdapterSpec) -> int:
    """How many numbers an adapter of these matrices trains."""
    each = spec.rank * sum(math.prod(experts) * (d_out + d_in) for *experts, d_out, d_in in shapes.values())
    return each + (sum(d_out for *_, d_out, _ in shapes.values()) if spec.adapter == "dora" else 0)


def adapted(start: Checkpoint, config: Config, recipe: Recipe, compute: torch.dtype) -> Transformer:
    """A checkpoint's model, frozen in the form that the recipe says, with a fresh adapter beside its matrices.

    Raises:
        UsageError, UnsupportedError: as `targets`.
    """
    spec = recipe.adapter
    chosen = targets(config, family_of(start), spec)
    generator = torch.Generator().manual_seed(recipe.loop.seed)
    transformer = Transformer.empty(config)
    for name, module in list(transformer.named_modules()):
        key = f"{name}.weight"
        packs = spec.base != "float" and name.startswith("blocks.")
        if key in chosen or (packs and isinstance(module, (Linear, Stack))):
            weight = start.tensors[key]
            frozen = Frozen(weight if weight.ndim == 2 else weight.flatten(0, 1), compute, spec.base)
            bias = None if module.bias is None else start.tensors[f"{name}.bias"].to(compute)
            put: nn.Module
            if weight.ndim == 3:
                n = len(weight)
                put = LowRankStack(frozen, bias, spec, generator, n) if key in chosen else RestingStack(frozen, bias, n)
            else:
                put = LowRank(frozen, bias, spec, generator) if key in chosen else Resting(frozen, bias)
            parent, _, last = name.rpartition(".")
            setattr(transformer.get_submodule(parent), last, put)
    for name, parameter in list(transformer.named_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            value = start.tensors[name].to(compute, copy=True)
            setattr(transformer.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    return transformer


class Resting(nn.Module):
    """A frozen matrix that no adapter is trained for."""

    def __init__(self, frozen: Frozen, bias: Tensor | None) -> None:
        super().__init__()
        self.frozen = frozen
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, d_in) through the matrix: (…, d_out)."""
        y: Tensor = self.frozen(x)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """The matrix."""
        return self.frozen.matrix()


class RestingStack(nn.Module):
    """Experts' frozen matrices that no adapter is trained for."""

    def __init__(self, frozen: Frozen, bias: Tensor | None, n_experts: int) -> None:
        super().__init__()
        self.frozen, self.n_experts = frozen, n_experts
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def each(self) -> Product:
        """As `Stack.each`."""
        return _products(self.frozen, self.bias, self.n_experts)

    @property
    def weight(self) -> Tensor:
        """The matrices."""
        return self.frozen.matrix().unflatten(0, (self.n_experts, -1))


def is_adapted(transformer: Transformer) -> bool:
    """Whether only an adapter of this model is trained."""
    return any(isinstance(module, (LowRank, LowRankStack)) for module in transformer.modules())


def parts(transformer: Transformer, tensors: Mapping[str, Tensor]) -> dict[str, LowRankPart]:
    """The adapter by the matrices' native keys, from the float32 weights of a run."""
    from glassformer.checkpoint.adapter_writer import LowRankPart

    found = {}
    for name, module in transformer.named_modules():
        if isinstance(module, LowRankStack):
            found[f"{name}.weight"] = LowRankPart(tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"])
        elif isinstance(module, LowRank):
            change = tensors.get(f"{name}.lora_length")
            lengths = None if change is None or module.own is None else module.own + change
            found[f"{name}.weight"] = LowRankPart(tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], lengths)
    return found


def digest(fetch: Callable[[str], Tensor], names: list[str]) -> str:
    """A short sum of a model's own weights, so that a resumed run can say when they are others."""
    import hashlib

    total = hashlib.sha256()
    for name in names:
        tensor = fetch(name).float()
        total.update(f"{name} {tuple(tensor.shape)} {float(tensor.double().sum())!r}".encode())
    return total.hexdigest()[:16]


__all__ = ["BITS", "LowRank", "adapted", "digest", "family_of", "is_adapted", "parameters", "parts", "targets"]
