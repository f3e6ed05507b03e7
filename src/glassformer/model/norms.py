"""RMSNorm and LayerNorm, in the forms that the forward and the decompositions need."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.kernels import ops
from glassformer.model.choices import Norm
from glassformer.model.sites import View, see


class NormLayer(nn.Module):
    """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450) over the last axis, in at least float32."""

    def __init__(self, d: int, norm: Norm, heads: int | None = None) -> None:
        super().__init__()
        self.shape = (d,)
        held = (d,) if heads is None else (heads, d)  # a weight for each head where they have their own
        self.eps = norm.eps
        self.one_plus = norm.one_plus
        self.centred = norm.kind == "layer"
        self.weight = nn.Parameter(torch.empty(held)) if norm.weight else None
        self.bias = nn.Parameter(torch.empty(held)) if norm.biased else None

    def forward(self, x: Tensor, view: View | None = None, name: str = "") -> Tensor:
        """The normed stream; `name` prefixes the sites `.scale` and `.normed` when somebody looks."""
        if view is None or not view.wants(f"{name}.scale"):
            return see(view, f"{name}.normed", self._fused(x))
        scale = view.visit(f"{name}.scale", self.scale(x))
        return see(view, f"{name}.normed", self.apply_scale(x, scale))

    def _fused(self, x: Tensor) -> Tensor:
        gain = self.gain
        if gain is not None and gain.ndim > 1:
            return self.apply_scale(x, self.scale(x))
        if self.centred:
            return F.layer_norm(x, self.shape, gain, self.bias, self.eps)
        if self.weight is not None and self.bias is None:
            return ops.rms_norm(x, self.weight, float(self.one_plus), self.eps)
        if x.dtype in (torch.float32, torch.float64):
            out = F.rms_norm(x, self.shape, gain, self.eps)
            return out if self.bias is None else out + self.bias
        return self.apply_scale(x, self.scale(x))

    @property
    def gain(self) -> Float[Tensor, "*head d"] | None:
        """What the divided stream is multiplied by; None where nothing is learned."""
        return 1.0 + self.weight if self.one_plus and self.weight is not None else self.weight

    def scale(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
        """What the norm divides by: the root mean square (about the mean, for LayerNorm)."""
        wide = at_least_float32(x)
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        return (wide.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def apply_scale(self, x: Float[Tensor, "*batch d"], scale: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch d"]:
        """The norm with its divisor given: linear in `x`, which is what decompositions need."""
        wide = at_least_float32(x)
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        out = wide / scale.to(wide.dtype)
        if self.one_plus and self.weight is not None:
            out = (out * (1.0 + at_least_float32(self.weight))).to(x.dtype)
        else:
            out = out.to(x.dtype)
            if self.weight is not None:
                out = out * self.weight
        return out if self.bias is None else out + self.bias


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 where it is of fewer bits."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
