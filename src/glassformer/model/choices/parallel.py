"""Two mixers side by side as data: attention and a recurrence read the same stream, and what they give is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from glassformer.errors import ConfigError
from glassformer.model.choices.attention import Attention
from glassformer.model.choices.common import Component
from glassformer.model.choices.gated_delta import GatedDelta
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.state_space import StateSpace


@dataclass(frozen=True)
class Parallel:
    """Attention beside a recurrence (Falcon-H1).

    Its heads are those of attention, then those of the recurrence; where these differ in size, the narrower ones are
    filled up with zeros in what both share (`mix.z`).

    Args:
        attention: one of the two.
        recurrence: the other.
        in_scales: what each of them reads is multiplied by its number.
        out_scales: what each of them gives is multiplied by its number.
    """

    kind: ClassVar[str] = "parallel"
    prefix: ClassVar[str] = "mix"

    attention: Attention
    recurrence: GatedDelta | StateSpace
    in_scales: tuple[float, float] = (1.0, 1.0)
    out_scales: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.attention, Attention) or not isinstance(self.recurrence, GatedDelta | StateSpace):
            raise ConfigError("Mixers side by side are an attention and a gated delta rule or state space.")
        if self.attention.keys_from is not None:
            raise ConfigError("Attention beside a recurrence has keys and values of its own.")
        for name in ("in_scales", "out_scales"):
            if len(getattr(self, name)) != 2 or not all(scale != 0 for scale in getattr(self, name)):
                raise ConfigError(f"parallel.{name} holds two numbers other than 0; got {getattr(self, name)}.")

    @property
    def members(self) -> tuple[Attention, GatedDelta | StateSpace]:
        """Both mixers."""
        return self.attention, self.recurrence

    @property
    def n_heads(self) -> int:
        """Heads of both."""
        return sum(member.n_heads for member in self.members)

    @property
    def d_head(self) -> int:
        """Dimensions of what the widest head gives."""
        return self.value_size

    @property
    def value_size(self) -> int:
        """Dimensions of what the widest head gives."""
        return max(member.value_size for member in self.members)

    @property
    def out_size(self) -> int:
        """Width of all heads together, as the output projections read them."""
        return sum(member.out_size for member in self.members)

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """None of its own: the parameters are those of its members."""
        return {}

    def sites(self) -> tuple[str, ...]:
        """Names of its own places within the part, in the order the forward reaches them."""
        return ("pattern", "z")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps besides those of its members."""
        return ("z",)

    @property
    def cached_numbers(self) -> int:
        """Numbers that generation keeps for each token in this layer."""
        return self.attention.cached_numbers

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer, however long the text."""
        return self.recurrence.state_numbers

    def seen(self, position: int) -> int:
        """How many keys the query at this position (from 0) sees."""
        return self.attention.seen(position)

    def flops(self, seen: float) -> float:
        """FLOPs of one query over `seen` keys, projections apart."""
        return self.attention.flops(seen) + self.recurrence.flops(seen)
