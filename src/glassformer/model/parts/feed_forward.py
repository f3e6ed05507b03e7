"""The dense feed-forward part as a module."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import FeedForward
from glassformer.model.choices.feed_forward import LEARNED
from glassformer.model.layers import Linear, gate
from glassformer.model.norms import NormLayer
from glassformer.model.sites import View, see


class FeedForwardPart(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated; its sites begin with `at`."""

    alpha_p: Tensor
    alpha_n: Tensor
    beta: Tensor
    eps: Tensor

    def __init__(self, choice: FeedForward, d_model: int, at: str = "mlp.") -> None:
        super().__init__()
        f = self.choice = choice
        self.at = at
        self.gate = Linear(d_model, f.d_ff, f.bias) if f.gated else None
        self.up = Linear(d_model, f.d_ff, f.bias)
        self.out_norm = None if f.out_norm is None else NormLayer(f.d_ff, f.out_norm)
        self.down = Linear(f.d_ff, d_model, f.bias)
        if f.activation == "xielu":
            for name in LEARNED:
                size = (1,) if name.startswith("alpha") else ()
                self.register_parameter(name, nn.Parameter(torch.empty(size)))
            self.activation: Callable[..., Tensor] = self.xielu
        else:
            self.activation = functools.partial(gate, f.activation)

    @property
    def columns(self) -> Float[Tensor, "d_model d_ff"]:
        """What each neuron writes."""
        return self.down.weight

    def forward(self, x: Float[Tensor, "*batch d_model"], view: View | None = None) -> Float[Tensor, "*batch d_model"]:
        """What the part adds to the residual stream."""
        pre = see(view, self.at + "pre", self.pre(x))
        if self.gate is None:
            h = self.post(pre, None)
        else:
            h = self.post(pre, see(view, self.at + "pre_linear", self.up(x)))
        return self.down(see(view, self.at + "post", h))

    def post(
        self, pre: Float[Tensor, "*batch d_ff"], up: Float[Tensor, "*batch d_ff"] | None
    ) -> Float[Tensor, "*batch d_ff"]:
        """What the down projection reads, from neurons' inputs and the linear half where there is one."""
        f = self.choice
        pre = self.sparse(pre) if f.sparsity else pre
        if up is not None:
            if f.clamp is not None:
                pre, up = pre.clamp(max=f.clamp), up.clamp(-f.clamp, f.clamp)
            up = up + f.linear_shift if f.linear_shift else up
        h = self.activation(pre) if up is None else self.activation(pre, up)
        return h if self.out_norm is None else self.out_norm(h)

    def pre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_ff"]:
        """What the activation reads."""
        pre = self.up(x) if self.gate is None else self.gate(x)
        return pre if self.choice.pre_scale == 1 else pre * self.choice.pre_scale

    def sparse(self, pre: Float[Tensor, "*batch d_ff"]) -> Float[Tensor, "*batch d_ff"]:
        """How far each gate stands above the cut that leaves about as many on as the design says, 0 below it."""
        normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
        times = float(normal.icdf(torch.tensor(self.choice.sparsity, dtype=torch.float32)))
        cut = pre.mean(-1, keepdim=True) + times * pre.std(-1, keepdim=True, unbiased=False)
        return F.relu(pre - cut)

    def xielu(self, x: Float[Tensor, "*batch d_ff"]) -> Float[Tensor, "*batch d_ff"]:
        """A quadratic above zero and an integrated exponential below, of learned strengths (arXiv:2411.13010)."""
        up, down = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        below = (torch.expm1(torch.minimum(x, self.eps)) - x) * down
        return torch.where(x > 0, up * x * x, below) + self.beta * x
