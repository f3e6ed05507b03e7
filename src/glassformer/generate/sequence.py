"""One request while it is answered: its ids so far, and how logits become its next tokens.

It knows sampling, drafts, constraints and what ends a text; it does not know runners, nor who else is answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.generate.request import Finish, Request, RequestHandle, TokenEvent
from glassformer.generate.runners import Runner
from glassformer.generate.sampling import adjust, choose, constrained, logprobs, without
from glassformer.generate.stop import StopMatcher

# Steps without drafts after one whose drafts were all wrong: doubled up to this many.
_LONGEST_REST = 64


class ConstraintMatcher(Protocol):
    """Which tokens a constraint allows next; it follows the answer token by token."""

    stopped: bool

    def allowed(self) -> Bool[Tensor, " vocab"]:
        """Tokens that may come next."""
        ...

    def accept(self, token: int) -> None:
        """Follow the answer by one token."""
        ...

    def possible(self, tokens: list[int]) -> int:
        """How many of these tokens, from the first on, may come next."""
        ...

    def forced(self) -> list[int]:
        """Tokens of a text that has to come next; [] where it may be several."""
        ...


@dataclass
class Sequence:
    """A request in a slot.

    Attributes:
        ids: of the prompt and the answer so far.
        capacity: ids that fit.
        done: how many of the ids are in the cache.
        absent: ids of the model that the tokenizer has no token for, which are never chosen; None for no such id.
        matcher: of the request's constraint; None for an answer without one.
        drafts: tokens that the next step checks.
        runner: its own, of an edited model; None for the one that all share.
    """

    handle: RequestHandle
    slot: int
    ids: list[int]
    stop_matcher: StopMatcher
    generator: torch.Generator
    capacity: int
    done: int = 0
    absent: Tensor | None = None
    matcher: ConstraintMatcher | None = None
    drafts: list[int] = field(default_factory=list)
    runner: Runner | None = None
    _width: int = 2  # drafts worth making in one step, by how many of the last ones were right
    _rest: int = 0  # steps to make without drafts
    _wrong: int = 0  # times in a row that no draft was right

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.handle.request

    @property
    def answer(self) -> list[int]:
        """The ids after the prompt."""
        return self.ids[len(self.request.prompt) :]

    @property
    def answered(self) -> int:
        """How many ids come after the prompt."""
        return len(self.ids) - len(self.request.prompt)

    def draft(self, most: int) -> None:
        """Propose at most `most` tokens to be checked in the next step."""
        self.drafts = []
        request = self.request
        most = min(most, request.drafts, self.capacity - len(self.ids) - 1)
        if request.max_tokens is not None:
            most = min(most, request.max_tokens - self.answered - 1)
        if most < 1 or (request.drafter is None and self.matcher is None):
            return
        if self._rest:
            self._rest -= 1
            return
        most = min(most, self._width)
        if self.matcher is not None:
            self.drafts = self.matcher.forced()[:most]
        if request.drafter is not None and not self.drafts:
            # It meets the random numbers that the model's own choice will meet, and leaves them where they are.
            copy = self.generator.clone_state()
            self.drafts = request.drafter.draft(self.ids, most, request.sampling, copy)
            if self.matcher is not None and self.drafts:
                self.drafts = self.drafts[: self.matcher.possible(self.drafts)]

    def advance(self, logits: Float[Tensor, "rows vocab"], precision: str) -> list[TokenEvent]:
        """The events that follow from the logits after the last token and after each draft, (1 + draft, vocab).

        Tokens are chosen one after the other as without drafts; a row counts while the drafts before it are what was
        chosen. There is at least one event; the last one's `finish` says whether the answer ends.
        """
        events: list[TokenEvent] = []
        for row, draft in zip(logits, [*self.drafts, None], strict=True):
            events.append(self._event(row, self._choose(row), precision))
            if events[-1].finish is not None:
                return events
            if draft != events[-1].id:
                break
        self.done = len(self.ids) - 1  # right drafts are in the cache already
        if self.drafts:
            self._learn(len(events) - 1)
        return events

    def _learn(self, right: int) -> None:
        """Draft more after drafts that were right, fewer after wrong ones, and none for a while after many."""
        if right == len(self.drafts):
            self._width = min(2 * self._width, self.request.drafts)
        else:
            self._width = max(2, right + 1)
        self._wrong = 0 if right else self._wrong + 1
        self._rest = min(2**self._wrong, _LONGEST_REST) if self._wrong else 0

    def _choose(self, logits: Float[Tensor, " vocab"]) -> int:
        sampling, early = self.request.sampling, self.answered < self.request.sampling.min_tokens
        scores = adjust(logits, sampling, self.request.prompt, self.answer) if not sampling.plain else logits
        scores = without(scores, self.absent)
        if not early:
            if self.matcher is None:
                return choose(scores, sampling, self.generator)
            if sampling.greedy or sampling.unfiltered:
                # Which tokens are allowed is not asked where one chosen from all is. One that is not gives way to a
                # choice among the allowed, so that each of these comes as often as if the others had been left out.
                token = choose(scores, sampling, self.generator)
                if self.matcher.possible([token]):
                    return token
        if self.matcher is not None:
            allowed = self.matcher.allowed()
            if not early:
                kept = torch.from_numpy(allowed.numpy().nonzero()[0])
                return int(kept[choose(scores[kept], sampling, self.generator)])
            scores = torch.where(allowed, scores, -torch.inf)
        if early:
            later = scores.clone()
            later[list(self.stop_matcher.stop_ids)] = -torch.inf
            if bool((later > -torch.inf).any()):  # a constraint may leave nothing but the end
                scores = later
        return choose(scores, sampling, self.generator)

    def _event(self, logits: Float[Tensor, " vocab"], token: int, precision: str) -> TokenEvent:
        request = self.request
        told: dict[str, Any] = {} if request.logprobs is None else self._probabilities(logits, token, request.logprobs)
        may_stop = self.answered >= request.sampling.min_tokens
        self.ids.append(token)
        text = self.stop_matcher.push(token, may_stop=may_stop)
        finish: Finish | None = None
        if self.matcher is not None and not self.stop_matcher.stopped:
            self.matcher.accept(token)
            if self.matcher.stopped:
                text += self.stop_matcher.finish()
                self.stop_matcher.stopped = True
        if self.stop_matcher.stopped:
            finish = "stop"
        elif self.answered == request.max_tokens or len(self.ids) >= self.capacity:
            finish = "length"
            text += self.stop_matcher.finish()
            if self.stop_matcher.stopped:
                finish = "stop"
        return TokenEvent(token, text, finish=finish, precision=precision, **told)

    def _probabilities(self, logits: Float[Tensor, " vocab"], token: int, count: int) -> dict[str, Any]:
        """What the model said of its next token, before the settings, and what the constraint took from that."""
        mine, top = logprobs(logits, token, count)
        told: dict[str, Any] = {"logprob": mine, "top": top}
        if self.matcher is not None:
            told["removed"], told["unconstrained"] = constrained(logits, self.matcher.allowed())
        return told
