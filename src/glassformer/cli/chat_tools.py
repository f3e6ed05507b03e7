"""Functions of a Python file as tools of a conversation: what they are to the model, and calling them.

A function is a tool when it has a docstring and does not begin with an underscore; its annotations give the schema of
its arguments. The file is the person's own and is run as such. The forms in which models call are the server's.
"""

from __future__ import annotations

import inspect
import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.cli.common import need
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.generate.constraints import Constraint
    from glassformer.serve.answers import Reader
    from glassformer.tokenizer.tokenizer import Tokenizer


class Tools:
    """The functions of a file.

    Args:
        path: the file.

    Raises:
        UsageError: a file that cannot be run, or has no function with a docstring.
    """

    def __init__(self, path: Path) -> None:
        need("fastapi", verb="chat --tools", extra="serve")
        from glassformer.serve.tools import Tool, Toolbox

        if not path.is_file():
            raise UsageError(f"There is no file {path} with tools.")
        try:
            there = runpy.run_path(str(path), run_name="glassformer_tools")
        except Exception as error:
            raise UsageError(f"{path} cannot be run as Python ({type(error).__name__}: {error}).") from None
        self._functions: dict[str, Callable[..., Any]] = {
            name: value
            for name, value in there.items()
            if inspect.isfunction(value)
            and value.__module__ == "glassformer_tools"
            and not name.startswith("_")
            and value.__doc__
        }
        if not self._functions:
            raise UsageError(f"{path} has no tool: a function with a docstring whose name begins with a letter.")
        made = [Tool(name, inspect.cleandoc(f.__doc__ or ""), _schema(f)) for name, f in self._functions.items()]
        self._box = Toolbox(tuple(made))

    @property
    def names(self) -> list[str]:
        """The tools' names."""
        return list(self._functions)

    def render(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation by the model's template, with the tools in it."""
        from glassformer.serve.tools import form_of, history, introduced

        form = form_of(tokenizer.chat_template or "")
        told = history(messages, form)
        if form == "json":
            return tokenizer.render_chat(introduced(told, self._box))
        return tokenizer.render_chat(told, tools=[tool.to_dict() for tool in self._box.tools])

    def constraint(self, tokenizer: Tokenizer) -> Constraint | None:
        """What an answer is held to: from the mark that begins a call on, its arguments follow their schema."""
        from glassformer.serve.tool_grammars import tool_constraint
        from glassformer.serve.tools import form_of

        template = tokenizer.chat_template or ""
        return tool_constraint(form_of(template), self._box, template, tokenizer, None, False)

    def calls(self, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[dict[str, Any]]]:
        """What an answer says and the calls in it, as messages have them."""
        from glassformer.serve.readers import reader
        from glassformer.serve.tools import form_of

        answer = tokenizer.decode([i for i in ids if i not in tokenizer.stop_ids])  # marks may be special tokens
        read: Reader = reader(form_of(tokenizer.chat_template or ""), self._box, None, False)
        said = ""
        calls: dict[int, dict[str, str]] = {}
        for delta in (read.push(answer), read.finish()):
            said += delta.text
            for news in delta.calls:
                call = calls.setdefault(news.index, {"id": "", "name": "", "arguments": ""})
                call["id"] = news.id or call["id"]
                call["name"] = news.name or call["name"]
                call["arguments"] += news.arguments
        listed = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in calls.values()
        ]
        return said, listed

    def call(self, call: Mapping[str, Any]) -> str:
        """What a function gives, as the model is told it; an error of its own is told as such."""
        function = call["function"]
        try:
            found = self._functions[function["name"]](**json.loads(function["arguments"] or "{}"))
            return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
        except Exception as error:
            return json.dumps({"error": f"{type(error).__name__}: {error}"}, ensure_ascii=False)


def _schema(function: Callable[..., object]) -> dict[str, Any]:
    """The JSON schema of a function's arguments, from its annotations."""
    from pydantic import ConfigDict, create_model

    fields: dict[str, Any] = {}
    for name, one in inspect.signature(function, eval_str=True).parameters.items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        kind = Any if one.annotation is one.empty else one.annotation
        fields[name] = (kind, ... if one.default is one.empty else one.default)
    schema = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields).model_json_schema()
    schema.pop("title", None)
    return schema
