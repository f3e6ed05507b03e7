"""Several tokens per step: cheap drafts that the model checks all at once (arXiv:2211.17192).

The model chooses every token itself, with the same random numbers as without drafts, and a draft is right when it is
that token: an answer with drafts is the answer without them, token by token, whatever its settings. A draft model
draws with copies of the same random numbers, so that where the two models agree they choose alike. A drafter knows
ids, settings and what a runner is called by; it does not know models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.generate.sampling import choose
from glassformer.generate.settings import Sampling


class Drafter(Protocol):
    """Proposes how a text goes on."""

    def draft(self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator) -> list[int]:
        """At most `most` ids that may follow `ids`; `generator` is a copy of the one that the answer is drawn with."""
        ...


class NgramLookup:
    """Drafts what followed the last few tokens where they stood before.

    What was read of one answer is kept; another answer's ids are read afresh.

    Args:
        longest: tokens of the longest ending that is looked up; shorter ones are tried after.
        shortest: tokens of the shortest.
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise UsageError(f"N-gram lookup needs 1 <= shortest <= longest; got {shortest} and {longest}.")
        self.longest, self.shortest = longest, shortest
        self._ids: Sequence[int] = ()
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the text went on after its latest occurrence
        self._read = 0

    def draft(self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator) -> list[int]:
        return self.look_up(ids, most)

    def look_up(self, ids: Sequence[int], most: int) -> list[int]:
        """What followed the latest earlier occurrence of the longest ending that has one; [] when none has."""
        if ids is not self._ids or len(ids) < self._read:
            self._ids, self._after, self._read = ids, {}, 0
        for end in range(self._read, len(ids)):  # n-grams that end before the last token
            for size in range(self.shortest, min(self.longest, end) + 1):
                self._after[tuple(ids[end - size : end])] = end
        self._read = len(ids)
        for size in range(min(self.longest, len(ids) - 1), self.shortest - 1, -1):
            start = self._after.get(tuple(ids[-size:]))
            if start is not None:
                found = list(ids[start : start + most])
                period = len(ids) - start  # a repeat that reaches the end goes on repeating
                while len(found) < most:
                    found.append(found[len(found) - period])
                return found
        return []


class DraftRunner(Protocol):
    """What a draft model's runner must do (a `NativeModel` does)."""

    capacity: int

    def forward(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int], out: Sequence[int] | None = None
    ) -> Tensor: ...


class DraftModel:
    """Drafts with a smaller model of the same vocabulary, for one request at a time.

    Args:
        runner: the draft model.
        slot: of the runner's cache, this drafter's own.
    """

    def __init__(self, runner: DraftRunner, slot: int = 0) -> None:
        self.runner, self.slot = runner, slot
        self._read: list[int] = []

    def draft(self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator) -> list[int]:
        most = min(most, self.runner.capacity - len(ids))
        if most < 1:
            return []
        same = 0
        for mine, theirs in zip(self._read, ids[:-1], strict=False):
            if mine != theirs:
                break
            same += 1
        new = list(ids[same:])
        drafts: list[int] = []
        self._read = list(ids[:same])
        while len(drafts) < most:
            at = len(self._read)
            logits = self.runner.forward(new, [self.slot] * len(new), range(at, at + len(new)), [len(new) - 1])[0]
            self._read += new
            drafts.append(choose(logits, sampling, generator))
            new = drafts[-1:]
        return drafts


class DraftModels:
    """Drafts with a smaller model for several requests at once, each in a slot of the runner's.

    Which slot is whose is known by the list of ids that a request keeps; with as many slots as requests are answered at
    once, the one not asked for longest is free.

    Args:
        runner: the draft model. slots: of its cache.
    """

    def __init__(self, runner: DraftRunner, slots: int) -> None:
        self._models = [DraftModel(runner, slot) for slot in range(slots)]
        self._whose: OrderedDict[int, Sequence[int]] = OrderedDict((slot, ()) for slot in range(slots))

    def draft(self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator) -> list[int]:
        slot = next((slot for slot, theirs in self._whose.items() if theirs is ids), next(iter(self._whose)))
        self._whose[slot] = ids
        self._whose.move_to_end(slot)
        return self._models[slot].draft(ids, most, sampling, generator)
