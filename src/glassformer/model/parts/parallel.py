"""Two mixers side by side as a part: each computes its heads, which are seen together before they write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.model.choices import Parallel
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.gated_delta import GatedDeltaPart
from glassformer.model.parts.passing import Pass
from glassformer.model.parts.state_space import StateSpacePart
from glassformer.model.sites import View


@dataclass(frozen=True)
class Joined:
    """Output projections of several mixers as one that reads all heads: weight (d_model, head · d_head), bias."""

    weight: Float[Tensor, "d_model out"]
    bias: Float[Tensor, " d_model"] | None

    def __call__(self, z: Float[Tensor, "*batch out"]) -> Float[Tensor, "*batch d_model"]:
        """What the heads write."""
        return F.linear(z, self.weight, self.bias)


class ParallelPart:
    """One layer's attention and recurrence, which the block holds as parts of their own.

    Args:
        choice: their design.
        parts: both.
    """

    def __init__(self, choice: Parallel, parts: tuple[AttentionPart, GatedDeltaPart | StateSpacePart]) -> None:
        self.choice, self.parts = choice, parts
        self.layer, self.table = parts[0].layer, parts[0].table
        self.heads, self.d_value = choice.n_heads, choice.value_size

    def __call__(
        self, x: Float[Tensor, "batch query d_model"], state: Pass, view: View | None = None
    ) -> Float[Tensor, "batch query d_model"]:
        """What both add together."""
        ready = [part.ready(self.read(i, x), state, view) for i, part in enumerate(self.parts)]
        grids: list[Tensor | None] = [None, None]
        if view is not None and view.wants("mix.pattern"):
            own = [part.grid(kept, state, view) for part, kept in zip(self.parts, ready, strict=True)]
            whole = view.visit("mix.pattern", self.joined_grids(own))
            split = whole.split([part.heads for part in self.parts], dim=1)
            grids = [x[..., -before.shape[-1] :].to(before.dtype) for x, before in zip(split, own, strict=True)]
        zs = [part.mix(kept, state, view, grid) for part, kept, grid in zip(self.parts, ready, grids, strict=True)]
        if view is not None and view.wants("mix.z"):
            zs = self.split(view.visit("mix.z", self.joined(zs)))
        out = [part.write(z) * scale for part, z, scale in zip(self.parts, zs, self.choice.out_scales, strict=True)]
        return out[0] + out[1]

    def begin(self, generator: torch.Generator | None = None) -> None:
        """Fresh decays of the recurrence."""
        self.parts[1].begin(generator)

    def read(self, member: int, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query d_model"]:
        """What attention (0) or the recurrence (1) reads of what the layer reads."""
        scale = self.choice.in_scales[member]
        return x if scale == 1 else x * scale

    def joined_grids(self, grids: list[Tensor]) -> Float[Tensor, "batch head query key"]:
        """The patterns of both, one after the other. Of what a cache holds, a recurrence has a state and no positions:
        its heads show 0 there."""
        keys = max(grid.shape[-1] for grid in grids)
        kind = torch.promote_types(grids[0].dtype, grids[1].dtype)
        return torch.cat([F.pad(grid.to(kind), (keys - grid.shape[-1], 0)) for grid in grids], dim=1)

    def joined(self, heads: list[Tensor], fill: float = 0.0) -> Float[Tensor, "batch slot head d_head"]:
        """Numbers of both members' heads, one after the other, the narrower ones filled up."""
        return torch.cat([F.pad(x, (0, self.d_value - x.shape[-1]), value=fill) for x in heads], dim=2)

    def split(self, z: Float[Tensor, "batch slot head d_head"]) -> list[Tensor]:
        """`joined` the other way."""
        return [
            x[..., : part.d_value]
            for part, x in zip(self.parts, z.split([part.heads for part in self.parts], dim=2), strict=True)
        ]

    @property
    def o(self) -> Joined:
        """Both output projections with their scales, as one of all heads."""
        columns, biases = [], []
        for part, scale in zip(self.parts, self.choice.out_scales, strict=True):
            heads = part.o.weight.unflatten(1, (part.heads, part.d_value)) * scale
            columns.append(F.pad(heads, (0, self.d_value - part.d_value)))
            if part.o.bias is not None:
                biases.append(part.o.bias * scale)
        return Joined(torch.cat(columns, dim=1).flatten(1), sum(biases[1:], biases[0]) if biases else None)
