"""Answers of the OpenAI-compatible server as the real `openai` client reads them: texts, numbers, streams, samplers."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import httpx
import openai
import pytest

from glassformer.generate.constraints import Matcher
from glassformer.lm import Model
from tests.serve.running import CONTEXT, NO_END, TEXT, Running, running
from tests.tiny import VOCAB


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
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
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
    assert answer.system_fingerprint.endswith("-float32")
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
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
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
        self.engine, self.ids = server.queue.engine, list(ids)

    def __enter__(self) -> None:
        self.real = self.engine._runner.forward

        def forward(*args: Any) -> Any:
            logits = self.real(*args)
            if len(logits) and self.ids:
                logits[-1, self.ids.pop(0)] = 1000.0
            return logits

        self.engine._runner.forward = forward
        # One token a step, also where a form leaves no choice: the script is told token by token.
        self.ahead, Matcher.forced = Matcher.forced, lambda matcher: []  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        Matcher.forced = self.ahead  # type: ignore[method-assign]
        self.engine._runner.forward = self.real


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


def test_a_prompt_scored_in_another_precision_says_so(model):
    with running(model, precision="int8", native=True) as server:
        client = server.client()
        asked: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "logprobs": 1}
        told = [
            client.completions.create(**asked, max_tokens=2).system_fingerprint,
            client.completions.create(**asked, max_tokens=2, echo=True).system_fingerprint,
            client.completions.create(**asked, max_tokens=0, echo=True).system_fingerprint,
            next(iter(client.completions.create(**asked, max_tokens=2, echo=True, stream=True))).system_fingerprint,
        ]
    assert [one.split("-", 2)[2] for one in told] == [
        "int8",
        "int8-prompt-float32",
        "float32",
        "int8-prompt-float32",
    ]


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
