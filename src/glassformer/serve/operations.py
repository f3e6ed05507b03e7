"""Health and metrics of the server itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from glassformer.serve.models import Models
from glassformer.serve.openai_schemas import described
from glassformer.serve.telemetry import CONTENT_TYPE


class Health(BaseModel):
    """Whether the server takes requests."""

    status: str
    model: str
    precision: str


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""

    async def health() -> Response:
        """Whether the server takes requests."""
        if models.draining:
            return JSONResponse({"status": "draining"}, 503)
        card = models.card(models.first)
        return JSONResponse({"status": "ok", "model": card["id"], "precision": card.get("precision", "")})

    api.get("/healthz", responses=described(Health))(health)
    api.get("/health", responses=described(Health), include_in_schema=False)(health)

    text: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @api.get("/metrics", responses={200: text}, response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(await run_in_threadpool(models.metrics.text), media_type=CONTENT_TYPE)
