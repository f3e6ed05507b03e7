"""Streams: what is sent, when a sign of life is, and who is left."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from glassformer.serve import streams
from glassformer.serve.streams import Stream, dumped, event


class Line:
    """A client's line: what was sent, as long as it takes bytes."""

    def __init__(self, most: int = 1000) -> None:
        self.sent: list[dict[str, Any]] = []
        self._most = most

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.sent) == self._most:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:]]


def answered(line: Line, pieces: Any, **more: Any) -> list[str]:
    """Send a stream; what was closed, in order."""
    closed: list[str] = []

    async def watched() -> Any:
        try:
            async for piece in pieces():
                yield piece
        finally:
            closed.append("pieces")

    stream = Stream(watched(), ended=lambda: closed.append("ended"), **more)

    async def run() -> None:
        async with asyncio.timeout(30):
            await stream({"type": "http"}, None, line.send)

    asyncio.run(run())
    return closed


async def three() -> Any:
    for piece in (b"one", b"two", b"three"):
        yield piece


def test_every_piece_is_sent_as_it_comes():
    line = Line()
    assert answered(line, three) == ["pieces", "ended"]
    assert line.bodies == [b"one", b"two", b"three", b""]
    assert [message.get("more_body") for message in line.sent[1:]] == [True, True, True, False]
    assert dict(line.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")


def test_a_client_that_takes_nothing_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "_SEND_SECONDS", 0.05)
    line = Line(most=2)
    assert answered(line, three, ping=0.02) == ["pieces", "ended"]
    assert line.bodies == [b"one"]


def test_a_client_that_takes_no_sign_of_life_is_left(monkeypatch: pytest.MonkeyPatch):
    async def never() -> Any:
        yield b"one"
        await asyncio.Event().wait()

    monkeypatch.setattr(streams, "_SEND_SECONDS", 0.05)
    line = Line(most=4)
    assert answered(line, never, ping=0.02) == ["pieces", "ended"]
    assert line.bodies == [b"one", streams.ALIVE, streams.ALIVE]


def test_a_stream_ends_in_its_time_and_when_the_client_has_gone():
    async def never() -> Any:
        yield b"one"
        await asyncio.Event().wait()

    async def broken() -> Any:
        yield b"one"
        raise BrokenPipeError

    for pieces, more in ((never, {"seconds": 0.05}), (broken, {})):
        line = Line()
        assert answered(line, pieces, **more) == ["pieces", "ended"]
        assert line.bodies == [b"one"]


def test_json_on_the_wire_is_compact_and_exact():
    data = {"text": ' say "é" 日\n\u2028', "n": [0, -1.5, 1e-7, 1e300, math.pi, None, True, 2**70], "d": {"1": ()}}
    written = dumped(data)
    assert json.loads(written) == data | {"d": {"1": []}}
    assert b": " not in written
    assert "日".encode() in written
    assert dumped([math.nan, math.inf]) == b"[null,null]"
    assert event({"a": 1}, "news") == b'event: news\ndata: {"a":1}\n\n'
