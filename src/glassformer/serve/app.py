"""The HTTP apps, put together: guard, page with its inspection API, and the API for programs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from glassformer import __version__
from glassformer.errors import GlassformerError, near
from glassformer.serve import (
    anthropic_api,
    embeddings,
    inspect_api,
    ollama_api,
    openai_api,
    operations,
    responses_api,
    token_events,
    tokens_api,
)
from glassformer.serve.bodies import careful
from glassformer.serve.models import Models
from glassformer.serve.page_api import router as page_router
from glassformer.serve.problems import Refusal, openai, payload, problem
from glassformer.serve.security import Guard, Policy
from glassformer.serve.telemetry import LOGGER, Recorder
from glassformer.serve.training import Training
from glassformer.serve.translating import said
from glassformer.serve.work import Workers
from glassformer.views import Session

_SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The server's key, where it asks for one."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, another way."},
}


def page_app(session: Session, policy: Policy, *, load: Callable[..., object] | None = None) -> ASGIApp:
    """The app behind `glassformer open`: the page and its API, guarded."""
    workers, training = Workers(), Training(session.runs)

    def close() -> None:
        workers.close()
        training.close()

    return guarded(page_router(session, workers, training, load), policy, close=close, say=openai)


def api_app(models: Models, policy: Policy) -> ASGIApp:
    """The app behind `glassformer serve`: its APIs, their description, metrics and health; counted and logged."""
    api = APIRouter(route_class=careful(policy.max_body))
    for part in (
        openai_api,
        responses_api,
        embeddings,
        anthropic_api,
        ollama_api,
        tokens_api,
        inspect_api,
        token_events,
        operations,
    ):
        part.add(api, models)
    app = guarded(api, policy, close=models.close, description="/openapi.json")
    paths = {str(getattr(route, "path", "{")) for route in api.routes}
    routes = frozenset(path for path in paths if "{" not in path) | {"/openapi.json"}
    return Recorder(app, models.metrics, routes)


def guarded(
    router: APIRouter,
    policy: Policy,
    *,
    close: Callable[[], None] | None = None,
    description: str | None = None,
    say: Callable[[Refusal, str], dict[str, Any]] = payload,
) -> ASGIApp:
    """An app of these routes behind a `Guard`; a problem in a request is one sentence, in its API's shape.

    Args:
        close: called when the server ends.
        description: where the description of the routes is found; None for nowhere.
        say: an error in the shape of the API that a path belongs to.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if close is not None:
            close()

    app = FastAPI(title="Glassformer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.include_router(router)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        where, text = said(error)
        where = where.partition(".")[2]  # after "body"
        return problem(Refusal(400, f"{where or 'The request'}: {text}", param=where or None), request.url.path, say)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code != 405:
            known = {one.path for one in router.routes if isinstance(one, Route)} if error.status_code == 404 else ()
            other = near(path[:100], known, most=2)
            return problem(Refusal(error.status_code, f"{path}: {error.detail}.{other}"), path, say)
        allowed = ", ".join(sorted(_methods(router, request)))
        told = f"{path} takes {allowed}, not {request.scope.get('state', {}).get('method', request.method)}."
        return problem(Refusal(405, told, headers={"allow": allowed}), path, say)

    @app.exception_handler(Refusal)
    @app.exception_handler(GlassformerError)
    async def refuse(request: Request, error: Exception) -> Response:
        return problem(error, request.url.path, say)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        logging.getLogger(LOGGER).error("failure", exc_info=error)
        return problem(error, request.url.path, say)

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = get_openapi(title=app.title, version=__version__, routes=app.routes)
            if policy.guarded:
                app.openapi_schema.setdefault("components", {})["securitySchemes"] = _SECURITY
                app.openapi_schema["security"] = [{name: []} for name in _SECURITY]
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
    if description is not None:

        @app.get(description, include_in_schema=False)
        async def described() -> Response:
            """Made once, beside the answers: it takes most of a second."""
            return JSONResponse(await run_in_threadpool(app.openapi))

    return Guard(app, policy, say)


def _methods(router: APIRouter, request: Request) -> set[str]:
    """Methods that a path takes."""
    found: set[str] = set()
    for route in router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found | ({"HEAD"} if "GET" in found else set())
