"""One request while it is answered: its ids so far, and how logits become its next tokens.

It knows sampling, guesses and what ends a text; it does not know runners, nor who else is answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glassformer.generate.drafting import accept
from glassformer.generate.request import Finish, Handle, Request, Step
from glassformer.generate.sampling import adjust, choose, logprobs, probabilities
from glassformer.generate.stop import Ending


@dataclass
class Answer:
    """A request in a slot.

    Attributes:
        ids: of the prompt and the answer so far.
        capacity: ids that fit.
        done: how many of the ids are in the cache.
        guesses, drawn_from: what the next step checks, and the distributions it was drawn from.
    """

    handle: Handle
    slot: int
    ids: list[int]
    ending: Ending
    generator: torch.Generator
    capacity: int
    done: int = 0
    guesses: list[int] = field(default_factory=list)
    drawn_from: Tensor | None = None

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.handle.request

    @property
    def answer(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[len(self.request.prompt) :]

    def guess(self, room: int) -> None:
        """Propose at most `room` tokens to be checked in the next step."""
        self.guesses, self.drawn_from = [], None
        request = self.request
        room = min(room, request.guesses, self.capacity - len(self.ids) - 1)
        if request.max_tokens is not None:
            room = min(room, request.max_tokens - len(self.answer) - 1)
        if request.guesser is not None and room > 0:
            self.guesses, self.drawn_from = request.guesser.guess(self.ids, room, request.sampling, self.generator)

    def advance(self, logits: Tensor, precision: str) -> list[Step]:
        """The steps that follow from logits (1 + guess, vocab) after the last token and after each guess.

        At least one; the last one's `finish` says whether the answer ends.
        """
        steps: list[Step] = []
        for row, token in zip(logits, self._chosen(logits), strict=False):
            steps.append(self._told(row, token, precision))
            if steps[-1].finish is not None:
                return steps
        self.done = len(self.ids) - 1  # guesses that were kept are in the cache already
        return steps

    def _chosen(self, logits: Tensor) -> list[int]:
        prompt, answer, sampling = self.request.prompt, self.answer, self.request.sampling
        if self.guesses:
            rows = [
                probabilities(adjust(row, sampling, prompt, [*answer, *self.guesses[:i]]), sampling)
                for i, row in enumerate(logits)
            ]
            return accept(torch.stack(rows), self.guesses, self.drawn_from, self.generator)
        if sampling.greedy and sampling.plain:
            return [int(logits[0].numpy().argmax())]
        return [choose(adjust(logits[0], sampling, prompt, answer), sampling, self.generator)]

    def _told(self, logits: Tensor, token: int, precision: str) -> Step:
        request = self.request
        self.ids.append(token)
        text = self.ending.push(token)
        finish: Finish | None = None
        if self.ending.stopped:
            finish = "stop"
        elif len(self.answer) == request.max_tokens or len(self.ids) >= self.capacity:
            finish = "length"
            text += self.ending.finish()
            if self.ending.stopped:
                finish = "stop"
        if request.logprobs is None:
            return Step(token, text, finish=finish, precision=precision)
        mine, top = logprobs(logits, token, request.logprobs)
        return Step(token, text, mine, top, finish, precision)
