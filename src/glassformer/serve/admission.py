"""The desk between HTTP and the engine: who is let in, who waits, who is sent away, and who has left.

It knows engine requests and steps, seats and time; it does not know what the steps are said as.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError
from glassformer.serve.telemetry import Metrics

if TYPE_CHECKING:
    from starlette.requests import Request as Http

    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Handle, Request, Step

_LONGEST_RETRY = 60


class Refused(Exception):
    """A request that is not taken now."""

    def __init__(self, status: int, message: str, code: str, retry: int) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry = status, message, code, retry


class Gone(Exception):
    """The client has left."""


class Late(Exception):
    """The answer took longer than the server allows."""


class Desk:
    """Seats before one engine.

    Args:
        engine: computes.
        queue: answers that may wait beside the engine's slots; more are refused with 429.
        seconds: an HTTP request may take.

    Attributes:
        taken: seats taken, waiting ones included.
        draining: whether new requests are refused because the server is about to end.
    """

    def __init__(self, engine: Engine, *, queue: int = 64, seconds: float = 600.0) -> None:
        self.engine, self.queue, self.seconds = engine, queue, seconds
        self.taken = 0
        self.draining = False
        self.metrics = Metrics(lambda: engine.active, lambda: engine.waiting)
        self._usual = 1.0  # seconds an answer takes, lately
        self._jobs: set[Job] = set()
        self._planned = 0  # requests that are being planned

    @property
    def seats(self) -> int:
        """Answers that fit at once, waiting ones included."""
        return self.engine.slots + self.queue

    def take(self, asked: Sequence[Request]) -> Job:
        """Seats for the answers of one HTTP request, which begin at once or when their turn comes.

        Raises:
            Refused: when there are not so many free. UsageError: more than there are; also, as TextError, for what
                the engine cannot answer.
        """
        self._check(len(asked))
        return Job(self, asked)

    @contextlib.contextmanager
    def planning(self) -> Iterator[None]:
        """A seat while a request's prompts are read, before it is known what the engine is asked; the server does
        not end meanwhile.

        Raises:
            Refused: when there is none, or the server is about to end.
        """
        if self.draining:
            self.metrics.refused.labels("draining").inc()
            raise Refused(503, "This server is about to end and takes no new requests.", "draining", 5)
        self._check(1)
        self.taken += 1
        self._planned += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._planned -= 1

    def _check(self, count: int) -> None:
        if count > self.seats:
            raise UsageError(
                f"The request asks for {count} answers and this server holds at most {self.seats} at once, waiting "
                "ones included; ask for fewer."
            )
        if self.taken + count > self.seats:
            self.metrics.refused.labels("overload").inc()
            wait = min(_LONGEST_RETRY, max(1, math.ceil(self._usual * self.queue / self.engine.slots / 2)))
            raise Refused(
                429,
                f"This server works on {self.engine.slots} answers and lets {self.queue} wait; there is no room for "
                f"{'another' if count == 1 else f'{count} more'} now. Try again in {wait} s.",
                "overloaded",
                wait,
            )

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs; False when it took longer and was cut off."""
        self.draining = True
        end = time.monotonic() + seconds
        while (self._jobs or self._planned) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        cut = bool(self._jobs or self._planned)
        for job in list(self._jobs):
            job.cancel()
        return not cut


class Job:
    """The answers of one HTTP request."""

    def __init__(self, desk: Desk, asked: Sequence[Request]) -> None:
        self.desk = desk
        self.started = time.monotonic()
        self.handles: list[Handle] = []
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        desk.taken += len(asked)
        self._seats = len(asked)
        desk._jobs.add(self)
        try:
            for index, one in enumerate(asked):
                self.handles.append(desk.engine.submit(one, partial(self._arrived, index)))
        except BaseException:
            self.close()
            raise

    def _arrived(self, index: int, step: Step | BaseException) -> None:  # on the engine's thread
        if not isinstance(step, BaseException) and step.id is not None:
            self.desk.metrics.written.inc()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, step))

    async def steps(self, http: Http) -> AsyncGenerator[tuple[int, Step]]:
        """Every answer's steps as they come, each with the number of its answer.

        Raises:
            Gone: the client left. Late: the time was up. Whatever the engine fails with.
        """
        watcher = asyncio.create_task(self._watch(http))
        left = self.desk.seconds - (time.monotonic() - self.started)
        timer = self._loop.call_later(max(0.0, left), self._queue.put_nowait, (-1, Late()))
        open_ = len(self.handles)
        try:
            while open_:
                index, step = await self._queue.get()
                if isinstance(step, BaseException):
                    self._ended("gone" if isinstance(step, Gone) else "late" if isinstance(step, Late) else "error")
                    raise step
                if step.finish == "cancelled":  # by the server: whoever leaves does not read this
                    self._ended("late")
                    raise Late
                if step.finish is not None:
                    open_ -= 1
                    self._finished(self.handles[index], step.finish)
                yield index, step
        finally:
            watcher.cancel()
            timer.cancel()

    async def _watch(self, http: Http) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait((-1, Gone()))

    def _ended(self, how: str) -> None:
        self.desk.metrics.ended.labels(how).inc()

    def _finished(self, handle: Handle, how: str) -> None:
        metrics = self.desk.metrics
        self._ended(how)
        metrics.read.inc(len(handle.request.prompt))
        metrics.reused.inc(handle.cached)
        if handle.first is not None:
            metrics.first.observe(handle.first - handle.submitted)
        took = time.monotonic() - handle.submitted
        self.desk._usual += 0.1 * (took - self.desk._usual)

    def cancel(self) -> None:
        """Stop computing."""
        for handle in self.handles:
            handle.cancel()

    def close(self) -> None:
        """Stop computing and give the seats back; may be called again."""
        if not self._closed:
            self._closed = True
            self.cancel()
            self.desk.taken -= self._seats
            self.desk._jobs.discard(self)

    @property
    def cached(self) -> int:
        """Prompt tokens that were kept from earlier prompts."""
        return sum(handle.cached for handle in self.handles)
