"""Requests that are wrong, and what the OpenAI-compatible server says of them."""

from __future__ import annotations

import re

import httpx
import openai
import pytest

from tests.serve.running import CONTEXT, TEXT, error_of, post
from tests.tiny import VOCAB

COMPLETIONS = [
    ({"prompt": TEXT, "temperature": -0.5}, 400, "temperature: Input should be greater than or equal to 0"),
    ({"prompt": TEXT, "top_p": -0.1}, 400, "top_p: Input should be greater than or equal to 0"),
    ({"prompt": TEXT, "min_p": 2}, 400, "min_p: Input should be less than or equal to 1"),
    ({"prompt": TEXT, "top_k": -2}, 400, "top_k: Input should be greater than or equal to -1"),
    ({"prompt": TEXT, "repetition_penalty": 0}, 400, "repetition_penalty: Input should be greater than 0"),
    ({"prompt": TEXT, "presence_penalty": 3}, 400, "presence_penalty: Input should be less than or equal to 2"),
    ({"prompt": TEXT, "max_tokens": 0}, 400, "max_tokens of 0 makes sense only with echo"),
    ({"prompt": TEXT, "max_tokens": -3}, 400, "max_tokens: Input should be greater than or equal to -1"),
    ({"prompt": TEXT, "max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer"),
    ({"prompt": [5] * CONTEXT}, 400, rf"maximum context length is {CONTEXT} tokens.* has {CONTEXT} tokens"),
    ({"prompt": "mole " * CONTEXT}, 400, rf"maximum context length is {CONTEXT} tokens.* has \d+ tokens"),
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
    ({"prompt": TEXT, "stop": ["a"] * 17}, 400, "stop: List should have at most 16 items"),
    ({"prompt": TEXT, "stop": ["x" * 501]}, 400, "stop.0: String should have at most 500 characters"),
    ({"prompt": TEXT, "stop": ""}, 400, "stop.0: String should have at least 1 character"),
    ({"prompt": TEXT, "logit_bias": {"paris": 1}}, 400, "logit_bias: a logit bias is for token ids"),
    ({"prompt": TEXT, "logit_bias": {"1": 101}}, 400, "logit_bias.1: Input should be less than or equal to 100"),
    ({"prompt": TEXT, "logit_bias": {"99999": 1}}, 400, f"names token 99999; this vocabulary has {VOCAB}"),
    ({"prompt": TEXT, "stream_options": {"include_usage": True}}, 400, "stream_options are for stream: true"),
    ({"prompt": TEXT, "temprature": 1}, 400, "'temprature' is not a field .* Did you mean temperature"),
    ({"prompt": TEXT, "seed": 2**70}, 400, "seed: Input should be"),
    ({"max_tokens": 3}, 400, "prompt: Field required"),
    ([TEXT], 400, "should be an object"),
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
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools.0.function"),
        (
            {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema"}},
            "there is no schema",
        ),
        ({"messages": [{"role": "user", "content": "mole " * CONTEXT}]}, f"maximum context length is {CONTEXT} tokens"),
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
        (b'{"prompt": "a", "\\ud800": 1}', "is not a field"),
        (b'{"prompt": "a", "stop": "\\udfff"}', "string"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_bodies_that_are_no_request(server, raw, message):
    answer = post(server, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert re.search(message, error_of(answer)["message"]), answer.text


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "a/b/json", ""]
)
def test_a_body_of_another_kind_is_told_the_header_it_needs(server, kind):
    answer = post(server, content=b'{"prompt": "a", "max_tokens": 1}', headers={"content-type": kind} if kind else {})
    assert answer.status_code == 415
    assert error_of(answer)["message"].endswith("send it with the header 'Content-Type: application/json'.")
    for fine in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"):
        sound = post(server, content=b'{"prompt": "a", "max_tokens": 1}', headers={"content-type": fine})
        assert sound.status_code == 200


def test_what_is_not_there_is_said_in_the_same_shape(server):
    assert error_of(httpx.get(f"{server.url}/v1/nothing"))["message"].startswith("/v1/nothing")
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def test_harmless_fields_are_taken(client):
    answer = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=1, user="somebody", extra_body={"metadata": {"a": 1}, "best_of": 1}
    )
    assert answer.choices
