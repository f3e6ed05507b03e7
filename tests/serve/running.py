"""A server on a tiny model, in a thread of this process, and what holds its engine still."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
import uvicorn

import glassformer
from glassformer.lm import Model
from glassformer.model import Attention, Config, Experts, Layer, Transformer
from glassformer.serve.admission import AdmissionQueue
from glassformer.serve.app import api_app
from glassformer.serve.models import Models, Served
from glassformer.serve.running import _Server, listening
from glassformer.serve.security import Policy
from glassformer.train.recipe import Recipe
from tests.tiny import tiny_directory

# These servers speak http: the certificates that each request would read first take longer than most answers.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT = 2048
TEXT = "The American shrew mole"
NO_END = {"0": -100}  # the tiny model's end-of-text token
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a] {% endif %}"
)


def tiny_model(directory: Path, context: int = CONTEXT) -> Model:
    """A tiny model with a chat template and a context long enough to be interrupted in."""
    model = glassformer.load(tiny_directory(directory / "tiny", max_position_embeddings=context))
    model.tokenizer.chat_template = TEMPLATE
    return model


def with_experts(model: Model) -> Model:
    """A model of the same tokens whose layers have experts."""
    torch.manual_seed(0)
    layer = Layer(Attention(2, 2, 8), Experts(4, 2, 6))
    made = copy.copy(model)
    made._transformer = Transformer(Config(model.config.vocab_size, 16, 64, (layer, layer)))
    made._engines = []
    return made


def tiny_run(folder: Path) -> None:
    """A finished run called tiny, with a film, in the runs folder of `folder`."""
    text = "".join(f"The mole digs for {what}.\n" for what in ("worms", "roots", "France", "capital letters") * 40)
    (folder / "lines.txt").write_text(text, "utf-8")
    settings: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 32, "steps": 6, "batch": 4}
    settings |= {"data": (str(folder / "lines.txt"),), "precision": "fp32", "threads": 1, "native": "off"}
    settings |= {"eval_every": 0, "save_every": 0, "film": 4, "sample_tokens": 4}
    glassformer.train(Recipe(name="tiny").with_settings(settings), out=str(folder / "runs" / "tiny"), quiet=True)


@contextlib.contextmanager
def beside_a_run(folder: Path) -> Iterator[None]:
    """Inside, the process stands in `folder`, where runs has one called tiny."""
    with contextlib.chdir(folder):
        tiny_run(folder)
        yield


class Gate:
    """Holds an engine's forward passes while it is shut, or makes each take a while."""

    def __init__(self, engine: Any) -> None:
        self.open = threading.Event()
        self.open.set()
        self.seconds = 0.0
        real = engine._runner.forward

        def forward(*args: Any) -> Any:
            assert self.open.wait(60)
            time.sleep(self.seconds)
            return real(*args)

        engine._runner.forward = forward


@dataclass
class Running:
    """A server that runs."""

    url: str
    models: Models
    gate: Gate
    loop: asyncio.AbstractEventLoop

    @property
    def model(self) -> Model:
        return self.models.default.model

    @property
    def queue(self) -> AdmissionQueue:
        return self.models.default.queue

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, **options})

    def metric(self, name: str, **labels: str) -> float:
        """One number of /metrics, 0 where it is not there."""
        wanted = ",".join(f'{key}="{value}"' for key, value in labels.items())
        line = f"glassformer_{name}" + (f"{{{wanted}}}" if wanted else "")
        for row in httpx.get(f"{self.url}/metrics", verify=NO_CERTIFICATES).text.splitlines():
            if row.startswith(line + " "):
                return float(row.rpartition(" ")[2])
        return 0.0


def eventually(true: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def post(server: Running, path: str = "/v1/completions", **options: Any) -> httpx.Response:
    """A request as it is, right or wrong."""
    return httpx.post(server.url + path, **{"timeout": 60, "verify": NO_CERTIFICATES, **options})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """What a refusal says, in OpenAI's shape."""
    found: dict[str, Any] = answer.json()["error"]
    assert list(found) == ["message", "type", "param", "code"]
    return found


def _run(loop: asyncio.AbstractEventLoop, serving: Any) -> None:
    """As `asyncio.run`, on a loop that the tests hold."""
    try:
        loop.run_until_complete(serving)
    finally:
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.close()


@contextlib.contextmanager
def running(
    model: Model,
    *,
    slots: int = 4,
    queue: int = 64,
    policy: Policy | None = None,
    seconds: float = 120.0,
    precision: str = "exact",
    native: bool = False,
    capacity: int | None = None,
    ping: float = 10.0,
    **more: Any,
) -> Iterator[Running]:
    """A server for a while."""
    engine = model.engines.make(precision, native=native, slots=slots, capacity=capacity)
    assert engine.wait(300)
    models = Models(Served(model, AdmissionQueue(engine, waiting=queue, seconds=seconds), "tiny", **more))
    models.ping = ping
    gate = Gate(engine)
    server = _Server(uvicorn.Config(api_app(models, policy or Policy()), log_config=None, access_log=False))
    loop = asyncio.new_event_loop()
    with listening("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=_run, args=(loop, server.serve([listener])), daemon=True)
        thread.start()
        eventually(lambda: server.started)
        try:
            yield Running(url, models, gate, loop)
        finally:
            gate.open.set()
            server.should_exit = True
            thread.join(30)
