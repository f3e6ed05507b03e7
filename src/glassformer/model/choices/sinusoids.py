"""Fixed vectors of positions, made of sines and cosines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sinusoids:
    """Sines of ever longer waves in the first half of the stream's dimensions, cosines of the same in the second
    (arXiv:1706.03762). Nothing of it is trained, and no position is the last.

    Args:
        first: the number that a text's first position has.
        closed: the longest wave is 2π · 10,000 positions long; otherwise that is one step beyond the longest.
    """

    first: int = 0
    closed: bool = False
