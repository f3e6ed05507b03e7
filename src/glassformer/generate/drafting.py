"""Several tokens per step: cheap drafts that the model checks all at once, with its own distribution kept exactly.

A draft is kept with probability min(1, p/q), p the model's and q the drafter's probability of it; the first refused
one is replaced by a draw from what p has beyond q (arXiv:2211.17192). A drafter that looks up an earlier repeat of the
last words (n-gram lookup) is sure of itself: q is 1 for its draft. What comes out is distributed as without guessing.
It knows distributions, ids and what a runner is called by; it does not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.generate.sampling import Sampling, draw, probabilities


class Drafter(Protocol):
    """Proposes how a text goes on."""

    def draft(
        self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], Tensor | None]:
        """At most `most` ids that may follow `ids`, and the distribution each was drawn from, (draft, vocab), or None
        where it was not drawn."""
        ...


class NgramLookup:
    """Drafts that what followed the last few tokens before will follow them again.

    Args:
        longest: tokens of the longest ending that is looked up; shorter ones are tried after.
        shortest: tokens of the shortest.
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise UsageError(f"N-gram lookup needs 1 <= shortest <= longest; got {shortest} and {longest}.")
        self.longest, self.shortest = longest, shortest

    def draft(
        self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], Tensor | None]:
        return self.look_up(ids, most), None

    def look_up(self, ids: Sequence[int], most: int) -> list[int]:
        """What followed the latest earlier occurrence of the text's ending; [] when there was none."""
        text = torch.as_tensor(ids)
        for size in range(min(self.longest, len(ids) - 1), self.shortest - 1, -1):
            ending = text[-size:]
            found = (text[:-1].unfold(0, size, 1) == ending).all(1).nonzero()
            if len(found):
                start = int(found[-1]) + size
                return text[start : start + most].tolist()
        return []


def accept(target: Tensor, drafts: Sequence[int], drawn_from: Tensor | None, generator: torch.Generator) -> list[int]:
    """The tokens that really follow: drafts up to the first refused one, and one token more.

    Args:
        target: (draft + 1, vocab) distributions of the model, before each draft and after the last.
        drafts: the proposed ids.
        drawn_from: (draft, vocab) distributions the drafts were drawn from; None when each was certain.
        generator: of the random numbers.
    """
    out: list[int] = []
    for i, token in enumerate(drafts):
        p = target[i]
        q = 1.0 if drawn_from is None else float(drawn_from[i, token])
        u = float(torch.rand(1, dtype=torch.float64, generator=generator))
        if u * q < float(p[token]):
            out.append(token)
            continue
        rest = p.clone()
        if drawn_from is None:
            rest[token] = 0
        else:
            rest = (p - drawn_from[i]).clamp(min=0)
        return [*out, draw(rest if float(rest.sum()) > 0 else p, generator)]
    return [*out, draw(target[len(drafts)], generator)]


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

    def draft(
        self, ids: Sequence[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> tuple[list[int], Tensor | None]:
        most = min(most, self.runner.capacity - len(ids))
        if most < 1:
            return [], None
        same = 0
        for mine, theirs in zip(self._read, ids[:-1], strict=False):
            if mine != theirs:
                break
            same += 1
        new = list(ids[same:])
        drafts: list[int] = []
        drawn: list[Tensor] = []
        self._read = list(ids[:same])
        while len(drafts) < most:
            at = len(self._read)
            logits = self.runner.forward(new, [self.slot] * len(new), range(at, at + len(new)), [len(new) - 1])[0]
            self._read += new
            p = probabilities(logits, sampling)
            drawn.append(p)
            drafts.append(draw(p, generator))
            new = drafts[-1:]
        return drafts, torch.stack(drawn)
