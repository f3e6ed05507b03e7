"""A short convolution with gates on both sides as a module (LFM2, arXiv:2511.23404)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.model.cache import State
from glassformer.model.choices import ShortConvolution
from glassformer.model.layers import Linear
from glassformer.model.parts.channels import ChannelsPart, Kept
from glassformer.model.parts.convolution import Convolution, tail_of, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import View, see


class ShortConvolutionPart(ChannelsPart):
    """One layer's short convolution: gate ⊙ conv(gate_in ⊙ v), then the output projection.

    A channel's share of a position is the convolution's weight at that distance, the same in every text.
    """

    choice: ShortConvolution

    def __init__(self, choice: ShortConvolution, d_model: int, layer: int) -> None:
        super().__init__(choice, layer)
        width, bias = choice.width, choice.bias
        self.gate_in, self.gate, self.v = (Linear(d_model, width, bias) for _ in range(3))
        self.conv = Convolution(width, choice.conv, choice.conv_bias)
        self.o = Linear(width, d_model, bias)

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What gates each channel's output."""
        return self.gate(x)[:, :, None]

    def gates_in(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What gates what each channel takes in."""
        return self.gate_in(x)[:, :, None]

    def taken(
        self, x: Float[Tensor, "batch query d_model"], before: State | None, state: Pass, view: View | None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch before channel"]]:
        v = see(view, "conv.gate_in", self.gates_in(x)) * self.v(x)[:, :, None]
        text = text_of(state, x)
        if text is not None:
            v = v * text[..., None]  # the convolution does not see padding
        v = see(view, "conv.v", v)
        earlier = v[:, :0, 0] if before is None else before["conv"]
        return {"v": v}, tail_of(torch.cat([earlier, v[:, :, 0]], 1), self.choice.conv)

    def scan(self, kept: Kept, before: State | None = None) -> tuple[Tensor, State]:
        return self.conv(kept["v"][:, :, 0], None if before is None else before["conv"])[0][:, :, None], {}

    def shares(
        self, kept: Kept, first: int = 0, channels: slice = slice(None)
    ) -> Float[Tensor, "batch channel query key"]:
        weight, length = self.conv.weight[channels], kept["v"].shape[1]
        slots = torch.arange(length, device=weight.device)
        back = slots[first:, None] - slots
        within = (back >= 0) & (back < self.choice.conv)
        found = weight[:, (self.choice.conv - 1 - back).clamp(0, self.choice.conv - 1)] * within
        return found.expand(kept["v"].shape[0], -1, -1, -1)

    def carried(self, x: Float[Tensor, "batch last d_model"], kept: Kept) -> State:
        return {"conv": tail_of(kept["v"][:, :, 0], self.choice.conv)}

    @property
    def constant(self) -> Float[Tensor, " channel"] | None:
        return self.conv.bias
