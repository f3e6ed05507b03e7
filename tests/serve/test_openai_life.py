"""What the OpenAI-compatible server does when its engine fails, how it ends, and what it says about itself."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from glassformer.serve.running import listening
from tests.serve.running import NO_END, TEXT, eventually, running, tiny_model


def test_an_engine_that_fails_does_not_end_the_server(server, client):
    real = server.queue.engine._runner.forward

    def broken(*args: Any) -> Any:
        raise MemoryError("none left")

    server.queue.engine._runner.forward = broken
    try:
        with pytest.raises(openai.InternalServerError, match="goes on"):
            client.completions.create(model="tiny", prompt=TEXT)
        with pytest.raises(openai.APIError, match="goes on"):
            list(client.completions.create(model="tiny", prompt=TEXT, stream=True))
    finally:
        server.queue.engine._runner.forward = real
    assert client.completions.create(model="tiny", prompt=TEXT, max_tokens=1).choices


def test_draining_finishes_what_runs_and_takes_nothing_new(model):
    with running(model) as server:
        server.gate.open.clear()
        client = server.client()
        held = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3, stream=True, logit_bias=NO_END)
        drained = asyncio.run_coroutine_threadsafe(server.models.drain(60), server.loop)
        eventually(lambda: server.queue.draining)
        with pytest.raises(openai.InternalServerError, match="takes no new requests") as refused:
            client.completions.create(model="tiny", prompt=TEXT)
        assert refused.value.status_code == 503
        assert httpx.get(f"{server.url}/healthz").status_code == 503
        server.gate.open.set()
        assert list(held)[-1].choices[0].finish_reason == "length"
        assert drained.result(60) is True


def test_small_pieces_are_sent_at_once():
    """Without it every answer waits for the receipt of its first packet: 40 ms."""
    seen = []

    async def connect() -> None:
        def arrived(reader: Any, writer: asyncio.StreamWriter) -> None:
            seen.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listening("127.0.0.1", 0) as listener:
            server = await asyncio.start_server(arrived, sock=listener)
            reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            await reader.read()
            writer.close()
            server.close()

    asyncio.run(connect())
    assert [bool(one) for one in seen] == [True]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is of POSIX")
def test_the_program_serves_and_ends_on_sigterm(tmp_path: Path):
    tiny_model(tmp_path, context=4096)
    process = subprocess.Popen(
        [sys.executable, "-m", "glassformer", "serve", str(tmp_path / "tiny"), "--port", "0", "--precision", "exact"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("tiny (float32, "), first
        client = openai.OpenAI(base_url=first.split()[-1], api_key="none", max_retries=0)
        stream = client.completions.create(
            model="tiny", prompt=TEXT, max_tokens=2000, stream=True, logit_bias={"0": -100}
        )
        next(stream)
        process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert process.wait(60) == 0
        logs = [json.loads(line) for line in process.stderr]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert [log["event"] for log in logs] == ["draining", "request", "drained"]
    [told] = [log for log in logs if log["event"] == "request"]
    assert (told["route"], told["status"], told["completion_tokens"]) == ("/v1/completions", 200, 2000)
    assert TEXT not in json.dumps(logs)


def test_metrics_count(server, client, model):
    before = {name: server.metric(f"{name}_total") for name in ("generated_tokens", "prompt_tokens")}
    client.completions.create(model="tiny", prompt=TEXT, max_tokens=6, logit_bias=NO_END)
    assert server.metric("generated_tokens_total") == before["generated_tokens"] + 6
    assert server.metric("prompt_tokens_total") == before["prompt_tokens"] + len(model.encode(TEXT))
    assert server.metric("first_token_seconds_count") > 0
    assert server.metric("requests_total", route="/v1/completions", status="200") > 0


def test_the_description_names_every_route(server):
    told = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions", "/healthz", "/metrics"} <= set(told["paths"])
    asked = told["components"]["schemas"]["CompletionAsk"]["properties"]
    assert {"prompt", "stop", "logit_bias"} <= set(asked)
