"""Calls of tools under their grammars, in every form: whatever is drawn, the readers find arguments that follow their
schemas; what a family's template writes is possible; what cannot be held to is refused by its name."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from glassformer.errors import UsageError
from glassformer.generate.constraints import Grammars
from glassformer.serve.readers import reader
from glassformer.serve.tool_grammars import tool_constraint
from glassformer.serve.tools import MARKS, Tool, Toolbox
from tests.serve.test_readers import read

SPECIALS = {
    "harmony": ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
    "gemma": ("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>'),
    "deepseek": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁sep｜>",
    ),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "llama": ("<|python_tag|>",),
    "hermes": ("<tool_call>", "</tool_call>"),
    "glm": ("<tool_call>", "</tool_call>"),
    "coder": ("<tool_call>", "</tool_call>"),
    "dsml": (),
}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "minLength": 2, "maxLength": 12},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"},
        "unit": {"enum": ["C", "F"]},
        "size": {"enum": ["1", "2"]},
        "kind": {"$ref": "#/$defs/kind"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "when": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
        "at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["x"]},
        "more": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "required": ["place", "days", "unit"],
    "$defs": {"kind": {"type": "string", "enum": ["now", "later"]}},
}
WEATHER = Tool("weather", "", PARAMETERS)
CLOCK = Tool("clock", "", {"type": "object", "properties": {}})
TOOLS = (WEATHER, CLOCK)
SCHEMAS = {"weather": PARAMETERS, "clock": {"type": "object", "additionalProperties": False}}
# A template's words by which variants of a form are told apart.
VARIANTS = [(form, "") for form in SPECIALS] + [
    ("mistral", "[ARGS]"),
    ("mistral", "[CALL_ID][ARGS]"),
    ("deepseek", "```json"),
    ("glm", "</arg_key><arg_value>"),
]


class Bytes:
    """A tokenizer of single bytes and a form's marks, as special tokens or not at all."""

    def __init__(self, marks: tuple[str, ...]) -> None:
        self.marks = {mark: 257 + i for i, mark in enumerate(marks)}
        self.stop_ids = frozenset({256})
        self.special_ids = frozenset({256, *self.marks.values()})
        self.token_ids = range(257 + len(marks))

    def token_bytes(self, id: int) -> bytes:
        known = {number: mark for mark, number in self.marks.items()}
        return bytes([id]) if id < 256 else known.get(id, "</s>").encode()

    def id_of(self, text: str) -> int | None:
        return self.marks.get(text)

    def encode(self, text: str, bos: bool = False, specials: bool = False) -> list[int]:
        return list(text.encode())

    def ids(self, text: str) -> list[int]:
        """A text with its marks as their tokens."""
        out: list[int] = []
        while text:
            mark = next((m for m in sorted(self.marks, key=len, reverse=True) if text.startswith(m)), None)
            out += [self.marks[mark]] if mark else list(text[0].encode())
            text = text[len(mark or text[0]) :]
        return out

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes(i) for i in ids if i != 256).decode("utf-8", "replace")


def held(form: str, template: str, mode: str, special: bool, **more: Any) -> tuple[Bytes, Any, Toolbox]:
    box = Toolbox(more.pop("tools", TOOLS), mode, **more)
    tokenizer = Bytes(SPECIALS[form] if special else ())
    constraint = tool_constraint(form, box, template, tokenizer, None, False)  # type: ignore[arg-type]
    assert constraint is not None
    return tokenizer, Grammars(tokenizer, 257 + len(tokenizer.marks)).matcher(constraint), box  # type: ignore[arg-type]


def drawn(tokenizer: Bytes, matcher: Any, generator: random.Random, most: int = 1500) -> list[int] | None:
    """An answer drawn from what is allowed, with a liking for letters that lead on; None where it does not end."""
    liked = set(b'"}]<|/>,:{') | set(tokenizer.special_ids)
    ids: list[int] = []
    while not matcher.stopped:
        allowed = matcher.allowed().nonzero().flatten().tolist()
        good = [i for i in allowed if i in liked]
        plain = [i for i in allowed if i < 127]
        few = good if good and generator.random() < 0.4 else plain or allowed
        ids.append(generator.choice(few))
        if ids[-1] == 256:
            break
        matcher.accept(ids[-1])
        if len(ids) > most:
            return None
    return ids


# Marks that some families always have as special tokens, and others never.
WAYS = [(*one, True) for one in VARIANTS if one[0] != "dsml"]
WAYS += [(*one, False) for one in VARIANTS if one[0] not in ("harmony", "deepseek", "gemma4")]


@pytest.mark.parametrize(("form", "template", "special"), WAYS, ids=str)
def test_whatever_is_drawn_the_arguments_follow_their_schema(form, template, special):
    generator = random.Random(f"{form}{template}{special}")
    found, named = 0, set()
    for _ in range(12):
        tokenizer, matcher, box = held(form, template, "required", special, parallel=False)
        ids = drawn(tokenizer, matcher, generator)
        if ids is None:
            continue
        said, _, calls, _ = read(reader(form, box, None, False), tokenizer.decode(ids), 7)
        assert len(calls) == 1, tokenizer.decode(ids)
        assert not said.strip()
        [(name, arguments)] = calls
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        found, named = found + 1, named | {name}
    assert found >= 6
    assert named == set(SCHEMAS) or form == "harmony"


NESTED = '{"place": "Paris", "unit": "C", "days": 2, "sure": true, "tags": ["a", "b"], "at": {"x": 1.5, "y": 2}}'
OURS = json.loads(NESTED)
# What each family's own template writes for a call in the history, mark by mark: form, template, text.
# ruff: noqa: E501
WRITTEN = [
    (
        "harmony",
        "",
        f"<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{NESTED}",
    ),
    (
        "harmony",
        "",
        f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{NESTED}",
    ),
    ("harmony", "", f"<|channel|>analysis to=functions.weather <|constrain|>json<|message|>{NESTED}"),
    (
        "gemma",
        "",
        "<start_function_call>call:weather{at:{x:1.5,y:2},days:2,place:<escape>Paris<escape>,sure:true,tags:[<escape>a<escape>,<escape>b<escape>],unit:<escape>C<escape>}<end_function_call>",
    ),
    (
        "gemma4",
        "",
        '<|tool_call>call:weather{at:{x:1.5,y:2},days:2,place:<|"|>Paris<|"|>,sure:true,tags:[<|"|>a<|"|>,<|"|>b<|"|>],unit:<|"|>C<|"|>}<tool_call|>',
    ),
    (
        "deepseek",
        "",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{NESTED}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        "deepseek",
        "```json",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{NESTED}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    ("mistral", "", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {NESTED}, "id": "abcDEF123"}}]'),
    ("mistral", "[ARGS]", f"[TOOL_CALLS]weather[ARGS]{NESTED}"),
    ("mistral", "[CALL_ID][ARGS]", f"[TOOL_CALLS]weather[CALL_ID]abcDEF123[ARGS]{NESTED}"),
    (
        "glm",
        "",
        '<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>sure</arg_key>\n<arg_value>true</arg_value>\n<arg_key>tags</arg_key>\n<arg_value>["a", "b"]</arg_value>\n<arg_key>at</arg_key>\n<arg_value>{"x": 1.5, "y": 2}</arg_value>\n</tool_call>',
    ),
    (
        "glm",
        "</arg_key><arg_value>",
        '<tool_call>weather<arg_key>place</arg_key><arg_value>Paris</arg_value><arg_key>unit</arg_key><arg_value>C</arg_value><arg_key>days</arg_key><arg_value>2</arg_value><arg_key>sure</arg_key><arg_value>true</arg_value><arg_key>tags</arg_key><arg_value>["a", "b"]</arg_value><arg_key>at</arg_key><arg_value>{"x": 1.5, "y": 2}</arg_value></tool_call>',
    ),
    (
        "coder",
        "",
        '<tool_call>\n<function=weather>\n<parameter=place>\nParis\n</parameter>\n<parameter=unit>\nC\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=sure>\ntrue\n</parameter>\n<parameter=tags>\n["a", "b"]\n</parameter>\n<parameter=at>\n{"x": 1.5, "y": 2}\n</parameter>\n</function>\n</tool_call>',
    ),
    (
        "dsml",
        "",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="place" string="true">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name="unit" string="true">C</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n<｜DSML｜parameter name="sure" string="false">true</｜DSML｜parameter>\n<｜DSML｜parameter name="tags" string="false">["a", "b"]</｜DSML｜parameter>\n<｜DSML｜parameter name="at" string="false">{"x": 1.5, "y": 2}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    ),
]


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize(("form", "template", "text"), WRITTEN, ids=lambda x: str(x)[:40])
def test_what_a_family_s_template_writes_is_possible_and_read(form, template, text, mode):
    tokenizer, matcher, box = held(form, template, mode, form != "dsml")
    ids = tokenizer.ids(text)
    taken = matcher.possible(ids)
    assert taken == len(ids), tokenizer.decode(ids[:taken])
    _, _, calls, _ = read(reader(form, box, None, False), text, 5)
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("weather", OURS)]


@pytest.mark.parametrize("form", ["hermes", "deepseek", "mistral", "llama", "harmony"])
def test_a_mark_s_letters_in_an_argument_do_not_end_the_call(form):
    end = {"harmony": "<|end|>", "deepseek": MARKS["deepseek"][1]}.get(
        form, MARKS.get(form, ("", ""))[1] or "[TOOL_CALLS]"
    )
    inner = json.dumps({"place": f"a{end}b"}, ensure_ascii=False)
    text = {
        "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {inner}}}\n</tool_call>',
        "deepseek": f"<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{inner}<｜tool▁call▁end｜>",
        "mistral": f"[TOOL_CALLS]weather[ARGS]{inner}",
        "llama": f'{{"name": "weather", "parameters": {inner}}}',
        "harmony": f"<|channel|>commentary to=functions.weather json<|message|>{inner}<|call|>",
    }[form]
    for size in (1, 3, 1000):
        _, _, calls, _ = read(reader(form, Toolbox(TOOLS), None, False), text, size)
        assert [(name, json.loads(arguments)) for name, arguments in calls] == [("weather", json.loads(inner))]


@pytest.mark.parametrize(
    ("form", "schema", "said"),
    [
        ("gemma", {"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ("gemma", {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}}, "'contentEncoding'"),
        ("gemma", {"enum": [{"a": 1}]}, "an enum of objects"),
        ("gemma", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf of schemas that may hold at once"),
        ("gemma4", {"$ref": "#/$defs/none"}, "leads to no schema"),
        ("gemma", {"type": "thing"}, "the type 'thing'"),
        ("glm", {"type": "string", "contentEncoding": "base64"}, "'contentEncoding'"),
        ("coder", {"$ref": "http://elsewhere"}, "leads to no schema"),
    ],
    ids=str,
)
def test_what_a_form_cannot_be_held_to_is_refused_by_its_name(form, schema, said):
    tool = Tool("f", "", {"type": "object", "properties": {"a": schema}})
    with pytest.raises(UsageError, match=said):
        held(form, "", "auto", True, tools=(tool,))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "'minProperties'"),
        ({"type": "object", "properties": {}, "required": ["b"]}, "the required property 'b'"),
        ({"anyOf": [{"type": "object"}]}, "'anyOf'"),
    ],
    ids=str,
)
def test_arguments_that_are_not_named_one_by_one(parameters, said):
    for form in ("glm", "coder", "dsml", "gemma"):
        with pytest.raises(UsageError, match=said):
            held(form, "", "auto", form != "dsml", tools=(Tool("f", "", parameters),))


def test_a_schema_that_leads_to_itself():
    tree = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
        "required": ["v"],
    }
    parameters = {
        "type": "object",
        "properties": {"t": {"$ref": "#/$defs/tree"}},
        "required": ["t"],
        "$defs": {"tree": tree},
    }
    tokenizer, matcher, box = held("gemma", "", "required", True, tools=(Tool("grow", "", parameters),))
    text = "<start_function_call>call:grow{t:{next:{next:{v:3},v:2},v:1}}<end_function_call>"
    ids = tokenizer.ids(text)
    assert matcher.possible(ids) == len(ids)
    [(_, arguments)] = read(reader("gemma", box, None, False), text, 4)[2]
    assert json.loads(arguments) == {"t": {"v": 1, "next": {"v": 2, "next": {"v": 3}}}}
