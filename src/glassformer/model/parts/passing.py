"""What all layers of one forward share: positions, what may be seen, angles, and the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from glassformer.model.attention import Visible
from glassformer.model.cache import Cache
from glassformer.model.positions import Angles
from glassformer.model.sites import Where


@dataclass
class Pass:
    """One forward, as its layers see it.

    Args:
        where: positions (batch, query) and which of them are text.
        visible: which keys each query may see.
        angles: cosines and sines for each of the model's rotary tables.
        cache: what earlier tokens left behind, or None.
        shared: keys and values (batch, kv_head, key, d_head) of layers that later ones use, by layer.
        inputs: tokens' own vectors (batch, query, d_ple) in the layers that have them, by layer.
    """

    where: Where
    visible: Visible
    angles: tuple[Angles, ...]
    cache: Cache | None = None
    shared: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    inputs: Mapping[int, Tensor] = field(default_factory=dict)
