"""Grammars that hold an answer to calls of tools whose arguments follow their schemas, form by form.

With `auto` the answer may be text, and becomes a call where the form's mark appears; a call that must come is the whole
answer, after the thoughts of a model that thinks. The grammars are written in llguidance's dialect of Lark.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from glassformer.generate.constraints import Constraint, closed
from glassformer.serve.tools import MARKS, Tool, Toolbox
from glassformer.serve.unquoted import SPACING, Values, bare_text, quoted, without_words

if TYPE_CHECKING:
    from glassformer.tokenizer.tokenizer import Tokenizer

_HEAD = "TEXT: /(.|\\n)*/\nGAP: /[ \\n]{0,2}/\n"


def tool_constraint(
    form: str, box: Toolbox, template: str, tokenizer: Tokenizer, thoughts: tuple[str, str] | None, thinking: bool
) -> Constraint | None:
    """What an answer is held to when tools may, or must, be called; None where nothing is held to.

    Args:
        form, box: of the calls. template: tells variants of a form apart.
        thoughts: what stands around thoughts, or None. thinking: whether the prompt ends inside them.

    Raises:
        UsageError: parameters that a call of this form cannot be held to.
    """
    if not box:
        return None
    return Constraint("calls", _Writer(form, box, template, tokenizer).grammar(thoughts, thinking))


class _Writer:
    def __init__(self, form: str, box: Toolbox, template: str, tokenizer: Tokenizer) -> None:
        self._form, self._box, self._template, self._tokenizer = form, box, template, tokenizer
        self._rules: list[str] = []
        # Whether one mark stands before several calls.
        self._listed = form in ("llama", "deepseek", "dsml") or (form == "mistral" and "[ARGS]" not in template)

    def grammar(self, thoughts: tuple[str, str] | None, thinking: bool) -> str:
        if self._form == "harmony":
            return self._harmony()
        begin, calls = getattr(self, f"_{'hermes' if self._form == 'json' else self._form}")()
        box = self._box
        if not box.forced:
            start = self._free(begin, calls)
        elif box.parallel and not self._listed:
            start = f"({begin} {calls}) (GAP {begin} {calls})*"
        else:
            start = f"{begin} {calls}"
        if box.forced and thoughts is not None:
            thought = self._until(thoughts[1])
            first = f"{thought} GAP" if thinking else f"({self._mark(thoughts[0])} {thought} GAP)?"
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

    def _until(self, text: str) -> str:
        """Text up to a mark and with it."""
        mark, name = self._mark(text), f"until_{len(self._rules)}"
        self._rules.append(f"{name}: TEXT {mark}" if mark.startswith("<[") else f"{name}[lazy]: TEXT {mark}")
        return name

    def _any(self, name: str, bodies: list[str]) -> str:
        self._rules.append(f"{name}: " + " | ".join(bodies))
        return name

    def _arguments(self, tool: Tool) -> str:
        """The rule of a tool's arguments as JSON."""
        name = f"arguments_{len(self._rules)}"
        schema = closed(without_words({"type": "object", **tool.parameters})) | {"x-guidance": SPACING}
        if not schema.get("properties"):  # a function without arguments
            schema.setdefault("additionalProperties", False)
        self._rules.append(f"{name}: %json {json.dumps(schema, ensure_ascii=False)}")
        return name

    def _object(self, tool: Tool, key: str, more: str = "") -> str:
        begin = "{" + f'"name": {json.dumps(tool.name)}, "{key}": '
        return f"{quoted(begin)} {self._arguments(tool)} {more} {quoted('}')}"

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
            if "[CALL_ID]" in self._template:
                args = f"{self._mark('[CALL_ID]')} /[a-zA-Z0-9]{{9}}/ {args}"
            bodies = [f"{quoted(tool.name)} {args} {self._arguments(tool)}" for tool in self._box.callable]
            return begin, self._any("call", bodies)
        id = '(", \\"id\\": \\"" /[a-zA-Z0-9]{9}/ "\\"")?'
        one = self._any("call", [self._object(tool, "arguments", id) for tool in self._box.callable])
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
        close = "</arg_key><arg_value>" in self._template  # newer ones write no line breaks
        line = "" if close else "\n"
        between = f"<arg_key>{{}}</arg_key>{line}<arg_value>"
        bodies = [
            f"{quoted(tool.name + line)} "
            + self._pairs(tool, lambda key, text: between.format(key), "</arg_value>", line)
            for tool in self._box.callable
        ]
        return self._mark("<tool_call>"), f"{self._any('call', bodies)} {self._mark('</tool_call>')}"

    def _coder(self) -> tuple[str, str]:
        bodies = [
            f"{quoted(chr(10) + f'<function={tool.name}>' + chr(10))} "
            + self._pairs(tool, lambda key, text: f"<parameter={key}>\n", "\n</parameter>", "\n")
            + f" {quoted('</function>' + chr(10))}"
            for tool in self._box.callable
        ]
        return self._mark("<tool_call>"), f"{self._any('call', bodies)} {self._mark('</tool_call>')}"

    def _dsml(self) -> tuple[str, str]:
        word = "｜DSML｜"

        def head(key: str, text: bool) -> str:
            return f'<{word}parameter name="{key}" string="{"true" if text else "false"}">'

        bodies = [
            quoted(f'<{word}invoke name="{tool.name}">\n')
            + f" {self._pairs(tool, head, f'</{word}parameter>', chr(10))} "
            + quoted(f"</{word}invoke>\n")
            for tool in self._box.callable
        ]
        one = self._any("call", bodies)
        many = f"{one}+" if self._box.parallel else one
        return self._mark(f"<{word}function_calls>"), f'"\\n" {many} {self._mark(f"</{word}function_calls>")}'

    def _gemma(self) -> tuple[str, str]:
        return self._braced("<start_function_call>", "<end_function_call>", "<escape>")

    def _gemma4(self) -> tuple[str, str]:
        return self._braced("<|tool_call>", "<tool_call|>", '<|"|>')

    def _braced(self, begin: str, end: str, quote: str) -> tuple[str, str]:
        bodies = []
        for tool in self._box.callable:
            values = Values(self._rules, self._mark, tool.name, tool.parameters, (begin, end))
            bodies.append(f"{quoted(f'call:{tool.name}')} {values.marked(quote)}")
        return self._mark(begin), f"{self._any('call', bodies)} {self._mark(end)}"

    def _harmony(self) -> str:
        """Messages in channels: thoughts and remarks, and then a call or what is said."""
        mark, message = self._mark, self._mark("<|message|>")
        text = f'{self._until("<|end|>")} {mark("<|start|>")} "assistant"'
        channel = f'{mark("<|channel|>")} ("commentary" | "analysis")'
        kind = f'(" "? {mark("<|constrain|>")} "json" | " json") {message}'
        bodies = []
        for tool in self._box.callable:
            to = quoted(f" to=functions.{tool.name}")
            bodies.append(f"({channel} {to} | {to} {channel}) {kind} {self._arguments(tool)}")
        call = self._any("call", bodies)
        self._rules.append(f"before: {channel} {message} {text}")
        if self._box.forced:
            start = f"before* {call}"
        else:
            said = f'{mark("<|channel|>")} ("final" | "commentary") {message} TEXT'
            # A message that was begun, or a model that writes no channels, goes on with text.
            start = f"TEXT | ({text})? before* ({call} | {said})"
        return f"start: {start}\n{_HEAD}" + "".join(f"{rule}\n" for rule in self._rules)

    def _pairs(self, tool: Tool, head: Callable[[str, bool], str], end: str, gap: str) -> str:
        """Arguments one by one, in the schema's order; those that it does not require may be left out."""
        never = tuple(mark for mark in MARKS[self._form] if mark)
        values = Values(self._rules, self._mark, tool.name, tool.parameters, never)
        named, required = values.pairs()
        out = []
        for key, inner in named.items():
            before = quoted(head(key, bare_text(inner, tool.parameters)))
            one = f"({before} {values.bare(inner, end)} {quoted(gap) if gap else ''})"
            out.append(one if key in required else f"{one}?")
        return " ".join(out) or '""'
