"""The probability of everything that may come next.

A `Distribution` holds one number per token of the vocabulary; nothing is cut off or rounded. It knows a
tokenizer and, for whole words, a function that continues the text; it does not know a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glassformer.errors import TextError, UsageError
from glassformer.predict.next_words import Continuations, Words, next_words

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenProbability:
    """One token that may come next.

    Attributes:
        id: its number in the vocabulary.
        token: its text, for people (U+FFFD where the bytes are not whole characters).
        bytes: its exact bytes.
        probability, logprob: between 0 and 1, and its natural logarithm.
    """

    id: int
    token: str
    bytes: bytes
    probability: float
    logprob: float


class Distribution:
    """The distribution of the next token, and of the next word.

    Args:
        logits: (vocab,), any dtype; log-probabilities do as well.
        tokenizer: what the ids stand for.
        text, ids: the text that was continued and its ids, as the model saw them.
        continuations: for paths of ids after `ids`, all non-empty, the logits (or log-probabilities) of what
            follows each: (len(paths), vocab). Only `words` needs it.
        longest: the longest path that fits the model's context after `ids`; None when there is no end to it.
        model, precision: named in answers.
    """

    def __init__(
        self,
        logits: Tensor,
        tokenizer: Tokenizer,
        *,
        text: str = "",
        ids: Sequence[int] = (),
        continuations: Continuations | None = None,
        longest: int | None = None,
        model: str | None = None,
        precision: str | None = None,
    ) -> None:
        self.logprobs: Tensor = torch.log_softmax(logits.detach().reshape(-1).double(), -1).cpu()
        self.tokenizer = tokenizer
        self.text = text
        self.ids = list(ids)
        self.continuations = continuations
        self.longest = longest
        self.model = model
        self.precision = precision

    @property
    def vocab_size(self) -> int:
        """How many tokens share the probability."""
        return int(self.logprobs.shape[0])

    @property
    def probabilities(self) -> Tensor:
        """(vocab,) float64; they sum to 1."""
        return self.logprobs.exp()

    @property
    def entropy(self) -> float:
        """In nats: 0 when one token is certain, log(vocab) when all are equal."""
        p = self.probabilities
        return float(-(p * self.logprobs).nan_to_num(0.0).sum()) + 0.0

    def top(self, k: int = 10) -> list[TokenProbability]:
        """The `k` likeliest tokens, likeliest first; of equals, the smaller id first."""
        if k < 1:
            raise UsageError(f"The number of tokens to show is 1 or more; {k} is not.")
        found = torch.sort(self.logprobs, descending=True, stable=True).indices[:k]
        return [self.token(int(id)) for id in found]

    def token(self, which: int | str) -> TokenProbability:
        """One token by its id, or by its exact text.

        Raises:
            TextError: a text that is no single token; the sentence says how it splits.
            UsageError: an id outside the vocabulary.
        """
        id = self._id(which)
        spelled = self.tokenizer.token_bytes(id)
        logprob = float(self.logprobs[id])
        return TokenProbability(id, spelled.decode("utf-8", "replace"), spelled, math.exp(logprob), logprob)

    def probability(self, which: int | str) -> float:
        """The probability that one token comes next; see `token`.

        A token carries its leading space: " Paris" and "Paris" are two tokens.
        """
        return self.token(which).probability

    def logprob(self, which: int | str) -> float:
        """The natural logarithm of `probability`."""
        return self.token(which).logprob

    def _id(self, which: int | str) -> int:
        if isinstance(which, str):
            if not which:
                raise TextError("A token is at least one character; the text given is empty.")
            id = self.tokenizer.id_of(which)
            if id is None or id >= self.vocab_size:
                pieces = [self.tokenizer.token_text(i) for i in self.tokenizer.encode(which, bos=False)]
                split = " + ".join(repr(piece) for piece in pieces)
                raise TextError(
                    f"{which!r} is not one token but {len(pieces)} ({split}); ask for the first of them, or for whole "
                    "words with words()."
                )
            return id
        if isinstance(which, bool) or not 0 <= which < self.vocab_size:
            raise UsageError(f"Token {which} does not exist; the vocabulary has ids 0 to {self.vocab_size - 1}.")
        return which

    def temperature(self, t: float) -> Distribution:
        """The distribution at another temperature: logits divided by `t`, here and in every continuation."""
        if not (math.isfinite(t) and t > 0):
            raise UsageError(
                f"A temperature is a number above 0; {t} is not. (0 would always take the likeliest token.)"
            )
        given = self.continuations

        def continued(paths: list[list[int]]) -> Tensor:
            assert given is not None
            return torch.log_softmax(given(paths).double(), -1) / t

        return Distribution(
            self.logprobs / t,
            self.tokenizer,
            text=self.text,
            ids=self.ids,
            continuations=continued if given is not None else None,
            longest=self.longest,
            model=self.model,
            precision=self.precision,
        )

    def words(self, k: int = 10, *, coverage: float = 0.95, max_expansions: int = 512, batch: int = 32) -> Words:
        """The `k` likeliest next words, each as an interval; see `glassformer.predict.next_words`.

        Args:
            coverage: stop when this much of the probability is accounted for.
            max_expansions: stop after this many continuations of the text were computed.
            batch: how many continuations are computed together.
        """
        if self.continuations is None:
            raise UsageError("This distribution came without a way to continue the text, so it has no whole words.")
        return next_words(
            self.logprobs,
            self.continuations,
            self.tokenizer,
            self.ids,
            k=k,
            coverage=coverage,
            max_expansions=max_expansions,
            batch=batch,
            longest=self.longest,
        )

    def to_json(self, k: int = 10, words: Words | None = None) -> dict[str, Any]:
        """The answer as plain data (public format; see docs)."""
        found: dict[str, Any] = {
            "model": self.model,
            "precision": self.precision,
            "text": self.text,
            "ids": self.ids,
            "tokens": [
                {
                    "id": t.id,
                    "token": t.token,
                    "bytes": list(t.bytes),
                    "probability": t.probability,
                    "logprob": t.logprob if math.isfinite(t.logprob) else None,
                }
                for t in self.top(k)
            ],
        }
        if words is not None:
            found |= words.to_json()
        return found

    def __repr__(self) -> str:
        listed = ", ".join(f"{t.token!r} {t.probability:.3f}" for t in self.top(3))
        return f"Distribution({listed}, ...)"
