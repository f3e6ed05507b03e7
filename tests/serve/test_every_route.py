"""Malformed requests to every route: each is answered in its API's shape, none as a failure, and the server goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from glassformer.lm import Model
from glassformer.views.examples import example
from tests.serve.running import TEXT, Running, post, running

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    "",
    "x",
    "\ud800".encode("utf-8", "replace").decode(),
    [],
    [[]],
    {},
    {"a": 1},
]
MESSAGES = [{"role": "user", "content": "a"}]
SOUND: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": TEXT, "max_tokens": 1},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": "a"},
    "/api/chat": {"model": "tiny", "messages": MESSAGES, "options": {"num_predict": 1}, "stream": False},
    "/api/generate": {"model": "tiny", "prompt": "a", "options": {"num_predict": 1}, "stream": False},
    "/api/embed": {"model": "tiny", "input": "a"},
    "/api/embeddings": {"model": "tiny", "prompt": "a"},
    "/api/show": {"model": "tiny"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
}
SLOW = {
    "/v1/verbs/trace.heads",
    "/v1/verbs/heads",
    "/v1/inspect/heads",
    "/v1/inspect/size",
    "/v1/inspect/run_step",
}  # minutes where they are asked for by hundreds
EACH = 12


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    """Its answers are short, whatever is asked for."""
    with running(model, most_tokens=2) as made:
        yield made


def test_no_malformed_request_is_a_failure(server):
    told = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    generator = random.Random(5)
    sent, wrong = 0, []
    for path, methods in told["paths"].items():
        if "post" not in methods or path in SLOW:
            continue
        schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        named = told["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        base = SOUND.get(path, {"text": TEXT})
        verb = path.startswith("/v1/verbs")  # many, and all of one making
        bodies: list[Any] = [base] if verb else [None, [], "x", {}, {"model": 5}, base]
        fields = sorted(named.get("properties", {}))
        for _ in range((EACH // 4 if verb else EACH) if fields else 0):
            changed = {generator.choice(fields): generator.choice(ODD) for _ in range(generator.randint(1, 2))}
            bodies.append(base | changed)
        for body in bodies:
            try:
                answer = post(server, path, json=body)
            except httpx.ReadTimeout:
                wrong.append((path, body, 0))
                break
            sent += 1
            if answer.status_code >= 500:
                wrong.append((path, body, answer.status_code))
            elif answer.status_code >= 400:
                error = answer.json()["error"]
                assert isinstance(error, str) == path.startswith("/api/"), answer.text
    assert wrong == []
    assert sent > 300
    assert post(server, json=SOUND["/v1/completions"]).status_code == 200


def test_no_number_is_too_large_for_a_sentence(server):
    """Numbers that a description leaves open reach torch, which fails on what does not fit 64 bits."""
    told = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    schemas, sent = told["components"]["schemas"], 0
    for path, methods in told["paths"].items():
        if "post" not in methods or path in SLOW:
            continue
        schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        for name, field in schemas[schema["$ref"].rsplit("/", 1)[-1]].get("properties", {}).items():
            base = SOUND.get(path, example(path.rpartition("/")[2]) if "inspect" in path else {})
            kinds = {one.get("type") for one in [field, *field.get("anyOf", [])] if "maximum" not in one}
            for value in [2**70] * ("integer" in kinds) + [1e300] * ("number" in kinds):
                answer = post(server, path, json=base | {name: value})
                assert answer.status_code < 500, (path, name, answer.text)
                sent += 1
    assert sent > 60


@pytest.mark.parametrize("strength", [1e20, 1e300])
def test_what_overflows_inside_is_answered(server, strength):
    """Numbers that are none (NaN) are null in JSON, and no answer is drawn from them."""
    width = server.model.config.d_model
    edits = [{"steer": {"layer": 0, "vector": [1.0, -1.0] * (width // 2), "strength": strength}}]
    for path, body in {
        "/v1/completions": {"prompt": TEXT, "max_tokens": 2, "logprobs": 2},
        "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
        "/v1/inspect/next": {"text": TEXT},
        "/v1/inspect/lens": {"text": TEXT},
    }.items():
        answer = post(server, path, json=body | {"edits": edits})
        assert answer.status_code < 500, answer.text
        answer.json()
        if "inspect" in path:
            with httpx.stream(
                "POST", server.url + path, json=body | {"edits": edits}, headers={"accept": "text/event-stream"}
            ) as told:
                lines = [line for line in told.iter_lines() if line.startswith("data: ")]
            json.loads(lines[-1].removeprefix("data: "), parse_constant=lambda name: pytest.fail(name))


def test_a_step_of_any_length_is_answered(server):
    answer = post(server, "/v1/inspect/run_step", json={"text": TEXT, "rate": 1000})
    assert answer.status_code == 200, answer.text
    assert post(server, "/v1/inspect/run_step", json={"text": TEXT, "rate": 1e40}).status_code == 400
