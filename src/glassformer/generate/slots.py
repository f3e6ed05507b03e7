"""Which slot of a runner holds which tokens, and where a prompt goes so that as little as possible is read again.

The first slots answer; spare ones behind them only keep what others held, within a budget, for prompts to come. It
knows ids and numbers of slots; it does not know runners, requests or text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glassformer.generate.prefix_files import shared

# A prefix this much longer in another slot is worth copying, and one so long worth keeping.
_WORTH_COPYING = 16


@dataclass(frozen=True)
class Placement:
    """Where a prompt goes.

    Attributes:
        slot: its slot.
        have: how many of its tokens are in it once `copies` are made.
        copies: (from slot, to slot, tokens), in order.
    """

    slot: int
    have: int
    copies: tuple[tuple[int, int, int], ...] = ()


class Slots:
    """The slots of one runner.

    Args:
        count: slots that answer.
        spare: further slots that keep prefixes.
        rewinds: whether a slot can go back to an earlier token; a recurrence cannot.
    """

    def __init__(self, count: int, spare: int = 0, *, rewinds: bool = True) -> None:
        self.count, self.spare, self.rewinds = count, spare, rewinds
        self._held: list[list[int]] = [[] for _ in range(count + spare)]
        self._used = [0] * (count + spare)  # when a slot was last given away or looked up, in requests
        self._clock = 0

    def forget(self) -> None:
        """Nothing is held any more."""
        self._held = [[] for _ in self._held]

    def holds(self, slot: int, ids: Sequence[int]) -> None:
        """A slot now holds these tokens."""
        self._held[slot] = list(ids)

    def place(self, ids: Sequence[int], free: Sequence[int], running: Mapping[int, Sequence[int]]) -> Placement:
        """Where a prompt goes, among the `free` slots; `running` slots hold what is given there."""
        held = [running.get(slot, self._held[slot]) for slot in range(len(self._held))]
        common = [min(shared(tokens, ids), len(ids) - 1) for tokens in held]
        if not self.rewinds:  # all of what a slot holds, or nothing
            common = [n if n == len(tokens) else 0 for n, tokens in zip(common, held, strict=True)]
        oldest = min(free, key=lambda slot: (len(held[slot]) > 0, self._used[slot]))
        mine = max(free, key=lambda slot: common[slot])
        best = max(range(len(held)), key=lambda slot: common[slot])
        copies: list[tuple[int, int, int]] = []
        # Taking a slot over forgets what else it held: worth it when most of that is wanted.
        if common[mine] >= common[best] - _WORTH_COPYING and 2 * common[mine] >= len(held[mine]):
            slot, have = mine, common[mine]
        elif common[best] > _WORTH_COPYING and best != oldest:
            slot, have = oldest, common[best]
        else:
            slot, have = oldest, common[oldest]
        self._clock += 1
        copies += self._kept(slot, common[slot], held, best)
        if have > common[slot]:
            copies.append((best, slot, have))
        self._used[slot] = self._used[best] = self._clock
        self._held[slot] = []
        return Placement(slot, have, tuple(copies))

    def _kept(self, slot: int, wanted: int, held: list[Sequence[int]], best: int) -> list[tuple[int, int, int]]:
        """The copy that keeps what a slot is about to lose, where there is a spare one for it."""
        losing = held[slot]
        spare = [one for one in range(self.count, len(held)) if one != best]
        if not spare or len(losing) - wanted < _WORTH_COPYING:
            return []
        if any(shared(tokens, losing) == len(losing) for one, tokens in enumerate(held) if one != slot):
            return []
        # A slot whose tokens this continues is the first to be written over, then an empty one, then the one that was
        # not wanted for the longest time.
        within = [one for one in spare if held[one] and shared(held[one], losing) == len(held[one])]
        target = min(within or spare, key=lambda one: (len(held[one]) > 0, self._used[one]))
        self._held[target], self._used[target] = list(losing), self._clock
        return [(slot, target, len(losing))]
