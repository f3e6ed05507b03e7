"""Models' output taken apart: calls of every form, thoughts, and what only looks like either; in pieces of any size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glassformer.serve.answers import Reader
from glassformer.serve.readers import THOUGHTS, reader
from glassformer.serve.tools import Tool, Toolbox, form_of, history, told_id

WEATHER = Tool(
    "weather",
    "The weather of a place.",
    {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}},
)
CLOCK = Tool("clock", "The time.", {"type": "object", "properties": {}})
BOX = Toolbox((WEATHER, CLOCK))
THINK = ("<think>", "</think>")
PARIS = {"place": 'Paris "Est"', "days": 2}
ASKED = json.dumps(PARIS)

# ruff: noqa: E501
# form, what the model writes, what it says, what it calls
CALLS: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    (
        "hermes",
        f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {ASKED}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "Let me see.",
        [("weather", PARIS), ("clock", {})],
    ),
    ("hermes", '<tool_call>{"arguments": {"place": "Rom"}, "name": "weather"}</tool_call>', "", [("weather", {"place": "Rom"})]),
    ("hermes", "a < b and <tool_box> is no call", "a < b and <tool_box> is no call", []),
    ("hermes", "<tool_call>nothing of the kind</tool_call> so", "<tool_call>nothing of the kind</tool_call> so", []),
    ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {ASKED}', "", [("weather", PARIS)]),
    ("llama", f'<|python_tag|>{{"name": "weather", "parameters": {ASKED}}}', "", [("weather", PARIS)]),
    ("llama", f'{{"name": "weather", "parameters": {ASKED}}}; {{"name": "clock", "parameters": {{}}}}', "", [("weather", PARIS), ("clock", {})]),
    ("llama", "It is four o'clock { or so }.", "It is four o'clock { or so }.", []),
    ("llama", '{"answer": 42}', '{"answer": 42}', []),
    ("mistral", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ASKED}}}, {{"name": "clock", "arguments": {{}}}}]', "", [("weather", PARIS), ("clock", {})]),
    ("mistral", f"Well.[TOOL_CALLS]weather[ARGS]{ASKED}[TOOL_CALLS]clock[ARGS]{{}}", "Well.", [("weather", PARIS), ("clock", {})]),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ASKED}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [("weather", PARIS), ("clock", {})],
    ),
    (
        "glm",
        'Hm.\n<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>Paris "Est"</arg_value>\n'
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        "Hm.",
        [("weather", PARIS)],
    ),
    (
        "glm",
        '<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>Rom</arg_value>\n</tool_call>\n<tool_call>clock\n</tool_call>',
        "",
        [("weather", {"place": "Rom"}), ("clock", {})],
    ),
    (
        "coder",
        "<tool_call>\n<function=weather>\n<parameter=place>\nRom\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=clock>\n</function>\n</tool_call>",
        "",
        [("weather", {"place": "Rom"}), ("clock", {})],
    ),
    (
        "deepseek",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{ASKED}<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [("weather", PARIS), ("clock", {})],
    ),
    (
        "dsml",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="place" string="true">Rom'
        '</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        "",
        [("weather", {"place": "Rom"}), ("clock", {})],
    ),
    (
        "gemma",
        "<start_function_call>call:weather{place:<escape>Rom<escape>}<end_function_call>"
        "<start_function_call>call:clock{}<end_function_call>",
        "",
        [("weather", {"place": "Rom"}), ("clock", {})],
    ),
    (
        "coder",
        '<tool_call>\n<function=weather>\n<parameter=place>\nParis "Est"\n</parameter>\n<parameter=days>\n2\n'
        "</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", PARIS)],
    ),
    ("gemma", '<start_function_call>call:weather{days:2,place:<escape>Paris "Est"<escape>}<end_function_call>', "", [("weather", PARIS)]),
    ("gemma4", '<|tool_call>call:weather{place:<|"|>Paris "Est"<|"|>,days:2}<tool_call|>', "", [("weather", PARIS)]),
    (
        "harmony",
        "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        f"<|constrain|>json<|message|>{ASKED}",
        "",
        [("weather", PARIS)],
    ),
    ("harmony", "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Four.", "Four.", []),
    ("harmony", "Just words.", "Just words.", []),
    ("json", f'<tool_call>\n{{"name": "weather", "arguments": {ASKED}}}\n</tool_call>', "", [("weather", PARIS)]),
]  # fmt: skip


def read(one: Reader, text: str, size: int) -> tuple[str, str, list[tuple[str, str]], int]:
    """Said, thought, called, and how many pieces the arguments came in."""
    said = thought = ""
    calls: list[list[str]] = []
    pieces = 0
    deltas = [one.push(text[at : at + size]) for at in range(0, len(text), size)]
    for delta in [*deltas, one.finish()]:
        said += delta.text
        thought += delta.reasoning
        for call in delta.calls:
            if call.name is not None:
                assert call.index == len(calls)
                assert call.id
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
            pieces += bool(call.arguments)
    return said, thought, [(name, arguments) for name, arguments in calls], pieces


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("form", "text", "said", "called"), CALLS, ids=lambda x: str(x)[:30])
def test_calls_are_found_however_they_come(form, text, said, called, size):
    found, _, calls, _ = read(reader(form, BOX, None, False), text, size)
    assert found == said
    assert [(name, json.loads(arguments)) for name, arguments in calls] == called


@pytest.mark.parametrize(("form", "text", "said", "called"), CALLS, ids=lambda x: str(x)[:30])
def test_a_call_that_is_cut_off_is_read_alike_however_it_came(form, text, said, called):
    for end in range(1, len(text), 7):
        whole = read(reader(form, BOX, None, False), text[:end], 1000)
        assert read(reader(form, BOX, None, False), text[:end], 1)[:3] == whole[:3]
        assert [name for name, _ in whole[2]] == [name for name, _ in called][: len(whole[2])]
        for (_, arguments), (_, right) in zip(whole[2], called, strict=False):  # a beginning of them, or all
            assert json.dumps(right).startswith(arguments) or json.loads(arguments) == right


def test_arguments_come_in_pieces():
    text = f'<tool_call>\n{{"name": "weather", "arguments": {ASKED}}}\n</tool_call>'
    *_, pieces = read(reader("hermes", BOX, None, False), text, 4)
    assert pieces > 5


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "inside", "thought", "said"),
    [
        ("<think>\nTwo and two.\n</think>\n\nFour.", False, "Two and two.", "Four."),
        ("Two and two.\n</think>\n\nFour.", True, "Two and two.", "Four."),
        ("Four. <think> is a word here.", False, "", "Four. <think> is a word here."),
        ("<thin ice>", False, "", "<thin ice>"),
        ("still thinking", True, "still thinking", ""),
        ("<think></think>Four.", False, "", "Four."),
        ("<thi", False, "", "<thi"),
    ],
)
def test_thoughts_are_split_off(text, inside, thought, said, size):
    found = read(reader("hermes", Toolbox(), THINK, inside), text, size)
    assert (found[1], found[0]) == (thought, said)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_thoughts_and_calls_together(size):
    text = f'<think>\nI ask.\n</think>\n\n<tool_call>\n{{"name": "weather", "arguments": {ASKED}}}\n</tool_call>'
    said, thought, calls, _ = read(reader("hermes", BOX, THINK, False), text, size)
    assert (said, thought, json.loads(calls[0][1])) == ("", "I ask.", PARIS)


def test_harmony_thinks_in_its_channel():
    text = CALLS[-4][1]
    assert read(reader("harmony", BOX, None, False), text, 3)[1] == "They ask."


def test_one_call_where_several_are_not_wanted():
    box = Toolbox((WEATHER, CLOCK), parallel=False)
    assert [name for name, _ in read(reader("hermes", box, None, False), CALLS[0][1], 5)[2]] == ["weather"]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<tool_call><arg_key>{% endif %}", "glm"),
        ("{% if tools %}<tool_call><function={% endif %}", "coder"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        ('{% if tools %}{"name": f, "parameters": p} ipython{% endif %}', "llama"),
        ("{% if tools %}<｜tool▁call▁begin｜>{% endif %}", "deepseek"),
        ("{% if tools %}<｜DSML｜function_calls>{% endif %}", "dsml"),
        ("{% if tools %}<start_function_call>{% endif %}", "gemma"),
        ("{{ '<|channel|>analysis<|message|>' }}", "harmony"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "json"),
    ],
)
def test_a_template_tells_the_form(template, form):
    assert form_of(template) == form


def test_mistral_s_ids_have_nine_letters():
    assert told_id("mistral", "abcDEF123") == "abcDEF123"
    short = told_id("mistral", "call_0123456789abcdef")
    assert len(short) == 9
    assert short.isalnum()
    assert short == told_id("mistral", "call_0123456789abcdef")
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "call_1", "function": {"name": "clock", "arguments": "{}"}}]},
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
    ]  # fmt: skip
    told = history(messages, "mistral")
    assert told[0]["tool_calls"][0]["id"] == told[1]["tool_call_id"] == told_id("mistral", "call_1")
    assert told[0]["tool_calls"][0]["function"]["arguments"] == {}
    assert told[1]["name"] == "clock"


def test_templates_that_put_arguments_together_as_text_get_text():
    """DeepSeek's template joins the arguments to their name; others write them by themselves."""
    call = {"id": "a", "function": {"name": "clock", "arguments": '{"x": 1}'}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert history([message], "deepseek")[0]["tool_calls"][0]["function"]["arguments"] == '{"x": 1}'
    assert history([message], "glm")[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_gemma_s_thoughts_stand_in_a_channel():
    pair = next(pair for pair in THOUGHTS if pair[1] == "<channel|>")
    call = "<|tool_call>call:clock{}<tool_call|>"
    said, thought, calls, _ = read(
        reader("gemma4", BOX, pair, False), f"<|channel>thought\nThey ask.\n<channel|>Well.{call}", 3
    )
    assert (said, thought, calls) == ("Well.", "They ask.", [("clock", "{}")])
