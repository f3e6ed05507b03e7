"""The small functions that parts share: matrix product, activation, soft cap.

Everything here is a function of tensors and the numbers in a `Config`; nothing knows about layers,
caches or families.

Shape suffixes: (batch, query, d_model) unless a signature says otherwise.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.kernels import ops

# Below this many rows the call costs more than the product.
_ONEDNN_ROWS = 32


def _onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's float32 product on dense weights, where torch has it and it is the quicker one.

    MKL uses AVX-512 on Intel's processors only; there the two are equal and `F.linear` is kept. The
    choice depends on the processor alone, so a run repeats to the bit on the same machine.
    """
    if not torch.backends.mkldnn.is_available() or "GenuineIntel" in _processor():
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return platform.processor()


_ONEDNN = _onednn_linear()


class _OneDnnProduct(torch.autograd.Function):
    """x @ weight.T + bias in float32 through oneDNN, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        assert _ONEDNN is not None
        return _ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # ty: ignore
        assert _ONEDNN is not None
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[0]:
            grad_x = _ONEDNN(rows, weight.t(), None, "none", [], "").view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = _ONEDNN(rows.t(), x.reshape(-1, x.shape[-1]).t(), None, "none", [], "")
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def linear(
    x: Float[Tensor, "*batch d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*batch d_out"]:
    """x @ weight.T + bias.

    In float32 on a CPU with many rows it goes through the processor's tiles where it has them
    (docs/decisions/0016), and through oneDNN where that uses the whole width of the processor and
    MKL, behind `F.linear`, does not (docs/decisions/0002). All of them agree within float32's rounding.
    """
    if (out := ops.linear(x, weight, bias)) is not None:
        return out
    if (
        _ONEDNN is not None
        and x.dtype == torch.float32 == weight.dtype
        and x.device.type == "cpu"
        and x.numel() >= _ONEDNN_ROWS * x.shape[-1]
        and not torch.compiler.is_compiling()
        and type(weight) in (Tensor, nn.Parameter)
        and type(x) is Tensor
        and not torch._C._functorch.peek_interpreter_stack()
    ):
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _OneDnnProduct.apply(x, weight, bias)
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Module):
    """A matrix product with its weight (d_out, d_in) and, where the design has one, a bias."""

    def __init__(self, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function of this name."""
    return {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }[name]


def gate(name: str, pre: Tensor, linear: Tensor | None = None) -> Tensor:
    """act(pre) × linear, or act(pre) alone."""
    if (out := ops.gated(name, pre, linear)) is not None:
        return out
    h = activation(name)(pre)
    return h if linear is None else h * linear


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): squeezes numbers into (-cap, cap)."""
    return x if cap is None else cap * torch.tanh(x / cap)
