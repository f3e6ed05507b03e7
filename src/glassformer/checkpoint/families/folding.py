"""Multipliers of a design as part of its weights: for layouts that have tensors and no word for such numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.model.config import Config


@dataclass(frozen=True)
class Folded:
    """A design as a layout can say it.

    Args:
        config: the same computation without its multipliers.
        scales: native key -> what its tensor is multiplied by for that.
        unlike: what is computed otherwise all the same, a sentence; "" for nothing.
    """

    config: Config
    scales: Mapping[str, float] = field(default_factory=dict)
    unlike: str = ""

    def tensors(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tensors that go with the design, each made when it is asked for."""
        return _Scaled(tensors, self)


def untied(config: Config) -> Folded:
    """The same with an output of its own, for layouts that have no word for a tied one."""
    return Folded(dataclasses.replace(config, tied=False))


class _Scaled(Mapping[str, Any]):
    """Tensors, multiplied; an output that is tied no longer is made of the embedding."""

    def __init__(self, tensors: Mapping[str, Any], folded: Folded) -> None:
        self._tensors, self._scales = tensors, folded.scales
        self._untied = not folded.config.tied and "unembed.weight" not in tensors

    def __getitem__(self, key: str) -> Any:
        found = self._tensors["embed.weight" if self._untied and key == "unembed.weight" else key]
        return found.detach().float() * self._scales[key] if self._scales.get(key, 1.0) != 1 else found

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        if self._untied:
            yield "unembed.weight"

    def __len__(self) -> int:
        return len(self._tensors) + self._untied
