"""A causal convolution of channels, and what every mixer that carries a state from token to token shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.cache import State
from glassformer.model.parts.passing import Pass


class Convolution(nn.Module):
    """A causal convolution of each channel over its last few positions."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(
        self, x: Float[Tensor, "batch query channel"], tail: Float[Tensor, "batch before channel"] | None = None
    ) -> tuple[Float[Tensor, "batch query channel"], Float[Tensor, "batch before channel"]]:
        """The convolved channels, and the last `width - 1` inputs, which the next call takes as `tail`."""
        before = self.weight.shape[1] - 1
        if tail is None:
            tail = x.new_zeros(x.shape[0], before, x.shape[2])
        joined = torch.cat([tail, x], dim=1)
        out = F.conv1d(joined.transpose(1, 2), self.weight[:, None], self.bias, groups=self.weight.shape[0])
        return out.transpose(1, 2), joined[:, joined.shape[1] - before :]


def state_before(state: Pass, layer: int, rows: int) -> State | None:
    """What a layer's state was before this forward's tokens; one text's may be shared by many rows that continue it."""
    before = None if state.cache is None else state.cache.state(layer)
    return None if before is None else {name: x.expand(rows, *x.shape[1:]) for name, x in before.items()}


def text_of(state: Pass, like: Tensor) -> Float[Tensor, "batch query 1"] | None:
    """1 where there is text and 0 on padding; None where nothing is padding."""
    return None if state.where.mask is None else state.where.mask[..., None].to(like.dtype)


def tail_of(joined: Float[Tensor, "batch query channel"], width: int) -> Float[Tensor, "batch before channel"]:
    """The inputs that a convolution of this width still needs after these, zeros before the first."""
    last = joined[:, max(0, joined.shape[1] - width + 1) :]
    return F.pad(last, (0, 0, width - 1 - last.shape[1], 0))
