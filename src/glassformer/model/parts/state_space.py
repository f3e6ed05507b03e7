"""A selective state space as a module (Mamba 2, arXiv:2405.21060)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import StateSpace
from glassformer.model.layers import Linear
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.convolution import Convolution, state_before, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.parts.recurrence import ConvolvedHeadsPart
from glassformer.model.sites import View, see

PROJECTIONS = ("gate", "x", "b", "c", "dt")
CHUNK = 64  # positions whose grid is formed at once; between chunks the state is carried


class StateSpacePart(ConvolvedHeadsPart):
    """One layer's state space.

    The state of a head at position t is S_t = exp(dt_t · a) S_{t-1} + dt_t · x_t b_tᵀ, and what it
    reads is S_t c_t + skip · x_t. Written out, position t receives Σ_s G[t, s] x_s with
    G[t, s] = (c_t · b_s) dt_s exp(a Σ_{s<r≤t} dt_r), plus skip where s = t: the grid of `pattern`.
    """

    def __init__(self, choice: StateSpace, d_model: int, layer: int) -> None:
        super().__init__()
        c = self.choice = choice
        self.layer = layer
        self.heads, self.d_head, self.d_value, self.groups = c.n_heads, c.d_head, c.d_head, c.n_groups
        inner, group, _ = c.widths
        self.gate = Linear(d_model, inner, c.bias)
        self.x = Linear(d_model, inner, c.bias)
        self.b = Linear(d_model, group, c.bias)
        self.c = Linear(d_model, group, c.bias)
        self.dt = Linear(d_model, c.n_heads, c.bias)
        self.conv = Convolution(sum(c.widths), c.conv, c.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(c.n_heads))
        self.a_log = nn.Parameter(torch.empty(c.n_heads))
        self.skip = nn.Parameter(torch.empty(c.n_heads))
        self.norm = GroupedNorm(inner, c.norm_groups, c.norm_eps) if c.norm else None
        self.o = Linear(inner, d_model, c.writes_bias)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What the mixer adds to the residual stream at each position."""
        return self.write(self.mix(self.ready(x, state, view), state, view))

    def ready(self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None) -> dict[str, Tensor]:
        """Everything that the state is updated and read with: the first step of the forward."""
        text, before = text_of(state, x), state_before(state, self.layer, x.shape[0])
        gate = see(view, "ssm.gate", self.gates(x))
        mixed, tail = self.convolved(x, None if before is None else before["conv"], text)
        values, b, c = self.split(mixed)
        values, b, c = see(view, "ssm.x", values), see(view, "ssm.b", b), see(view, "ssm.c", c)
        dt = self.steps(x)
        if text is not None:
            dt = dt * text  # padding neither decays nor enters the state
        found = {"gate": gate, "x": values, "b": b, "c": c, "dt": see(view, "ssm.dt", dt), "tail": tail}
        return found if before is None else {**found, "earlier": before["state"]}

    def grid(self, ready: Mapping[str, Tensor], state: Pass, view: View) -> Float[Tensor, "batch head query key"]:
        """The grid that the decays imply, as a tap sees and changes it."""
        return view.visit("ssm.pattern", self.implied(ready))

    def mix(
        self, ready: Mapping[str, Tensor], state: Pass, view: View | None, grid: Tensor | None = None
    ) -> Float[Tensor, "batch query head d_head"]:
        """What the heads read, gated and normed; by `grid` where that is given."""
        values, b, c, dt, earlier = *(ready[name] for name in ("x", "b", "c", "dt")), ready.get("earlier")
        if grid is None and view is not None and view.wants("ssm.pattern"):
            grid = self.grid(ready, state, view)
        if grid is not None:
            y = self.read(grid, values)
            if earlier is not None:
                y = y + self.read_state(earlier, c, dt)
            after = None if state.cache is None else self.scan(values, b, c, dt, earlier)[1]
        else:
            y, after = self.scan(values, b, c, dt, earlier)
        if state.cache is not None and after is not None:
            state.cache.hold(self.layer, {"conv": ready["tail"], "state": after})
        y = see(view, "ssm.mixed", y)
        return see(view, "ssm.z", self.finish(y, ready["gate"]))

    def write(self, z: Float[Tensor, "batch query head d_head"]) -> Float[Tensor, "batch query d_model"]:
        """What the heads add to the stream."""
        return self.o(z.reshape(*z.shape[:2], -1))

    @torch.no_grad()
    def begin(self, generator: torch.Generator | None = None) -> None:
        """Fresh decays, from 1 to the number of heads, and time steps between 0.001 and 0.1 (Mamba 2's choice)."""
        self.a_log.copy_(torch.arange(1, self.heads + 1).log())
        dt = torch.exp(torch.rand(self.heads, generator=generator) * 4.605 - 6.908).clamp(min=1e-4)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        self.skip.fill_(1.0)

    # The steps, each a function of its own so that what a trace kept can be taken from the middle

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What gates each head's output, after its activation."""
        return F.silu(self._scaled("gate", x)).view(*x.shape[:2], self.heads, self.d_head)

    def convolved(
        self,
        x: Float[Tensor, "batch query d_model"],
        tail: Float[Tensor, "batch before channel"] | None = None,
        text: Float[Tensor, "batch query 1"] | None = None,
    ) -> tuple[Float[Tensor, "batch query channel"], Float[Tensor, "batch before channel"]]:
        """x, b and c side by side after the convolution and its activation, and the inputs the next call needs; where
        `text` is 0 stands padding, which the convolution does not see."""
        joined = self.joined(x)
        if text is not None:
            joined = joined * text
        out, tail = self.conv(joined, tail)
        return F.silu(out), tail

    def split(self, mixed: Float[Tensor, "batch query channel"]) -> tuple[Tensor, Tensor, Tensor]:
        """x (batch, key, head, d_head), b and c (batch, slot, group, d_state) out of the channels."""
        x, b, c = mixed.split(list(self.choice.widths), dim=-1)
        slots = mixed.shape[:2]
        return (
            x.view(*slots, self.heads, self.d_head),
            b.view(*slots, self.groups, self.choice.d_state),
            c.view(*slots, self.groups, self.choice.d_state),
        )

    def steps(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head"]:
        """dt: how much each head takes in, in at least float32."""
        raw = F.softplus(at_least_float32(self._scaled("dt", x)) + at_least_float32(self.dt_bias))
        return raw.clamp(*self.choice.dt_limit)

    @property
    def decay(self) -> Float[Tensor, " head"]:
        """a, below zero."""
        return -torch.exp(at_least_float32(self.a_log))

    def pattern(
        self,
        b: Float[Tensor, "batch key group d_state"],
        c: Float[Tensor, "batch query group d_state"],
        dt: Float[Tensor, "batch key head"],
        first: int = 0,
    ) -> Float[Tensor, "batch head query key"]:
        """The grid that the decays imply over one stretch of positions (arXiv:2403.01590), from query `first` on."""
        grid = self._grid(self._by_head(b), self._by_head(c), dt, first)
        own = torch.eye(grid.shape[-1], dtype=grid.dtype, device=grid.device)[first:]
        return grid + at_least_float32(self.skip)[None, :, None, None] * own

    def joined(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query channel"]:
        """x, b and c side by side, before the convolution."""
        return torch.cat([self._scaled(name, x) for name in ("x", "b", "c")], dim=-1)

    def _scaled(self, name: str, x: Float[Tensor, "batch query d_model"]) -> Tensor:
        """One of the projections, times the design's number for it."""
        out: Tensor = getattr(self, name)(x)
        return out * self.choice.scales[PROJECTIONS.index(name)] if self.choice.scales else out

    def implied(self, kept: Mapping[str, Tensor], first: int = 0) -> Float[Tensor, "batch head query key"]:
        """`pattern` of the places that a trace keeps, from query `first` on."""
        return self.pattern(kept["b"], kept["c"][:, first:], kept["dt"], first)

    def reread(self, kept: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`scan` of the places that a trace keeps."""
        return self.scan(kept["x"], kept["b"], kept["c"], kept["dt"])

    def read_state(
        self, state: Float[Tensor, "batch head d_head d_state"], c: Tensor, dt: Float[Tensor, "batch query head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """What later positions read of a state from before them."""
        left = torch.exp((dt * self.decay).cumsum(1))
        return (torch.einsum("bhds,bqhs->bqhd", state, self._by_head(c)) * left[..., None]).to(c.dtype)

    def scan(
        self,
        x: Float[Tensor, "batch query head d_head"],
        b: Float[Tensor, "batch query group d_state"],
        c: Float[Tensor, "batch query group d_state"],
        dt: Float[Tensor, "batch query head"],
        state: Float[Tensor, "batch head d_head d_state"] | None = None,
    ) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head d_head d_state"]]:
        """What every head reads at every position, and the state after the last: the grid within chunks, the state
        between them, so that the cost grows with the length."""
        wide, b, c = at_least_float32(x), self._by_head(b), self._by_head(c)
        if state is None:
            state = wide.new_zeros(x.shape[0], self.heads, self.d_head, self.choice.d_state)
        out = []
        for start in range(0, x.shape[1], CHUNK):
            at = slice(start, start + CHUNK)
            xs, bs, cs, ds = wide[:, at], b[:, at], c[:, at], dt[:, at]
            log = (ds * self.decay).cumsum(1)  # (batch, query, head)
            y = torch.einsum("bhqk,bkhd->bqhd", self._grid(bs, cs, ds), xs)
            y = y + torch.einsum("bhds,bqhs->bqhd", state, cs) * torch.exp(log)[..., None]
            out.append(y)
            left = torch.exp(log[:, -1:] - log) * ds
            state = state * torch.exp(log[:, -1])[..., None, None]
            state = state + torch.einsum("bkhd,bkhs,bkh->bhds", xs, bs, left)
        y = out[0] if len(out) == 1 else torch.cat(out, dim=1)
        return (y + at_least_float32(self.skip)[:, None] * wide).to(x.dtype), state

    def finish(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Gate and norm."""
        flat, gates = y.flatten(-2), gate.flatten(-2)
        if self.norm is None:
            return (flat * gates).view(y.shape)
        if self.choice.norm_first:
            return (self.norm(flat) * gates).view(y.shape)
        return self.norm(flat * gates).view(y.shape)

    def factor(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """What `finish` multiplies y by, with the norm's divisor as it was: z = y × factor."""
        flat, gates = y.flatten(-2), gate.flatten(-2)
        if self.norm is None:
            return gate
        divisor = self.norm.scale(flat if self.choice.norm_first else flat * gates)
        return (gates * self.norm.weight / divisor).view(y.shape)

    def _by_head(self, x: Float[Tensor, "batch slot group d_state"]) -> Float[Tensor, "batch slot head d_state"]:
        return at_least_float32(x).repeat_interleave(self.heads // self.groups, dim=2)

    def _grid(self, b: Tensor, c: Tensor, dt: Tensor, first: int = 0) -> Float[Tensor, "batch head query key"]:
        log = (dt * self.decay).cumsum(1).transpose(1, 2)  # (batch, head, slot)
        gaps = log[..., first:, None] - log[..., None, :]
        past = torch.ones(gaps.shape[-2:], dtype=torch.bool, device=gaps.device).tril(first)
        kept = torch.exp(gaps.masked_fill(~past, float("-inf")))
        return torch.einsum("bqhs,bkhs->bhqk", c, b) * kept * dt.transpose(1, 2)[..., None, :]


class GroupedNorm(nn.Module):
    """An rms norm over each of several equal parts of the last axis, in at least float32."""

    def __init__(self, d: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(d))

    def scale(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What each number is divided by."""
        parts = at_least_float32(x).unflatten(-1, (self.groups, -1))
        root = (parts.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return root.expand_as(parts).flatten(-2)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """x divided by its `scale`, times the weight."""
        return self.weight * (at_least_float32(x) / self.scale(x)).to(x.dtype)
