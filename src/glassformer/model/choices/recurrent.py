"""What choices of recurrences share: no cache that grows, a state that stands for all before, heads side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from glassformer.model.choices.common import Component


class Recurrent:
    """A mixer that keeps a state instead of keys and values; a subclass is a frozen dataclass."""

    n_heads: int
    d_head: int
    keeps: ClassVar[tuple[str, ...]]
    """The places, besides the outcome, that a trace keeps: the others follow from them."""

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        return ("gate", *self.keeps, "pattern", "mixed", "z")

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps."""
        return (*self.keeps, "z")

    @property
    def value_size(self) -> int:
        """Dimensions of what each head carries."""
        return self.d_head

    @property
    def out_size(self) -> int:
        """Width of all heads together, as the output projection reads them."""
        return self.n_heads * self.d_head

    @property
    def cached_numbers(self) -> int:
        """Numbers that generation keeps for each token in this layer: none."""
        return 0

    def seen(self, position: int) -> int:
        """How many earlier positions the state stands for."""
        return position + 1


class Channels(Recurrent):
    """A recurrence of single channels, each of which weighs positions in its own way: one head, whose channels they
    are."""

    width: int

    @property
    def n_heads(self) -> int:  # type: ignore[override]
        """One: its channels share nothing and are not told apart."""
        return 1

    @property
    def d_head(self) -> int:  # type: ignore[override]
        """Channels of its one head."""
        return self.width


def projections(lines: Mapping[str, tuple[int, str]], into: int, bias: bool) -> dict[str, Component]:
    """Matrices from `into` numbers, by name: how many numbers they give and the line of the tally that counts them."""
    found: dict[str, Component] = {}
    for name, (out, counted) in lines.items():
        found[f"{name}.weight"] = Component((out, into), counted)
        if bias:
            found[f"{name}.bias"] = Component((out,), "biases")
    return found


def convolution(channels: int, spans: int, bias: bool) -> dict[str, Component]:
    """A short convolution over each channel's last positions."""
    found = {"conv.weight": Component((channels, spans), "convolution")}
    return found | ({"conv.bias": Component((channels,), "biases")} if bias else {})
