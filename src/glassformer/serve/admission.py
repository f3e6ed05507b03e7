"""The queue between HTTP and an engine: which answers begin, wait or are refused, and which are no longer wanted.

It knows engine requests and their events, slots and time; it does not know how events are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError
from glassformer.serve.problems import Refusal
from glassformer.serve.telemetry import Metrics

if TYPE_CHECKING:
    from starlette.requests import Request as Http

    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request, RequestHandle, TokenEvent

_LONGEST_RETRY = 60


class Gone(Exception):
    """The client has left."""


class Late(Exception):
    """The answer took longer than the server allows."""


class AdmissionQueue:
    """Slots of one engine, and places to wait for them.

    Args:
        engine: computes.
        metrics: where answers are counted.
        waiting: answers that may wait beside the engine's slots; more are refused with 429.
        seconds: an HTTP request may take.

    Attributes:
        taken: places taken, waiting ones included.
        draining: whether new requests are refused because the server is about to end.
    """

    def __init__(
        self, engine: Engine, metrics: Metrics | None = None, *, waiting: int = 64, seconds: float = 600.0
    ) -> None:
        self.engine, self.waiting, self.seconds = engine, waiting, seconds
        self.metrics = metrics or Metrics()
        self.metrics.watch(engine)
        engine.stepped = self._stepped
        self.taken = 0
        self.draining = False
        self._usual = 1.0  # seconds an answer takes, lately
        self._jobs: set[Job] = set()
        self._preparing = 0  # requests that are being prepared
        self._loop: asyncio.AbstractEventLoop | None = None  # that the jobs belong to
        self._arrived: deque[tuple[Job, int, TokenEvent | BaseException]] = deque()

    @property
    def slots(self) -> int:
        """Answers that fit at once, waiting ones included."""
        return self.engine.slots + self.waiting

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or is being prepared."""
        return bool(self._jobs or self._preparing)

    def submit(self, asked: Sequence[Request]) -> Job:
        """The answers of one HTTP request, which begin at once or when their turn comes.

        Raises:
            Refusal: when there are not so many places free. UsageError: more than there are; also, as TextError, for
                what the engine cannot answer.
        """
        self._check(len(asked))
        return Job(self, asked)

    @contextlib.contextmanager
    def preparing(self) -> Iterator[None]:
        """A place while a request's prompts are read, before it is known what the engine is asked; the server does
        not end meanwhile.

        Raises:
            Refusal: when there is none, or the server is about to end.
        """
        if self.draining:
            self.metrics.refused.labels("draining").inc()
            raise Refusal(503, "This server is about to end and takes no new requests.", code="draining", retry=5)
        self._check(1)
        self.taken += 1
        self._preparing += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._preparing -= 1

    def _check(self, count: int) -> None:
        if count > self.slots:
            raise UsageError(
                f"The request asks for {count} answers and this server holds at most {self.slots} at once, waiting "
                "ones included; ask for fewer."
            )
        if self.taken + count > self.slots:
            self.metrics.refused.labels("overload").inc()
            wait = min(_LONGEST_RETRY, max(1, math.ceil(self._usual * self.waiting / self.engine.slots / 2)))
            raise Refusal(
                429,
                f"This server works on {self.engine.slots} answers and lets {self.waiting} wait; there is no room for "
                f"{'another' if count == 1 else f'{count} more'} now. Try again in {wait} s.",
                code="overloaded",
                retry=wait,
            )

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what runs; False when it took longer and was cut off."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.busy and time.monotonic() < end:
            await asyncio.sleep(0.05)
        cut = self.busy
        for job in list(self._jobs):
            job.cancel()
        return not cut

    def close(self) -> None:
        """End the engine."""
        self.engine.close()

    def arrived(self, job: Job, index: int, event: TokenEvent | BaseException) -> None:
        """Keep an event of the engine's thread for the loop, which takes it after the step.

        To wake the loop at once would let it take the interpreter's lock before the step's other answers have their
        tokens, and the engine would wait for it.
        """
        self._arrived.append((job, index, event))

    def _stepped(self) -> None:
        if self._arrived and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        written = 0
        while self._arrived:
            job, index, event = self._arrived.popleft()
            written += not isinstance(event, BaseException) and event.id is not None
            job.queue.put_nowait((index, event))
        self.metrics.written.inc(written)


class Job:
    """The answers of one HTTP request."""

    def __init__(self, admitted: AdmissionQueue, asked: Sequence[Request]) -> None:
        self.admitted = admitted
        self.started = time.monotonic()
        self.handles: list[RequestHandle] = []
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = admitted._loop = asyncio.get_running_loop()
        self._closed = self._counted = False
        self._open = len(asked)
        admitted.taken += len(asked)
        self._places = len(asked)
        admitted._jobs.add(self)
        try:
            for index, one in enumerate(asked):
                told = partial(admitted.arrived, self, index)
                self.handles.append(admitted.engine.submit(one, told))
        except BaseException:
            self._counted = True
            self.close()
            raise

    async def events(self, http: Http) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """Every answer's events as they come, each with the number of its answer.

        Raises:
            Gone: the client left. Late: the time was up. Whatever the engine fails with.
        """
        watcher = asyncio.create_task(self._watch(http))
        left = self.admitted.seconds - (time.monotonic() - self.started)
        timer = self._loop.call_later(max(0.0, left), self.queue.put_nowait, (-1, Late()))
        try:
            while self._open:
                index, event = await self.queue.get()
                if isinstance(event, BaseException):
                    self._ended("gone" if isinstance(event, Gone) else "late" if isinstance(event, Late) else "error")
                    raise event
                if event.finish == "cancelled":  # by the server: whoever leaves does not read this
                    self._ended("late")
                    raise Late
                if event.finish is not None:
                    self._open -= 1
                    self._finished(self.handles[index], event.finish)
                yield index, event
        finally:
            watcher.cancel()
            timer.cancel()

    async def _watch(self, http: Http) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self.queue.put_nowait((-1, Gone()))

    def _ended(self, how: str) -> None:
        self._counted = True
        self.admitted.metrics.ended.labels(how).inc()

    def _finished(self, handle: RequestHandle, how: str) -> None:
        metrics = self.admitted.metrics
        metrics.ended.labels(how).inc()
        metrics.read.inc(len(handle.request.prompt))
        metrics.reused.inc(handle.cached)
        if handle.first is not None:
            metrics.first.observe(handle.first - handle.submitted)
        took = time.monotonic() - handle.submitted
        self.admitted._usual += 0.1 * (took - self.admitted._usual)

    def cancel(self) -> None:
        """Stop computing."""
        for handle in self.handles:
            handle.cancel()

    def close(self) -> None:
        """Stop computing and give the places back; may be called again."""
        if self._closed:
            return
        self._closed = True
        if self._open and not self._counted:
            self._ended("gone")
        self.cancel()
        self.admitted.taken -= self._places
        self.admitted._jobs.discard(self)

    @property
    def cached(self) -> int:
        """Prompt tokens that were kept from earlier prompts."""
        return sum(handle.cached for handle in self.handles)
