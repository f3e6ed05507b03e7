"""Streamed answers on the wire: server-sent events and lines of JSON.

It knows bytes, time and clients that read slowly; it does not know what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from pydantic_core import to_json
from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_SEND_SECONDS = 60.0  # a client that takes no bytes for so long is left
ALIVE = b": ping\n\n"  # a comment, which clients pass over


class Stream(StreamingResponse):
    """Pieces of an answer, each sent as it comes.

    Whoever makes the pieces ends them when the client has gone. One task watches over time for the whole stream, since
    a limit of its own for each piece would cost more than to send it.

    Args:
        pieces: bytes to send; closed at the end, whatever ends it.
        media_type: "text/event-stream", "application/x-ndjson".
        ping: seconds after which a sign of life is sent, again and again. alive: that sign; empty for none.
        seconds: the whole may take; None for as long as it takes.
        ended: called at the end, whatever ends it.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        media_type: str = "text/event-stream",
        *,
        ping: float = _SEND_SECONDS,
        alive: bytes = ALIVE,
        seconds: float | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            pieces, media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        self.pieces, self.ping, self.alive, self.seconds, self.ended = pieces, ping, alive, seconds, ended
        self._since: float | None = None  # when the piece came that is being sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = None
        try:
            async with asyncio.timeout(self.seconds) as limit, aclosing(self.pieces):
                watcher = asyncio.create_task(self._watch(send, limit))
                await self.stream_response(send)
        except (TimeoutError, OSError):  # the client reads too slowly, or has gone
            pass
        finally:
            if watcher is not None:
                watcher.cancel()
            self.ended()

    async def stream_response(self, send: Send) -> None:
        """Send the answer's head, its pieces and its end."""
        now = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.pieces:
            self._since = now()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self._since = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, send: Send, limit: asyncio.Timeout) -> None:
        now = asyncio.get_running_loop().time
        try:
            while True:
                await asyncio.sleep(self.ping)
                if self._since is not None and now() > self._since + _SEND_SECONDS:
                    raise TimeoutError
                if self._since is None and self.alive:
                    async with asyncio.timeout(_SEND_SECONDS):
                        await send({"type": "http.response.body", "body": self.alive, "more_body": True})
        except (TimeoutError, OSError):
            limit.reschedule(now())


def dumped(data: object) -> bytes:
    """JSON as it goes over the wire; numbers that are none are null."""
    return to_json(data, inf_nan_mode="null")


def event(data: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + dumped(data) + b"\n\n"
