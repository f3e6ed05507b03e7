"""A matrix memory with exponential gates as a module (mLSTM of xLSTM, arXiv:2405.04517)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.cache import State
from glassformer.model.choices import MatrixMemory
from glassformer.model.layers import Linear, softcap
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.convolution import state_before, text_of
from glassformer.model.parts.passing import Pass
from glassformer.model.parts.recurrence import HeadsPart
from glassformer.model.sites import View, see

CHUNK = 64  # positions whose grid is formed at once; between chunks the state is carried


class MatrixMemoryPart(HeadsPart):
    """One layer's matrix memory.

    With w[t, s] = exp(input_s + Σ_{s<r≤t} decay_r) q_t·k_s / √d_key, position t receives Σ_s w[t, s] v_s divided by
    max(|Σ_s w[t, s]|, 1): linear in the values, so that `pattern` gives this grid. All weights of a position are kept
    in units of the largest exponential, as the published computation does, which decides what `eps` is added to.
    """

    centred = True  # the norm over a head takes its mean away

    def __init__(self, choice: MatrixMemory, d_model: int, layer: int) -> None:
        super().__init__()
        c = self.choice = choice
        self.layer = layer
        self.heads, self.d_value = c.n_heads, c.d_head
        self.q, self.k = (Linear(d_model, c.n_heads * c.d_key, False) for _ in range(2))
        self.v, self.gate = (Linear(d_model, c.out_size, False) for _ in range(2))
        self.input, self.forget = (Linear(d_model, c.n_heads, True) for _ in range(2))
        self.norm = nn.Parameter(torch.empty(c.n_heads, c.d_head))
        self.o = Linear(c.out_size, d_model, False)

    @torch.no_grad()
    def begin(self, generator: torch.Generator | None = None) -> None:
        """Fresh gates that take in little and, head by head, forget little (xLSTM's choice)."""
        assert self.input.bias is not None
        assert self.forget.bias is not None
        self.input.bias.fill_(-10.0)
        self.forget.bias.copy_(torch.linspace(3.0, 6.0, self.heads))
        self.norm.fill_(1.0)

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What the mixer adds to the residual stream at each position."""
        text, before = text_of(state, x), state_before(state, self.layer, x.shape[0])
        gate = see(view, "mlstm.gate", self.gates(x))
        q, k, v = (y(x).unflatten(-1, (self.heads, -1)) for y in (self.q, self.k, self.v))
        q, k, v = see(view, "mlstm.q", q), see(view, "mlstm.k", k), see(view, "mlstm.v", v)
        taken, decay = self.shares(x)
        if text is not None:  # padding neither decays nor enters the state
            taken, decay = taken.masked_fill(text == 0, -1e4), decay * text
        taken, decay = see(view, "mlstm.input", taken), see(view, "mlstm.decay", decay)
        kept = {"q": q, "k": k, "v": v, "input": taken, "decay": decay}
        y, after = self.scan(kept, before)
        if view is not None and view.wants("mlstm.pattern"):
            y = self.remix(kept, view.visit("mlstm.pattern", self.implied(kept, 0, before)))
            if before is not None:
                y = y + self.scan({**kept, "v": torch.zeros_like(v)}, before)[0]
        if state.cache is not None:
            state.cache.hold(self.layer, after)
        y = see(view, "mlstm.mixed", y)
        z = see(view, "mlstm.z", self.finish(y, gate))
        return self.o(z.flatten(2))

    # The steps, each a function of its own so that what a trace kept can be taken from the middle

    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What gates each head's output, between 0 and 1."""
        return torch.sigmoid(self.gate(x)).unflatten(-1, (self.heads, -1))

    def shares(
        self, x: Float[Tensor, "batch query d_model"]
    ) -> tuple[Float[Tensor, "batch query head"], Float[Tensor, "batch query head"]]:
        """The logarithms of what each head takes in and of what its state keeps."""
        raw, cap = (at_least_float32(self.input(x)), at_least_float32(self.forget(x))), self.choice.softcap
        taken, kept = raw if cap is None else (softcap(y, cap) for y in raw)
        return taken, F.logsigmoid(kept)

    def scan(self, kept: Mapping[str, Tensor], state: State | None = None) -> tuple[Tensor, State]:
        """What every head reads at every position (batch, query, head, d_head), and the state after the last: the grid
        within chunks, the state between them."""
        values = kept["v"]
        q, k, v = (at_least_float32(kept[name]).transpose(1, 2) for name in ("q", "k", "v"))
        q = q * self.choice.d_key**-0.5
        taken, decay = kept["input"].transpose(1, 2), kept["decay"].transpose(1, 2)  # (batch, head, slot)
        if state is None:
            state = self._empty(v)
        memory, total, unit = state["memory"], state["total"], state["unit"]
        out = []
        for start in range(0, v.shape[2], CHUNK):
            at = slice(start, start + CHUNK)
            ks, vs, log = k[:, :, at], v[:, :, at], decay[:, :, at].cumsum(-1)
            weights, earlier, units = self._weights(q[:, :, at], ks, taken[:, :, at], log, unit)
            read = earlier[..., None] * (q[:, :, at] @ memory) + weights @ vs
            whole = earlier * (q[:, :, at] @ total[..., None])[..., 0] + weights.sum(-1)
            out.append(read / self._divisor(whole, units)[..., None])
            last = units[..., -1]
            left = torch.exp(log[..., -1:] - log + taken[:, :, at] - last[..., None])
            faded = torch.exp(log[..., -1] + unit - last)
            memory = faded[..., None, None] * memory + (ks * left[..., None]).transpose(-1, -2) @ vs
            total = faded[..., None] * total + (ks * left[..., None]).sum(-2)
            unit = last
        y = torch.cat(out, 2).transpose(1, 2).to(values.dtype)
        return y, {"memory": memory, "total": total, "unit": unit}

    def implied(
        self, kept: Mapping[str, Tensor], first: int = 0, state: State | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """The grid that the gates imply over one stretch of positions, from query `first` on; what a state from before
        them holds counts in what is divided by."""
        q, k = (at_least_float32(kept[name]).transpose(1, 2) for name in ("q", "k"))
        q = q * self.choice.d_key**-0.5
        log = kept["decay"].transpose(1, 2).cumsum(-1)
        state = self._empty(at_least_float32(kept["v"]).transpose(1, 2)) if state is None else state
        weights, earlier, units = self._weights(q, k, kept["input"].transpose(1, 2), log, state["unit"], first)
        whole = weights.sum(-1) + earlier * (q[:, :, first:] @ state["total"][..., None])[..., 0]
        return weights / self._divisor(whole, units)[..., None]

    def finish(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Norm over each head, then gate."""
        return ((y - y.mean(-1, keepdim=True)) * self.factor(y, gate)).to(y.dtype)

    def factor(
        self, y: Float[Tensor, "batch query head d_head"], gate: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """What `finish` multiplies y less its mean by, with the norm's divisor as it was."""
        wide = at_least_float32(y)
        return gate * self.norm / (wide.var(-1, keepdim=True, unbiased=False) + self.choice.norm_eps).sqrt()

    def _empty(self, v: Float[Tensor, "batch head slot d_head"]) -> State:
        c, found = self.choice, v.new_zeros(v.shape[0], self.heads)
        total = found[..., None].expand(-1, -1, c.d_key)
        return {"memory": total[..., None].expand(-1, -1, -1, v.shape[-1]), "total": total, "unit": found}

    def _weights(
        self, q: Tensor, k: Tensor, taken: Tensor, log: Tensor, unit: Tensor, first: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (batch, head, query, key) in each query's unit, what is left of an earlier state in it, and the
        logarithm of these units."""
        past = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()[first:]
        grown = (log[..., first:, None] - log[..., None, :] + taken[..., None, :]).masked_fill(~past, float("-inf"))
        earlier = log[..., first:] + unit[..., None]
        units = torch.maximum(grown.amax(-1), earlier)
        weights = torch.exp(grown - units[..., None]) * (q[:, :, first:] @ k.transpose(-1, -2))
        return weights, torch.exp(earlier - units), units

    def _divisor(self, whole: Tensor, units: Tensor) -> Tensor:
        return torch.maximum(whole.abs(), torch.exp(-units)) + self.choice.eps
