"""Rotary positions and how their frequencies are stretched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from glassformer.errors import ConfigError

SCALINGS: tuple[str, ...] = ("linear", "llama3", "yarn", "factors", "longrope", "dynamic", "proportional")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to reach a longer context.

    Args:
        kind: "linear" divides every frequency by `factor` (position interpolation,
            arXiv:2306.15595); "llama3" divides only the slow ones, blended between `low` and
            `high`; "yarn" interpolates by parts (arXiv:2309.00071); "factors" divides each
            frequency by its own number in `factors`; "longrope" (arXiv:2402.13753) does so with other numbers for texts
            that are longer than `original_context`; "dynamic" raises the base with the text's length beyond it;
            "proportional" divides as "linear" does and lets only the first `share` of the pairs turn (Gemma 4).
        factor: the stretch; new length over the original one.
        original_context: tokens the model was first trained for (all but "linear" and "factors").
        low, high: "llama3" low/high frequency factors; "yarn" beta_slow/beta_fast.
        attention_factor: "yarn", "longrope": cosines and sines are multiplied by it.
        share: "proportional": how much of the pairs turns.
        truncate: "yarn": where interpolation begins and ends is rounded to whole pairs.
        factors: "factors", "longrope": one divisor per rotated pair.
        long_factors: "longrope": the same for texts beyond `original_context`.
    """

    kind: Literal["linear", "llama3", "yarn", "factors", "longrope", "dynamic", "proportional"]
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()
    truncate: bool = True
    long_factors: tuple[float, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise ConfigError(f"Rotary scaling {self.kind!r} is unknown; known are {', '.join(SCALINGS)}.")
        if not 0 < self.share <= 1 or (self.share != 1 and self.kind != "proportional"):
            raise ConfigError(f"The share of rotary pairs that turn must be in (0, 1]; got {self.share}.")
        if not self.factor > 0 or not self.attention_factor > 0:
            raise ConfigError("Rotary scaling needs a factor and an attention_factor above 0.")
        if self.kind in ("llama3", "yarn", "longrope", "dynamic") and self.original_context < 1:
            raise ConfigError(f"Rotary scaling {self.kind!r} needs original_context, the length first trained for.")
        if self.kind in ("llama3", "yarn") and not 0 < self.low < self.high:
            raise ConfigError(f"Rotary scaling {self.kind!r} needs 0 < low < high; got {self.low} and {self.high}.")
        if self.kind in ("factors", "longrope") and (not self.factors or min(self.factors) <= 0):
            raise ConfigError(f"Rotary scaling {self.kind!r} needs one positive divisor per rotated pair.")
        if self.kind == "longrope" and (len(self.long_factors) != len(self.factors) or min(self.long_factors) <= 0):
            raise ConfigError("Rotary scaling 'longrope' needs as many positive long_factors as factors.")

    @property
    def varies(self) -> bool:
        """Whether the length of the whole text decides how its positions are turned."""
        return self.kind in ("longrope", "dynamic")


@dataclass(frozen=True)
class Rotary:
    """Pairs of query and key dimensions are turned by an angle that grows with the position (arXiv:2104.09864).

    The first half of the rotated dimensions pairs with the second half; checkpoints that pair
    neighbours are reordered when they are read.

    Args:
        theta: base of the frequencies.
        fraction: share of each head's dimensions that are rotated, in (0, 1].
        scaling: stretch of the frequencies, or None.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not self.theta > 0:
            raise ConfigError("A rotary base must be above 0.")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"The rotated share of a head must be in (0, 1]; got {self.fraction}.")

    def dims(self, d_head: int) -> int:
        """How many dimensions of a head of this size are rotated.

        Raises:
            ConfigError: the share does not give an even number of at least 2, or the factors do not fit.
        """
        rotated = int(d_head * self.fraction + 1e-6)  # a share given as a quotient
        if rotated < 2 or rotated % 2:
            raise ConfigError(
                f"Rotary positions turn pairs, and {self.fraction} of {d_head} dimensions "
                f"is {rotated}; choose a share that gives an even number of at least 2."
            )
        scaling = self.scaling
        if scaling is not None and scaling.factors and len(scaling.factors) != rotated // 2:
            raise ConfigError(f"Rotary scaling gives {len(scaling.factors)} factors for {rotated // 2} rotated pairs.")
        return rotated
