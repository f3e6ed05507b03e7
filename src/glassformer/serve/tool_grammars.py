"""Grammars that hold an answer to calls of tools whose arguments follow their schemas, form by form.

With `auto` the answer may be text, and becomes a call where the form's mark appears; a call that must come is the whole
answer, after the thoughts of a model that thinks. The grammars are written in llguidance's dialect of Lark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError
from glassformer.generate.constraints import Constraint
from glassformer.serve.tools import Tool, Toolbox

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

_HEAD = "TEXT: /(.|\\n)*/\nGAP: /[ \\n]{0,2}/\n"
# JSON as models write it: without this they may write spaces for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Forms whose calls are read and cannot be held to: their arguments are not written as JSON.
FREE = frozenset({"harmony", "gemma", "gemma4"})


def tool_constraint(
    form: str, box: Toolbox, template: str, tokenizer: Tokenizer, thoughts: tuple[str, str] | None, thinking: bool
) -> Constraint | None:
    """What an answer is held to when tools may, or must, be called; None where nothing is held to.

    Args:
        form, box: of the calls. template: tells variants of a form apart.
        thoughts: what stands around thoughts, or None. thinking: whether the prompt ends inside them.

    Raises:
        UsageError: a call that must come, of a form that cannot be held to.
    """
    if not box:
        return None
    if form in FREE:
        if box.forced:
            raise UsageError(
                "tool_choice: this model writes its calls in a form that no answer can be held to; ask with auto."
            )
        return None
    return Constraint.grammar(_Writer(form, box, template, tokenizer).grammar(thoughts, thinking))


def quoted(text: str) -> str:
    """A text in a grammar."""
    return json.dumps(text, ensure_ascii=False)


class _Writer:
    def __init__(self, form: str, box: Toolbox, template: str, tokenizer: Tokenizer) -> None:
        self._form, self._box, self._template, self._tokenizer = form, box, template, tokenizer
        self._rules: list[str] = []
        # Whether one mark stands before several calls.
        self._listed = form in ("llama", "deepseek") or (form == "mistral" and "[ARGS]" not in template)

    def grammar(self, thoughts: tuple[str, str] | None, thinking: bool) -> str:
        begin, calls = getattr(self, f"_{'hermes' if self._form == 'json' else self._form}")()
        box = self._box
        if not box.forced:
            start = self._free(begin, calls)
        elif box.parallel and not self._listed:
            start = f"({begin} {calls}) (GAP {begin} {calls})*"
        else:
            start = f"{begin} {calls}"
        if box.forced and thoughts is not None:
            end = self._mark(thoughts[1])
            self._rules.append(
                f"thought: TEXT {end}" if end.startswith("<[") else f"thought[lazy]: TEXT {quoted(thoughts[1])}"
            )
            first = "thought GAP" if thinking else f"({self._mark(thoughts[0])} thought GAP)?"
            start = f"{first} {start}"
        return f"start: {start}\n{_HEAD}" + "".join(f"{rule}\n" for rule in self._rules)

    def _free(self, begin: str, calls: str) -> str:
        """Text that becomes a call at the mark."""
        if self._form == "llama":  # the whole answer is a call or none
            self._rules.append(r"SAID: /[ \n]*([^{ \n](.|\n)*)?/")
            return f"SAID | {begin} {calls}"
        more = f"(GAP {begin} {calls})*" if self._box.parallel and not self._listed else ""
        if begin.startswith("<["):
            return f"TEXT ({begin} {calls} {more})?"
        self._rules.append(f"begin[lazy]: TEXT {begin}")
        return f"TEXT | begin {calls} {more}"

    def _mark(self, text: str) -> str:
        """A mark: the special token that it is, or its letters."""
        id = self._tokenizer.id_of(text)
        return f"<[{id}]>" if id is not None and id in self._tokenizer.special_ids else quoted(text)

    def _any(self, name: str, bodies: list[str]) -> str:
        self._rules.append(f"{name}: " + " | ".join(bodies))
        return name

    def _arguments(self, tool: Tool) -> str:
        """The rule of a tool's arguments as JSON."""
        name = f"arguments_{len(self._rules)}"
        schema = {"type": "object", **tool.parameters, "x-guidance": _SPACING}
        self._rules.append(f"{name}: %json {json.dumps(_bare(schema), ensure_ascii=False)}")
        return name

    def _object(self, tool: Tool, key: str) -> str:
        begin = "{" + f'"name": {json.dumps(tool.name)}, "{key}": '
        return f"{quoted(begin)} {self._arguments(tool)} {quoted('}')}"

    def _hermes(self) -> tuple[str, str]:
        one = self._any("call", [self._object(tool, "arguments") for tool in self._box.callable])
        return self._mark("<tool_call>"), f'"\\n" {one} "\\n" {self._mark("</tool_call>")}'

    def _llama(self) -> tuple[str, str]:
        one = self._any("call", [self._object(tool, "parameters") for tool in self._box.callable])
        tag = self._mark("<|python_tag|>")
        more = f'("; " {one})*' if self._box.parallel else ""
        return (f"{tag}?" if tag.startswith("<[") else ""), f"{one} {more}"

    def _mistral(self) -> tuple[str, str]:
        begin = self._mark("[TOOL_CALLS]")
        if "[ARGS]" in self._template:
            args = self._mark("[ARGS]")
            bodies = [f"{quoted(tool.name)} {args} {self._arguments(tool)}" for tool in self._box.callable]
            return begin, self._any("call", bodies)
        one = self._any("call", [self._object(tool, "arguments") for tool in self._box.callable])
        more = f'(", " {one})*' if self._box.parallel else ""
        return begin, f'" "? "[" {one} {more} "]"'

    def _deepseek(self) -> tuple[str, str]:
        sep = self._mark("<｜tool▁sep｜>")
        if "```json" in self._template:
            bodies = [
                f'"function" {sep} {quoted(tool.name + chr(10) + "```json" + chr(10))} {self._arguments(tool)} "\\n```"'
                for tool in self._box.callable
            ]
        else:
            bodies = [f"{quoted(tool.name)} {sep} {self._arguments(tool)}" for tool in self._box.callable]
        one, end = self._any("call", bodies), self._mark("<｜tool▁call▁end｜>")
        first, begin = self._mark("<｜tool▁calls▁begin｜>"), self._mark("<｜tool▁call▁begin｜>")
        more = f'("\\n"? {begin} {one} {end})*' if self._box.parallel else ""
        return first, f"{begin} {one} {end} {more} {self._mark('<｜tool▁calls▁end｜>')}"

    def _glm(self) -> tuple[str, str]:
        bodies = [
            f"{quoted(tool.name + chr(10))} "
            + self._pairs(tool, "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>", "\n")
            for tool in self._box.callable
        ]
        return self._mark("<tool_call>"), f"{self._any('call', bodies)} {self._mark('</tool_call>')}"

    def _coder(self) -> tuple[str, str]:
        bodies = [
            f"{quoted(chr(10) + f'<function={tool.name}>' + chr(10))} "
            + self._pairs(tool, "<parameter={}>\n", "\n</parameter>", "\n")
            + f" {quoted('</function>' + chr(10))}"
            for tool in self._box.callable
        ]
        return self._mark("<tool_call>"), f"{self._any('call', bodies)} {self._mark('</tool_call>')}"

    def _pairs(self, tool: Tool, begin: str, end: str, gap: str) -> str:
        """Arguments one by one, in the schema's order; those that it does not require may be left out."""
        schema = tool.parameters
        required = set(schema.get("required", ()))
        out = []
        for key, inner in schema.get("properties", {}).items():
            inner = inner if isinstance(inner, Mapping) else {}
            head = quoted(begin.format(key))
            options = inner.get("enum", [inner["const"]] if "const" in inner else [])
            if options and all(isinstance(one, str) for one in options):
                value = "(" + " | ".join(quoted(one) for one in options) + f") {quoted(end)}"
            elif inner.get("type") == "string":
                rule = f"value_{len(self._rules)}"
                self._rules.append(f"{rule}[lazy]: TEXT {quoted(end)}")
                value = rule
            else:
                rule = f"value_{len(self._rules)}"
                whole = {**inner, **{k: schema[k] for k in ("$defs", "definitions") if k in schema}}
                written = json.dumps(_bare({**whole, "x-guidance": _SPACING}), ensure_ascii=False)
                self._rules.append(f"{rule}: %json {written}")
                value = f"{rule} {quoted(end)}"
            one = f"({head} {value} {quoted(gap)})"
            out.append(one if key in required else f"{one}?")
        return " ".join(out) or '""'


def _bare(schema: Any) -> Any:
    """A schema without what only describes it."""
    if isinstance(schema, dict):
        return {
            key: _inner(key, value) for key, value in schema.items() if key not in ("description", "title", "$schema")
        }
    return schema


def _inner(key: str, value: Any) -> Any:
    if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, dict):
        return {name: _bare(one) for name, one in value.items()}  # names, whatever they are
    if key in ("enum", "const", "default", "examples"):
        return value
    return [_bare(one) for one in value] if isinstance(value, list) else _bare(value)
