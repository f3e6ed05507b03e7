"""Mixers in which every channel weighs earlier positions in its own way: what they share.

Such a mixer has one head. Its `pattern` is the mean, over channels, of the absolute value of each channel's share
(arXiv:2403.01590 gives the shares); writing it multiplies every channel's share by the same ratio, so that a 0
cuts a position off. What a channel was really handed from a position is its own share times its own value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.cache import State
from glassformer.model.choices import GatedLinearRecurrence, SelectiveStateSpace, ShortConvolution
from glassformer.model.layers import Linear
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.convolution import state_before
from glassformer.model.parts.passing import Pass
from glassformer.model.sites import View, see

NUMBERS = 1 << 22  # of the channels' grids formed at once

Choice = GatedLinearRecurrence | SelectiveStateSpace | ShortConvolution
Kept = Mapping[str, Tensor]


class ChannelsPart(nn.Module, ABC):
    """One layer's mixer of single channels; subclasses say what is handed over and with what shares."""

    choice: Choice
    o: Linear

    def __init__(self, choice: Choice, layer: int) -> None:
        super().__init__()
        self.choice = choice
        self.layer = layer
        self.heads, self.d_value = 1, choice.width

    def forward(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What the mixer adds to the residual stream at each position."""
        before, prefix = state_before(state, self.layer, x.shape[0]), f"{self.choice.prefix}."
        gate = see(view, prefix + "gate", self.gates(x))
        kept, tail = self.taken(x, before, state, view)
        y, after = self.scan(kept, before)
        if view is not None and view.wants(prefix + "pattern"):
            shown, graded = self.implied(kept), torch.is_grad_enabled()
            if graded and not shown.requires_grad:
                shown.requires_grad_()  # shares that are the same in every text can be asked about all the same
            written = view.visit(prefix + "pattern", shown)
            if graded or written is not shown:
                y = self.remix(kept, written, before)
        if state.cache is not None:
            state.cache.hold(self.layer, {"conv": tail, **after})
        y = see(view, prefix + "mixed", y)
        z = see(view, prefix + "z", self.finish(y, gate))
        return self.o(z.flatten(2))

    # What a subclass says

    @abstractmethod
    def gates(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """What gates each channel's output, after its activation."""

    @abstractmethod
    def taken(
        self, x: Float[Tensor, "batch query d_model"], before: State | None, state: Pass, view: View | None
    ) -> tuple[dict[str, Tensor], Float[Tensor, "batch before channel"]]:
        """The places that a trace keeps, and the inputs that the convolution needs at the next call."""

    @abstractmethod
    def scan(self, kept: Kept, before: State | None = None) -> tuple[Tensor, State]:
        """What every channel reads at every position, (batch, query, head, d_head), and the state after the last, its
        convolution's inputs apart."""

    @abstractmethod
    def shares(
        self, kept: Kept, first: int = 0, channels: slice = slice(None)
    ) -> Float[Tensor, "batch channel query key"]:
        """The grid of each of these channels over one stretch of positions, from query `first` on."""

    @abstractmethod
    def carried(self, x: Float[Tensor, "batch last d_model"], kept: Kept) -> State:
        """What the cache holds after the positions that are kept, of which `x` are the last inputs."""

    @property
    def constant(self) -> Float[Tensor, " channel"] | None:
        """What every channel reads that comes from no position."""
        return None

    # What follows from it

    def finish(self, y: Tensor, gate: Tensor) -> Float[Tensor, "batch query head d_head"]:
        """Gate."""
        return y * gate

    def factor(self, y: Tensor, gate: Tensor) -> Float[Tensor, "batch query head d_head"]:
        """What `finish` multiplies y by."""
        return gate

    def reread(self, kept: Kept) -> tuple[Tensor, State]:
        """`scan` of the places that a trace keeps."""
        return self.scan(kept)

    def implied(self, kept: Kept, first: int = 0) -> Float[Tensor, "batch head query key"]:
        """The channels' shares in one grid: the mean of their absolute values, from query `first` on."""
        total: Tensor | None = None
        for channels in self._some(kept, first):
            part = self.shares(kept, first, channels).abs().sum(1, keepdim=True)
            total = part if total is None else total + part
        assert total is not None
        return total / self.choice.width

    def handed(self, kept: Kept, query: int) -> Float[Tensor, "batch key channel"]:
        """What each position hands over to one query: each channel's share times its value."""
        values = at_least_float32(kept[self.choice.handed])[:, : query + 1, 0]
        upto = {name: x[:, : query + 1] for name, x in kept.items()}
        return self.shares(upto, query)[:, :, 0].transpose(1, 2) * values

    def remix(
        self, kept: Kept, grid: Float[Tensor, "batch head query key"], before: State | None = None
    ) -> Float[Tensor, "batch query head d_head"]:
        """What every channel reads where the channels' grid is written: every share times the ratio of the two."""
        times = ratio(grid, self.implied(kept))[:, 0]
        handed, out = kept[self.choice.handed], []
        for channels in self._some(kept, 0):
            values = at_least_float32(handed)[:, :, 0, channels]
            out.append(torch.einsum("bcqk,bqk,bkc->bqc", self.shares(kept, 0, channels), times, values))
        # what comes from no position of these, and what from those before them
        rest = self.scan({**kept, self.choice.handed: torch.zeros_like(handed)}, before)[0]
        return torch.cat(out, -1)[:, :, None].to(handed.dtype) + rest

    def _some(self, kept: Kept, first: int) -> Iterator[slice]:
        batch, length = kept[self.choice.handed].shape[:2]
        step = max(1, NUMBERS // max(1, batch * length * (length - first)))
        for start in range(0, self.choice.width, step):
            yield slice(start, min(start + step, self.choice.width))


def ratio(written: Tensor, shown: Tensor) -> Tensor:
    """What written shares are of shown ones; 0 where nothing was shown."""
    return torch.where(shown > 0, written / shown.clamp(min=torch.finfo(shown.dtype).tiny), 0.0)


def scanned(
    log: Float[Tensor, "batch slot channel d_state"],
    taken: Float[Tensor, "batch slot channel d_state"],
    state: Float[Tensor, "batch channel d_state"],
) -> Float[Tensor, "batch slot channel d_state"]:
    """h_t = e^log_t h_{t-1} + taken_t at every position, h before the first given: one after another, a single
    multiply-add each."""
    kept, states = torch.exp(log).unbind(1), []
    for decay, entering in zip(kept, taken.unbind(1), strict=True):
        state = torch.addcmul(entering, decay, state)
        states.append(state)
    return torch.stack(states, 1)
