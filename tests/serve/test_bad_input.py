"""Requests that cannot be meant, in each API's words: told in its own shape of error, and the server goes on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serve.running import NO_END, TEMPLATE, post, running

USER = {"role": "user", "content": "Hello"}
NO_SCHEMA = {"type": "banana"}
ABSENT = [{"ablate": {"layer": 0, "head": 99}}]
ENDLESS = 'root ::= root "a"'
OPENAI_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CLAUDE_CALL = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
RESPONSE_CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
RESPONSE_RESULT = {"type": "function_call_output", "call_id": "b", "output": "x"}
LONG = "f" * 201
# A template that has a place for tools, beside the tiny model's own that has none.
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}" + TEMPLATE.replace(
    "{{ m.content }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
)


def function(**told: Any) -> dict[str, Any]:
    return {"type": "function", "function": told}


def result(id: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "x"}]}


# By route: what is sent beside the usual, and what is said.
CASES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "/v1/completions": [
        ({"guided_json": NO_SCHEMA}, "this JSON schema: Invalid type: banana."),
        ({"guided_json": "no schema"}, "not JSON"),
        ({"guided_grammar": "start: start"}, "this grammar: by its rules no text ever ends."),
        ({"grammar": ENDLESS}, "this grammar: by its rules no text ever ends."),
        ({"guided_grammar": "start: nothing"}, "this grammar"),
        ({"guided_regex": "("}, "error: unclosed group."),
        ({"edits": ABSENT}, "there is no 99"),
        ({"edits": [{"remove": {"layer": 0}}]}, "and one of ablate, knockout, scale, steer, circuit"),
        ({"edits": [{}]}, "and one of ablate, knockout"),
        ({"edits": [{"ablate": {"head": 0}}]}, "edits.0.layer: Field required."),
        ({"edits": [{"ablate": {"layer": 0, "head": "x"}}]}, "edits.0.head: Input should be a valid integer"),
    ],
    "/v1/chat/completions": [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": NO_SCHEMA}}}, "Invalid type: banana."),
        ({"grammar": ENDLESS}, "no text ever ends"),
        ({"tools": [function(parameters={})]}, "tools.0.function.name"),
        ({"tools": [function(name="")]}, "tools.0.function.name"),
        ({"tools": [function(name="f", parameters=NO_SCHEMA)], "tool_choice": "required"}, "the tools' calls: at"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "b", "content": "x"}]}, "messages.1.tool_call_id"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [OPENAI_CALL]},
                    {"role": "tool", "tool_call_id": "b", "content": "x"},
                ]
            },
            "messages.2.tool_call_id: no earlier message",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [OPENAI_CALL, {**OPENAI_CALL, **function(name="f", arguments="[]")}],
                    }
                ]
            },
            "messages.0.tool_calls.1.function.arguments: the arguments of 'f' are no JSON object's text.",
        ),
        ({"tool_choice": "required"}, "tool_choice asks for a call and there are no tools"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}], "continue_final_message": True},
            "no text to go on",
        ),
        ({"edits": [{"ablate": {"layer": 0, "neuron": 10**6}}]}, "there is no 1000000"),
        ({"edits": [{"ablate": {"layer": 0, "expert": 0}}]}, "expert"),
        ({"edits": [{"ablate": {"layer": 2**70, "head": 0}}]}, "There is no layer"),
        ({"edits": [{"ablate": {"layer": 99, "head": 0}}]}, "There is no layer 99"),
    ],
    "/v1/responses": [
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": NO_SCHEMA}}}, "Invalid type: banana."),
        ({"tools": [{"type": "function", "parameters": {}}]}, "tools.0.name"),
        ({"input": [RESPONSE_RESULT]}, "input.0.call_id: no earlier message calls a tool with the id 'b'."),
        ({"input": [RESPONSE_RESULT], "instructions": "Be kind."}, "input.0.call_id: no earlier"),
        ({"input": [{"role": "user", "content": "a"}, RESPONSE_CALL, RESPONSE_RESULT]}, "input.2.call_id: no earlier"),
        ({"input": [RESPONSE_CALL, {**RESPONSE_CALL, "arguments": "no"}]}, "input.1.arguments: the arguments of 'f'"),
        ({"input": [RESPONSE_CALL, {**RESPONSE_CALL, "arguments": None}]}, "input.1.arguments: Input should be"),
        ({"input": [RESPONSE_CALL, {**RESPONSE_CALL, "name": LONG}]}, "input.1.name: String should have at most"),
        ({"input": [RESPONSE_CALL, {**RESPONSE_CALL, "call_id": 5}]}, "input.1.call_id: Input should be"),
        ({"input": [{"role": "wizard", "content": "a"}]}, "input.0.role: Input should be"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content: only text"),
        ({"input": []}, "input: List should have at least 1 item"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format: a json_schema is asked for"),
        (
            {
                "text": {"format": {"type": "json_object"}},
                "tools": [{"type": "function", "name": "f"}],
                "tool_choice": "required",
            },
            "another form",
        ),
        ({"tool_choice": {"type": "function", "name": "g"}}, "none of the tools"),
        ({"tools": [{"type": "function", "name": "f", "parameters": NO_SCHEMA}]}, "The tool 'f' cannot be offered"),
        ({"edits": ABSENT}, "'edits' is not a field"),
    ],
    "/v1/embeddings": [({"input": ""}, "empty"), ({"input": []}, "not empty"), ({"input": [[]]}, "not empty")],
    "/v1/messages": [
        (
            {"tools": [{"name": "f", "input_schema": NO_SCHEMA}], "tool_choice": {"type": "any"}},
            "this form of the tools' calls",
        ),
        ({"tools": [{"input_schema": {"type": "object"}}]}, "tools.0.name"),
        ({"tools": [{"name": "", "input_schema": {}}]}, "tools.0.name"),
        (
            {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}},
            "none of the tools",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [CLAUDE_CALL]}, result("b")], "system": "Be kind."},
            "messages.2.content.0.tool_use_id: no earlier message calls a tool with the id 'b'.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, *result("b")["content"]]}]},
            "messages.0.content.1.tool_use_id: no earlier message",
        ),
        ({"messages": [USER, result(None)]}, "messages.1.content.0.tool_use_id"),
        (
            {"messages": [USER, {"role": "assistant", "content": [CLAUDE_CALL, {**CLAUDE_CALL, "name": LONG}]}]},
            "messages.1.content.1.name: String should have at most 200",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice asks for a call and there are no tools"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "no text to go on from"),
        ({"messages": [USER, {"role": "assistant", "content": [CLAUDE_CALL | {"id": 5}]}]}, "'id'"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content"),
        ({"messages": []}, "at least 1 item"),
        ({"edits": ABSENT}, "'edits' is not a field"),
    ],
    "/v1/messages/count_tokens": [
        ({"messages": []}, "at least 1 item"),
        ({"messages": [USER, result("b")]}, "earlier"),
    ],
    "/api/chat": [
        ({"format": NO_SCHEMA}, "Invalid type: banana."),
        ({"format": NO_SCHEMA, "stream": False}, "Invalid type: banana."),
        ({"format": "yaml"}, "format"),
        ({"tools": [function(parameters={})]}, "tools.0.function.name"),
        ({"tools": [function(name="f", parameters=NO_SCHEMA)]}, "the tools' calls"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "b", "content": "x"}]}, "messages.1.tool_call_id"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": LONG, "arguments": {}}}]}]},
            "messages.1.tool_calls.0.function.name: String should have at most 200",
        ),
        ({"options": {"temperature": "hot"}}, "options.temperature: Input should be a valid number"),
        ({"options": {"num_predict": "x"}}, "options.num_predict: Input should be a valid integer"),
        ({"options": {"n": 2}}, "options.n: There is no such option"),
        ({"options": {"edits": ABSENT}}, "options.edits: There is no such option"),
        ({"options": {"temprature": 1}}, "There is no such option. Did you mean temperature"),
    ],
    "/api/generate": [
        ({"format": NO_SCHEMA}, "Invalid type: banana."),
        ({"format": "json", "raw": True}, "leave raw away"),
        ({"options": {"top_p": 2}}, "options.top_p: Input should be less"),
        ({"options": {"top_p": 2}, "raw": True}, "options.top_p: Input should be less"),
        ({"options": {"n": 2}, "raw": True}, "options.n: There is no such option"),
        ({"edits": ABSENT}, "'edits' is not a field"),
    ],
    "/api/embed": [({"input": ""}, "empty"), ({"input": []}, "at least one text"), ({}, "are needed")],
    "/api/embeddings": [({"prompt": ""}, "empty"), ({"input": []}, "at least one text")],
    "/v1/inspect/attention": [({"layer": 99, "head": 0}, "There is no layer 99"), ({"layer": "x"}, "layer")],
    "/v1/inspect/why": [({"position": 99}, "there is no position 99"), ({"nonsense": 1}, "nonsense")],
    "/v1/verbs/trace.why": [
        ({"position": 99}, "there is no position 99"),
        ({"text": ""}, "empty"),
        ({"text": []}, "the list is empty"),
        ({"text": ["a", "b"]}, "holds 2 texts"),
        ({"words": -1}, "words: Input should be"),
        ({"nonsense": 1}, "nonsense"),
        ({"edits": ABSENT}, "there is no 99"),
    ],
    "/v1/verbs/trace.tensor": [
        ({"site": "blocks.0.attn.patern"}, "blocks.0.attn.pattern"),
        ({}, "site: Field required"),
    ],
    "/v1/verbs/trace.at": [({"site": "embed", "positions": {"start": 0, "stop": 1, "step": 0}}, "positions: Input")],
    "/v1/verbs/trace.lens": [({"through": "mine"}, "There is no fitted lens 'mine'")],
    "/v1/verbs/circuit": [({"pairs": [["a", "a"]]}, "the same"), ({"pairs": []}, "pair")],
    "/v1/verbs/generate": [({"prompt": "a", "logprobs": -1}, "logprobs"), ({"prompt": ""}, "empty")],
    "/v1/inspect/next": [({"text": ""}, "empty"), ({"edits": ABSENT}, "there is no 99")],
}
USUAL = {
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 2},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/messages": {"model": "tiny", "messages": [USER], "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": [USER]},
    "/api/chat": {"model": "tiny", "messages": [USER], "options": {"num_predict": 2}},
    "/api/generate": {"model": "tiny", "prompt": "a", "options": {"num_predict": 2}},
    "/api/embed": {"model": "tiny"},
    "/api/embeddings": {"model": "tiny"},
}
STREAMED = frozenset({*USUAL} - {"/v1/messages/count_tokens", "/api/embed", "/api/embeddings"})


def message(answer: httpx.Response, path: str) -> str:
    """What an error says, once its shape is its API's own."""
    told: Any = answer.json()
    if path.startswith("/api/"):
        assert list(told) == ["error"]
        return str(told["error"])
    if path.startswith("/v1/messages"):
        assert (list(told), told["type"], list(told["error"])) == (["type", "error"], "error", ["type", "message"])
        assert told["error"]["type"] == "invalid_request_error"
        return str(told["error"]["message"])
    assert list(told["error"]) == ["message", "type", "param", "code"]
    assert told["error"]["type"] == "invalid_request_error"
    return str(told["error"]["message"])


@pytest.mark.parametrize("template", [TEMPLATE, WITH_TOOLS], ids=["no place for tools", "tools"])
@pytest.mark.parametrize("path", CASES)
def test_what_cannot_be_meant_is_told_in_the_apis_own_shape(server, path, template, monkeypatch):
    monkeypatch.setattr(server.model.tokenizer, "chat_template", template)
    of_text = path.startswith(("/v1/inspect", "/v1/verbs/trace"))
    usual = {"text": "a b"} if of_text else USUAL.get(path, {})
    ways = [{}, {"stream": True}] if path in STREAMED else [{}]
    for sent, said in CASES[path]:
        for way in ways:
            answer = post(server, path, json=usual | way | sent)
            assert answer.status_code == 400, (sent, answer.text)
            found = message(answer, path)
            assert said in found, (sent, found)
            assert "\n" not in found
            assert len(found) < 300
    if path in STREAMED:
        assert post(server, path, json=usual).status_code == 200
    assert post(server, json={"prompt": "a", "max_tokens": 1}).status_code == 200  # it goes on


LIMITED = {
    "/v1/completions": ({"max_tokens": 9}, "max_tokens"),
    "/v1/chat/completions": ({"max_completion_tokens": 9}, "max_completion_tokens"),
    "/v1/responses": ({"max_output_tokens": 9}, "max_output_tokens"),
    "/v1/messages": ({"max_tokens": 9}, "max_tokens"),
    "/api/chat": ({"options": {"num_predict": 9}}, "options.num_predict"),
    "/api/generate": ({"options": {"num_predict": 9}, "raw": True}, "options.num_predict"),
}


def test_a_limit_is_told_by_the_field_that_is_beyond_it(model):
    with running(model, most_tokens=5) as server:
        for path, (sent, field) in LIMITED.items():
            answer = post(server, path, json=USUAL[path] | sent)
            assert answer.status_code == 400
            assert (
                message(answer, path) == f"{field}: 9 were asked for and this server gives at most 5 tokens an answer."
            )
            if path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
                assert answer.json()["error"]["param"] == field


def test_a_translated_field_is_named_in_the_error_too(server):
    answer = post(server, "/v1/responses", json={"input": [RESPONSE_CALL, RESPONSE_RESULT]})
    assert answer.json()["error"]["param"] == "input.1.call_id"


def test_a_grammar_that_begins_with_itself_and_ends_is_followed(server):
    body = {"prompt": "a", "max_tokens": 3, "guided_grammar": 'start: start "a" | "a"', "logit_bias": NO_END}
    answer = post(server, json=body)
    assert answer.json()["choices"][0]["text"] == "aaa"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (
            "/v1/completions",
            {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 7}}},
            "response_format.json_schema.schema: Input should be an object or a valid boolean.",
        ),
        ("/v1/inspect/why", {"text": "a", "top": 1}, "top: There is no such field here."),
        ("/api/embed", {"model": "tiny", "input": 7}, "input: Input should be a valid string or a list."),
    ],
)
def test_a_wrong_field_is_named_as_it_was_sent(server, path, body, said):
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 400
    assert said in answer.text
