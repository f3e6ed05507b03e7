"""A gated linear recurrence of single channels as a module (RG-LRU, arXiv:2402.19427)."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.cache import State
from glassformer.model.choices import GatedLinearRecurrence
from glassformer.model.layers import Linear, gate
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.channels import ChannelsPart, Kept, scanned
from glassformer.model.parts.convolution import Convolution, tail_of, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import View, see

CHUNK = 256  # positions whose states are held at once
SHARPNESS = 8.0  # what the paper calls c


class GatedLinearRecurrencePart(ChannelsPart):
    """One layer's gated linear recurrence: h_t = a_t h_{t-1} + v_t, channel by channel, where a_t is e^decay_t.

    A channel's share of position s in t is the product of a over the positions after s up to t.
    """

    choice: GatedLinearRecurrence

    def __init__(self, choice: GatedLinearRecurrence, d_model: int, layer: int) -> None:
        super().__init__(choice, layer)
        width = choice.width
        self.gate, self.x = Linear(d_model, width, True), Linear(d_model, width, True)
        self.conv = Convolution(width, choice.conv, True)
        self.gate_in, self.keep = Blocks(choice.blocks, width), Blocks(choice.blocks, width)
        self.rate = nn.Parameter(torch.empty(width))
        self.o = Linear(width, d_model, True)
        self.activation = functools.partial(gate, choice.activation)

    @torch.no_grad()
    def begin(self, generator: torch.Generator | None = None) -> None:
        """Fresh rates: with its gate open a channel keeps between 0.9 and 0.999 of its number, to the eighth power."""
        kept = torch.rand(self.choice.width, generator=generator) * (0.999**2 - 0.9**2) + 0.9**2
        self.rate.copy_(torch.log(torch.expm1(-0.5 * kept.log())))

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        return self.activation(self.gate(x))[:, :, None]

    def taken(
        self, x: Float[Tensor, "batch query d_model"], before: State | None, state: Pass, view: View | None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch before channel"]]:
        joined, text = self.x(x), text_of(state, x)
        joined = joined if text is None else joined * text
        y, tail = self.conv(joined, None if before is None else before["conv"])
        gate_in = see(view, "lru.gate_in", torch.sigmoid(self.gate_in(y))[:, :, None])
        rate = F.softplus(at_least_float32(self.rate))
        decay = -SHARPNESS * torch.sigmoid(at_least_float32(self.keep(y)))[:, :, None] * rate
        if text is not None:  # padding neither decays nor enters the state
            decay, y = decay * text[..., None], y * text
        decay = see(view, "lru.decay", decay)
        # a text's first position takes its input in whole
        first = (state.where.positions == 0)[..., None, None]
        share = torch.where(first, 1.0, torch.sqrt(-torch.expm1(2 * decay.masked_fill(first, -1.0))))
        v = see(view, "lru.v", y[:, :, None] * gate_in * share.to(y.dtype))
        return {"gate_in": gate_in, "decay": decay, "v": v}, tail

    def scan(self, kept: Kept, before: State | None = None) -> tuple[Tensor, State]:
        v, decay = at_least_float32(kept["v"]).transpose(2, 3), at_least_float32(kept["decay"]).transpose(2, 3)
        state, out = v.new_zeros(v[:, 0].shape) if before is None else before["state"], []
        for start in range(0, v.shape[1], CHUNK):
            states = scanned(decay[:, start : start + CHUNK], v[:, start : start + CHUNK], state)
            out.append(states)
            state = states[:, -1]
        return torch.cat(out, 1).transpose(2, 3).to(kept["v"].dtype), {"state": state}

    def shares(
        self, kept: Kept, first: int = 0, channels: slice = slice(None)
    ) -> Float[Tensor, "batch channel query key"]:
        passed = at_least_float32(kept["decay"])[:, :, 0, channels].transpose(1, 2).cumsum(-1)
        gaps = passed[..., first:, None] - passed[..., None, :]
        past = torch.ones(gaps.shape[-2:], dtype=torch.bool, device=gaps.device).tril(first)
        return torch.exp(gaps.masked_fill(~past, 0.0)).masked_fill(~past, 0.0)

    def carried(self, x: Float[Tensor, "batch last d_model"], kept: Kept) -> State:
        return {"conv": tail_of(self.x(x), self.choice.conv), **self.scan(kept)[1]}


class Blocks(nn.Module):
    """A matrix for each block of channels: weight (block, out, in), bias (block, out)."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        size = width // blocks
        self.weight = nn.Parameter(torch.empty(blocks, size, size))
        self.bias = nn.Parameter(torch.empty(blocks, size))

    def forward(self, x: Float[Tensor, "batch slot channel"]) -> Float[Tensor, "batch slot channel"]:
        """Each block of channels through its matrix."""
        each = x.unflatten(-1, (self.weight.shape[0], -1))
        return (torch.einsum("btni,noi->btno", each, self.weight) + self.bias).flatten(-2)
