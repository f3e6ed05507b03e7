"""The glass over HTTP: every registered view as a route, as JSON, as binary arrays, or with its progress as a stream.

Beside them stand the verbs of a model and of a trace, whose results `gf.connect` puts together again. Both have the
same key, limits, places and cancelling as answers.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import AsyncGenerator, Callable
from functools import cache
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from glassformer.interp.records import packed
from glassformer.serve.edits import plain
from glassformer.serve.exchange import late, logged
from glassformer.serve.models import Models, Served
from glassformer.serve.openai_schemas import described, streamed
from glassformer.serve.problems import openai, problem
from glassformer.serve.streams import Stream, dumped, event
from glassformer.serve.verbs import Verb, verbs
from glassformer.serve.work import Workers
from glassformer.views import VIEWS, Cancelled, Session, View

ARRAYS = "application/vnd.safetensors"
BINARY = {"type": "string", "format": "binary"}
_NEWS = 0.25  # seconds between signs of progress


class ViewList(BaseModel):
    """The views there are."""

    object: str
    data: list[dict[str, Any]]


class Inspected(BaseModel):
    """A view's answer: computed by the model named, under the edits named."""

    view: str
    model: str
    precision: str
    edits: list[dict[str, Any]]
    data: dict[str, Any]


def add(api: APIRouter, models: Models) -> None:
    """Put the routes in."""
    inspector = Inspector(models)
    models.on_close(inspector.close)

    @api.get("/v1/inspect", responses=described(ViewList))
    async def views() -> dict[str, Any]:
        """Every view, with its parameters and the Python that gives the same."""
        return await run_in_threadpool(_listed_views)

    for view in VIEWS.values():
        _add(api, inspector, view)

    known = verbs()

    @cache
    def listed_verbs() -> dict[str, Any]:
        listed = [
            {"id": verb.name, "object": "verb", "about": verb.about, "parameters": verb.ask.model_json_schema()}
            for verb in known.values()
        ]
        return {"object": "list", "data": listed}

    @api.get("/v1/verbs", responses=described(ViewList))
    async def list_verbs() -> dict[str, Any]:
        """Every verb of a model (`heads`) and of a trace (`trace.why`), with its parameters."""
        return await run_in_threadpool(listed_verbs)

    for verb in known.values():
        _add_verb(api, inspector, verb)


@cache
def _listed_views() -> dict[str, Any]:
    """Made once, and beside the answers: schemas take a fifth of a second."""
    listed = [
        {"id": view.name, "object": "view", "about": view.about, "python": view.python, "parameters": view.schema()}
        for view in VIEWS.values()
    ]
    return {"object": "list", "data": listed}


def _add_verb(api: APIRouter, inspector: Inspector, verb: Verb) -> None:
    async def ask_verb(ask: object, request: Request) -> Response:
        return await inspector.verb(verb, ask, request)

    ask_verb.__annotations__["ask"] = verb.ask
    ask_verb.__doc__ = verb.about
    told = streamed("The result as tensors and JSON, or its progress and then that.", **{ARRAYS: BINARY})
    ask_verb.__name__ = "verb_" + verb.name.replace(".", "_")
    api.post(f"/v1/verbs/{verb.name}", response_class=Response, responses=told)(ask_verb)


def _add(api: APIRouter, inspector: Inspector, view: View) -> None:
    ask = view.ask

    async def inspect(ask: object, request: Request) -> Response:
        return await inspector.answer(view, ask, request)

    inspect.__annotations__["ask"] = ask
    inspect.__doc__ = view.about
    inspect.__name__ = f"inspect_{view.name}"
    told = described(Inspected)
    told[200]["content"] = {ARRAYS: {"schema": BINARY}, "text/event-stream": {"schema": {"type": "string"}}}
    api.post(f"/v1/inspect/{view.name}", responses=told)(inspect)


class Inspector:
    """Computes views of the served models, a few at a time."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._workers = Workers()
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Take no more."""
        self._workers.close()

    def session(self, served: Served) -> Session:
        """The model's recent traces; other served models can be named beside it."""
        with self._lock:
            known = self._sessions.get(served.name)
            if known is None or known.model(served.model.name) is not served.model:
                known = Session(
                    served.model,
                    open_model=self._open,
                    lenses=self._models.lenses,
                    dictionaries=self._models.dictionaries,
                    directions=served.directions,
                )
                self._sessions[served.name] = known
            return known

    def _open(self, name: str) -> Any:
        return self._models.open(name).model

    async def answer(self, view: View, ask: Any, request: Request) -> Response:
        """A view's answer in the form that the client accepts."""
        accepted = request.headers.get("accept", "")
        served = await self._models.get(getattr(ask, "model", None))
        data = ask.model_dump()
        if "model" in data:
            data["model"] = None
        told = {
            "view": view.name,
            "model": served.name,
            "precision": served.model.precision,
            "edits": plain(getattr(ask, "edits", ())),
        }
        session = self.session(served)

        def work(check: Callable[..., None]) -> dict[str, Any]:
            return session.view(view.name, data, check)

        if "text/event-stream" in accepted:
            stream = self._stream(work, served, request, "view", lambda found: told | {"data": found})
            return Stream(stream, ping=self._models.ping)
        try:
            found = await self._found(work, served, request, lambda *_: None)
        except Cancelled:
            return Response(status_code=499)
        except TimeoutError:
            return problem(late(served, "view"), request.url.path)
        if ARRAYS in accepted:
            return Response(await asyncio.to_thread(binary, told | {"data": found}), media_type=ARRAYS)
        return Response(await asyncio.to_thread(dumped, told | {"data": found}), media_type="application/json")

    async def verb(self, verb: Verb, ask: Any, request: Request) -> Response:
        """A verb's result, as a safetensors file whose metadata `json` says what it is; or its progress, and that."""
        served = await self._models.get(ask.model)
        session, ask = self.session(served), ask.model_copy(update={"model": None})
        told = {"verb": verb.name, "model": served.name, "precision": served.model.precision, "edits": plain(ask.edits)}

        def work(check: Callable[..., None]) -> bytes:
            return packed(verb.run(session, ask, check), **told)

        if "text/event-stream" in request.headers.get("accept", ""):

            def result(file: bytes) -> dict[str, Any]:
                return {"safetensors": base64.b64encode(file).decode("ascii")}

            return Stream(self._stream(work, served, request, "verb", result), ping=self._models.ping)
        try:
            return Response(await self._found(work, served, request, lambda *_: None), media_type=ARRAYS)
        except Cancelled:
            return Response(status_code=499)
        except TimeoutError:
            return problem(late(served, "verb"), request.url.path)

    async def _found(
        self,
        work: Callable[[Callable[..., None]], object],
        served: Served,
        request: Request,
        stepped: Callable[..., None],
    ) -> Any:
        def watched(check: Callable[[], None]) -> object:
            def step(*progress: object) -> None:
                check()
                stepped(*progress)

            return work(step)

        with served.queue.preparing():
            async with asyncio.timeout(served.queue.seconds):
                return await self._workers.run(request, watched)

    async def _stream(
        self,
        work: Callable[[Callable[..., None]], object],
        served: Served,
        request: Request,
        what: str,
        result: Callable[[Any], dict[str, Any]],
    ) -> AsyncGenerator[bytes]:
        """Signs of progress (what the work told last, where it tells that), once with what it found early, and the
        result."""
        steps, last = 0, ()  # type: int, tuple[Any, ...]
        early: list[object] = []

        def stepped(*progress: object) -> None:
            nonlocal steps, last
            steps, last = steps + 1, progress or last
            early.extend(progress[3:])

        start = time.monotonic()
        task = asyncio.create_task(self._found(work, served, request, stepped))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_NEWS)
                progress = dict(zip(("done", "total", "what"), last, strict=False))
                if early:
                    progress["early"] = early.pop(0)
                yield event({"steps": steps, "seconds": round(time.monotonic() - start, 2), **progress}, "progress")
            yield event(await asyncio.to_thread(result, task.result()), "result")
        except Cancelled:
            return
        except TimeoutError:
            yield event(openai(late(served, what)), "error")
        except Exception as error:
            yield event(openai(logged(error)), "error")
        finally:
            task.cancel()


def binary(told: dict[str, Any]) -> bytes:
    """A safetensors file: its arrays are the answer's, by their place in it, and its metadata's `json` is the rest."""
    from safetensors.numpy import save

    arrays: dict[str, Any] = {}

    def taken(value: object, place: str) -> Any:
        if isinstance(value, dict):
            if set(value) == {"shape", "dtype", "base64"}:
                raw = base64.b64decode(value["base64"])
                arrays[place] = np.frombuffer(raw, value["dtype"]).reshape(value["shape"])
                return {"array": place}
            return {key: taken(item, f"{place}.{key}" if place else key) for key, item in value.items()}
        if isinstance(value, list):
            return [taken(item, f"{place}.{index}") for index, item in enumerate(value)]
        return value

    rest = taken(told, "")
    return save(arrays or {"none": np.zeros(0, "float32")}, metadata={"json": dumped(rest).decode()})
