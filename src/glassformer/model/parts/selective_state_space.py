"""A selective state space of single channels as a module (Mamba 1, arXiv:2312.00752)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.cache import State
from glassformer.model.choices import Norm, SelectiveStateSpace
from glassformer.model.layers import Linear
from glassformer.model.norms import NormLayer, at_least_float32
from glassformer.model.parts.channels import ChannelsPart, Kept, scanned
from glassformer.model.parts.convolution import Convolution, tail_of, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import View, see

CHUNK = 64  # positions whose states are held at once


class SelectiveStateSpacePart(ChannelsPart):
    """One layer's state space of single channels.

    Number n of a channel's state is h_t = exp(dt_t a_n) h_{t-1} + dt_t b_t[n] x_t, and the channel reads
    Σ_n c_t[n] h_t[n] + skip · x_t. So its share of position s in t is Σ_n c_t[n] b_s[n] dt_s exp(a_n Σ_{s<r≤t} dt_r),
    plus skip where s = t.
    """

    choice: SelectiveStateSpace

    def __init__(self, choice: SelectiveStateSpace, d_model: int, layer: int) -> None:
        super().__init__(choice, layer)
        c = choice
        self.gate, self.x = Linear(d_model, c.width, c.bias), Linear(d_model, c.width, c.bias)
        self.conv = Convolution(c.width, c.conv, c.conv_bias)
        self.dt_in = Linear(c.width, c.dt_rank, False)
        self.b, self.c = Linear(c.width, c.d_state, False), Linear(c.width, c.d_state, False)
        for name, size in (("dt_in", c.dt_rank), ("b", c.d_state), ("c", c.d_state)):
            normed = (
                None
                if c.inner_norm is None
                else NormLayer(size, Norm("rms", eps=c.inner_eps, weight=c.inner_norm == "weighted"))
            )
            self.add_module(f"{name}_norm", normed)
        self.dt = Linear(c.dt_rank, c.width, True)
        self.a_log = nn.Parameter(torch.empty(c.width, c.d_state))
        self.skip = nn.Parameter(torch.empty(c.width))
        self.o = Linear(c.width, d_model, c.bias)

    @torch.no_grad()
    def begin(self, generator: torch.Generator | None = None) -> None:
        """Fresh decays, from 1 to the size of the state, and time steps between 0.001 and 0.1 (Mamba's choice)."""
        c = self.choice
        self.a_log.copy_(torch.arange(1, c.d_state + 1).log().expand(c.width, -1))
        reach = math.log(0.1) - math.log(0.001)
        dt = torch.exp(torch.rand(c.width, generator=generator) * reach + math.log(0.001)).clamp(min=1e-4)
        assert self.dt.bias is not None
        self.dt.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.skip.fill_(1.0)

    @property
    def decay(self) -> Float[Tensor, "channel d_state"]:
        """a, below zero."""
        return -torch.exp(at_least_float32(self.a_log))

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        return F.silu(self.gate(x))[:, :, None]

    def taken(
        self, x: Float[Tensor, "batch query d_model"], before: State | None, state: Pass, view: View | None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch before channel"]]:
        joined, text = self.x(x), text_of(state, x)
        out, tail = self.conv(joined if text is None else joined * text, None if before is None else before["conv"])
        values = see(view, "mamba.x", F.silu(out)[:, :, None])
        b, c, dt = self.chosen(values[:, :, 0])
        if text is not None:
            dt = dt * text[..., None]  # padding neither decays nor enters the state
        b, c, dt = see(view, "mamba.b", b), see(view, "mamba.c", c), see(view, "mamba.dt", dt)
        return {"x": values, "b": b, "c": c, "dt": dt}, tail

    def chosen(self, x: Float[Tensor, "batch slot channel"]) -> tuple[Tensor, Tensor, Tensor]:
        """What x chooses: b and c (batch, slot, d_state), and each channel's time step (batch, slot, head, d_head), in
        at least float32."""
        found = []
        for name in ("dt_in", "b", "c"):
            y, norm = getattr(self, name)(x), getattr(self, f"{name}_norm")
            found.append(y if norm is None else norm(y))
        raw, b, c = found
        return b, c, F.softplus(at_least_float32(self.dt(raw)))[:, :, None]

    def scan(self, kept: Kept, before: State | None = None) -> tuple[Tensor, State]:
        x, dt = at_least_float32(kept["x"])[:, :, 0], at_least_float32(kept["dt"])[:, :, 0]
        b, c = at_least_float32(kept["b"]), at_least_float32(kept["c"])
        state = x.new_zeros(x.shape[0], *self.a_log.shape) if before is None else before["state"]
        decay, out = self.decay, []
        for start in range(0, x.shape[1], CHUNK):
            at = slice(start, start + CHUNK)
            taken = (dt[:, at] * x[:, at])[..., None] * b[:, at, None, :]
            states = scanned(dt[:, at, :, None] * decay, taken, state)
            out.append(torch.einsum("btcn,btn->btc", states, c[:, at]))
            state = states[:, -1]
        y = (torch.cat(out, 1) if len(out) > 1 else out[0]) + at_least_float32(self.skip) * x
        return y[:, :, None].to(kept["x"].dtype), {"state": state}

    def shares(
        self, kept: Kept, first: int = 0, channels: slice = slice(None)
    ) -> Float[Tensor, "batch channel query key"]:
        b, c = at_least_float32(kept["b"]), at_least_float32(kept["c"])[:, first:]
        dt = at_least_float32(kept["dt"])[:, :, 0, channels].transpose(1, 2)  # (batch, channel, slot)
        passed = dt.cumsum(-1)
        gaps = passed[..., first:, None] - passed[..., None, :]
        past = torch.ones(gaps.shape[-2:], dtype=torch.bool, device=gaps.device).tril(first)
        gaps = gaps.masked_fill(~past, 0.0)  # what is to come would grow beyond all numbers
        decay = self.decay[channels]
        grid = torch.zeros_like(gaps)
        for n in range(self.choice.d_state):
            met = c[:, :, n, None] * b[:, None, :, n]
            grid = torch.addcmul(grid, torch.exp(decay[:, n, None, None] * gaps), met[:, None])
        grid = grid.masked_fill(~past, 0.0) * dt[..., None, :]
        own = torch.eye(gaps.shape[-1], dtype=grid.dtype, device=grid.device)[first:]
        return grid + at_least_float32(self.skip)[channels, None, None] * own

    def carried(self, x: Float[Tensor, "batch last d_model"], kept: Kept) -> State:
        return {"conv": tail_of(self.x(x), self.choice.conv), **self.scan(kept)[1]}
