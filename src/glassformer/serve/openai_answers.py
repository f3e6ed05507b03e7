"""What answers look like to OpenAI's clients: texts, log-probabilities, chunks, usage.

It knows steps and tokenizers and the shapes of OpenAI's API; it does not know HTTP, models or engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.generate.sampling import TokenLogprob

if TYPE_CHECKING:
    from glassformer.generate.request import Step
    from glassformer.tokenizer.tokenizer import Tokenizer

_LEAST = -9999.0  # what OpenAI says for minus infinity, which JSON lacks


@dataclass(frozen=True)
class Entry:
    """One token in an answer's (or a prompt's) log-probabilities.

    Attributes:
        id: the token.
        offset: characters of the text before it.
        logprob: None for a prompt's first token, which nothing predicted.
        top: the likeliest tokens at its place.
    """

    id: int
    offset: int
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()


class Transcript:
    """One answer as it grows.

    Args:
        tokenizer: what ids stand for.
        stop_ids: tokens that end the answer and are no part of it.
        offset: characters before the answer, where the prompt is echoed.

    Attributes:
        text: the answer so far. entries: its tokens, where log-probabilities were asked for.
        tokens: how many were computed. finish: why it ended, or None. precision: of what computed it.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int], offset: int = 0) -> None:
        self._tokenizer, self._stop_ids, self._offset = tokenizer, stop_ids, offset
        self._stream = tokenizer.stream(specials=False)
        self._reached = offset
        self._told = self._told_entries = 0
        self._entries: list[Entry] = []
        self.text = ""
        self.tokens = 0
        self.finish: str | None = None
        self.precision = ""

    def push(self, step: Step) -> None:
        """Take in a step."""
        self.text += step.text
        self.finish, self.precision = step.finish, step.precision
        if step.id is None:
            return
        self.tokens += 1
        if step.logprob is not None and step.id not in self._stop_ids:
            self._entries.append(Entry(step.id, self._reached, step.logprob.logprob, step.top))
            self._reached += len(self._stream.push(step.id))

    @property
    def entries(self) -> list[Entry]:
        """Tokens that are certain to belong to the text; the rest of a stop string never does."""
        if self.finish == "length":
            return self._entries
        end = self._offset + len(self.text)
        return [entry for entry in self._entries if entry.offset < end]

    def news(self) -> tuple[str, list[Entry]]:
        """Text and tokens that were not told yet."""
        text, entries = self.text[self._told :], self.entries[self._told_entries :]
        self._told, self._told_entries = len(self.text), self._told_entries + len(entries)
        return text, entries


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token's text; `bytes:\\x..` where its bytes are not whole characters."""
    raw = tokenizer.token_bytes(id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict[str, Any]:
    """`logprobs` of a completion; every place lists the token that is there besides the likeliest."""
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry.logprob is None:
            tops.append(None)
            continue
        here: dict[str, float] = {}
        for one in (*entry.top, TokenLogprob(entry.id, entry.logprob)):
            here.setdefault(spelled(tokenizer, one.id), _finite(one.logprob))
        tops.append(here)
    return {
        "tokens": [spelled(tokenizer, entry.id) for entry in entries],
        "token_logprobs": [None if entry.logprob is None else _finite(entry.logprob) for entry in entries],
        "top_logprobs": tops,
        "text_offset": [entry.offset for entry in entries],
    }


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict[str, Any]:
    """`logprobs` of a chat answer."""

    def one(id: int, logprob: float | None) -> dict[str, Any]:
        raw = tokenizer.token_bytes(id)
        return {"token": spelled(tokenizer, id), "logprob": _finite(logprob or 0.0), "bytes": list(raw)}

    return {
        "content": [
            one(entry.id, entry.logprob) | {"top_logprobs": [one(top.id, top.logprob) for top in entry.top]}
            for entry in entries
        ],
        "refusal": None,
    }


def usage(prompt: int, answers: Sequence[Transcript], cached: int) -> dict[str, Any]:
    """Tokens read and computed; the token that ends an answer is one of them."""
    written = sum(answer.tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
