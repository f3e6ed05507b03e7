"""A gated delta rule as a module (Gated DeltaNet, arXiv:2412.06464)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.choices import GatedDelta
from glassformer.model.layers import Linear
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.convolution import Convolution, state_before, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.parts.recurrence import ConvolvedHeadsPart
from glassformer.model.sites import View, see

CHUNK = 64  # positions that are solved at once; between chunks the state is carried
CHANNEL_CHUNK = 16  # the same where each channel decays by itself, so that every pair of positions has many decays


class GatedDeltaPart(ConvolvedHeadsPart):
    """One layer's gated delta rule.

    With S the matrix of a head, at each position S ← e^decay S, then S ← S + beta k (v − Sᵀk)ᵀ, and Sᵀq is read.
    That is linear in the values: position t receives Σ_s G[t, s] v_s, where G[t, s] is what the later decays and
    corrections leave of beta_s k_s, read at q_t. `pattern` gives this grid. A decay is a number of each head, or of
    each channel of its keys.
    """

    def __init__(self, choice: GatedDelta, d_model: int, layer: int) -> None:
        super().__init__()
        c = self.choice = choice
        self.layer = layer
        self.heads, self.d_value = c.n_heads, c.d_head
        query, key, value = c.widths
        self.q, self.k, self.v = (Linear(d_model, width, False) for width in (query, key, value))
        narrow = d_model if c.rank is None else c.rank
        self.gate_down = None if c.rank is None else Linear(d_model, c.rank, False)
        self.gate = Linear(narrow, value, False)
        self.beta = Linear(d_model, c.n_heads, False)
        self.decay_down = None if c.rank is None else Linear(d_model, c.rank, False)
        self.decay = Linear(narrow, c.decays, False)
        self.conv = Convolution(sum(c.widths), c.conv, False)
        self.dt_bias = nn.Parameter(torch.empty(c.decays))
        self.a_log = nn.Parameter(torch.empty(c.n_heads))
        self.norm = nn.Parameter(torch.empty(c.d_head))
        self.o = Linear(value, d_model, False)

    @torch.no_grad()
    def begin(self, generator: torch.Generator | None = None) -> None:
        """Fresh decays, drawn evenly up to 16, and time steps of one (Gated DeltaNet's choice)."""
        self.a_log.copy_((torch.rand(self.heads, generator=generator) * 15 + 1).log())
        self.dt_bias.fill_(1.0)
        self.norm.fill_(1.0)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What the mixer adds to the residual stream at each position."""
        return self.write(self.mix(self.ready(x, state, view), state, view))

    def ready(self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None) -> dict[str, Tensor]:
        """Everything that the state is updated and read with: the first step of the forward."""
        text, before = text_of(state, x), state_before(state, self.layer, x.shape[0])
        gate = see(view, "delta.gate", self.gates(x))
        channels, tail = self.convolved(x, None if before is None else before["conv"], text)
        q, k, v = self.split(channels)
        q, k, v = see(view, "delta.q", q), see(view, "delta.k", k), see(view, "delta.v", v)
        beta, decay = self.shares(x)
        if text is not None:  # padding neither decays nor enters the state
            beta, decay = beta * text, decay * (text[..., None] if self.choice.channels else text)
        beta, decay = see(view, "delta.beta", beta), see(view, f"delta.{self.choice.decay_site}", decay)
        found = {"gate": gate, "q": q, "k": k, "v": v, "beta": beta, self.choice.decay_site: decay, "tail": tail}
        return found if before is None else {**found, "earlier": before["state"]}

    def grid(self, ready: Mapping[str, Tensor], state: Pass, view: View) -> Float[Tensor, "batch head query key"]:
        """The grid that decays and corrections imply, as a tap sees and changes it."""
        return view.visit("delta.pattern", self.implied(ready))

    def mix(
        self, ready: Mapping[str, Tensor], state: Pass, view: View | None, grid: Tensor | None = None
    ) -> Float[Tensor, "batch query head d_head"]:
        """What the heads read, normed and gated; by `grid` where that is given."""
        v, earlier = ready["v"], ready.get("earlier")
        y, after = self.scan(ready, earlier)
        if grid is None and view is not None and view.wants("delta.pattern"):
            grid = self.grid(ready, state, view)
        if grid is not None:
            y = self.read(grid, v)
            if earlier is not None:
                y = y + self.scan({**ready, "v": torch.zeros_like(v)}, earlier)[0]
        if state.cache is not None:
            state.cache.hold(self.layer, {"conv": ready["tail"], "state": after})
        y = see(view, "delta.mixed", y)
        return see(view, "delta.z", self.finish(y, ready["gate"]))

    def write(self, z: Float[Tensor, "batch query head d_head"]) -> Float[Tensor, "batch query d_model"]:
        """What the heads add to the stream."""
        return self.o(z.reshape(*z.shape[:2], -1))

    # The steps, each a function of its own so that what a trace kept can be taken from the middle

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What gates each head's output, after its activation."""
        raw = self.gate(x if self.gate_down is None else self.gate_down(x))
        gate = F.silu(raw) if self.choice.gate_activation == "silu" else torch.sigmoid(raw)
        return gate.view(*x.shape[:2], self.heads, self.d_value)

    def joined(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query channel"]:
        """Queries, keys and values side by side, before the convolution."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)

    def convolved(
        self,
        x: Float[Tensor, "batch query d_model"],
        tail: Float[Tensor, "batch before channel"] | None = None,
        text: Float[Tensor, "batch query 1"] | None = None,
    ) -> tuple[Float[Tensor, "batch query channel"], Float[Tensor, "batch before channel"]]:
        """The channels after the convolution and its activation, and the inputs the next call needs; where `text` is 0
        stands padding, which the convolution does not see."""
        joined = self.joined(x)
        out, tail = self.conv(joined if text is None else joined * text, tail)
        return F.silu(out), tail

    def split(self, channels: Float[Tensor, "batch query channel"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys (batch, slot, key head, d_key) of length one, and values (batch, slot, head, d_head)."""
        q, k, v = channels.split(list(self.choice.widths), dim=-1)
        slots = channels.shape[:2]
        q, k = (_unit(y.reshape(*slots, self.choice.n_key_heads, self.choice.d_key)) for y in (q, k))
        return q * self.choice.d_key**-0.5, k, v.reshape(*slots, self.heads, self.d_value)

    def shares(
        self, x: Float[Tensor, "batch query d_model"]
    ) -> tuple[Float[Tensor, "batch query head"], Float[Tensor, "batch query head *channel"]]:
        """Beta, the share of a correction that is made, and the logarithm of what the decay leaves."""
        c, raw = self.choice, self.decay(x if self.decay_down is None else self.decay_down(x))
        rate, speed = at_least_float32(raw) + at_least_float32(self.dt_bias), torch.exp(at_least_float32(self.a_log))
        if c.channels:
            rate, speed = rate.unflatten(-1, (self.heads, c.d_key)), speed[:, None]
        left = -speed * F.softplus(rate) if c.floor is None else c.floor * torch.sigmoid(speed * rate)
        return torch.sigmoid(at_least_float32(self.beta(x))) * c.beta_scale, left

    def scan(
        self, kept: Mapping[str, Tensor], state: Float[Tensor, "batch head d_key d_head"] | None = None
    ) -> tuple[Float[Tensor, "batch query head d_head"], Float[Tensor, "batch head d_key d_head"]]:
        """What every head reads at every position, and the state after the last: a triangular system within chunks, the
        state between them."""
        values = kept["v"]
        q, k, v = self._by_head(kept["q"]), self._by_head(kept["k"]), at_least_float32(values).transpose(1, 2)
        beta = kept["beta"].transpose(1, 2)  # (batch, head, slot)
        decay = kept[self.choice.decay_site].transpose(1, 2)
        decay = decay if self.choice.channels else decay[..., None]  # (batch, head, slot, channel or 1)
        if state is None:
            state = v.new_zeros(v.shape[0], self.heads, self.choice.d_key, v.shape[-1])
        out = []
        chunk = CHANNEL_CHUNK if self.choice.channels else CHUNK
        for start in range(0, v.shape[2], chunk):
            at = slice(start, start + chunk)
            qs, ks, vs, bs = q[:, :, at], k[:, :, at], v[:, :, at], beta[:, :, at, None]
            log = decay[:, :, at].cumsum(-2)
            # each correction sees those before it in the chunk: (1 + strictly lower) × corrections = what is new
            lower = _met(ks * bs, ks, log).tril(-1)
            wanted = torch.cat([vs * bs, ks * bs * torch.exp(log)], dim=-1)
            solved = torch.linalg.solve_triangular(lower, wanted, upper=False, unitriangular=True)
            new, reads = solved[..., : vs.shape[-1]], solved[..., vs.shape[-1] :]
            written = new - reads @ state
            y = (qs * torch.exp(log)) @ state + _met(qs, ks, log) @ written
            out.append(y)
            rest = ks * torch.exp(log[..., -1:, :] - log)
            state = state * torch.exp(log[..., -1, :, None]) + rest.transpose(-1, -2) @ written
        y = out[0] if len(out) == 1 else torch.cat(out, dim=2)
        return y.transpose(1, 2).to(values.dtype), state

    def implied(self, kept: Mapping[str, Tensor], first: int = 0) -> Float[Tensor, "batch head query key"]:
        """The grid that decays and corrections imply over one stretch of positions, from query `first` on: what is read
        where each position's value is a direction of its own."""
        batch, length = kept["v"].shape[:2]
        own = torch.eye(length, dtype=at_least_float32(kept["v"]).dtype, device=kept["v"].device)
        values = own[None, :, None].expand(batch, length, self.heads, length)
        return self.scan({**kept, "v": values})[0].transpose(1, 2)[:, :, first:]

    def finish(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Norm, then gate."""
        return (y * self.factor(y, gate)).to(y.dtype)

    def factor(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """What `finish` multiplies y by, with the norm's divisor as it was: z = y × factor."""
        divisor = (at_least_float32(y).square().mean(-1, keepdim=True) + self.choice.norm_eps).sqrt()
        return gate * self.norm / divisor

    def _by_head(self, x: Float[Tensor, "batch slot key_head d_key"]) -> Float[Tensor, "batch head slot d_key"]:
        shared = self.heads // self.choice.n_key_heads
        return at_least_float32(x).repeat_interleave(shared, dim=2).transpose(1, 2)


def _met(
    x: Float[Tensor, "batch head query d_key"],
    k: Float[Tensor, "batch head key d_key"],
    log: Float[Tensor, "batch head slot channel"],
) -> Float[Tensor, "batch head query key"]:
    """Products of x with earlier keys, each channel with what its decays since then leave; 0 for later ones."""
    past = torch.ones(x.shape[2], k.shape[2], dtype=torch.bool, device=x.device).tril()
    gaps = log[..., :, None, :] - log[..., None, :, :]
    left = torch.exp(gaps.masked_fill(~past[..., None], float("-inf")))
    if left.shape[-1] == 1:
        return x @ k.transpose(-1, -2) * left[..., 0]
    return torch.einsum("bhqd,bhkd,bhqkd->bhqk", x, k, left)


def _unit(x: Tensor) -> Tensor:
    """Vectors of length one."""
    wide = at_least_float32(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
