"""What is asked of an engine, and what comes back token by token."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from glassformer.errors import UsageError
from glassformer.generate.constraints import Constraint
from glassformer.generate.drafting import Drafter
from glassformer.generate.sampling import TokenLogprob
from glassformer.generate.settings import GREEDY, Sampling

if TYPE_CHECKING:
    from glassformer.model.sites import Tap

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    Args:
        prompt: token ids, at least one.
        max_tokens: of the answer; None for as many as fit.
        sampling: how tokens are chosen; greedy by default.
        stop: strings that end the answer and are not part of it.
        stop_ids: tokens that end it; None for the tokenizer's own, empty for none.
        logprobs: None for none, n for the chosen token's and those of the n likeliest.
        constraint: a form that the answer must have.
        tap: edits of the model for this answer alone; it is then exact: from the transformer itself or, where they only
            add vectors after layers, from the native path in float32.
        drafter: proposes tokens for the model to check several at once; the distribution stays the same.
        drafts: how many per step at most; as many as pay are made.
        priority: of those that wait, lower ones begin earlier.
        progress: called with (read, all) tokens of the prompt while it is read, on the engine's thread.

    Raises:
        UsageError: for a number out of its range.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] | None = None
    logprobs: int | None = None
    constraint: Constraint | None = None
    tap: Tap | None = field(default=None, compare=False)
    drafter: Drafter | None = field(default=None, compare=False)
    drafts: int = 7  # with the last token as many rows as the native path multiplies at once
    priority: int = 0
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1; got {self.max_tokens}.")
        if self.logprobs is not None and not 0 <= self.logprobs <= 1000:
            raise UsageError(f"logprobs must be between 0 and 1000; got {self.logprobs}.")
        if self.drafts < 1:
            raise UsageError(f"drafts must be at least 1; got {self.drafts}.")


@dataclass(frozen=True)
class TokenEvent:
    """One token of an answer, or its end.

    Attributes:
        id: the token; None when only text that was held back comes out.
        text: what became certain with it, never part of a character; "" when nothing did.
        logprob, top: as asked by `Request.logprobs`, of the model's own distribution.
        finish: why the answer ends with this step, or None.
        precision: of the weights that computed it.
        removed: the part of the model's own probability that the constraint took away; None without one.
        unconstrained: the token that the model finds likeliest, the constraint aside; None without one.
    """

    id: int | None
    text: str = ""
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    precision: str = ""
    removed: float | None = None
    unconstrained: TokenLogprob | None = None


class RequestHandle:
    """A submitted request: iterate over its steps, or cancel it. May be used from any thread.

    Attributes:
        request: what was asked.
        cached: prompt tokens whose keys and values were already there.
        read: prompt tokens that are read by now, those among them.
        submitted, first: monotonic seconds when it came and when its first token did (None before).
    """

    def __init__(self, request: Request, on_event: Callable[[TokenEvent | BaseException], None] | None = None) -> None:
        self.request = request
        self.cached = self.read = 0
        self.submitted, self.first = time.monotonic(), None  # type: float, float | None
        self._steps: queue.SimpleQueue[TokenEvent | BaseException] = queue.SimpleQueue()
        self._tell = on_event or self._steps.put
        self._cancelled = threading.Event()
        self._over = False

    def __iter__(self) -> Iterator[TokenEvent]:
        """Steps as they come; leaving the loop early does not cancel."""
        while not self._over:
            step = self._steps.get()
            if isinstance(step, BaseException):
                self._over = True
                raise step
            self._over = step.finish is not None
            yield step

    def cancel(self) -> None:
        """Stop computing; the last step then says "cancelled"."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self._cancelled.is_set()

    def text(self) -> str:
        """The whole answer, once it is there."""
        return "".join(step.text for step in self)

    def put(self, step: TokenEvent | BaseException) -> None:
        """For the engine: hand over a step, or the error that ends it."""
        if self.first is None:
            self.first = time.monotonic()
        self._tell(step)
