"""Sequences of unequal lengths as few rectangles: who is computed together so that little is padding.

A transformer computes a document the same way alone and beside others in a batch, so documents that must not see each
other need no mask: each is a row of its own, and rows of like lengths are computed together. numpy only; it knows
lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

PASS = 48
"""What one more pass costs, in tokens of padding that would cost as much (measured on small models, two cores)."""
SHARE = 0.02
"""Padding that is always allowed, as a share of a group's tokens."""


def groups(lengths: Sequence[int], budget: int, *, pass_cost: int = PASS) -> list[list[int]]:
    """Which sequences to compute together, longest first; every one in exactly one group.

    Args:
        lengths: of each sequence, at least 1.
        budget: tokens of a group, padding included; a longer sequence is a group by itself.
        pass_cost: tokens of padding that are worth saving a pass.

    Returns:
        Lists of indices into `lengths`, each to be padded to its first's length.
    """
    found: list[list[int]] = []
    longest = tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if found:
            padded = (len(found[-1]) + 1) * longest
            if padded <= budget and padded - tokens - length <= pass_cost + SHARE * padded:
                found[-1].append(index)
                tokens += length
                continue
        found.append([index])
        longest = tokens = length
    return found
