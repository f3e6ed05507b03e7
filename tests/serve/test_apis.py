"""Every API as its own client reads it: the model's output is written for it where its form matters."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import numpy
import ollama
import openai
import pytest
import torch

from glassformer.interp.edits import record
from tests.serve.running import CONTEXT, NO_END, TEMPLATE, TEXT, Running, error_of, post
from tests.serve.test_openai_answers import _Forced

USER: Any = {"role": "user", "content": "Hello"}
WEATHER = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "Of a place.", "parameters": WEATHER}}
ODD = {"type": "object", "properties": {"when": {"not": {"type": "string"}}}}
UNHELD: Any = {"type": "function", "function": {"name": "later", "parameters": ODD}}
CALL = 'Wait.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'
THINKING = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}<think>{# </think> #}"


def writes(server: Running, text: str) -> _Forced:
    """The model's next answer is this text."""
    return _Forced(server, [*server.model.encode(text, bos=False), 0])


@pytest.fixture
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def llama(server: Running) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as made:
        yield made


# Tools, OpenAI's chat


def test_a_call_of_a_tool(server, client):
    for stream in (False, True):
        with writes(server, CALL):
            answer = client.chat.completions.create(model="tiny", messages=[USER], tools=[TOOL], stream=stream)
            if stream:
                deltas = [chunk.choices[0] for chunk in answer]
                said = "".join(one.delta.content or "" for one in deltas)
                calls = [call for one in deltas for call in one.delta.tool_calls or ()]
                assert [call.index for call in calls] == [0] * len(calls)
                name, arguments = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
                finish, id = deltas[-1].finish_reason, calls[0].id
            else:
                [choice] = answer.choices
                [call] = choice.message.tool_calls
                said, finish, id = choice.message.content, choice.finish_reason, call.id
                name, arguments = call.function.name, call.function.arguments
        assert (said, name, json.loads(arguments), finish) == ("Wait.", "weather", {"place": "Rome"}, "tool_calls")
        assert id.startswith("call_")


def test_a_tool_s_answer_goes_back(server, client):
    with writes(server, CALL):
        said = client.chat.completions.create(model="tiny", messages=[USER], tools=[TOOL]).choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sunny"}
    told = client.chat.completions.create(
        model="tiny", messages=[USER, said.model_dump(), result], tools=[TOOL], max_tokens=1
    )
    assert told.choices
    with pytest.raises(openai.BadRequestError, match="no earlier message calls a tool with the id 'call_9'"):
        client.chat.completions.create(
            model="tiny", messages=[USER, said, result | {"tool_call_id": "call_9"}], tools=[TOOL]
        )


def test_the_template_is_told_of_tools(server, model, monkeypatch):
    one = "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
    template = "{{ tools | tojson }}<tool_call>{% for m in messages %}" + one + "{% endfor %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    made = {"type": "function", "function": {"name": "weather", "arguments": '{"place": "Rome"}'}, "id": "a"}
    called = {"role": "assistant", "content": "", "tool_calls": [made]}
    body = {"messages": [USER, called, USER], "tools": [TOOL], "max_tokens": 1}
    told = post(server, "/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    as_data = {**made, "function": {"name": "weather", "arguments": {"place": "Rome"}}}
    want = json.dumps([TOOL]) + "<tool_call>Hello" + json.dumps([as_data]) + "Hello"
    assert told == len(model.encode(want, bos=False))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL]}, "two tools have the same name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "none of the tools"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"functions": [{"name": "f"}]}, "functions is not supported"),
        ({"tools": [TOOL, UNHELD]}, "The tool 'later' cannot be offered: An answer cannot be held to this form"),
        ({"tools": [TOOL, UNHELD], "logit_bias": {"99999": 1}}, "logit_bias names token 99999"),
    ],
)
def test_tools_that_cannot_be_meant(server, more, said):
    answer = post(server, "/v1/chat/completions", json={"messages": [USER], **more})
    assert answer.status_code == 400
    assert said in error_of(answer)["message"]


def test_thoughts_are_apart(server, client, model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "chat_template", THINKING)
    with writes(server, "They greet.\n</think>\n\nGood day."):
        message = client.chat.completions.create(model="tiny", messages=[USER]).choices[0].message
    assert (message.content, message.reasoning_content) == ("Good day.", "They greet.")


# Responses


def test_a_response(server, client):
    with writes(server, "Good day."):
        answer = client.responses.create(model="tiny", input="Hello", instructions="Be kind.", metadata={"a": "b"})
    assert (answer.output_text, answer.status, answer.metadata) == ("Good day.", "completed", {"a": "b"})
    assert answer.usage.output_tokens == len(server.model.encode("Good day.", bos=False)) + 1
    kept = client.responses.retrieve(answer.id)
    assert kept.output_text == "Good day."
    [item] = client.responses.input_items.list(answer.id).data
    assert item.content == "Hello" or item.content[0].text == "Hello"
    again = client.responses.create(model="tiny", input="And?", previous_response_id=answer.id, max_output_tokens=1)
    assert again.status == "incomplete"
    assert again.incomplete_details.reason == "max_output_tokens"
    whole = "[user] Hello\n[assistant] Good day.\n[user] And?\n[a] "
    assert again.usage.input_tokens == len(server.model.encode(whole, bos=False))
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        client.responses.create(model="tiny", input="And?", previous_response_id=answer.id)
    private = client.responses.create(model="tiny", input="Hello", store=False, max_output_tokens=1)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(private.id)


def test_a_response_streams(server, client):
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    with writes(server, CALL), client.responses.stream(model="tiny", input="Hello", tools=[tool]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [one.sequence_number for one in events] == list(range(len(events)))
    kinds = [one.type for one in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 2
    text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    arguments = "".join(one.delta for one in events if one.type == "response.function_call_arguments.delta")
    assert (text, json.loads(arguments)) == ("Wait.", {"place": "Rome"})
    message, call = final.output
    assert (message.content[0].text, call.name, call.status) == ("Wait.", "weather", "completed")
    history: list[Any] = [{"role": "user", "content": "Hello"}, *final.to_dict()["output"]]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    assert client.responses.create(model="tiny", input=history, max_output_tokens=1).output


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": [{"type": "image_generation_call"}]}, "an item of type 'image_generation_call' cannot be read"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "only text can be read"),
        ({"input": "a", "background": True}, "background is not supported"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": []}, "input: List should have at least 1 item"),
        ({}, "input: Field required"),
    ],
)
def test_responses_that_cannot_be_meant(server, body, said):
    answer = post(server, "/v1/responses", json=body)
    assert answer.status_code == 400
    assert said in error_of(answer)["message"]


# Embeddings


def test_embeddings_are_the_model_s_states(client, model):
    answer = client.embeddings.create(model="tiny", input=[TEXT, "Paris"])
    kept = record("final.normed")
    model.transformer(torch.tensor([model.encode(TEXT)]), tap=kept.bind(model.config))
    states = kept["final.normed"][0]
    want = torch.nn.functional.normalize(states.mean(0), dim=0)
    found = torch.tensor(answer.data[0].embedding)
    assert torch.allclose(found, want, atol=1e-6)
    assert answer.usage.prompt_tokens == len(model.encode(TEXT)) + len(model.encode("Paris"))
    last = client.embeddings.create(model="tiny", input=TEXT, extra_body={"pooling": "last"}, dimensions=8)
    short = torch.nn.functional.normalize(torch.nn.functional.normalize(states[-1], dim=0)[:8], dim=0)
    assert torch.allclose(torch.tensor(last.data[0].embedding), short, atol=1e-6)
    assert "hidden states" in last.kind


def test_embeddings_as_base64(server):
    asked = {"input": TEXT, "encoding_format": "base64"}
    text = post(server, "/v1/embeddings", json=asked).json()["data"][0]["embedding"]
    numbers = post(server, "/v1/embeddings", json={"input": TEXT}).json()["data"][0]["embedding"]
    assert numpy.allclose(numpy.frombuffer(base64.b64decode(text), "<f4"), numbers)


@pytest.mark.parametrize("body", [{"input": ""}, {"input": []}, {"input": [""]}, {"input": "a", "dimensions": 9999}])
def test_embeddings_of_nothing(server, body):
    assert post(server, "/v1/embeddings", json=body).status_code == 400


# Anthropic


def test_a_message(server, claude):
    with writes(server, "Good day."):
        answer = claude.messages.create(model="tiny", max_tokens=50, system="Be kind.", messages=[USER])
    assert (answer.content[0].text, answer.stop_reason) == ("Good day.", "end_turn")
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == len(
        server.model.encode("[system] Be kind.\n[user] Hello\n[a] ", bos=False)
    )
    with writes(server, "Good day."):
        cut = claude.messages.create(model="tiny", max_tokens=50, messages=[USER], stop_sequences=["day", "x"])
    assert (cut.content[0].text, cut.stop_reason, cut.stop_sequence) == ("Good ", "stop_sequence", "day")
    counted = claude.messages.count_tokens(model="tiny", messages=[USER])
    assert counted.input_tokens == len(server.model.encode("[user] Hello\n[a] ", bos=False))


def test_a_message_streams_with_tools(server, claude):
    tool: Any = {"name": "weather", "description": "Of a place.", "input_schema": WEATHER}
    asked: Any = {"model": "tiny", "max_tokens": 200, "messages": [USER], "tools": [tool]}
    with writes(server, CALL), claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "Wait."
    said, called = final.content
    assert (said.text, called.name, called.input, final.stop_reason) == (
        "Wait.",
        "weather",
        {"place": "Rome"},
        "tool_use",
    )
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": called.id, "content": "sunny"}]}
    history: Any = [USER, {"role": "assistant", "content": final.content}, result]
    assert claude.messages.create(**{**asked, "max_tokens": 1, "messages": history}).stop_reason == "max_tokens"


def test_an_assistant_s_beginning_is_gone_on_with(server, claude):
    begun: Any = [USER, {"role": "assistant", "content": "The American"}]
    answer = claude.messages.create(model="tiny", max_tokens=1, messages=begun)
    prompt = "[user] Hello\n[assistant] The American"
    used = answer.usage
    assert used.input_tokens + used.cache_read_input_tokens == len(server.model.encode(prompt, bos=False))


def test_anthropic_s_errors(server, claude):
    with pytest.raises(anthropic.NotFoundError, match="is not served here") as unknown:
        claude.messages.create(model="claude", max_tokens=1, messages=[USER])
    assert unknown.value.body["error"]["type"] == "not_found_error"
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    with pytest.raises(anthropic.BadRequestError, match="this model reads text only"):
        claude.messages.create(model="tiny", max_tokens=1, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="tiny", max_tokens=0, messages=[USER])


# Ollama


def test_ollama_chats(server, llama):
    with writes(server, "Good day."):
        whole = llama.chat("tiny", messages=[USER], options={"temperature": 0, "num_predict": 30, "num_ctx": 512})
    assert (whole.message.content, whole.done_reason) == ("Good day.", "stop")
    assert whole.prompt_eval_count == len(server.model.encode("[user] Hello\n[a] ", bos=False))
    with writes(server, "Good day."):
        pieces = list(llama.chat("tiny:latest", messages=[USER], stream=True))
    assert "".join(one.message.content for one in pieces) == "Good day."
    assert pieces[-1].done
    with writes(server, CALL):
        called = llama.chat("tiny", messages=[USER], tools=[TOOL]).message
    assert called.tool_calls[0].function.arguments == {"place": "Rome"}
    history = [USER, called, {"role": "tool", "tool_name": "weather", "content": "sunny"}]
    assert llama.chat("tiny", messages=history, tools=[TOOL], options={"num_predict": 1}).done_reason == "length"
    for wrong in (
        [USER, called, {"role": "tool", "tool_name": "wether", "content": "sunny"}],
        [USER, {"role": "tool", "tool_name": "weather", "content": "sunny"}],
        [*history, {"role": "tool", "tool_name": "weather", "content": "sunny"}],  # one call has one result
    ):
        with pytest.raises(ollama.ResponseError, match=r"messages\.\d\.tool_name: no earlier message makes a call of"):
            llama.chat("tiny", messages=wrong, tools=[TOOL])


def test_ollama_generates_lists_and_embeds(server, llama, model):
    with writes(server, "Good day."):
        assert llama.generate("tiny", "Hello").response == "Good day."
    raw = llama.generate("tiny", TEXT, raw=True, options={"temperature": 0, "num_predict": 5, "logit_bias": NO_END})
    want = "".join(p.text for p in model.generate(TEXT, max_tokens=5, temperature=0, logit_bias={0: -100}))
    assert raw.response == want
    assert [one.model for one in llama.list().models] == ["tiny"]
    vectors = llama.embed("tiny", ["one", "two"]).embeddings
    assert [len(one) for one in vectors] == [model.config.d_model] * 2
    assert llama.show("tiny").modelinfo["glassformer.block_count"] == model.config.n_layers


def test_ollama_s_errors(server, llama):
    with pytest.raises(ollama.ResponseError, match="is not served here") as unknown:
        llama.chat("other", messages=[USER])
    assert unknown.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="temperature"):
        llama.generate("tiny", "Hello", options={"temperature": -1})
    answer = httpx.post(f"{server.url}/api/chat", json={"model": "tiny", "messages": 5})
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


# Tokens


def test_tokens_there_and_back(server, model):
    found = post(server, "/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    assert found["tokens"] == model.encode(TEXT)
    assert "".join(found["token_strs"]) == TEXT
    assert post(server, "/detokenize", json={"tokens": found["tokens"]}).json()["prompt"] == TEXT
    chat = post(server, "/tokenize", json={"messages": [USER]}).json()["tokens"]
    assert model.decode(chat) == "[user] Hello\n[a] "
    pieces = post(server, "/tokenize", json={"content": TEXT, "with_pieces": True}).json()["tokens"]
    assert "".join(one["piece"] for one in pieces) == TEXT
    assert "one of prompt, content and messages" in error_of(post(server, "/tokenize", json={}))["message"]
    assert post(server, "/detokenize", json={"tokens": [10**6]}).status_code == 400
    told = httpx.get(f"{server.url}/tokenizer_info").json()
    assert (told["eos_token"], told["chat_template"]) == (model.decode([0]), TEMPLATE)
    assert (told["model_max_length"], told["vocab_size"]) == (CONTEXT, model.config.vocab_size)
    assert httpx.get(f"{server.url}/tokenizer_info?model=other").status_code == 404
