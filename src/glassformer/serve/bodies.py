"""Request bodies: read within a time and a size, decompressed, and refused where they are no JSON."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from glassformer.serve.problems import Refusal, problem

BODY_SECONDS = 30.0
_JSON = re.compile(r"\s*application/([^/;\s]+\+)?json\s*(;|$)", re.IGNORECASE)


def careful(limit: int) -> type[APIRoute]:
    """A kind of route that reads bodies of at most `limit` bytes, as sent and as decompressed."""

    class Careful(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner = super().get_route_handler()

            async def handler(request: Request) -> Response:
                if request.method == "POST":
                    try:
                        await _read(request, limit)
                    except Refusal as refused:
                        return problem(refused, request.url.path)
                return await inner(request)

            return handler

    return Careful


async def _read(request: Request, limit: int) -> None:
    """Read a body and leave it decompressed in the request.

    Raises:
        Refusal: a body that cannot be read, or is not JSON.
    """
    try:
        body = await asyncio.wait_for(request.body(), BODY_SECONDS)
    except TimeoutError:
        raise Refusal(408, f"The request's body did not arrive within {BODY_SECONDS:g} s.") from None
    except ClientDisconnect:  # or the guard, which hangs up on bodies that are longer than they said
        raise Refusal(413, "The request's body is longer than this server reads.") from None
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        body = await asyncio.to_thread(decompressed, body, coding, limit)
    # Whoever reads the body from here on, FastAPI included, finds it decompressed.
    request._body = body
    try:
        json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(
            400, f"The request's body is not UTF-8 text (its byte {error.start} cannot be decoded)."
        ) from None
    except json.JSONDecodeError as error:
        raise Refusal(400, f"The request's body is not JSON ({error.msg} at character {error.pos}).") from None
    except (ValueError, RecursionError):
        raise Refusal(
            400, "The request's body is JSON that cannot be read: too deep, or with numbers too long."
        ) from None
    kind = request.headers.get("content-type", "")
    if not _JSON.match(kind):
        said = f"said to be {kind[:100]!r}" if kind else "of no kind that is said"
        raise Refusal(415, f"The request's body is {said}; send it with the header 'Content-Type: application/json'.")


def decompressed(body: bytes, coding: str, limit: int) -> bytes:
    """A body without its content coding.

    Raises:
        Refusal: an unknown coding, a broken stream, or more bytes than `limit`.
    """
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise Refusal(
            415,
            f"The request's body is coded as {coding[:50]!r}; this server reads gzip, deflate and plain bodies.",
            headers={"accept-encoding": "gzip, deflate"},
        )
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    try:
        found = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(400, f"The request's body is said to be {coding} and is not ({error}).") from None
    if len(found) > limit:
        raise Refusal(413, f"The request's body is more than {limit} bytes when decompressed; at most that are read.")
    if not unpacker.eof:
        raise Refusal(400, f"The request's body is {coding} that ends too early.")
    return found
