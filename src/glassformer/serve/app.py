"""The HTTP app, put together: guard, page, inspection API, OpenAI API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from glassformer.serve.security import Guard, Policy
from glassformer.serve.work import Workers
from glassformer.studio import Studio


def page_app(studio: Studio, policy: Policy, *, load: Callable[..., Any] | None = None) -> Any:
    """The app behind `glassformer open`: the page and its API, guarded."""
    from glassformer.serve.page_api import router

    workers = Workers()
    return guarded([router(studio, workers, load)], policy, close=workers.close)


def guarded(routers: list[APIRouter], policy: Policy, *, close: Callable[[], None] | None = None) -> Any:
    """An app of these routes behind a `Guard`; problems in a request are one sentence, in OpenAI's shape."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if close is not None:
            close()

    app = FastAPI(title="Glassformer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    for router in routers:
        app.include_router(router)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return problem(400, f"{where}: {first['msg']}.", param=where)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, f"{request.url.path}: {error.detail}.")

    return Guard(app, policy)


def problem(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)
