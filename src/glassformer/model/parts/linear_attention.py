"""Linear attention with a fixed decay for each head as a module (arXiv:2307.08621, arXiv:2401.04658)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.model.cache import State
from glassformer.model.choices import LinearAttention
from glassformer.model.layers import Linear
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.convolution import state_before, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.parts.recurrence import HeadsPart
from glassformer.model.parts.state_space import GroupedNorm
from glassformer.model.sites import View, see

CHUNK = 64  # positions whose grid is formed at once; between chunks the state is carried


class LinearAttentionPart(HeadsPart):
    """One layer's linear attention: position t receives Σ_s e^(−rate (t − s)) q_t·k_s v_s, and `pattern` gives what
    multiplies the values."""

    def __init__(self, choice: LinearAttention, d_model: int, layer: int) -> None:
        super().__init__()
        c = self.choice = choice
        self.layer = layer
        self.heads, self.d_value = c.n_heads, c.d_head
        self.q, self.k, self.v, self.gate = (Linear(d_model, c.out_size, False) for _ in range(4))
        self.norm = GroupedNorm(c.out_size, 1, c.norm_eps)
        self.o = Linear(c.out_size, d_model, False)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What the mixer adds to the residual stream at each position."""
        text, before = text_of(state, x), state_before(state, self.layer, x.shape[0])
        gate = see(view, "linear.gate", self.gates(x))
        q, k, v = (F.silu(y(x)).unflatten(-1, (self.heads, -1)) for y in (self.q, self.k, self.v))
        if text is not None:  # padding does not enter the state
            v = v * text[..., None]
        kept = {"q": see(view, "linear.q", q), "k": see(view, "linear.k", k), "v": see(view, "linear.v", v)}
        y, after = self.scan(kept, before)
        if view is not None and view.wants("linear.pattern"):
            y = self.remix(kept, view.visit("linear.pattern", self.implied(kept)))
            if before is not None:
                y = y + self.scan({**kept, "v": torch.zeros_like(kept["v"])}, before)[0]
        if state.cache is not None:
            state.cache.hold(self.layer, after)
        y = see(view, "linear.mixed", y)
        z = see(view, "linear.z", self.finish(y, gate))
        return self.o(z.flatten(2))

    # The steps, each a function of its own so that what a trace kept can be taken from the middle

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What multiplies each head's normed output, between 0 and 1."""
        return torch.sigmoid(self.gate(x)).unflatten(-1, (self.heads, -1))

    def scan(self, kept: Mapping[str, Tensor], state: State | None = None) -> tuple[Tensor, State]:
        """What every head reads at every position (batch, query, head, d_head), and the state after the last: the grid
        within chunks, the state between them."""
        q, k, v = (at_least_float32(kept[name]).transpose(1, 2) for name in ("q", "k", "v"))
        memory = v.new_zeros(v.shape[0], self.heads, q.shape[-1], v.shape[-1]) if state is None else state["memory"]
        out = []
        for start in range(0, v.shape[2], CHUNK):
            at = slice(start, start + CHUNK)
            qs, ks, vs = q[:, :, at], k[:, :, at], v[:, :, at]
            n = vs.shape[2]
            gone = torch.arange(1, n + 1, device=v.device)
            out.append((qs * self._faded(v, gone)[..., None]) @ memory + self._grid(qs, ks) @ vs)
            left = ks * self._faded(v, n - gone)[..., None]
            memory = memory * self._faded(v, gone[-1:])[..., None] + left.transpose(-1, -2) @ vs
        return torch.cat(out, 2).transpose(1, 2).to(kept["v"].dtype), {"memory": memory}

    def implied(self, kept: Mapping[str, Tensor], first: int = 0) -> Float[Tensor, "batch head query key"]:
        """The grid of one stretch of positions, from query `first` on."""
        q, k = (at_least_float32(kept[name]).transpose(1, 2) for name in ("q", "k"))
        return self._grid(q, k, first)

    def finish(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Norm over all heads, then gate."""
        return self.norm(y.flatten(-2)).view(y.shape) * gate

    def factor(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """What `finish` multiplies y by, with the norm's divisor as it was: z = y × factor."""
        return (self.norm.weight / self.norm.scale(y.flatten(-2))).view(y.shape) * gate

    def _faded(self, like: Tensor, gone: Tensor) -> Float[Tensor, "head gone"]:
        """What is left of each head's state after so many positions."""
        rates = torch.tensor(self.choice.rates, dtype=torch.float64, device=like.device)
        return torch.exp(-rates[:, None] * gone).to(like.dtype)

    def _grid(self, q: Tensor, k: Tensor, first: int = 0) -> Float[Tensor, "batch head query key"]:
        slots = torch.arange(k.shape[2], device=k.device)
        gaps = slots[first:, None] - slots
        left = self._faded(k, gaps.clamp(min=0).flatten()).view(self.heads, *gaps.shape) * (gaps >= 0)
        return (q[:, :, first:] @ k.transpose(-1, -2)) * left
