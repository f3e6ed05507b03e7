"""Running an app until it is told to end: the first signal drains, the second ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn

from glassformer.errors import GlassformerError, UsageError
from glassformer.serve.models import Models
from glassformer.serve.telemetry import LOGGER

if TYPE_CHECKING:
    from starlette.types import ASGIApp

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


def tls_context(certfile: str, keyfile: str | None = None) -> ssl.SSLContext:
    """A certificate and its key, read and found to belong together.

    Raises:
        UsageError: files that cannot be read, or are no certificate with its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        named = certfile if keyfile is None else f"{certfile} with {keyfile}"
        raise UsageError(f"{named} is no certificate with its key that can be read ({reason}).") from None
    return context


def serve(
    app: ASGIApp,
    models: Models,
    listener: socket.socket,
    *,
    drain: float,
    ready: Callable[[], None],
    tls: tuple[str, str | None] | None = None,
    reload: Callable[[], None] | None = None,
) -> int:
    """Serve until a signal comes; the signal's number.

    SIGTERM and SIGINT let running requests finish, for `drain` seconds at most, while new ones get 503; a second
    signal ends at once.

    Args:
        ready: called when requests are taken.
        tls: files of a certificate and of its key, for HTTPS; read again at SIGHUP.
        reload: called in a thread at SIGHUP; what it raises is logged, and the server goes on as it was.
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

    def again() -> None:
        if tls is not None and config.ssl is not None:
            tls_context(*tls)  # whether they belong together is seen before they take the old ones' place
            config.ssl.load_cert_chain(*tls)
        if reload is not None:
            reload()

    return asyncio.run(_run(_Server(config), models, listener, drain, ready, again))


async def _reloaded(again: Callable[[], None]) -> None:
    log = logging.getLogger(LOGGER)
    try:
        await asyncio.to_thread(again)
    except GlassformerError as error:
        log.error("not reloaded", extra={"fields": {"reason": str(error)}})
    else:
        log.info("reloaded", extra={"fields": {}})


async def _run(
    server: _Server,
    models: Models,
    listener: socket.socket,
    drain: float,
    ready: Callable[[], None],
    again: Callable[[], None],
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
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(_reloaded(again))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    if hasattr(signal, "SIGHUP"):  # Windows has none
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda number, frame: loop.call_soon_threadsafe(reload))
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
