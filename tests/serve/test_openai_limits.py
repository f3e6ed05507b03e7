"""Who may ask the OpenAI-compatible server, and how much; overload, and clients that leave."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from glassformer.serve import scoring
from glassformer.serve.admission import Job
from glassformer.serve.security import Policy
from tests.serve.running import CONTEXT, NO_END, TEXT, Running, error_of, eventually, post, running


def test_hosts_and_origins(server):
    assert httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example"}).status_code == 421
    assert httpx.get(f"{server.url}/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
    assert "access-control-allow-origin" not in httpx.get(f"{server.url}/v1/models").headers


def test_an_origin_may_be_let_in(model):
    mine = "https://mine.example"
    with running(model, policy=Policy(origins=frozenset({mine}))) as server:
        answer = httpx.get(f"{server.url}/v1/models", headers={"origin": mine})
        assert answer.headers["access-control-allow-origin"] == mine


def test_the_key_is_asked_for(model):
    with running(model, policy=Policy(key="sésame".encode().hex())) as server:
        key = "sésame".encode().hex()
        for wrong in ("", "x", key[:-1], key + "x"):
            with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)):
                server.client(api_key=wrong or " ").models.list()
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert server.client(api_key=key).models.list().data


def test_long_bodies_are_refused_however_they_come(model):
    with running(model, policy=Policy(max_body=1000)) as server:
        assert post(server, json={"prompt": "a" * 2000}).status_code == 413

        def pieces() -> Iterator[bytes]:
            yield b'{"prompt": "'
            for _ in range(50):
                yield b"a" * 100
            yield b'"}'

        chunked = post(server, content=pieces(), headers={"content-type": "application/json"})
        assert chunked.status_code == 413
        assert post(server, json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_the_length_of_answers_can_be_limited(model):
    with running(model, most_tokens=5) as server:
        client = server.client()
        with pytest.raises(
            openai.BadRequestError, match="max_tokens: 6 were asked for and this server gives at most 5"
        ):
            client.completions.create(model="tiny", prompt=TEXT, max_tokens=6)
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], logit_bias=NO_END
        )
        assert answer.usage.completion_tokens == 5


def leave(server: Running, asked: dict[str, Any], when: Callable[[], bool]) -> None:
    """Ask for a completion, and hang up as soon as something is so."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("POST", "/v1/completions", json.dumps(asked), {"content-type": "application/json"})
    eventually(when)
    connection.close()


def test_who_leaves_is_not_computed_for(model):
    with running(model, slots=1) as server:
        server.gate.seconds = 0.005
        asked = {"prompt": TEXT, "max_tokens": CONTEXT - 50, "logit_bias": NO_END}
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**asked, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            for _ in range(5):
                next(lines)
        eventually(lambda: server.queue.engine.active == 0)
        eventually(lambda: server.metric("answers_total", how="gone") == 1)
        computed = server.metric("generated_tokens_total")
        assert 0 < computed < CONTEXT - 100
        leave(server, asked, lambda: server.queue.engine.active == 1)  # whole answers alike
        eventually(lambda: server.metric("answers_total", how="gone") == 2)
        eventually(lambda: server.queue.engine.active == 0)
        assert server.metric("generated_tokens_total") < 2 * (CONTEXT - 100)
        assert server.queue.taken == 0
        assert server.client().completions.create(model="tiny", prompt=TEXT, max_tokens=1).choices


def test_who_leaves_frees_the_slot_within_one_step(model):
    """The step that runs when the server learns of it is the last: at most its token comes after that."""
    with running(model, slots=1) as server:
        server.gate.seconds = 0.4
        learned: list[float] = []
        written = server.models.metrics.written
        real = Job.cancel

        def cancel(self: Job) -> None:
            learned.append(written._value.get())
            real(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Job, "cancel", cancel)
            asked = {"prompt": TEXT, "max_tokens": 400, "logit_bias": NO_END, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=asked, timeout=60) as answer:
                next(answer.iter_lines())
            eventually(lambda: learned and server.queue.engine.active == 0)
        assert written._value.get() - learned[0] <= 1


class Slow:
    """Scoring a prompt takes a while for each of its tokens; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
        self.count = 0
        real = type(model.transformer).forward

        def forward(transformer: Any, *args: Any, **more: Any) -> Any:
            self.count += 1
            time.sleep(0.02)
            return real(transformer, *args, **more)

        monkeypatch.setattr(scoring, "_ROWS", 1)
        monkeypatch.setattr(type(model.transformer), "forward", forward)


TOKENS = 1500  # 30 s of scoring, where it is slow
SHORT = {"prompt": TEXT, "max_tokens": 1}
SCORED = {"prompt": [5] * TOKENS, "echo": True, "logprobs": 1, "max_tokens": 0}


def test_who_leaves_is_not_scored_for_and_others_are(model, monkeypatch):
    with running(model, slots=1, queue=0) as server:
        slow = Slow(monkeypatch, model)
        leave(server, SCORED, lambda: slow.count > 0)
        eventually(lambda: server.metric("answers_total", how="gone") == 1)
        assert server.queue.taken == 0
        assert slow.count < TOKENS - 1
        assert post(server, json=SCORED | {"prompt": [5] * 4}).status_code == 200


def test_scoring_takes_a_seat_and_no_longer_than_answers_may(model, monkeypatch):
    slow = Slow(monkeypatch, model)
    with running(model, slots=1, queue=0) as server:
        leave(server, SCORED, lambda: slow.count > 0 and post(server, json=SHORT).status_code == 429)
        eventually(lambda: post(server, json=SHORT).status_code == 200)
    with running(model, slots=1, queue=0, seconds=0.5) as server:
        slow.count = 0
        answer = post(server, json=SCORED)
        assert answer.status_code == 408
        assert "longer than the 0.5 s" in error_of(answer)["message"]
        eventually(lambda: server.queue.taken == 0)
        assert slow.count < TOKENS - 1


def test_a_prompt_is_not_scored_beyond_the_served_context(model):
    with running(model, capacity=300) as server:
        assert post(server, json=SCORED | {"prompt": [5] * 300}).status_code == 200
        refused = post(server, json=SCORED)
        assert refused.status_code == 400
        assert "maximum context length is 300 tokens" in error_of(refused)["message"]
        assert error_of(refused)["code"] == "context_length_exceeded"


def test_overload_is_refused_with_a_time_to_try_again(model):
    with running(model, slots=1, queue=1) as server:
        server.gate.open.clear()
        client = server.client()
        held = [client.completions.create(model="tiny", prompt=TEXT, max_tokens=2, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="there is no room for another now") as refused:
            client.completions.create(model="tiny", prompt=TEXT)
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        assert error_of(refused.value.response)["code"] == "overloaded"
        server.gate.open.set()
        assert all(list(one)[-1].choices[0].finish_reason for one in held)
        assert client.completions.create(model="tiny", prompt=TEXT, max_tokens=1).choices
        assert server.metric("refused_total", why="overload") == 1


def test_more_answers_than_ever_fit_are_refused_for_good(model):
    with running(model, slots=1, queue=1) as server:
        answer = post(server, json={"prompt": TEXT, "n": 3, "max_tokens": 1})
        assert answer.status_code == 400
        assert "asks for 3 answers and this server holds at most 2 at once" in error_of(answer)["message"]
        assert post(server, json={"prompt": TEXT, "n": 2, "max_tokens": 1}).status_code == 200


def test_an_answer_that_takes_too_long_is_ended(model):
    with running(model, seconds=0.5) as server:
        server.gate.seconds = 0.02
        client = server.client()
        asked = {"model": "tiny", "prompt": TEXT, "max_tokens": CONTEXT - 50, "logit_bias": NO_END}
        with pytest.raises(openai.APIStatusError, match="longer than the 0.5 s"):
            client.completions.create(**asked)
        with pytest.raises(openai.APIError, match="longer than the 0.5 s"):
            list(client.completions.create(**asked, stream=True))
        eventually(lambda: server.queue.engine.active == 0)
