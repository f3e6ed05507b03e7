"""Running views in threads, and stopping when the one who asked has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request

from glassformer.serve.streams import event
from glassformer.views import Cancelled


class Workers:
    """A few threads that compute; more would only share the same cores."""

    def __init__(self, threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="view")

    async def run(self, request: Request, work: Callable[[Callable[..., None]], object]) -> Any:
        """`work(check)` in a thread; `check` raises `Cancelled` once the client has gone, whatever it is told.

        Raises:
            Cancelled: when it was.
        """
        gone = threading.Event()

        def check(*_: object) -> None:
            if gone.is_set():
                raise Cancelled

        def start() -> object:
            check()  # it may have waited in line while the client left
            return work(check)

        watcher = asyncio.create_task(_watch(request, gone))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, start)
        finally:
            gone.set()
            watcher.cancel()

    async def stream(
        self, request: Request, work: Callable[[Callable[..., None], Callable[[object], None]], None]
    ) -> AsyncIterator[bytes]:
        """Server-sent events from `work(check, emit)`, as they are emitted; an error becomes a last event."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()
        done = object()

        def emit(data: object) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, data)

        async def drive() -> None:
            from glassformer.errors import GlassformerError

            try:
                await self.run(request, lambda check: work(check, emit))
            except Cancelled:
                pass
            except GlassformerError as error:
                emit({"error": {"message": str(error), "kind": type(error).__name__}})
            finally:
                await asyncio.sleep(0)
                loop.call_soon(queue.put_nowait, done)

        task = asyncio.create_task(drive())
        try:
            while (item := await queue.get()) is not done:
                yield event(item)
        finally:
            task.cancel()

    def close(self) -> None:
        """Finish what runs, take no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _watch(request: Request, gone: threading.Event) -> None:
    while not gone.is_set():
        if await request.is_disconnected():
            gone.set()
            return
        await asyncio.sleep(0.05)
