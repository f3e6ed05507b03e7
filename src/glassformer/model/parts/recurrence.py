"""What recurrences with heads share: output and state from the places that a trace keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glassformer.model.cache import State
from glassformer.model.norms import at_least_float32
from glassformer.model.parts.convolution import tail_of


class HeadsPart(nn.Module, ABC):
    """A recurrence whose heads read their states by a grid times what positions hand over."""

    choice: Any

    @abstractmethod
    def scan(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        """What every head reads from its state, and the state after it."""

    def reread(self, kept: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        """`scan` of the places that a trace keeps."""
        return self.scan(kept)

    def carried(self, x: Float[Tensor, "batch last d_model"], kept: Mapping[str, Tensor]) -> State:
        """What the cache holds after the positions that are kept, of which `x` are the last inputs."""
        held: State = self.reread(kept)[1]
        return held

    def remix(self, kept: Mapping[str, Tensor], grid: Float[Tensor, "batch head query key"]) -> Tensor:
        """What every head reads where its grid is this one."""
        return self.read(grid, kept[self.choice.handed])

    def read(
        self, grid: Float[Tensor, "batch head query key"], values: Float[Tensor, "batch key head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Each head's sum of the values, weighed by the grid."""
        return torch.einsum("bhqk,bkhd->bqhd", grid, at_least_float32(values)).to(values.dtype)


class ConvolvedHeadsPart(HeadsPart):
    """One whose inputs pass a short convolution first."""

    @abstractmethod
    def joined(self, x: Float[Tensor, "batch query d_model"]) -> Float[Tensor, "batch query channel"]:
        """What the convolution reads."""

    def carried(self, x: Float[Tensor, "batch last d_model"], kept: Mapping[str, Tensor]) -> State:
        """What the cache holds after the positions that are kept, of which `x` are the last inputs."""
        return {"conv": tail_of(self.joined(x), self.choice.conv), "state": self.reread(kept)[1]}
