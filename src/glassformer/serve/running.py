"""Running an app until it is told to end: the first signal drains, the second ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from glassformer.serve.models import Models
from glassformer.serve.telemetry import LOGGER

# Connections at once, idle ones included; beyond, the HTTP library itself answers 503.
CONNECTIONS = 1000


class _Server(uvicorn.Server):
    """Leaves signals to us: while it drains, it goes on listening and says so to whoever asks."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; whoever asks closes it.

    It is named as TCP: asyncio sends small pieces at once only where that is said, and otherwise the second piece of
    every answer waits 40 ms for the first one's receipt.

    Raises:
        OSError: an address that cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener


def serve(
    app: Any,
    models: Models,
    listener: socket.socket,
    *,
    drain: float,
    ready: Callable[[], None],
    tls: tuple[str, str | None] | None = None,
) -> int:
    """Serve until a signal comes; the signal's number.

    SIGTERM and SIGINT let running requests finish, for `drain` seconds at most, while new ones get 503; a second
    signal ends at once.

    Args:
        ready: called when requests are taken.
        tls: files of a certificate and of its key, for HTTPS.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=5,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
    )
    return asyncio.run(_run(_Server(config), models, listener, drain, ready))


async def _run(
    server: _Server, models: Models, listener: socket.socket, drain: float, ready: Callable[[], None]
) -> int:
    loop = asyncio.get_running_loop()
    got: list[int] = []
    told = asyncio.Event()

    def stop(number: int) -> None:
        got.append(number)
        told.set()
        if len(got) > 1:
            server.should_exit = server.force_exit = True

    before = {
        number: signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(stop, number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not (server.started or running.done()):
            await asyncio.sleep(0.01)
        ready()
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if got:
            log = logging.getLogger(LOGGER)
            log.info("draining", extra={"fields": {"answers": models.taken, "seconds": drain}})
            whole = await models.drain(drain)
            server.should_exit = True
            await running  # the last requests are logged first
            log.info("drained" if whole else "cut off", extra={"fields": {}})
        await running
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return got[0] if got else 0
