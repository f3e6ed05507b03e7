"""The dense feed-forward part as a module."""

from __future__ import annotations

import functools

from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import FeedForward
from glassformer.model.layers import Linear, gate
from glassformer.model.sites import View, see


class FeedForwardPart(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated; its sites begin with `at`."""

    def __init__(self, choice: FeedForward, d_model: int, at: str = "mlp.") -> None:
        super().__init__()
        f = self.choice = choice
        self.at = at
        self.gate = Linear(d_model, f.d_ff, f.bias) if f.gated else None
        self.up = Linear(d_model, f.d_ff, f.bias)
        self.down = Linear(f.d_ff, d_model, f.bias)
        self.activation = functools.partial(gate, f.activation)

    @property
    def columns(self) -> Float[Tensor, "d_model d_ff"]:
        """What each neuron writes."""
        return self.down.weight

    def forward(self, x: Float[Tensor, "*batch d_model"], view: View | None = None) -> Float[Tensor, "*batch d_model"]:
        if self.gate is None:
            h = self.activation(see(view, self.at + "pre", self.up(x)))
        else:
            pre = see(view, self.at + "pre", self.gate(x))
            h = self.activation(pre, see(view, self.at + "pre_linear", self.up(x)))
        return self.down(see(view, self.at + "post", h))
