"""The OpenAI-compatible server as its clients meet it: the real `openai` client, and requests that are wrong."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from glassformer.lm import Model
from glassformer.serve.security import Policy
from tests.serve.running import CONTEXT, Running, eventually, running, tiny_model
from tests.tiny import VOCAB

TEXT = "The American shrew mole"
NO_END = {"0": -100}  # the tiny model's end-of-text token


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with running(model) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return server.client()


def post(server: Running, path: str = "/v1/completions", **options: Any) -> httpx.Response:
    return httpx.post(server.url + path, **options)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert list(found) == ["message", "type", "param", "code"]
    return found


# Answers


def test_models_are_listed_with_their_precision(client):
    [only] = client.models.list().data
    assert (only.id, only.object, only.precision, only.context_length) == ("tiny", "model", "float32", CONTEXT)
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        client.models.retrieve("other")


def test_greedy_text_is_the_model_s(client, model):
    answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=12, temperature=0, logit_bias=NO_END)
    want = "".join(p.text for p in model.generate(TEXT, max_tokens=12, temperature=0, logit_bias={0: -100}))
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (want, "length")
    assert answer.usage.prompt_tokens == len(model.encode(TEXT))
    assert answer.usage.completion_tokens == 12
    assert answer.system_fingerprint.endswith("-float32")


def test_streamed_and_whole_are_the_same(client):
    asked = {"model": "tiny", "prompt": TEXT, "max_tokens": 30, "seed": 7, "logprobs": 2, "logit_bias": NO_END}
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 30
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    for name in ("tokens", "token_logprobs", "text_offset"):
        told = [x for c in chunks if c.choices and c.choices[0].logprobs for x in getattr(c.choices[0].logprobs, name)]
        assert told == getattr(whole.choices[0].logprobs, name)


def test_server_sent_events_end_with_done(server):
    body = {"prompt": TEXT, "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_logprobs_are_those_of_next(client, model):
    answer = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=5, temperature=0, logprobs=3, logit_bias=NO_END
    )
    found, ids = answer.choices[0].logprobs, model.encode(TEXT)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        want = model.next(ids)
        best = want.top(4)
        id = next(t.id for t in best if t.id != 0)
        assert logprob == pytest.approx(want.logprob(id), abs=1e-4)
        assert len(token) > 0
        assert max(top.values()) == pytest.approx(best[0].logprob, abs=1e-4)
        ids = [*ids, id]


def test_echo_scores_the_prompt(client, model):
    answer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=0, echo=True, logprobs=1)
    [choice] = answer.choices
    assert choice.text == TEXT
    ids, found = model.encode(TEXT), choice.logprobs
    assert "".join(found.tokens) == TEXT
    assert found.token_logprobs[0] is None
    for i in range(1, len(ids)):
        assert found.token_logprobs[i] == pytest.approx(model.next(ids[:i]).logprob(ids[i]), abs=1e-4)
        assert TEXT[found.text_offset[i] :].startswith(found.tokens[i])
    assert answer.usage.completion_tokens == 0
    longer = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3, echo=True, logprobs=1, temperature=0)
    assert longer.choices[0].text.startswith(TEXT)
    assert longer.choices[0].logprobs.token_logprobs[: len(ids)] == found.token_logprobs


def test_several_prompts_and_answers_keep_their_order(client, model):
    prompts = [TEXT, model.encode("One mole"), "Paris"]
    mixed = [TEXT, "Paris"]
    answer = client.completions.create(model="tiny", prompt=mixed, max_tokens=4, temperature=0, n=2)
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    alone = [client.completions.create(model="tiny", prompt=p, max_tokens=4, temperature=0) for p in prompts]
    texts = [one.choices[0].text for one in alone]
    assert [c.text for c in answer.choices] == [texts[0], texts[0], texts[2], texts[2]]
    [by_ids] = client.completions.create(
        model="tiny", prompt=[model.encode("One mole")], max_tokens=4, temperature=0
    ).choices
    assert by_ids.text == texts[1]


def test_a_stop_string_is_not_part_of_the_text(client):
    asked = {"model": "tiny", "prompt": TEXT, "max_tokens": 40, "temperature": 0, "logit_bias": NO_END, "logprobs": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[7:10]
    for stream in (False, True):
        answer = client.completions.create(**asked, stop=[stop, "never"], stream=stream)
        choices = [c.choices[0] for c in answer] if stream else answer.choices
        text = "".join(c.text for c in choices)
        assert text == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"
        offsets = [x for c in choices if c.logprobs for x in c.logprobs.text_offset]
        assert all(x < len(text) for x in offsets)


def test_seeds_reproduce_and_answers_of_one_request_differ(client):
    asked = {"model": "tiny", "prompt": TEXT, "max_tokens": 20, "logit_bias": NO_END}
    first, again, other = (client.completions.create(**asked, seed=s, n=2).choices for s in (5, 5, 6))
    assert [c.text for c in first] == [c.text for c in again]
    assert first[0].text != first[1].text
    assert first[1].text == other[0].text  # the second answer's seed is one more


def test_penalties_and_further_samplers_are_taken(client):
    asked = {"model": "tiny", "prompt": TEXT, "max_tokens": 30, "temperature": 0, "logit_bias": NO_END, "logprobs": 0}
    plain = client.completions.create(**asked).choices[0].logprobs.tokens
    told = client.completions.create(
        **asked, presence_penalty=2, frequency_penalty=2, extra_body={"repetition_penalty": 5.0}
    )
    varied = told.choices[0].logprobs.tokens
    assert len(set(varied)) > len(set(plain))
    one = {"model": "tiny", "prompt": TEXT, "max_tokens": 5, "logit_bias": NO_END}
    greedy = client.completions.create(**one, temperature=0).choices[0].text
    for only in ({"top_k": 1}, {"min_p": 1.0}):
        assert client.completions.create(**one, extra_body=only).choices[0].text == greedy
    forced = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3, logit_bias={"40": 100}, top_p=0.5)
    assert len(set(forced.choices[0].text)) == 1


def test_chat_follows_the_template(client, model):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=2, logit_bias=NO_END
    )
    want = list(model.chat(messages, max_tokens=8, temperature=0, logit_bias={0: -100}))
    [choice] = answer.choices
    assert choice.message.content == "".join(piece.text for piece in want)
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content) == 8
    for told, piece in zip(choice.logprobs.content, want, strict=True):
        assert bytes(told.bytes) == model.tokenizer.token_bytes(piece.id)
        assert told.logprob == pytest.approx(piece.logprob, abs=1e-4)
        assert len(told.top_logprobs) == 2
    assert answer.usage.prompt_tokens == len(model.encode(model.tokenizer.render_chat(messages), bos=False))


def test_chat_streams(client):
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
        "max_completion_tokens": 10,
        "temperature": 0,
        "n": 2,
    }
    whole = client.chat.completions.create(**asked)
    texts = {0: "", 1: ""}
    ends = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
    assert list(texts.values()) == [c.message.content for c in whole.choices]
    assert list(ends.values()) == [c.finish_reason for c in whole.choices]


def test_a_character_is_never_split(server, model):
    euro = [_byte(model, b) for b in "€".encode()]
    with _Forced(server, euro * 3):
        body = {"prompt": TEXT, "max_tokens": 9, "temperature": 0, "stream": True, "logprobs": 0}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            events = [json.loads(x[6:]) for x in answer.iter_lines() if x.startswith("data: {")]
    texts = [e["choices"][0]["text"] for e in events]
    assert [t for t in texts if t] == ["€", "€", "€"]
    assert [x for e in events for x in (e["choices"][0]["logprobs"] or {"tokens": []})["tokens"]] == [
        "bytes:\\xe2",
        "bytes:\\x82",
        "bytes:\\xac",
    ] * 3


def _byte(model: Model, byte: int) -> int:
    return next(i for i in range(VOCAB) if model.tokenizer.token_bytes(i) == bytes([byte]))


class _Forced:
    """The engine's scores favour these tokens, one after another."""

    def __init__(self, server: Running, ids: list[int]) -> None:
        self.engine, self.ids = server.desk.engine, list(ids)

    def __enter__(self) -> None:
        self.real = self.engine._runner.forward

        def forward(*args: Any) -> Any:
            logits = self.real(*args)
            if len(logits) and self.ids:
                logits[-1, self.ids.pop(0)] = 1000.0
            return logits

        self.engine._runner.forward = forward

    def __exit__(self, *error: object) -> None:
        self.engine._runner.forward = self.real


# Requests that are wrong

COMPLETIONS = [
    ({"prompt": TEXT, "temperature": -0.5}, 400, "temperature: Input should be greater than or equal to 0"),
    ({"prompt": TEXT, "top_p": 0}, 400, "top_p: Input should be greater than 0"),
    ({"prompt": TEXT, "min_p": 2}, 400, "min_p: Input should be less than or equal to 1"),
    ({"prompt": TEXT, "top_k": -1}, 400, "top_k: Input should be greater than or equal to 0"),
    ({"prompt": TEXT, "repetition_penalty": 0}, 400, "repetition_penalty: Input should be greater than 0"),
    ({"prompt": TEXT, "presence_penalty": 3}, 400, "presence_penalty: Input should be less than or equal to 2"),
    ({"prompt": TEXT, "max_tokens": 0}, 400, "max_tokens of 0 makes sense only with echo"),
    ({"prompt": TEXT, "max_tokens": -3}, 400, "max_tokens: Input should be greater than or equal to 0"),
    ({"prompt": TEXT, "max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer"),
    ({"prompt": TEXT, "max_tokens": CONTEXT}, 400, rf"long and max_tokens asks for {CONTEXT} more; .* most {CONTEXT}"),
    ({"prompt": [5] * CONTEXT}, 400, f"{CONTEXT} tokens long and this model reads at most {CONTEXT}"),
    ({"prompt": "mole " * CONTEXT}, 400, rf"\d+ tokens long and .* reads at most {CONTEXT}"),
    ({"prompt": ""}, 400, "The text is empty"),
    ({"prompt": []}, 400, "prompt: a prompt is a text"),
    ({"prompt": [VOCAB]}, 400, f"Token id {VOCAB} is not in this model's vocabulary of {VOCAB}"),
    ({"prompt": [[1], []]}, 400, "prompt: each prompt of a list"),
    ({"prompt": [True]}, 400, "prompt: each prompt of a list"),
    ({"prompt": ["a"] * 65}, 400, "at most 64 prompts; this one has 65"),
    ({"prompt": ["a"] * 10, "n": 10}, 400, "at most 64 answers"),
    ({"prompt": TEXT, "n": 17}, 400, "n: Input should be less than or equal to 16"),
    ({"prompt": TEXT, "best_of": 3}, 400, "best_of other than n"),
    ({"prompt": TEXT, "suffix": "end"}, 400, "suffix is not supported"),
    ({"prompt": TEXT, "logprobs": 21}, 400, "logprobs: Input should be less than or equal to 20"),
    ({"prompt": TEXT, "stop": ["a", "b", "c", "d", "e"]}, 400, "stop: List should have at most 4 items"),
    ({"prompt": TEXT, "stop": ["x" * 501]}, 400, "stop.0: String should have at most 500 characters"),
    ({"prompt": TEXT, "stop": ""}, 400, "stop.0: String should have at least 1 character"),
    ({"prompt": TEXT, "logit_bias": {"paris": 1}}, 400, "logit_bias: a logit bias is for token ids"),
    ({"prompt": TEXT, "logit_bias": {"1": 101}}, 400, "logit_bias.1: Input should be less than or equal to 100"),
    ({"prompt": TEXT, "logit_bias": {"99999": 1}}, 400, f"names token 99999; this vocabulary has {VOCAB}"),
    ({"prompt": TEXT, "stream_options": {"include_usage": True}}, 400, "stream_options are for stream: true"),
    ({"prompt": TEXT, "temprature": 1}, 400, "temprature: Extra inputs are not permitted"),
    ({"prompt": TEXT, "seed": 2**70}, 400, "seed: Input should be"),
    ({"max_tokens": 3}, 400, "prompt: Field required"),
    ([TEXT], 400, "valid dictionary or object"),
    ({"prompt": TEXT, "model": "gpt-4"}, 404, "The model 'gpt-4' is not served here; 'tiny' is."),
]


@pytest.mark.parametrize(("body", "status", "message"), COMPLETIONS, ids=lambda x: str(x)[:40])
def test_a_wrong_completion_is_told_why(server, body, status, message):
    answer = post(server, json=body)
    assert answer.status_code == status
    found = error_of(answer)
    assert found["type"] == "invalid_request_error"
    assert re.search(message, found["message"]), found["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role: Input should be"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "this model reads text only"),
        ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools is not supported"),
        (
            {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}},
            "response_format is not supported",
        ),
        ({"messages": [{"role": "user", "content": "mole " * CONTEXT}]}, f"reads at most {CONTEXT}"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_a_wrong_chat_is_told_why(server, body, message):
    answer = post(server, "/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert message in error_of(answer)["message"]


def test_a_model_without_a_template_does_not_chat(server, client, monkeypatch):
    monkeypatch.setattr(server.model.tokenizer, "chat_template", None)
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"prompt": "\xff\xfe"}', r"not UTF-8 text \(its byte 12"),
        (b"not json", "not JSON .* at character 0"),
        (b"", "not JSON"),
        (b"[" * 100_000, "cannot be read: too deep"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "a", "\\ud800": 1}', "string"),
        (b'{"prompt": "a", "stop": "\\udfff"}', "string"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_bodies_that_are_no_request(server, raw, message):
    answer = post(server, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert re.search(message, error_of(answer)["message"]), answer.text


def test_what_is_not_there_is_said_in_the_same_shape(server):
    assert error_of(httpx.get(f"{server.url}/v1/nothing"))["message"].startswith("/v1/nothing")
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def test_harmless_fields_are_taken(client):
    answer = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=1, user="somebody", extra_body={"metadata": {"a": 1}, "best_of": 1}
    )
    assert answer.choices


# Who may ask, and how much


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
        with pytest.raises(openai.BadRequestError, match="max_tokens is 6 and this server gives at most 5"):
            client.completions.create(model="tiny", prompt=TEXT, max_tokens=6)
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], logit_bias=NO_END
        )
        assert answer.usage.completion_tokens == 5


# Leaving, overload, the end


def test_who_leaves_is_not_computed_for(model):
    with running(model, slots=1) as server:
        server.gate.seconds = 0.005
        asked = {"prompt": TEXT, "max_tokens": CONTEXT - 50, "logit_bias": NO_END}
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**asked, "stream": True}) as answer:
            lines = answer.iter_lines()
            for _ in range(5):
                next(lines)
        eventually(lambda: server.desk.engine.active == 0)
        eventually(lambda: server.metric("answers_total", how="gone") == 1)
        computed = server.metric("generated_tokens_total")
        assert 0 < computed < CONTEXT - 100
        with pytest.raises(httpx.ReadTimeout):  # whole answers alike
            post(server, json=asked, timeout=0.3)
        eventually(lambda: server.metric("answers_total", how="gone") == 2)
        eventually(lambda: server.desk.engine.active == 0)
        assert server.metric("generated_tokens_total") < 2 * (CONTEXT - 100)
        assert server.desk.taken == 0
        assert server.client().completions.create(model="tiny", prompt=TEXT, max_tokens=1).choices


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
        eventually(lambda: server.desk.engine.active == 0)


def test_an_engine_that_fails_does_not_end_the_server(server, client):
    real = server.desk.engine._runner.forward

    def broken(*args: Any) -> Any:
        raise MemoryError("none left")

    server.desk.engine._runner.forward = broken
    try:
        with pytest.raises(openai.InternalServerError, match="goes on"):
            client.completions.create(model="tiny", prompt=TEXT)
        with pytest.raises(openai.APIError, match="goes on"):
            list(client.completions.create(model="tiny", prompt=TEXT, stream=True))
    finally:
        server.desk.engine._runner.forward = real
    assert client.completions.create(model="tiny", prompt=TEXT, max_tokens=1).choices


def test_draining_finishes_what_runs_and_takes_nothing_new(model):
    with running(model) as server:
        server.gate.open.clear()
        client = server.client()
        held = client.completions.create(model="tiny", prompt=TEXT, max_tokens=3, stream=True, logit_bias=NO_END)
        drained = asyncio.run_coroutine_threadsafe(server.desk.drain(60), server.loop)
        eventually(lambda: server.desk.draining)
        with pytest.raises(openai.InternalServerError, match="takes no new requests") as refused:
            client.completions.create(model="tiny", prompt=TEXT)
        assert refused.value.status_code == 503
        assert httpx.get(f"{server.url}/healthz").status_code == 503
        server.gate.open.set()
        assert list(held)[-1].choices[0].finish_reason == "length"
        assert drained.result(60) is True


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


# What it says about itself


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


def test_many_at_once_answer_as_alone(server, client):
    prompts = ["The", "One mole", "Take a biopsy of the mole", TEXT, "Paris", "capital"]
    asked = {"model": "tiny", "max_tokens": 25, "temperature": 0, "logit_bias": NO_END}
    alone = [client.completions.create(prompt=p, **asked).choices[0].text for p in prompts]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        chunks = server.client().completions.create(prompt=prompts[i % 6], stream=True, **asked)
        found[i] = "".join(c.choices[0].text for c in chunks)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(18)] == [alone[i % 6] for i in range(18)]


@pytest.mark.smollm2
def test_smollm2_answers_and_chats(smollm2):
    with running(smollm2) as server:
        client = server.client()
        answer = client.completions.create(
            model="tiny", prompt="The capital of France is", max_tokens=1, temperature=0, logprobs=3
        )
        assert answer.choices[0].text == " Paris"
        top = answer.choices[0].logprobs.top_logprobs[0]
        want = smollm2.next("The capital of France is")
        for text, logprob in top.items():
            assert logprob == pytest.approx(want.logprob(text), abs=1e-4)
        assert math.exp(top[" Paris"]) == pytest.approx(0.7725, abs=5e-4)
        said = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
        assert "Paris" in (said.choices[0].message.content or "")
        assert said.choices[0].finish_reason == "stop"
        assert "<|im_end|>" not in (said.choices[0].message.content or "")
