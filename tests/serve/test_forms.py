"""Answers that have a form, in every spelling of it, and calls of tools whose arguments follow their schemas."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from glassformer.generate.constraints import Grammars, closed
from glassformer.serve.tool_grammars import tool_constraint
from glassformer.serve.tools import Toolbox
from tests.serve.running import TEMPLATE, TEXT, error_of, post
from tests.serve.test_apis import writes
from tests.serve.test_openai_answers import _Forced
from tests.serve.test_readers import BOX, CALLS, read, reader

USER: Any = {"role": "user", "content": "Hello"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["mole", "shrew"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
NAMED = {"name": "animal", "schema": SCHEMA, "strict": True}
TOOLS: Any = [
    {"type": "function", "function": {"name": "note", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}},
]
CHAT = "/v1/chat/completions"

FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": NAMED}},
    {"response_format": {"type": "json_object", "schema": SCHEMA}},
    {"guided_json": SCHEMA},
    {"guided_json": json.dumps(SCHEMA)},
    {"json_schema": SCHEMA},
    {"structured_outputs": {"json": SCHEMA}},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_json_follows_its_schema_in_every_spelling(server, form):
    for seed in range(3):
        body = {"messages": [USER], "max_tokens": 200, "seed": seed, **form}
        choice = post(server, CHAT, json=body).json()["choices"][0]
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'start: "x" /[0-9]{2}/'}, "x[0-9]{2}"),
        ({"grammar": 'root ::= "y" [0-9] [0-9]'}, "y[0-9]{2}"),
        ({"structured_outputs": {"choice": ["1", "2"]}}, "1|2"),
        ({"structured_outputs": {"regex": "z{2}"}}, "z{2}"),
    ],
    ids=str,
)
def test_other_forms(server, form, pattern):
    for stream in (False, True):
        body = {"prompt": TEXT, "max_tokens": 30, "seed": 1, **form}
        if not stream:
            text = post(server, json=body).json()["choices"][0]["text"]
        else:
            lines = post(server, json=body | {"stream": True}).text.splitlines()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            text = "".join(event["choices"][0]["text"] for event in events)
        assert re.fullmatch(pattern, text), text


def test_the_openai_client_parses_into_a_class(client):
    class Animal(BaseModel):
        name: Literal["mole", "shrew"]  # the text of a random model would not end for long
        wild: bool

    asked: Any = {"model": "tiny", "messages": [USER], "seed": 3, "max_tokens": 900}
    parsed = client.chat.completions.parse(**asked, response_format=Animal).choices[0].message.parsed
    assert isinstance(parsed, Animal)
    said = client.responses.parse(model="tiny", input="Hello", text_format=Animal, max_output_tokens=900)
    assert isinstance(said.output_parsed, Animal)


def test_each_token_says_what_the_form_took(server):
    body = {"messages": [USER], "max_tokens": 5, "guided_choice": ["yes", "no"], "logprobs": True, "temperature": 0}
    found = post(server, CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    assert 0 < found[0]["removed"] < 1
    assert found[0]["unconstrained"]["logprob"] >= found[0]["logprob"]
    plain = post(server, CHAT, json={k: v for k, v in body.items() if k != "guided_choice"}).json()
    first = plain["choices"][0]["logprobs"]["content"][0]
    assert first["token"] == found[0]["unconstrained"]["token"]
    assert "removed" not in first
    completed = post(server, json={"prompt": TEXT, "guided_choice": ["yes"], "logprobs": 0}).json()["choices"][0]
    assert len(completed["logprobs"]["removed"]) == len(completed["logprobs"]["tokens"])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "there is no schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_json": "{"}, "is not JSON"),
        ({"guided_json": {"type": "thing"}}, "cannot be held to this JSON schema"),
        ({"guided_regex": "("}, "cannot be held to this regular expression"),
        ({"guided_grammar": "start: start 'a'"}, "cannot be held to this grammar"),
        ({"guided_choice": []}, "at least one text"),
        ({"guided_choice": ["a"], "guided_regex": "b"}, "guided_regex and guided_choice give several"),
    ],
    ids=str,
)
def test_forms_that_are_none(server, form, said):
    answer = post(server, CHAT, json={"messages": [USER], "max_tokens": 3, **form})
    assert answer.status_code == 400, answer.text
    assert said in error_of(answer)["message"]


def test_a_tool_that_is_named_is_called_once(server, client):
    asked: Any = {"model": "tiny", "messages": [USER], "tools": TOOLS, "max_tokens": 300, "seed": 5}
    named = {"type": "function", "function": {"name": "stop"}}
    for seed in range(4):
        asked["seed"] = seed
        message = client.chat.completions.create(**asked, tool_choice=named).choices[0].message
        assert [call.function.name for call in message.tool_calls] == ["stop"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "note"}}], ids=str)
def test_a_call_that_must_come_comes_and_is_valid(server, client, choice):
    for stream in (False, True):
        asked: Any = {"model": "tiny", "messages": [USER], "tools": TOOLS, "tool_choice": choice}
        asked |= {"max_tokens": 300, "seed": 5, "parallel_tool_calls": False}
        if stream:
            with client.chat.completions.stream(**asked) as events:
                message = events.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.create(**asked).choices[0].message
        [call] = message.tool_calls
        assert not message.content
        assert call.function.name in ("note", "stop") if choice == "required" else call.function.name == "note"
        if call.function.name == "note":
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_with_auto_it_may_be_text_and_a_call_is_valid(server, client):
    with writes(server, "Good day."):
        said = client.chat.completions.create(model="tiny", messages=[USER], tools=TOOLS).choices[0]
    assert (said.message.content, said.finish_reason) == ("Good day.", "stop")
    # The model begins a call; from there on it is held to the schema, whatever it would write.
    begun = server.model.encode("Well.<tool_call>", bos=False)
    with _Forced(server, begun):
        called = client.chat.completions.create(
            model="tiny", messages=[USER], tools=TOOLS, seed=2, max_tokens=300, parallel_tool_calls=False
        )
    message = called.choices[0].message
    assert message.content == "Well."
    [call] = message.tool_calls
    if call.function.name == "note":
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


# A family's words for a call, each in a template that holds them; marks are letters to this tokenizer.
SPOKEN = {
    "hermes": "<tool_call>",
    "llama": '"parameters" ipython',
    "mistral": "[TOOL_CALLS]",
    "glm": "<tool_call><arg_key>",
    "coder": "<tool_call><function=",
    "dsml": "<｜DSML｜function_calls>",
    "gemma": "<start_function_call>",
    "deepseek": "<｜tool▁call▁begin｜>",
}


@pytest.mark.parametrize("form", SPOKEN)
def test_several_calls_come_over_http_in_every_family_s_words(server, client, form, monkeypatch):
    template = "{% if tools %}" + SPOKEN[form] + "{% endif %}" + TEMPLATE
    monkeypatch.setattr(server.model.tokenizer, "chat_template", template)
    asked: Any = {"model": "tiny", "messages": [USER], "tools": [tool.to_dict() for tool in BOX.tools]}
    text, called = next(
        (text, called)
        for kind, text, _, called in CALLS
        if kind == form and len(called) == 2 and "json\n" not in text and "[ARGS]" not in text
    )
    for stream in (False, True):
        with writes(server, text):
            answer = client.chat.completions.create(**asked, stream=stream)
            found: list[list[str]] = []
            if stream:
                for chunk in answer:
                    for one in chunk.choices[0].delta.tool_calls or ():
                        if one.function.name:
                            assert (one.index, bool(one.id)) == (len(found), True)
                            found.append([one.function.name, ""])
                        found[one.index][1] += one.function.arguments or ""
            else:
                found = [[c.function.name, c.function.arguments] for c in answer.choices[0].message.tool_calls or ()]
        assert [(name, json.loads(arguments)) for name, arguments in found] == called


def test_claude_s_client_can_make_a_call_come(server):
    body = {"max_tokens": 300, "messages": [USER], "tools": [{"name": "note", "input_schema": SCHEMA}]}
    answer = post(server, "/v1/messages", json=body | {"model": "tiny", "tool_choice": {"type": "any"}}).json()
    uses = [block for block in answer["content"] if block["type"] == "tool_use"]
    assert uses
    for use in uses[:-1] if answer["stop_reason"] == "max_tokens" else uses:
        jsonschema.validate(use["input"], SCHEMA)


def test_ollama_s_format(server):
    body = {"model": "tiny", "messages": [USER], "stream": False, "format": SCHEMA, "options": {"num_predict": 200}}
    jsonschema.validate(json.loads(post(server, "/api/chat", json=body).json()["message"]["content"]), SCHEMA)


def _possible(form: str, text: str, mode: str) -> bool:
    """Whether a sample is one that its form's grammar should admit: calls alone, keys in order, one variant of a form,
    and marks that this tokenizer has tokens for."""
    bare = mode == "auto" or text.startswith(("<", "[", "{"))
    swapped = '"arguments": {"place": "Rom"}, "name"' in text
    mixed = "function<｜tool▁sep｜>" in text or "<|python_tag|>" in text
    return form not in ("gemma", "gemma4", "harmony", "json") and bare and not swapped and not mixed


# The samples of the readers' tests that are whole calls.
WHOLE = [
    (form, text, called, mode)
    for form, text, said, called in CALLS
    for mode in ("auto", "required")
    if called and text.count("{") == text.count("}") and _possible(form, text, mode)
]


@pytest.mark.parametrize(("form", "text", "called", "mode"), WHOLE, ids=lambda x: str(x)[:30])
def test_grammars_let_through_what_the_readers_read(model, form, text, called, mode):
    """A call in the family's own words is possible under its grammar."""
    box = Toolbox(BOX.tools, mode)
    template = "[ARGS]" if "[ARGS]" in text else ""
    if form == "mistral" and "[ARGS]" in text and mode == "required":
        text = text.partition("[TOOL_CALLS]clock")[0]
    constraint = tool_constraint(form, box, template, model.tokenizer, None, False)
    matcher = Grammars(model.tokenizer, model.config.vocab_size).matcher(constraint)
    ids = model.encode(text, bos=False)
    taken = matcher.possible(ids)
    assert taken == len(ids), model.decode(ids[:taken])
    assert [name for name, _ in read(reader(form, box, None, False), text, 3)[2]][:1] == [called[0][0]]


def test_parameters_that_no_call_can_be_held_to_are_refused_by_name(server, client, model, monkeypatch):
    monkeypatch.setattr(
        model.tokenizer,
        "chat_template",
        "{{ tools }}<start_function_call>{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    with pytest.raises(openai.BadRequestError, match="no answer can be held to not without a type"):
        client.chat.completions.create(
            model="tiny", messages=[USER], tools=[{"type": "function", "function": function}]
        )


def test_objects_hold_what_they_name(server):
    """A schema that does not speak of other properties gets none: a model could go on inventing them."""
    schema = {k: v for k, v in SCHEMA.items() if k != "additionalProperties"}
    body = {"messages": [USER], "max_tokens": 200, "seed": 1, "guided_json": schema}
    found = json.loads(post(server, CHAT, json=body).json()["choices"][0]["message"]["content"])
    assert set(found) == set(SCHEMA["properties"])
    joined = closed({"allOf": [schema, {"type": "object", "properties": {"b": {}}}]})
    assert joined["allOf"][0] == schema
    assert closed(schema | {"additionalProperties": {"type": "integer"}})["additionalProperties"] == {"type": "integer"}
    assert closed({"type": "object", "properties": {"a": schema}})["properties"]["a"]["additionalProperties"] is False
