"""What a request's answer is held to: the vocabulary, the length, where it stops, and a constraint.

It knows one model's tokenizer and sizes; it does not know what computes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from glassformer.errors import ContextLengthError, TextError, UsageError
from glassformer.generate.constraints import Grammars, Matcher
from glassformer.generate.request import Request
from glassformer.generate.stop import StopMatcher

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer


class Limits:
    """The limits of one model's answers.

    Args:
        tokenizer: turns ids into text; None for ids only.
        vocab_size: of the model. capacity: tokens of prompt and answer together.

    Attributes:
        absent: the ids that the tokenizer has no token for; None where there are none.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, capacity: int) -> None:
        self.tokenizer, self.vocab_size, self.capacity = tokenizer, vocab_size, capacity
        self.absent = _absent(tokenizer, vocab_size)
        self._grammars: Grammars | None = None
        self._grammars_lock = threading.Lock()

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            TextError: for an empty prompt, unknown ids, or one that leaves no room for an answer.
            UsageError: for stop strings or a constraint that cannot be.
        """
        n, vocab = len(request.prompt), self.vocab_size
        if n == 0:
            raise TextError("The prompt holds no token; give at least one word.")
        for i in request.prompt:
            if not 0 <= i < vocab:
                raise TextError(f"Token id {i} is not in this model's vocabulary of {vocab}.")
        if n >= self.capacity:
            raise ContextLengthError(
                f"The prompt is {n} tokens long and this model reads at most {self.capacity}, with at least one left"
                " for the answer; shorten it."
            )
        for name, tokens in (
            ("logit_bias", request.sampling.logit_bias),
            ("stop_token_ids", request.sampling.stop_token_ids),
        ):
            for token in tokens:
                if token >= vocab:
                    raise UsageError(f"{name} names token {token}; this vocabulary has {vocab}.")
        self.stop_matcher(request)
        self.matcher(request)

    def stop_ids(self, request: Request) -> frozenset[int]:
        """The tokens that end a request's answer and are no part of it."""
        stop_ids = request.stop_ids
        if stop_ids is None:
            stop_ids = frozenset() if self.tokenizer is None else self.tokenizer.stop_ids
        if request.sampling.ignore_eos:
            stop_ids = frozenset()
        return stop_ids | request.sampling.stop_token_ids

    def stop_matcher(self, request: Request) -> StopMatcher:
        """What finds a request's stop strings and ids in its answer."""
        return StopMatcher(self.tokenizer, request.stop, self.stop_ids(request))

    def matcher(self, request: Request) -> Matcher | None:
        """What holds a request's answer to its constraint, where it has one.

        Raises:
            UsageError: for a constraint that cannot be.
        """
        if request.constraint is None:
            return None
        if self.tokenizer is None:
            raise UsageError("A constraint needs a tokenizer; without one there is no text to hold to it.")
        with self._grammars_lock:
            if self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self.vocab_size)
        return self._grammars.matcher(request.constraint)


def _absent(tokenizer: Tokenizer | None, rows: int) -> torch.Tensor | None:
    """The ids of a model with so many rows that a tokenizer has no token for; None where there are none."""
    if tokenizer is None:
        return None
    missing = sorted(set(range(rows)).difference(tokenizer.token_ids))
    return torch.tensor(missing) if missing else None
