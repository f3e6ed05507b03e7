"""One request while it is answered: its ids so far, and how logits become its next tokens.

It knows sampling, drafts and what ends a text; it does not know runners, nor who else is answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glassformer.generate.drafting import accept
from glassformer.generate.request import Finish, Request, RequestHandle, TokenEvent
from glassformer.generate.sampling import adjust, choose, logprobs, probabilities, without
from glassformer.generate.stop import StopMatcher


@dataclass
class Sequence:
    """A request in a slot.

    Attributes:
        ids: of the prompt and the answer so far.
        capacity: ids that fit.
        done: how many of the ids are in the cache.
        absent: ids of the model that the tokenizer has no token for, which are never chosen; None for no such id.
        drafts, drawn_from: what the next step checks, and the distributions it was drawn from.
    """

    handle: RequestHandle
    slot: int
    ids: list[int]
    stop_matcher: StopMatcher
    generator: torch.Generator
    capacity: int
    done: int = 0
    absent: Tensor | None = None
    drafts: list[int] = field(default_factory=list)
    drawn_from: Tensor | None = None

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.handle.request

    @property
    def answer(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[len(self.request.prompt) :]

    def draft(self, room: int) -> None:
        """Propose at most `room` tokens to be checked in the next step."""
        self.drafts, self.drawn_from = [], None
        request = self.request
        room = min(room, request.drafts, self.capacity - len(self.ids) - 1)
        if request.max_tokens is not None:
            room = min(room, request.max_tokens - len(self.answer) - 1)
        if request.drafter is not None and room > 0:
            self.drafts, self.drawn_from = request.drafter.draft(self.ids, room, request.sampling, self.generator)

    def advance(self, logits: Tensor, precision: str) -> list[TokenEvent]:
        """The steps that follow from logits (1 + draft, vocab) after the last token and after each draft.

        At least one; the last one's `finish` says whether the answer ends.
        """
        steps: list[TokenEvent] = []
        for row, token in zip(logits, self._chosen(logits), strict=False):
            steps.append(self._told(row, token, precision))
            if steps[-1].finish is not None:
                return steps
        self.done = len(self.ids) - 1  # drafts that were kept are in the cache already
        return steps

    def _chosen(self, logits: Tensor) -> list[int]:
        answer, sampling = self.answer, self.request.sampling
        if self.drafts:
            rows = [
                probabilities(self._adjusted(row, [*answer, *self.drafts[:i]]), sampling)
                for i, row in enumerate(logits)
            ]
            return accept(torch.stack(rows), self.drafts, self.drawn_from, self.generator)
        if sampling.greedy and sampling.plain:
            return [int(without(logits[0], self.absent).numpy().argmax())]
        return [choose(self._adjusted(logits[0], answer), sampling, self.generator)]

    def _adjusted(self, logits: Tensor, answer: list[int]) -> Tensor:
        return without(adjust(logits, self.request.sampling, self.request.prompt, answer), self.absent)

    def _told(self, logits: Tensor, token: int, precision: str) -> TokenEvent:
        request = self.request
        self.ids.append(token)
        text = self.stop_matcher.push(token)
        finish: Finish | None = None
        if self.stop_matcher.stopped:
            finish = "stop"
        elif len(self.answer) == request.max_tokens or len(self.ids) >= self.capacity:
            finish = "length"
            text += self.stop_matcher.finish()
            if self.stop_matcher.stopped:
                finish = "stop"
        if request.logprobs is None:
            return TokenEvent(token, text, finish=finish, precision=precision)
        mine, top = logprobs(logits, token, request.logprobs)
        return TokenEvent(token, text, mine, top, finish, precision)
