"""All weights of a model in one buffer, with their gradients in another.

Training touches every weight at every step, and a small model has hundreds of small tensors: one buffer turns
hundreds of operations into a few. The float32 buffer holds the weights the optimiser steps (the masters); with
bfloat16 precision a second buffer holds the rounded copies that the model computes with, so which number is used
where is explicit and nothing is cast behind anybody's back. Matrices of one shape lie next to each other, so that
Muon sees a stack of them without copying. This module knows names and shapes, no optimiser and no loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["matrix", "embed", "head", "vector", "adapter"]
_NO_MATRIX = ("bias", "conv.weight", ".a_log", ".norm")
_ALIGN = 64  # elements: 128 bytes in bfloat16, so that no tensor shares a cache line with the next


def kind_of(name: str, shape: torch.Size | tuple[int, ...], *, tied: bool = False) -> Kind:
    """Which optimiser a parameter belongs to: an adapter's, blocks' matrices, embeddings, the unembedding, vectors."""
    if ".lora_" in name:
        return "adapter"
    if name == "embed.weight":
        return "head" if tied else "embed"
    if name in ("pos_embed.weight", "layer_inputs.embed.weight"):
        return "embed"
    if name == "unembed.weight":
        return "head"
    # experts' matrices are stacked, and so are their biases; what each channel or head has of its own is no matrix
    return "matrix" if len(shape) > 1 and not name.endswith(_NO_MATRIX) else "vector"


@dataclass(frozen=True)
class Stretch:
    """Parameters of one kind that lie together.

    Attributes:
        kind: what they are.
        names, shapes: their names and shapes, in order.
        value: the float32 masters: (count, rows, columns) for matrices of one shape, flat for the others.
        grad: their gradients, shaped like `value`.
    """

    kind: Kind
    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    value: Tensor
    grad: Tensor

    def split(self, laid_out: Tensor) -> dict[str, Tensor]:
        """Each parameter's view of a tensor laid out like `value`."""
        flat, views, at = laid_out.view(-1), {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            views[name] = flat[at : at + shape.numel()].view(shape)
            at += shape.numel()
        return views


class FlatWeights:
    """A module's parameters moved into one buffer; the module keeps working, on views of it.

    Args:
        module: its parameters that take gradients become views; they must be float32.
        compute: the dtype that the module computes with, float32 or bfloat16.
        tied: the embedding is the unembedding too.
    """

    def __init__(self, module: nn.Module, compute: torch.dtype, *, tied: bool = False) -> None:
        named = _trained(module)
        groups: dict[tuple[Kind, tuple[int, ...]], list[str]] = {}
        for name, parameter in named.items():
            kind = kind_of(name, parameter.shape, tied=tied)
            groups.setdefault((kind, tuple(parameter.shape) if kind == "matrix" else ()), []).append(name)
        device = next(iter(named.values())).device
        spans: list[tuple[Kind, tuple[str, ...], int, int, tuple[int, ...]]] = []
        self.offsets: dict[str, int] = {}
        end = 0
        for (kind, shape), names in groups.items():
            start = end
            for name in names:
                self.offsets[name] = end
                end += named[name].numel()
            spans.append((kind, tuple(names), start, end, (-1, *shape[-2:]) if kind == "matrix" else (-1,)))
            end = -(-end // _ALIGN) * _ALIGN
        self.compute, self._module = compute, module
        self.master = torch.zeros(end, dtype=torch.float32, device=device)
        self.grad = torch.zeros(end, dtype=torch.float32, device=device)
        self.working = self.master if compute == torch.float32 else torch.zeros(end, dtype=compute, device=device)
        self._first = True
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        for name, parameter in named.items():
            offset, count = self.offsets[name], parameter.numel()
            self.master[offset : offset + count].view(parameter.shape).copy_(parameter.data)
            parameter.data = self.working[offset : offset + count].view(parameter.shape)
            parameter.grad = self.view(self.grad, name) if compute == torch.float32 else None
        self.stretches = [
            Stretch(
                kind,
                names,
                tuple(self.shapes[name] for name in names),
                self.master[a:b].view(shape),
                self.grad[a:b].view(shape),
            )
            for kind, names, a, b, shape in spans
        ]
        self.publish()

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, the module computes with the float32 masters: what is saved, and what a published model is."""
        if self.working is self.master:
            yield
            return
        parameters = _trained(self._module)
        grads = {name: parameter.grad for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.grad = None
                parameter.data = self.view(self.master, name)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = self.view(self.working, name)
                parameter.grad = grads[name]

    def zero(self) -> None:
        """Forget the gradients, before the first micro-batch of a step."""
        self._first = True
        if self.working is self.master:
            self.grad.zero_()

    def collect(self) -> None:
        """Add what a micro-batch's backward left to the float32 gradients; call after each backward."""
        if self.working is self.master:
            return  # it is there
        for name, parameter in _trained(self._module).items():
            total, found = self.view(self.grad, name), parameter.grad
            if found is None:
                found = torch.zeros((), dtype=self.compute, device=total.device)
            if self._first:
                total.copy_(found)
            else:
                total.add_(found)
            parameter.grad = None
        self._first = False

    def publish(self) -> None:
        """Round the masters into what the module computes with; call after each optimiser step."""
        if self.working is not self.master:
            self.working.copy_(self.master)

    def view(self, buffer: Tensor, name: str) -> Tensor:
        """One parameter's view of a buffer laid out like the masters."""
        shape = self.shapes[name]
        offset = self.offsets[name]
        return buffer[offset : offset + math.prod(shape)].view(shape)

    def named(self) -> dict[str, Tensor]:
        """The float32 masters by name (views)."""
        return {name: self.view(self.master, name) for name in self.shapes}

    def named_grads(self) -> dict[str, Tensor]:
        """The float32 gradients by name (views)."""
        return {name: self.view(self.grad, name) for name in self.shapes}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the masters."""
        for name, target in self.named().items():
            target.copy_(tensors[name])
        self.publish()


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Root of the sum of squares of each component: embeddings, each block's attention and feed-forward part, rest."""
    sums: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        sums.setdefault(component(name), []).append(tensor)
    flat = {key: torch.stack(torch._foreach_norm(values)).norm() for key, values in sums.items()}
    return {key: float(value) for key, value in flat.items()}


def component(name: str) -> str:
    """The component a parameter belongs to: `blocks.3.attn.q.weight` → `blocks.3.attn`."""
    pieces = name.split(".")
    return ".".join(pieces[:3]) if pieces[0] == "blocks" else pieces[0]


def by_shape(items: Iterable[tuple[str, Tensor]]) -> dict[tuple[int, ...], list[tuple[str, Tensor]]]:
    """Named matrices grouped by shape, in order."""
    groups: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name, tensor in items:
        groups.setdefault(tuple(tensor.shape), []).append((name, tensor))
    return groups
