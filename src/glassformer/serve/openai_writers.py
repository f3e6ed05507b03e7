"""What answers look like to OpenAI's clients: completions and chat completions, whole and in chunks.

It knows answers and tokenizers and the shapes of OpenAI's API; it does not know HTTP or engines.
"""

from __future__ import annotations

import math
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from glassformer import __version__
from glassformer.generate.sampling import TokenLogprob
from glassformer.serve.answers import Answer, Delta, Entry, spelled
from glassformer.serve.edits import plain
from glassformer.serve.exchange import AnswerWriter, Exchange
from glassformer.serve.models import Served
from glassformer.serve.openai_requests import ChatAsk, CompletionAsk
from glassformer.serve.problems import Refusal, openai
from glassformer.serve.streams import dumped, event
from glassformer.tokenizer.tokenizer import Tokenizer

_LEAST = -9999.0  # what OpenAI says for minus infinity, which JSON lacks


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
    told = {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [None if entry.logprob is None else _finite(entry.logprob) for entry in entries],
        "top_logprobs": tops,
        "text_offset": [entry.offset for entry in entries],
    }
    if any(entry.removed is not None for entry in entries):
        told["removed"] = [entry.removed for entry in entries]
        wanted = [entry.unconstrained for entry in entries]
        told["unconstrained"] = [None if one is None else spelled(tokenizer, one.id) for one in wanted]
    return told


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> dict[str, Any]:
    """`logprobs` of a chat answer."""
    content = [
        one_logprob(tokenizer, entry.id, entry.logprob)
        | {"top_logprobs": [one_logprob(tokenizer, top.id, top.logprob) for top in entry.top]}
        | _taken(tokenizer, entry)
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _taken(tokenizer: Tokenizer, entry: Entry) -> dict[str, Any]:
    """What the answer's form took from the model at this token, and what the model would have said."""
    if entry.removed is None:
        return {}
    wanted = entry.unconstrained
    said = None if wanted is None else one_logprob(tokenizer, wanted.id, wanted.logprob)
    return {"removed": entry.removed, "unconstrained": said}


def one_logprob(tokenizer: Tokenizer, id: int, logprob: float | None) -> dict[str, Any]:
    """A token, its bytes, and its log-probability."""
    raw = list(tokenizer.token_bytes(id))
    return {"token": spelled(tokenizer, id), "logprob": _finite(logprob or 0.0), "bytes": raw}


def usage(exchange: Exchange) -> dict[str, Any]:
    """Tokens read and computed; the token that ends an answer is one of them."""
    return {
        "prompt_tokens": exchange.read,
        "completion_tokens": exchange.written,
        "total_tokens": exchange.read + exchange.written,
        "prompt_tokens_details": {"cached_tokens": exchange.job.cached},
    }


class _OpenAi(AnswerWriter):
    """What both kinds of completion share."""

    kind = chunk_kind = prefix = ""
    done = b"data: [DONE]\n\n"

    def __init__(self, served: Served) -> None:
        self.tokenizer = served.model.tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": served.name}
        self.counted = False

    def _envelope(self, kind: str, exchange: Exchange) -> dict[str, Any]:
        made = f"glassformer-{__version__}-{exchange.precision}"
        if not exchange.request.edits:
            return {**self._head, "object": kind, "system_fingerprint": made}
        changed = {"system_fingerprint": f"{made}-edited", "edits": plain(exchange.request.edits)}
        return {**self._head, "object": kind, **changed}

    def failure(self, found: Refusal) -> bytes:
        return event(openai(found))

    def whole(self, exchange: Exchange) -> dict[str, Any]:
        choices = [self._whole(i, exchange, answer) for i, answer in enumerate(exchange.answers)]
        return self._envelope(self.kind, exchange) | {"choices": choices, "usage": usage(exchange)}

    async def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        opening, end = (b"", ""), b'],"usage":null}\n\n' if self.counted else b"]}\n\n"

        def chunk(choice: dict[str, Any]) -> bytes:
            nonlocal opening  # what all chunks begin with; the precision may change on the way
            if opening[1] != (precision := exchange.precision):
                begun = dumped(self._envelope(self.chunk_kind, exchange))[:-1] + b',"choices":['
                opening = b"data: " + begun, precision
            return opening[0] + dumped(choice) + end

        for index in range(len(exchange.answers)):
            for choice in self._first(index, exchange):
                yield chunk(choice)
            if not exchange.request.asked:
                yield chunk(self._end(index, "length"))
        async for index, delta in exchange.deltas():
            if delta:
                for choice in self._news(index, delta):
                    yield chunk(choice)
            finish = exchange.answers[index].finish
            if finish is not None:
                yield chunk(self._end(index, finish))
        if self.counted:
            data = self._envelope(self.chunk_kind, exchange)
            yield event(data | {"choices": [], "usage": usage(exchange)})

    @abstractmethod
    def _whole(self, index: int, exchange: Exchange, answer: Answer) -> dict[str, Any]:
        """One choice of a finished answer."""

    @abstractmethod
    def _first(self, index: int, exchange: Exchange) -> list[dict[str, Any]]:
        """What a choice's chunks begin with, before a token has come."""

    @abstractmethod
    def _news(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """Chunks for what is new of a choice."""

    @abstractmethod
    def _end(self, index: int, finish: str) -> dict[str, Any]:
        """A choice's last chunk, which says why it ended."""


class CompletionWriter(_OpenAi):
    """Completions."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, served: Served, ask: CompletionAsk) -> None:
        super().__init__(served)
        self.ask, self.counted = ask, ask.counted

    def _choice(self, index: int, text: str, entries: Sequence[Entry], finish: str | None) -> dict[str, Any]:
        found = None
        if self.ask.logprobs is not None and (entries or not self.ask.stream):
            found = completion_logprobs(self.tokenizer, entries)
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}

    def _whole(self, index: int, exchange: Exchange, answer: Answer) -> dict[str, Any]:
        request = exchange.request
        entries = [*request.scores(index), *answer.entries]
        return self._choice(index, request.echo(index) + answer.text, entries, answer.finish or "length")

    def _first(self, index: int, exchange: Exchange) -> list[dict[str, Any]]:
        if not self.ask.echo:
            return []
        return [self._choice(index, exchange.request.echo(index), exchange.request.scores(index), None)]

    def _news(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        return [self._choice(index, delta.text, delta.entries, None)]

    def _end(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, "", (), finish)


class ChatWriter(_OpenAi):
    """Chat completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, served: Served, ask: ChatAsk) -> None:
        super().__init__(served)
        self.ask, self.counted = ask, ask.counted

    def _choice(
        self, index: int, delta: dict[str, Any], entries: Sequence[Entry], finish: str | None
    ) -> dict[str, Any]:
        found = None
        if self.ask.logprobs and (entries or not self.ask.stream):
            found = chat_logprobs(self.tokenizer, entries)
        return {"index": index, "delta": delta, "logprobs": found, "finish_reason": finish}

    def _whole(self, index: int, exchange: Exchange, answer: Answer) -> dict[str, Any]:
        choice = self._choice(index, {}, answer.entries, answer.finish)
        del choice["delta"]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in answer.calls
            ]
        return choice | {"message": message}

    def _first(self, index: int, exchange: Exchange) -> list[dict[str, Any]]:
        return [self._choice(index, {"role": "assistant", "content": ""}, (), None)]

    def _news(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        told: dict[str, Any] = {}
        if delta.reasoning:
            told["reasoning_content"] = delta.reasoning
        if delta.text or not (delta.reasoning or delta.calls):
            told["content"] = delta.text
        if delta.calls:
            told["tool_calls"] = [
                {
                    "index": call.index,
                    **({} if call.id is None else {"id": call.id, "type": "function"}),
                    "function": {**({} if call.name is None else {"name": call.name}), "arguments": call.arguments},
                }
                for call in delta.calls
            ]
        return [self._choice(index, told, delta.entries, None)]

    def _end(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, {}, (), finish)
