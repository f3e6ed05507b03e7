"""What real clients send beside the documented fields, and what they look for in answers."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from typing import Any

import httpx
import pytest

from glassformer.serve.security import Policy
from tests.serve.running import CONTEXT, NO_END, TEXT, error_of, post, running
from tests.serve.test_openai_answers import _byte, _Forced

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Hello"}
SAID = {"prompt": TEXT, "max_tokens": 4, "temperature": 0, "logit_bias": NO_END}

# Each changes nothing at this value.
HARMLESS: list[dict[str, Any]] = [
    {"top_k": -1},
    {"typical_p": 0.5},
    {"cache_prompt": True},
    {"repeat_penalty": 1.0},
    {"stop_token_ids": []},
    {"stop_token_ids": None},
    {"ignore_eos": False},
    {"skip_special_tokens": True},
    {"mirostat": 0},
    {"min_p": 0},
    {"suffix": None},
    {"logit_bias": None},
    {"n": None},
    {"stream_options": None},
    {"whatever_comes_next_year": None},
    {"priority": 3},
    {"bad_words": [], "detokenize": True, "include_reasoning": True, "transforms": [], "safe_prompt": False},
    {"user": "somebody", "metadata": {"a": 1}, "service_tier": "auto", "prompt_cache_key": "k"},
]


@pytest.mark.parametrize("field", HARMLESS, ids=str)
def test_a_field_that_changes_nothing_is_taken(server, field):
    plain = post(server, json=SAID).json()["choices"]
    answer = post(server, json={**SAID, **{k: v for k, v in field.items() if k != "logit_bias"}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain


@pytest.mark.parametrize("field", [{"mirostat": 2}, {"bad_words": ["a"]}, {"use_beam_search": True}, {"suffix": "end"}])
def test_a_field_that_would_change_the_answer_is_refused_by_name(server, field):
    answer = post(server, json=SAID | field)
    assert answer.status_code == 400
    assert f"{next(iter(field))} is not supported" in error_of(answer)["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "Hi", "tool_calls": None, "audio": None, "function_call": None},
        {"role": "assistant", "content": "Hi", "reasoning_content": "they greet me", "refusal": None},
        {"role": "assistant", "content": "Hi", "tool_calls": [], "annotations": []},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
        {
            "role": "assistant",
            "content": "Hi",
            "reasoning_details": [],
            "prefix": False,
            "provider_specific_fields": None,
        },
        {"role": "user", "content": "Hi", "cache_control": {"type": "ephemeral"}},
    ],
    ids=str,
)
def test_messages_as_clients_keep_them_are_taken(server, message):
    answer = post(server, CHAT, json={"messages": [USER, message, USER], "max_tokens": 2})
    assert answer.status_code == 200, answer.text


def test_the_openai_client_s_own_messages_can_be_sent_back(client):
    said = client.chat.completions.create(model="tiny", messages=[USER], max_tokens=3, logit_bias=NO_END)
    history: list[Any] = [USER, said.choices[0].message.model_dump(), USER]
    assert client.chat.completions.create(model="tiny", messages=history, max_tokens=2).choices
    history[1] = said.choices[0].message  # the object itself is sent without what was not set
    assert client.chat.completions.create(model="tiny", messages=history, max_tokens=2).choices


def test_top_p_of_0_takes_the_likeliest(server):
    greedy = post(server, json=SAID).json()["choices"][0]["text"]
    drawn = post(server, json=SAID | {"temperature": 1, "top_p": 0}).json()["choices"][0]["text"]
    assert drawn == greedy


def test_ignoring_the_end_and_other_ends(server, model):
    end = {"logit_bias": {"0": 100}, "prompt": TEXT, "max_tokens": 5}
    assert post(server, json=end).json()["usage"]["completion_tokens"] == 1
    assert post(server, json=end | {"ignore_eos": True}).json()["usage"]["completion_tokens"] == 5
    mole = model.encode(" mole")[0]
    forced = {"prompt": TEXT, "max_tokens": 5, "logit_bias": {str(mole): 100}, "stop_token_ids": [mole]}
    answer = post(server, json=forced).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ("", "stop")


def test_max_tokens_is_cut_at_the_context(client, server):
    for asked in (100_000, CONTEXT, -1):
        answer = post(server, json={"prompt": [5] * (CONTEXT - 7), "max_tokens": asked, "logit_bias": NO_END}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 7
    long = [{"role": "user", "content": "mole " * (CONTEXT - 200)}]
    said = client.chat.completions.create(model="tiny", messages=long, max_tokens=4096, logit_bias=NO_END)
    assert said.choices[0].finish_reason == "length"
    assert said.usage.total_tokens == CONTEXT


def test_a_context_that_is_too_short_is_told_as_clients_look_for_it(server):
    refused = post(server, json={"prompt": [5] * CONTEXT})
    assert refused.status_code == 400
    assert error_of(refused)["code"] == "context_length_exceeded"
    # litellm, langchain and others look for these words.
    assert f"This model's maximum context length is {CONTEXT} tokens" in error_of(refused)["message"]


def _offsets_hold(choice: dict[str, Any]) -> list[str]:
    found = choice["logprobs"]
    for token, at in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][at : at + len(token)] == token
    return found["tokens"]


def test_offsets_are_where_tokens_stand(server, model, monkeypatch):
    asked = SAID | {"echo": True, "logprobs": 1}
    tokens = _offsets_hold(post(server, json=asked).json()["choices"][0])
    assert "".join(tokens).startswith(TEXT)
    monkeypatch.setattr(model.tokenizer, "adds_bos", True)
    with_bos = post(server, json=asked).json()["choices"][0]
    assert with_bos["text"].startswith(TEXT)  # the token put before the text is none of it
    assert _offsets_hold(with_bos)[0] == ""
    assert len(with_bos["logprobs"]["tokens"]) == len(model.encode(TEXT)) + 4
    # A prompt of ids shows what they spell, special tokens included.
    by_ids = post(server, json=asked | {"prompt": [0, *model.encode(TEXT, bos=False)]}).json()["choices"][0]
    assert _offsets_hold(by_ids)[0] == "<|end|>"


def test_offsets_hold_after_an_invalid_byte(server, model):
    broken, whole = _byte(model, 0xC3), model.encode(" mole", bos=False)[0]
    with _Forced(server, [broken, whole, whole, broken]):
        answer = post(server, json=SAID | {"logprobs": 0}).json()["choices"][0]
    assert answer["text"] == "\ufffd mole mole\ufffd"
    assert _offsets_hold(answer) == ["bytes:\\xc3", " mole", " mole", "bytes:\\xc3"]
    assert answer["logprobs"]["text_offset"] == [0, 1, 6, 11]
    prompt = [broken, whole, broken, broken, whole]
    echoed = post(server, json=SAID | {"prompt": prompt, "echo": True, "logprobs": 0}).json()["choices"][0]
    assert _offsets_hold(echoed)[:2] == ["bytes:\\xc3", " mole"]


def test_head_is_get_without_a_body(server):
    for path in ("/v1/models", "/healthz", "/metrics", "/openapi.json"):
        answer = httpx.head(server.url + path)
        assert answer.status_code == 200
        assert answer.content == b""
        assert answer.headers["content-type"] == httpx.get(server.url + path).headers["content-type"]


def test_other_methods_are_told_which_there_are(server):
    wrong = httpx.get(f"{server.url}/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert error_of(wrong)["message"] == "/v1/completions takes POST, not GET."
    assert httpx.head(f"{server.url}/v1/completions").headers["allow"] == "POST"
    assert httpx.delete(f"{server.url}/v1/models").headers["allow"] == "GET, HEAD"


def test_the_list_of_models_may_end_in_a_slash(server):
    assert httpx.get(f"{server.url}/v1/models/").json() == httpx.get(f"{server.url}/v1/models").json()
    assert httpx.get(f"{server.url}/v1/models/tiny").json()["id"] == "tiny"


def test_compressed_bodies_are_read_or_refused(model):
    plain = json.dumps(SAID).encode()
    with running(model, policy=Policy(max_body=1000)) as server:

        def sent(content: bytes, coding: str) -> httpx.Response:
            headers = {"content-type": "application/json", "content-encoding": coding}
            return post(server, content=content, headers=headers)

        for content, coding in ((gzip.compress(plain), "gzip"), (zlib.compress(plain), "deflate"), (plain, "identity")):
            assert sent(content, coding).status_code == 200
        assert "ends too early" in error_of(sent(gzip.compress(plain)[:-9], "gzip"))["message"]
        assert "said to be gzip and is not" in error_of(sent(plain, "gzip"))["message"]
        unknown = sent(plain, "br")
        assert (unknown.status_code, unknown.headers["accept-encoding"]) == (415, "gzip, deflate")
        bomb = sent(gzip.compress(b" " * 100_000 + plain), "gzip")
        assert bomb.status_code == 413
        assert "more than 1000 bytes when decompressed" in error_of(bomb)["message"]


def test_requests_have_an_id(server):
    own = httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "mine-7"})
    assert own.headers["x-request-id"] == "mine-7"
    first, second = (httpx.get(f"{server.url}/nowhere").headers["x-request-id"] for _ in range(2))
    assert first.startswith("req_")
    assert first != second
    assert (
        httpx.get(f"{server.url}/nowhere", headers={"x-request-id": "two words"}).headers["x-request-id"] != "two words"
    )


def test_a_stream_says_that_it_is_alive_while_a_prompt_is_read(model):
    with running(model, ping=0.05) as server:
        server.gate.open.clear()
        body = {**SAID, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            alive = next(line for line in lines if line)
            server.gate.open.set()
            rest = [line for line in lines if line.startswith("data: ")]
        assert alive.startswith(": ping")
        assert rest[-1] == "data: [DONE]"


def test_the_description_holds_answers_and_the_key(model):
    with running(model, policy=Policy(key="k")) as server:
        headers = {"authorization": "Bearer k"}
        told = httpx.get(f"{server.url}/openapi.json", headers=headers).json()
        assert set(told["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
        assert told["security"]
        for path, schema in (("/v1/completions", "Completion"), (CHAT, "ChatCompletion")):
            content = told["paths"][path]["post"]["responses"]["200"]["content"]
            assert content["application/json"]["schema"]["$ref"].endswith(f"/{schema}")
            assert "text/event-stream" in content
        assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": "k"}).status_code == 200
        assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": "no"}).status_code == 401


def test_every_route_is_described_whole(server):
    told = httpx.get(f"{server.url}/openapi.json").json()
    operations = {(path, how): one for path, ways in told["paths"].items() for how, one in ways.items()}
    assert len(operations) > 40

    def holds(content):
        return content and all(part.get("schema") for part in content.values())

    for at, one in operations.items():
        assert one.get("summary") or one.get("description"), at
        assert holds(one["responses"]["200"].get("content")), at
        refused = [answer for code, answer in one["responses"].items() if code.startswith("4")]
        assert refused or at[0] == "/metrics", at
        assert all(holds(answer.get("content")) for answer in refused), at
        assert at[1] != "post" or holds(one["requestBody"]["content"]), at
        for name in re.findall(r"{(\w+)", at[0]):
            assert name in [field["name"] for field in one["parameters"]], at
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(told))):
        assert told["components"]["schemas"][name], name


SPEAK = {"messages": [USER], "max_tokens": 3}
ANSWERED: list[tuple[str, dict[str, Any] | None]] = [
    ("/v1/completions", SAID | {"logprobs": 2}),
    (CHAT, SPEAK | {"logprobs": True, "top_logprobs": 2}),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 3}),
    ("/v1/messages", SPEAK),
    ("/v1/messages/count_tokens", {"messages": [USER]}),
    ("/v1/embeddings", {"input": "Hello"}),
    ("/v1/models", None),
    ("/healthz", None),
    ("/api/chat", {"model": "tiny", "messages": [USER], "stream": False, "options": {"num_predict": 3}}),
    ("/api/generate", {"model": "tiny", "prompt": "Hello", "stream": False, "options": {"num_predict": 3}}),
    ("/api/embed", {"model": "tiny", "input": ["Hello", "you"]}),
    ("/api/embeddings", {"model": "tiny", "prompt": "Hello"}),
    ("/api/show", {"model": "tiny"}),
    ("/api/tags", None),
    ("/api/ps", None),
    ("/api/version", None),
]


@pytest.mark.parametrize(("path", "body"), ANSWERED, ids=[path for path, _ in ANSWERED])
def test_answers_hold_what_the_description_says(server, path, body):
    jsonschema = pytest.importorskip("jsonschema")
    told = httpx.get(f"{server.url}/openapi.json").json()
    schema = told["paths"][path]["get" if body is None else "post"]["responses"]["200"]["content"]["application/json"]
    found = httpx.get(server.url + path) if body is None else post(server, path, json=body)
    assert found.status_code == 200, found.text
    jsonschema.validate(found.json(), {**schema["schema"], "components": told["components"]})
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema))):
        assert told["components"]["schemas"][name].get("required"), "a schema that asks for nothing cannot fail"


def test_the_last_message_can_be_gone_on_with(server, model):
    begun = [USER, {"role": "assistant", "content": "The American"}]
    asked = {"messages": begun, "continue_final_message": True, "max_tokens": 4, "temperature": 0, "logit_bias": NO_END}
    answer = post(server, CHAT, json=asked).json()
    prompt = "[user] Hello\n[assistant] The American"
    want = "".join(p.text for p in model.generate(prompt, max_tokens=4, temperature=0, logit_bias={0: -100}, bos=False))
    assert answer["choices"][0]["message"]["content"] == want
    both = post(server, CHAT, json=asked | {"add_generation_prompt": True})
    assert "exclude each other" in error_of(both)["message"]


def test_the_template_gets_what_is_sent_for_it(server, model, monkeypatch):
    monkeypatch.setattr(
        model.tokenizer, "chat_template", "{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    asked = {"messages": [USER], "max_tokens": 1}
    sad = post(server, CHAT, json=asked | {"chat_template_kwargs": {"mood": "sad and very long"}}).json()
    assert sad["usage"]["prompt_tokens"] == len(model.encode("sad and very longHello", bos=False))
