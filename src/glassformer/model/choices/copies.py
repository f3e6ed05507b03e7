"""Several copies of the residual stream of which a layer computes with one, as data (AltUp, arXiv:2301.13310)."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.norm import Norm


@dataclass(frozen=True)
class Copies:
    """A layer predicts every copy from all of them, computes with the first, and corrects all by what that gave.

    Beside the mixer stands a matrix of low rank that reads what the mixer reads (LAuReL, arXiv:2411.07501).

    Args:
        n: how many copies.
        rank: of that matrix.
    """

    n: int
    rank: int

    def __post_init__(self) -> None:
        positive("copies", n=self.n, rank=self.rank)
        if self.n < 2:
            raise ConfigError("A stream in copies has at least 2 of them.")

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the block, in the order of the computation."""
        return {
            **norm.components("copies.norm", d_model),
            "copies.router.weight": Component((self.n, d_model), "router"),
            "copies.predict.weight": Component((self.n * self.n, self.n), "router"),
            "copies.correct.weight": Component((self.n, self.n), "router"),
            "copies.scale": Component((d_model,), "norms"),
            "laurel.down.weight": Component((self.rank, d_model), "down"),
            "laurel.up.weight": Component((d_model, self.rank), "up"),
            **norm.components("laurel.norm", d_model),
        }
