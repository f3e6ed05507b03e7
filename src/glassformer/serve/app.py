"""The HTTP app, put together: guard, page, inspection API, OpenAI API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from glassformer.serve.security import Guard, Policy
from glassformer.serve.work import Workers
from glassformer.views import Session

if TYPE_CHECKING:
    from glassformer.serve.openai_exchange import Serving


def page_app(session: Session, policy: Policy, *, load: Callable[..., Any] | None = None) -> Any:
    """The app behind `glassformer open`: the page and its API, guarded."""
    from glassformer.serve.page_api import router

    workers = Workers()
    return guarded([router(session, workers, load)], policy, close=workers.close)


def api_app(serving: Serving, policy: Policy) -> Any:
    """The app behind `glassformer serve`: OpenAI's API with its description, metrics and health; counted and logged."""
    from glassformer.serve.openai_api import ROUTES, router
    from glassformer.serve.telemetry import Recorder

    def close() -> None:
        serving.scoring.close()
        serving.desk.engine.close()

    app = guarded([router(serving)], policy, close=close, openapi="/openapi.json")
    return Recorder(app, serving.desk.metrics, ROUTES)


def guarded(
    routers: list[APIRouter],
    policy: Policy,
    *,
    close: Callable[[], None] | None = None,
    openapi: str | None = None,
) -> Any:
    """An app of these routes behind a `Guard`; problems in a request are one sentence, in OpenAI's shape.

    Args:
        close: called when the server ends.
        openapi: where the description of the routes is found; None for nowhere.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if close is not None:
            close()

    app = FastAPI(title="Glassformer", docs_url=None, redoc_url=None, openapi_url=openapi, lifespan=lifespan)
    for router in routers:
        app.include_router(router)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        said = str(first["msg"]).removeprefix("Value error, ")
        return problem(400, f"{where or 'The request'}: {said}.", param=where or None)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, f"{request.url.path}: {error.detail}.")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return problem(500, "The server failed on this request and goes on; its log says more.")

    return Guard(app, policy)


def problem(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    told = {"message": _sayable(message), "type": kind, "param": param and _sayable(param), "code": code}
    return JSONResponse({"error": told}, status)


def _sayable(text: str) -> str:
    """What a request held may be repeated in an answer: shortened, and without halves of characters."""
    return text[:2000].encode("utf-8", "replace").decode("utf-8")
