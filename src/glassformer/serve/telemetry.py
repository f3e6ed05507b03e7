"""What a server says about itself: Prometheus metrics and one JSON line per request on standard error.

Neither holds a word of what people wrote or were answered.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
import weakref
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from glassformer.generate.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST
LOGGER = "glassformer.serve"
_ID = re.compile(r"[\x21-\x7e]{1,128}")  # a client's own request id that is taken over
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "glassformer"}
        self.requests = Counter("requests", "HTTP requests answered.", ("route", "status"), **made)
        self.seconds = Histogram("request_seconds", "Time to the last byte.", ("route",), buckets=_SECONDS, **made)
        self.first = Histogram("first_token_seconds", "Time to an answer's first token.", buckets=_SECONDS, **made)
        self.read = Counter("prompt_tokens", "Prompt tokens of finished answers.", **made)
        self.reused = Counter("prompt_tokens_reused", "Of those, kept from an earlier prompt.", **made)
        self.written = Counter("generated_tokens", "Tokens computed for answers.", **made)
        self.ended = Counter("answers", "Answers by how they ended.", ("how",), **made)
        self.refused = Counter("refused", "Requests refused for want of room.", ("why",), **made)
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        active = Gauge("answers_active", "Answers being computed.", **made)
        active.set_function(lambda: sum(engine.active for engine in self._engines))
        waiting = Gauge("answers_waiting", "Answers that wait for a slot.", **made)
        waiting.set_function(lambda: sum(engine.waiting for engine in self._engines))

    def watch(self, engine: Engine) -> None:
        """Count this engine's active and waiting answers, for as long as it exists."""
        self._engines.add(engine)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class Json(logging.Formatter):
    """One JSON object per record; what `extra={"fields": {...}}` carries stands beside time, level and event."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def log_to_stderr(level: str = "info") -> None:
    """Server and HTTP library log JSON lines to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json())
    for name, least in ((LOGGER, level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


class Recorder:
    """ASGI middleware that numbers, counts and logs every request; routes add fields to `scope["state"]["told"]`.

    A request's id is the client's own `X-Request-Id`, or a new one; the answer and the log carry it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self.app, self.metrics, self.routes = app, metrics, routes
        self.logger = logging.getLogger(LOGGER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        told: dict[str, Any] = {}
        scope.setdefault("state", {})["told"] = told
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        number = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        # Anthropic's clients look for the second.
        named = [(b"x-request-id", number.encode()), (b"request-id", number.encode())]

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *named]}
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            took = time.perf_counter() - start
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.requests.labels(route, str(status or 499)).inc()
            self.metrics.seconds.labels(route).observe(took)
            client = scope.get("client")
            fields = {
                "method": scope["method"],
                "route": route,
                "status": status or 499,
                "ms": round(1000 * took, 1),
                "client": client[0] if client else None,
                "request": number,
                **told,
            }
            self.logger.info("request", extra={"fields": fields})
