"""The tokens that one step of the engine puts in, of many sequences side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from glassformer.generate.sequence import Sequence


@dataclass
class Batch:
    """What a runner's `forward` takes, and whose it is.

    Attributes:
        tokens, slots, positions: of every row: the id, the slot whose cache it joins, its place in the text.
        out: the rows whose logits are wanted.
        shares: for each sequence in order: itself, how many rows it has, and of how many the logits are wanted.
    """

    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    out: list[int] = field(default_factory=list)
    shares: list[tuple[Sequence, int, int]] = field(default_factory=list)


def gather(sequences: Iterable[Sequence], rows: int, drafts: bool) -> Batch:
    """What every sequence has not put in yet, in `rows` rows at most, and drafts behind it where they can be undone."""
    batch = Batch()
    for active in sorted(sequences, key=lambda a: len(a.ids) - a.done):  # single-token requests first
        if rows < 1:
            break
        piece = active.ids[active.done : active.done + rows]
        wanted = 0
        if active.done + len(piece) == len(active.ids):
            active.draft(rows - len(piece) if drafts else 0)
            piece = piece + active.drafts
            wanted = 1 + len(active.drafts)
        end = len(batch.tokens) + len(piece)
        batch.out += range(end - wanted, end)
        batch.tokens += piece
        batch.slots += [active.slot if active.runner is None else 0] * len(piece)
        batch.positions += range(active.done, active.done + len(piece))
        batch.shares.append((active, len(piece), wanted))
        rows -= len(piece)
    return batch
