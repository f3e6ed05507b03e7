"""The small parts: matrix product, norm, activation, rotary position.

Everything here is a function of tensors and the numbers in a `Config`; nothing knows about layers,
caches or families.

Shape suffixes: (batch, query, d_model) unless a signature says otherwise.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glassformer.kernels import ops
from glassformer.model.config import Config, Position, RopeScaling
from glassformer.model.sites import View, see

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


class NormLayer(nn.Module):
    """RMSNorm or LayerNorm over the last axis, computed in at least float32."""

    def __init__(self, d: int, config: Config, *, kind: str | None = None) -> None:
        super().__init__()
        self.eps = config.norm.eps
        self.one_plus = config.norm.one_plus
        self.centred = (kind or config.norm.kind) == "layer"
        self.weight = nn.Parameter(torch.empty(d))
        self.bias = nn.Parameter(torch.empty(d)) if self.centred else None

    def forward(self, x: Tensor, view: View | None = None, name: str = "") -> Tensor:
        """The normed stream; `name` prefixes the sites `.scale` and `.normed` when somebody looks."""
        if view is None or not view.wants(f"{name}.scale"):
            return see(view, f"{name}.normed", self._fused(x))
        scale = view.visit(f"{name}.scale", self.scale(x))
        return see(view, f"{name}.normed", self.apply_scale(x, scale))

    def _fused(self, x: Tensor) -> Tensor:
        if self.centred:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        if (out := ops.rms_norm(x, self.weight, float(self.one_plus), self.eps)) is not None:
            return out
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, self.weight.shape, 1.0 + self.weight if self.one_plus else self.weight, self.eps)
        return self.apply_scale(x, self.scale(x))

    def scale(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
        """What the norm divides by: the root mean square (about the mean, for LayerNorm)."""
        wide = _wide(x)
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        return (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def apply_scale(self, x: Float[Tensor, "*batch d"], scale: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch d"]:
        """The norm with its divisor given: linear in `x`, which is what decompositions need."""
        wide = _wide(x)
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        out = wide / scale.to(wide.dtype)
        if self.one_plus:
            return (out * (1.0 + _wide(self.weight))).to(x.dtype)
        out = out.to(x.dtype) * self.weight
        return out if self.bias is None else out + self.bias


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function of this name."""
    return {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
        "relu2": lambda x: F.relu(x).square(),
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


class Rotary:
    """The angles of rotary positions (arXiv:2104.09864), one table per base.

    The frequencies are computed in float32 whatever the weights' precision, as the checkpoints were
    trained; a float64 model uses the same float32 frequencies, so it is the same function.
    """

    def __init__(self, dims: int, theta: float, scaling: RopeScaling | None) -> None:
        self.dims = dims
        self.frequencies = _frequencies(dims, theta, scaling)
        self.factor = scaling.attention_factor if scaling is not None and scaling.kind == "yarn" else 1.0
        self._on: dict[torch.device, Tensor] = {}

    def __call__(
        self, positions: Int[Tensor, "batch query"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch query 1 pair"], Float[Tensor, "batch query 1 pair"]]:
        """Cosine and sine of every rotated pair's angle at every position."""
        frequencies = self._on.get(positions.device)
        if frequencies is None:
            frequencies = self._on[positions.device] = self.frequencies.to(positions.device)
        angles = positions[..., None, None].float() * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        return cos.to(dtype), sin.to(dtype)


def rotate(
    x: Float[Tensor, "batch query head d_head"], cos: Tensor, sin: Tensor
) -> Float[Tensor, "batch query head d_head"]:
    """Turn the first 2·pair dimensions of every head; the first half pairs with the second half."""
    if (out := ops.rotate(x, cos, sin)) is not None:
        return out
    pairs = cos.shape[-1]
    first, second = x[..., :pairs], x[..., pairs : 2 * pairs]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if 2 * pairs < x.shape[-1]:
        turned.append(x[..., 2 * pairs :])
    return torch.cat(turned, dim=-1)


def rotaries(config: Config) -> tuple[Rotary | None, Rotary | None]:
    """The angle tables of layers without and with a sliding window (None with learned positions)."""
    position: Position = config.position
    if position.kind != "rotary":
        return None, None
    full = Rotary(config.rotary_dims, position.theta, position.scaling)
    if position.local_theta is None:
        return full, full
    return full, Rotary(config.rotary_dims, position.local_theta, None)


def _frequencies(dims: int, theta: float, scaling: RopeScaling | None) -> Float[Tensor, " pair"]:
    powers = theta ** (torch.arange(0, dims, 2, dtype=torch.int64, device="cpu").float() / dims)
    frequencies = 1.0 / powers
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.factors, dtype=torch.float32, device="cpu")
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    return _yarn(powers, dims, theta, scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_context * frequencies / (2 * math.pi)
    blend = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn(powers: Tensor, dims: int, theta: float, scaling: RopeScaling) -> Tensor:
    def pair_that_turns(times: float) -> float:
        return dims * math.log(scaling.original_context / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = max(math.floor(pair_that_turns(scaling.high)), 0)
    last = min(math.ceil(pair_that_turns(scaling.low)), dims - 1)
    width = max(last - first, 0.001)
    slow = ((torch.arange(dims // 2, dtype=torch.float32, device="cpu") - first) / width).clamp(0, 1)
    return (1.0 / (scaling.factor * powers)) * slow + (1.0 / powers) * (1 - slow)
