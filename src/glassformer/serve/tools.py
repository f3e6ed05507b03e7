"""Tools that a model may call: what they are, which form the model calls them in, and how history is told to it."""

from __future__ import annotations

import hashlib
import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glassformer.serve.problems import Refusal

_SHORT = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        parameters: JSON schema of its arguments.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As templates take it."""
        told = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": told}


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request.

    Attributes:
        choice: "none", "auto", "required", or the name of the one that must be called.
        parallel: whether several may be called in one answer.
    """

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    named: bool = False
    parallel: bool = True

    def __bool__(self) -> bool:
        return bool(self.tools) and not (self.choice == "none" and not self.named)

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return bool(self) and (self.named or self.choice == "required")

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        return tuple(tool for tool in self.tools if tool.name == self.choice) if self.named else self.tools

    def get(self, name: str) -> Tool | None:
        """A tool by its name."""
        return next((tool for tool in self.tools if tool.name == name), None)


# The forms that templates write calls in, told apart by what only their templates hold.
FORMS = (
    ("harmony", ("<|channel|>", "<|message|>")),
    ("deepseek", ("<｜tool▁call▁begin｜>",)),
    ("dsml", ("｜DSML｜", "function_calls")),
    ("glm", ("<arg_key>",)),
    ("coder", ("<function=",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("gemma", ("<start_function_call>",)),
    ("gemma4", ("<|tool_call>",)),
    ("hermes", ("<tool_call>",)),
    ("llama", ("<|python_tag|>",)),
    ("llama", ('"parameters"', "ipython")),
)


# What stands around a call, form by form.
MARKS = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "json": ("<tool_call>", "</tool_call>"),
    "glm": ("<tool_call>", "</tool_call>"),
    "coder": ("<tool_call>", "</tool_call>"),
    "deepseek": ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    "dsml": ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
    "gemma": ("<start_function_call>", "<end_function_call>"),
    "gemma4": ("<|tool_call>", "<tool_call|>"),
    "mistral": ("[TOOL_CALLS]", ""),
}


def form_of(template: str) -> str:
    """The form that a template's model calls tools in; "json" where the template knows none."""
    if "tools" not in template and "<|channel|>" not in template:
        return "json"
    for form, marks in FORMS:
        if all(mark in template for mark in marks):
            return form
    return "json"


def new_id(form: str) -> str:
    """An id for a call, as its form takes it."""
    if form == "mistral":
        return "".join(secrets.choice(_SHORT) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


def told_id(form: str, id: str) -> str:
    """A call's id as its template takes it: Mistral's take nine letters and digits and nothing else."""
    if form != "mistral" or (len(id) == 9 and id.isalnum()):
        return id
    digest = hashlib.sha256(id.encode()).digest()
    return "".join(_SHORT[byte % len(_SHORT)] for byte in digest[:9])


def history(messages: Sequence[Mapping[str, Any]], form: str) -> list[dict[str, Any]]:
    """Messages as templates take them: arguments of calls as data, ids as the form has them.

    Raises:
        Refusal: arguments that are no JSON object, or a tool's answer to a call that nobody made.
    """
    out: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        told = dict(message)
        if calls := told.get("tool_calls"):
            places = (f"messages.{number}.tool_calls.{at}" for at in range(len(calls)))
            told["tool_calls"] = [_told_call(call, place, form) for call, place in zip(calls, places, strict=True)]
            names |= {call["id"]: call["function"]["name"] for call in calls if call.get("id")}
        if told["role"] == "tool":
            id = told.get("tool_call_id")
            if id is not None and id not in names:
                raise Refusal(
                    400,
                    f"messages.{number}.tool_call_id: no earlier message calls a tool with the id {id[:100]!r}.",
                    param=f"messages.{number}.tool_call_id",
                )
            if id is not None:
                told["tool_call_id"] = told_id(form, id)
                told.setdefault("name", names[id])
        out.append(told)
    return _plain(out) if form == "json" else out


def _told_call(call: Mapping[str, Any], place: str, form: str) -> dict[str, Any]:
    function = dict(call["function"])
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        where = f"{place}.function.arguments"
        said = f"{where}: the arguments of {function['name'][:100]!r} are no JSON object's text."
        raise Refusal(400, said, param=where)
    if form != "deepseek":  # whose templates put them together as text
        function["arguments"] = arguments
    told: dict[str, Any] = {"type": "function", "function": function}
    if call.get("id"):
        told["id"] = told_id(form, call["id"])
    return told


# Models whose template knows no tools: they are told in words, and call in the form of Hermes.

_TOLD = """You can call these functions:

{tools}

To call one, write nothing but this, once for each call:
<tool_call>
{{"name": "the function's name", "arguments": {{...}}}}
</tool_call>
The results are then given to you between <tool_response> and </tool_response>."""


def introduced(messages: Sequence[Mapping[str, Any]], box: Toolbox) -> list[dict[str, Any]]:
    """The messages with the tools told in the system's, for a template that has no place for them."""
    listed = "\n".join(json.dumps(tool.to_dict()["function"], ensure_ascii=False) for tool in box.tools)
    said = _TOLD.format(tools=listed)
    first = messages[0] if messages else {}
    if first.get("role") == "system":
        return [{**first, "content": f"{first['content']}\n\n{said}"}, *map(dict, messages[1:])]
    return [{"role": "system", "content": said}, *map(dict, messages)]


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls and their results as text."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            said = f"<tool_response>\n{message['content']}\n</tool_response>"
            if out and out[-1]["role"] == "user" and out[-1].get("results"):
                out[-1]["content"] += "\n" + said
            else:
                out.append({"role": "user", "content": said, "results": True})
            continue
        told = {key: value for key, value in message.items() if key != "tool_calls"}
        for call in message.get("tool_calls") or ():
            written = json.dumps(
                {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}, ensure_ascii=False
            )
            told["content"] = (
                told["content"] + "\n" if told["content"] else ""
            ) + f"<tool_call>\n{written}\n</tool_call>"
        out.append(told)
    return [{key: value for key, value in message.items() if key != "results"} for message in out]
