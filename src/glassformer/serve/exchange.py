"""One HTTP request answered: prepared, admitted, computed, and written whole or as a stream.

It knows prepared requests, queues and answers; how an API writes them is each `AnswerWriter`'s, and which routes there
are is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from glassformer.errors import ShapeError
from glassformer.generate.request import Request as Asked
from glassformer.serve.admission import Gone, Job, Late
from glassformer.serve.answers import Answer, Delta, Entry, Reader
from glassformer.serve.models import Models, Served
from glassformer.serve.problems import FAILED, Refusal, problem, refusal
from glassformer.serve.streams import ALIVE, Stream
from glassformer.serve.telemetry import LOGGER
from glassformer.views import Cancelled


@dataclass
class PreparedRequest:
    """One HTTP request, ready for the engine.

    Attributes:
        prompts: their token ids.
        asked: requests to the engine, prompt by prompt; none where prompts are only scored.
        echoes: what is repeated of each prompt. scored: the log-probabilities of each prompt's tokens, if asked for.
        reader: makes what takes an answer apart. specials: whether it reads special tokens too.
        edits: of the model for these answers.
    """

    prompts: list[list[int]]
    asked: list[Asked]
    echoes: list[str] = field(default_factory=list)
    scored: list[list[Entry]] = field(default_factory=list)
    reader: Callable[[], Reader] | None = None
    specials: bool = False
    edits: Sequence[object] = ()

    @property
    def answers_per_prompt(self) -> int:
        """How often each prompt is answered."""
        return max(1, len(self.asked) // len(self.prompts))

    def echo(self, index: int) -> str:
        """What the answer with this number begins with."""
        return self.echoes[index // self.answers_per_prompt] if self.echoes else ""

    def scores(self, index: int) -> list[Entry]:
        """Log-probabilities of the prompt of the answer with this number."""
        return self.scored[index // self.answers_per_prompt] if self.scored else []


class AnswerWriter(ABC):
    """How an API writes an answer.

    Attributes:
        id: of the answer.
        done: what ends a stream, if anything.
        media_type: of a stream. alive: what says that one is alive; empty where nothing can.
    """

    id = ""
    done = b""
    media_type = "text/event-stream"
    alive = ALIVE

    @abstractmethod
    def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The finished answer."""

    @abstractmethod
    def events(self, exchange: Exchange) -> AsyncGenerator[bytes]:
        """The answer in pieces, as they go over the wire."""

    @abstractmethod
    def failure(self, found: Refusal) -> bytes:
        """What a stream that has begun says of an error."""


class Exchange:
    """One HTTP request being answered.

    Attributes:
        served: what answers. request: what is asked. answers: as far as they have come.
    """

    def __init__(self, http: Request, served: Served, job: Job, request: PreparedRequest) -> None:
        self.http, self.served, self.job, self.request = http, served, job, request
        tokenizer = served.model.tokenizer
        count = max(1, len(request.asked)) if request.asked else len(request.prompts)
        self.answers = [
            Answer(
                tokenizer,
                served.queue.engine.limits.stop_ids(request.asked[i]) if request.asked else (),
                stop=request.asked[i].stop if request.asked else (),
                reader=request.reader() if request.reader else None,
                specials=request.specials,
                offset=len(request.echo(i)),
            )
            for i in range(count)
        ]

    @property
    def precision(self) -> str:
        """Of what computed the answer; a prompt that was scored in another one says so as well."""
        written = next((answer.precision for answer in self.answers if answer.precision), "")
        if not written:
            written = self.served.model.precision if self.request.edits else self.served.queue.engine.precision
        if not self.request.scored:
            return written
        scored = self.served.model.precision
        if not self.request.asked:
            return scored
        return written if written == scored else f"{written}-prompt-{scored}"

    @property
    def read(self) -> int:
        """Tokens of the prompts."""
        return sum(map(len, self.request.prompts))

    @property
    def written(self) -> int:
        """Tokens of the answers."""
        return sum(answer.tokens for answer in self.answers)

    async def deltas(self) -> AsyncGenerator[tuple[int, Delta]]:
        """What is new of each answer, as it comes; an answer that has just ended has a `finish`."""
        async with aclosing(self.job.events(self.http)) as events:
            async for index, event in events:
                yield index, self.answers[index].push(event)

    async def finish(self) -> None:
        """Wait for the whole of every answer."""
        async for _ in self.deltas():
            pass

    def close(self, id: str) -> None:
        """Stop what still runs, give the places back, and tell the log."""
        self.job.close()
        self.http.scope.get("state", {}).get("told", {}).update(
            id=id,
            model=self.served.name,
            precision=self.precision,
            prompt_tokens=self.read,
            cached_tokens=self.job.cached,
            completion_tokens=self.written,
            finish=[answer.finish or "unfinished" for answer in self.answers],
        )


Prepare = Callable[[Served], Awaitable[PreparedRequest]]


async def answered(
    models: Models,
    name: str | None,
    http: Request,
    prepare: Prepare,
    writing: Callable[[Served], AnswerWriter],
    *,
    stream: bool,
    finished: Callable[[Exchange, dict[str, Any]], None] | None = None,
) -> Response:
    """Prepare, take places, and answer: whole, or as a stream.

    Args:
        name: of the model.
        prepare: from what is asked to what the engine is asked.
        writing: how the answer is written.
        finished: called with a whole answer.
    """
    path = http.url.path
    try:
        served = await models.get(name)
        with served.queue.preparing():  # before any work is done for it
            async with asyncio.timeout(served.queue.seconds):
                made = await prepare(served)
        writer = writing(served)
        exchange = Exchange(http, served, served.queue.submit(made.asked), made)
    except Cancelled:
        models.metrics.ended.labels("gone").inc()
        return Response(status_code=499)
    except TimeoutError:
        models.metrics.ended.labels("late").inc()
        return problem(late(served), path)
    except Exception as error:
        return problem(logged(error), path)
    if stream:
        return Stream(
            _told(exchange, writer),
            writer.media_type,
            ping=models.ping,
            alive=writer.alive,
            seconds=served.queue.seconds + 5,
            ended=lambda: exchange.close(writer.id),
        )
    try:
        await exchange.finish()
        told = writer.whole(exchange)
        if finished is not None:
            finished(exchange, told)
        return JSONResponse(told)
    except Gone:
        return Response(status_code=499)
    except Late:
        return problem(late(served), path)
    except Exception as error:
        return problem(logged(error), path)
    finally:
        exchange.close(writer.id)


def late(served: Served, what: str = "answer") -> Refusal:
    """What is said where an answer, or `what` it is, took longer than the server allows."""
    return Refusal(408, f"The {what} took longer than the {served.queue.seconds:g} s that this server allows.")


def logged(error: Exception) -> Refusal:
    """What an error means for whoever asked; the log tells what is not theirs."""
    # Answers that do not fit are ours: what is asked was checked.
    found = Refusal(500, FAILED) if isinstance(error, ShapeError) else refusal(error)
    if found.status == 500:
        logging.getLogger(LOGGER).error("failure", exc_info=error)
    return found


async def _told(exchange: Exchange, writer: AnswerWriter) -> AsyncGenerator[bytes]:
    """A stream's bytes."""
    async with aclosing(writer.events(exchange)) as events:
        try:
            async for event in events:
                yield event
            if writer.done:
                yield writer.done
        except (Gone, OSError):
            return
        except Late:
            yield writer.failure(late(exchange.served))
        except Exception as error:
            yield writer.failure(logged(error))
