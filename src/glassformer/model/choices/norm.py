"""Normalisation of the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component


@dataclass(frozen=True)
class Norm:
    """How the residual stream is normalised.

    Args:
        kind: "rms" divides by the root mean square (arXiv:1910.07467); "layer" also subtracts the
            mean (arXiv:1607.06450).
        eps: added to the mean square before the root.
        one_plus: the learned scale is 1 + weight (Gemma).
        weight: whether there is a learned scale (OLMo and nanochat have none).
        bias: whether there is a learned bias; None for "layer" norms only.
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    one_plus: bool = False
    weight: bool = True
    bias: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("rms", "layer"):
            raise ConfigError(f"Norm kind {self.kind!r} is unknown; known are rms and layer.")
        if not self.eps > 0:
            raise ConfigError(f"The norm's eps must be above 0; got {self.eps}.")
        if self.one_plus and not self.weight:
            raise ConfigError("A scale of 1 + weight needs a weight.")
        if self.bias and not self.weight:
            raise ConfigError("A norm with a bias has a weight too.")

    @property
    def biased(self) -> bool:
        """Whether it adds a learned bias."""
        return self.weight and (self.kind == "layer" if self.bias is None else self.bias)

    def components(self, name: str, d: int, heads: int | None = None) -> dict[str, Component]:
        """Its parameters over an axis of `d`, by key; `heads` rows of them where each head has its own."""
        shape = (d,) if heads is None else (heads, d)
        found: dict[str, Component] = {}
        if self.weight:
            found[f"{name}.weight"] = Component(shape, "norms")
        if self.biased:
            found[f"{name}.bias"] = Component(shape, "norms")
        return found
