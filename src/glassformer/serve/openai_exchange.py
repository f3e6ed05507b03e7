"""One HTTP request answered: checked, seated, and said in OpenAI's shapes, whole or as a stream.

It knows the desk, plans and shapes; which routes there are and how a request becomes a plan is `openai_api.py`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from glassformer import __version__
from glassformer.errors import GlassformerError, ServerError, TextError, TokenizerError, UsageError, near
from glassformer.generate.request import Request as Asked
from glassformer.serve.admission import Desk, Gone, Job, Late, Refused
from glassformer.serve.app import problem
from glassformer.serve.openai_answers import Entry, Transcript, chat_logprobs, completion_logprobs, usage
from glassformer.serve.openai_requests import ChatAsk, CompletionAsk, Sampled
from glassformer.serve.telemetry import LOGGER
from glassformer.serve.work import Workers
from glassformer.views import Cancelled

if TYPE_CHECKING:
    from glassformer.lm import Model


@dataclass
class Serving:
    """What is served.

    Args:
        model: tokenizer, template, and the transformer that scores echoed prompts.
        desk: before the model's engine.
        names: by which it may be asked for; the first is its own.
        most_tokens: of one answer; None for as many as fit.
    """

    model: Model
    desk: Desk
    names: tuple[str, ...]
    most_tokens: int | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    scoring: Workers = field(default_factory=lambda: Workers(1))  # one prompt is scored at a time

    def card(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        engine = self.desk.engine
        return {
            "id": self.names[0],
            "object": "model",
            "created": self.started,
            "owned_by": "glassformer",
            "context_length": engine.capacity,
            "precision": engine.precision,
            "path": engine.path,
        }

    def known(self, name: str | None) -> None:
        """Raise `Unknown` for a model that is not served."""
        if name is not None and name not in self.names:
            raise Unknown(f"The model {name[:100]!r} is not served here; {self.names[0]!r} is.{near(name, self.names)}")


_FAILED = "The server failed on this answer; it goes on, and its log says more."


class Unknown(Exception):
    """A model that is not served."""


@dataclass
class Plan:
    """One HTTP request, ready for the engine: a prompt may be answered several times, or only scored."""

    prompts: list[list[int]]
    asked: list[Asked]
    echoes: list[str]
    scored: list[list[Entry]]


class Shape:
    """How one kind of answer is said."""

    kind = chunk_kind = prefix = ""

    def __init__(self, serving: Serving, ask: Sampled) -> None:
        self.serving, self.ask = serving, ask
        self.tokenizer = serving.model.tokenizer
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": serving.names[0],
        }

    def envelope(self, kind: str, precision: str) -> dict[str, Any]:
        precision = precision or self.serving.desk.engine.precision
        return {**self.head, "object": kind, "system_fingerprint": f"glassformer-{__version__}-{precision}"}

    def first(self, index: int, plan: Plan) -> list[dict[str, Any]]:
        """Choices that come before an answer's own text."""
        return []

    def news(self, index: int, text: str, entries: Sequence[Entry]) -> dict[str, Any]:
        raise NotImplementedError

    def end(self, index: int, finish: str) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, index: int, text: str, entries: Sequence[Entry], finish: str) -> dict[str, Any]:
        raise NotImplementedError


class Completion(Shape):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"
    ask: CompletionAsk

    def _choice(self, index: int, text: str, entries: Sequence[Entry], finish: str | None) -> dict[str, Any]:
        found = None
        if self.ask.logprobs is not None and (entries or not self.ask.stream):
            found = completion_logprobs(self.tokenizer, entries)
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}

    def first(self, index: int, plan: Plan) -> list[dict[str, Any]]:
        prompt = index // (self.ask.n or 1)
        if not self.ask.echo:
            return []
        return [self._choice(index, plan.echoes[prompt], plan.scored[prompt] if plan.scored else (), None)]

    def news(self, index: int, text: str, entries: Sequence[Entry]) -> dict[str, Any]:
        return self._choice(index, text, entries, None)

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, "", (), finish)

    def whole(self, index: int, text: str, entries: Sequence[Entry], finish: str) -> dict[str, Any]:
        return self._choice(index, text, entries, finish)


class Chat(Shape):
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"
    ask: ChatAsk

    def _choice(self, index: int, delta: dict[str, Any], entries: Sequence[Entry], finish: str | None) -> Any:
        found = None
        if self.ask.logprobs and (entries or not self.ask.stream):
            found = chat_logprobs(self.tokenizer, entries)
        return {"index": index, "delta": delta, "logprobs": found, "finish_reason": finish}

    def first(self, index: int, plan: Plan) -> list[dict[str, Any]]:
        return [self._choice(index, {"role": "assistant", "content": ""}, (), None)]

    def news(self, index: int, text: str, entries: Sequence[Entry]) -> dict[str, Any]:
        return self._choice(index, {"content": text}, entries, None)

    def end(self, index: int, finish: str) -> dict[str, Any]:
        return self._choice(index, {}, (), finish)

    def whole(self, index: int, text: str, entries: Sequence[Entry], finish: str) -> dict[str, Any]:
        choice = self._choice(index, {}, entries, finish)
        del choice["delta"]
        return choice | {"message": {"role": "assistant", "content": text, "refusal": None}}


async def answered(
    serving: Serving, ask: Sampled, http: Request, plan: Callable[[], Coroutine[Any, Any, Plan]], shape: Shape
) -> Response:
    """Check, plan, take seats, and answer: whole, or as a stream."""
    try:
        serving.known(ask.model)
        with serving.desk.planning():  # before any work is done for it
            async with asyncio.timeout(serving.desk.seconds):
                made = await plan()
        job = serving.desk.take(made.asked)
    except (GlassformerError, Refused, Unknown) as error:
        return told(error)
    except Cancelled:
        serving.desk.metrics.ended.labels("gone").inc()
        return Response(status_code=499)
    except TimeoutError:
        serving.desk.metrics.ended.labels("late").inc()
        return _late(serving)
    answers = [
        Transcript(serving.model.tokenizer, serving.model.tokenizer.stop_ids, len(made.echoes[i // (ask.n or 1)]))
        for i in range(len(made.prompts) * (ask.n or 1))
    ]
    exchange = _Exchange(http, job, made, answers, shape)
    if ask.stream:
        return _Events(exchange)
    try:
        return JSONResponse(await exchange.whole())
    except Gone:
        return Response(status_code=499)
    except Late:
        return _late(serving)
    except GlassformerError as error:
        return told(error)
    except Exception:
        logging.getLogger(LOGGER).exception("failure")
        return problem(500, _FAILED)
    finally:
        exchange.close()


def _late(serving: Serving) -> Response:
    return problem(408, f"The answer took longer than the {serving.desk.seconds:g} s that this server allows.")


class _Exchange:
    """One HTTP request being answered."""

    def __init__(self, http: Request, job: Job, plan: Plan, answers: list[Transcript], shape: Shape) -> None:
        self.http, self.job, self.plan, self.answers, self.shape = http, job, plan, answers, shape

    @property
    def precision(self) -> str:
        """Of what computed the answer; a prompt that was scored in another one says so as well."""
        written = next((answer.precision for answer in self.answers if answer.precision), "")
        if not self.plan.scored:
            return written
        scored = str(self.shape.serving.model.transformer.dtype).removeprefix("torch.")
        if not self.plan.asked:
            return scored
        written = written or self.shape.serving.desk.engine.precision
        return written if written == scored else f"{written}-prompt-{scored}"

    def usage(self) -> dict[str, Any]:
        return usage(sum(map(len, self.plan.prompts)), self.answers, self.job.cached)

    async def whole(self) -> dict[str, Any]:
        """The whole answer at once."""
        async for index, step in self.job.steps(self.http):
            self.answers[index].push(step)
        choices = []
        for index, answer in enumerate(self.answers):
            prompt = index // (self.shape.ask.n or 1)
            entries = [*(self.plan.scored[prompt] if self.plan.scored else ()), *answer.entries]
            choices.append(
                self.shape.whole(index, self.plan.echoes[prompt] + answer.text, entries, answer.finish or "length")
            )
        envelope = self.shape.envelope(self.shape.kind, self.precision)
        return envelope | {"choices": choices, "usage": self.usage()}

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """The answer in chunks."""
        shape, options = self.shape, self.shape.ask.stream_options
        counted = bool(options and options.include_usage)

        def chunk(choices: list[dict[str, Any]], used: dict[str, Any] | None = None) -> dict[str, Any]:
            data = shape.envelope(shape.chunk_kind, self.precision) | {"choices": choices}
            return data | {"usage": used} if counted else data

        for index in range(len(self.answers)):
            for choice in shape.first(index, self.plan):
                yield chunk([choice])
        if not self.job.handles:
            for index in range(len(self.answers)):
                yield chunk([shape.end(index, "length")])
        async with aclosing(self.job.steps(self.http)) as steps:
            async for index, step in steps:
                answer = self.answers[index]
                answer.push(step)
                text, entries = answer.news()
                if text or entries:
                    yield chunk([shape.news(index, text, entries)])
                if answer.finish is not None:
                    yield chunk([shape.end(index, answer.finish)])
        if counted:
            yield chunk([], self.usage())

    def close(self) -> None:
        """Stop what still runs, give the seats back, and tell the log."""
        self.job.close()
        self.http.scope.get("state", {}).get("told", {}).update(
            id=self.shape.head["id"],
            precision=self.precision or None,
            prompt_tokens=sum(map(len, self.plan.prompts)),
            cached_tokens=self.job.cached,
            completion_tokens=sum(answer.tokens for answer in self.answers),
            finish=[answer.finish or "unfinished" for answer in self.answers],
        )


class _Events(Response):
    """Server-sent events; whatever ends them, the computation ends with them."""

    media_type = "text/event-stream"

    def __init__(self, exchange: _Exchange) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.exchange = exchange

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        events = self.exchange.events()
        seconds = self.exchange.job.desk.seconds
        more = True
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout(seconds + 5):  # a client that reads too slowly is left
                try:
                    async for event in events:
                        await send(_event(event))
                    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
                except (Gone, OSError):
                    more = False
                except Late:
                    await send(_event(_failure(f"The answer took longer than the {seconds:g} s allowed.")))
                except GlassformerError as error:
                    await send(_event(_failure(str(error))))
                except Exception:
                    logging.getLogger(LOGGER).exception("failure")
                    await send(_event(_failure(_FAILED)))
        except TimeoutError:
            more = False
        finally:
            await events.aclose()
            self.exchange.close()
        if more:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: dict[str, Any]) -> dict[str, Any]:
    body = b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    return {"type": "http.response.body", "body": body, "more_body": True}


def _failure(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def told(error: Exception) -> Response:
    """An error as OpenAI's clients expect it."""
    if isinstance(error, Refused):
        response = problem(error.status, error.message, code=error.code)
        response.headers["retry-after"] = str(error.retry)
        return response
    if isinstance(error, Unknown):
        return problem(404, str(error), param="model", code="model_not_found")
    if isinstance(error, TextError):
        long = " long and " in str(error)
        return problem(400, str(error), code="context_length_exceeded" if long else None)
    if isinstance(error, (UsageError, TokenizerError)):
        return problem(400, str(error))
    return problem(503 if isinstance(error, ServerError) else 500, str(error))
