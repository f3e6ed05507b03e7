"""The page's own API: views by name, generation as a stream, opening models, the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from glassformer.errors import GlassformerError, SourceError
from glassformer.serve.training import Training
from glassformer.serve.work import Workers
from glassformer.views import Cancelled, Session, bundle
from glassformer.views.asks import Edit, Text
from glassformer.views.writing import pieces

WEB = Path(__file__).parents[1] / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Form(_Strict):
    """What an answer must be."""

    kind: Literal["json", "schema", "regex", "choice", "grammar"]
    text: str = Field(default="", max_length=100_000)


class GenerateAsk(_Strict):
    """What the page's generation takes."""

    model: str | None = None
    text: Text
    edits: list[Edit] = Field(default=[], max_length=200)
    max_tokens: int = Field(default=40, ge=1, le=2000)
    temperature: float = Field(default=1.0, ge=0, le=10)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    alternatives: int = Field(default=8, ge=0, le=50)
    form: Form | None = None


class OpenAsk(_Strict):
    """Which model to open."""

    source: str = Field(min_length=1, max_length=1000)


class Beside(_Strict):
    """A text, a model or both to lay beside the report's."""

    model: str | None = None
    text: Text | None = None


class Where(_Strict):
    """Where the report opens."""

    tab: str | None = None
    layer: int = Field(default=0, ge=0)
    head: int | None = Field(default=0, ge=0)
    sort: Literal["layer", "role"] = "layer"
    what: Literal["next", "lens", "attention", "patch"] = "next"
    place: Literal["stream", "attention", "feed_forward", "heads"] = "stream"


class ReportAsk(_Strict):
    """What a report holds."""

    model: str | None = None
    text: Text
    edits: list[Edit] = Field(default=[], max_length=200)
    position: int = -1
    token: str | None = None
    against: str | None = None
    other: Beside | None = None
    word: str | None = Field(default=None, min_length=1, max_length=200)
    contexts: list[Text] = Field(default=[], max_length=12)
    learning: bool = False
    state: Where = Where()


class RaceAsk(_Strict):
    """The passage that is raced, and who reads it."""

    model: str | None = None
    text: Text


class TrainAsk(_Strict):
    """What to learn from, and for how long."""

    text: Text
    steps: int = Field(default=400, ge=10, le=5000)


class LearnAsk(_Strict):
    """The sentence that is learnt by repeating one step."""

    model: str | None = None
    text: Text
    steps: int = Field(default=60, ge=1, le=200)
    share: float = Field(default=0.1, gt=0, le=1)


def router(session: Session, workers: Workers, training: Training, load: Callable[..., Any] | None = None) -> APIRouter:
    """The routes; `load(source, progress)` opens models that are not open yet."""
    api = APIRouter(include_in_schema=False)

    @api.post("/api/view/{name}")
    async def view(name: str, request: Request) -> Response:
        try:
            data = await request.json()
        except ValueError:
            return _problem("The request's body is not JSON.", "UsageError")
        try:
            found = await workers.run(request, lambda check: session.view(name, data, check))
        except Cancelled:
            return Response(status_code=499)
        except GlassformerError as error:
            return _problem(str(error), type(error).__name__)
        return JSONResponse(found)

    @api.post("/api/watch/{name}")
    async def watch(name: str, request: Request) -> Response:
        """A view that takes its time, as events: how far it is, some of them with what it found early, and what it
        found."""
        try:
            data = await request.json()
        except ValueError:
            return _problem("The request's body is not JSON.", "UsageError")

        def work(check: Callable[..., None], emit: Callable[[object], None]) -> None:
            told: tuple[object, ...] = ()

            def step(*progress: object) -> None:
                nonlocal told
                check()
                if progress and progress != told:
                    told = progress
                    emit(dict(zip(("done", "total", "what", "early"), progress, strict=False)))

            emit({"found": session.view(name, data, step)})

        return StreamingResponse(workers.stream(request, work), media_type="text/event-stream")

    @api.post("/api/generate")
    async def generate(ask: GenerateAsk, request: Request) -> Response:
        def work(check: Callable[..., None], emit: Callable[[object], None]) -> None:
            for step in pieces(session, ask, check):
                emit(step)
            emit({"done": True})

        return StreamingResponse(workers.stream(request, work), media_type="text/event-stream")

    @api.post("/api/open")
    async def open_model(ask: OpenAsk, request: Request) -> Response:
        def work(check: Callable[..., None], emit: Callable[[object], None]) -> None:
            def progress(done: int, total: int | None, what: str) -> None:
                check()
                emit({"done": done, "total": total, "what": what})

            if ask.source not in session.opened:
                if ask.source.startswith("run:"):
                    session.model(ask.source)
                elif load is None:
                    raise SourceError("This server keeps to the model it was started with.")
                else:
                    session.add(load(ask.source, progress), ask.source)
            emit({"model": ask.source, "name": session.model(ask.source).name})

        return StreamingResponse(workers.stream(request, work), media_type="text/event-stream")

    @api.post("/api/race")
    async def race(ask: RaceAsk, request: Request) -> Response:
        def work(check: Callable[..., None], emit: Callable[[object], None]) -> None:
            from glassformer.predict.race import race as raced

            def progress(who: str, length: int) -> None:
                check()
                emit({"who": who, "tokens": length})

            model = session.model(ask.model)
            emit({"race": raced(model.transformer, model.ids(ask.text), repeats=1, progress=progress).to_dict()})

        return StreamingResponse(workers.stream(request, work), media_type="text/event-stream")

    @api.post("/api/train")
    async def train(ask: TrainAsk, request: Request) -> Response:
        try:
            name = await workers.run(request, lambda check: training.start(ask.text, ask.steps, check))
        except Cancelled:
            return Response(status_code=499)
        except GlassformerError as error:
            return _problem(str(error), type(error).__name__)
        return JSONResponse({"name": name})

    @api.post("/api/train/stop")
    async def stop() -> Response:
        name = training.running
        training.stop()
        return JSONResponse({"name": name})

    @api.post("/api/learn")
    async def learn(ask: LearnAsk, request: Request) -> Response:
        def work(check: Callable[..., None], emit: Callable[[object], None]) -> None:
            from glassformer.views.learning import repeated

            for step in repeated(session, ask, check):
                emit(step)

        return StreamingResponse(workers.stream(request, work), media_type="text/event-stream")

    @api.post("/api/report")
    async def report(ask: ReportAsk, request: Request) -> Response:
        try:
            html = await workers.run(request, lambda check: _report(session, ask, check))
        except Cancelled:
            return Response(status_code=499)
        except GlassformerError as error:
            return _problem(str(error), type(error).__name__)
        return HTMLResponse(html, headers={"content-disposition": 'attachment; filename="glassformer-report.html"'})

    @api.get("/")
    async def page() -> Response:
        return HTMLResponse(bundle.opened(), headers={"cache-control": "no-cache"})

    @api.get("/web/{path:path}")
    async def asset(path: str) -> Response:
        return _file(path)

    return api


def _report(session: Session, ask: ReportAsk, check: Callable[..., None]) -> str:
    from glassformer.views.report import build
    from glassformer.views.report_data import ReportOptions

    of = ask.model or session.current
    options = ReportOptions(
        other=None if ask.other is None else ask.other.model_dump(),
        word=ask.word,
        contexts=ask.contexts,
        run=of.removeprefix("run:").rpartition("@")[0] or None if of.startswith("run:") else None,
        learning=ask.learning,
        first=[] if ask.state.head is None else [(ask.state.layer, ask.state.head)],
        position=ask.position,
        token=ask.token,
        against=ask.against,
        state=ask.state.model_dump(),
    )
    return build(session, ask.text, ask.edits, model=ask.model, options=options, check=check)


def _file(path: str) -> Response:
    found = (WEB / path).resolve()
    if not found.is_relative_to(WEB) or found.suffix not in TYPES or not found.is_file():
        return JSONResponse({"error": {"message": "There is no such file.", "kind": "NotFound"}}, 404)
    headers = {"cache-control": "no-cache"}
    if found.suffix == ".js":
        text = bundle.module(found.relative_to(WEB / "js").as_posix())
        return Response(text, media_type=TYPES[".js"], headers=headers)
    return FileResponse(found, media_type=TYPES[found.suffix], headers=headers)


def _problem(message: str, kind: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "kind": kind}}, 400)
