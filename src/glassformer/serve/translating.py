"""Other APIs' requests as chats of OpenAI's kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from glassformer.serve.openai_requests import ChatAsk, Streamed
from glassformer.serve.problems import Refusal

Made = TypeVar("Made", bound=Streamed)


# Kinds that pydantic names in a path where a field may be of several; what is sent has no such parts.
_KIND = re.compile(r"(bool|str|int|float|none|slice|[a-z-]+\[.*\])", re.IGNORECASE)
_SHOULD = "Input should be "
_SAME: Mapping[str, str] = MappingProxyType({})


def said(error: ValidationError | Any) -> tuple[str, str]:
    """The first field that is wrong (its path, or ""), and the sentence about it."""
    found = [(_path(one["loc"]), _text(one)) for one in error.errors()]
    where, text = found[0]
    if text.startswith(_SHOULD):  # a field of several kinds is none of them
        kinds = [other.removeprefix(_SHOULD) for place, other in found if place == where and other.startswith(_SHOULD)]
        text = _SHOULD + " or ".join(dict.fromkeys(kinds))
    return where, text if text.endswith((".", "?")) else f"{text}."


def _path(parts: Sequence[object]) -> str:
    def sent(at: int) -> bool:
        """Whether this part was: neither the kind of a field nor that of an edit was."""
        return at == 0 or not (_KIND.fullmatch(str(parts[at])) or (at > 1 and parts[at - 2] == "edits"))

    return ".".join(str(part) for at, part in enumerate(parts) if sent(at))


def _text(one: Mapping[str, Any]) -> str:
    if one["type"] == "extra_forbidden":
        return "There is no such field here"
    text = str(one["msg"]).removeprefix("Value error, ")
    text = text.replace(" or object to extract fields from", "")
    return text.replace("a valid dictionary", "an object").replace("a valid list", "a list")


def translated(kind: type[Made], data: Mapping[str, Any], names: Mapping[str, str]) -> Made:
    """Data as a request.

    Args:
        names: from paths in it to the client's own.

    Raises:
        Refusal: naming the first field that is wrong, as its client does.
    """
    try:
        made = kind.model_validate(data)
    except ValidationError as error:
        where, text = said(error)
        raise Refusal(400, f"{where or 'The request'}: {text}", param=where or None).renamed(names) from None
    made._names = names
    return made


class Chat:
    """A chat of OpenAI's kind that another API's request becomes, and where its client wrote each part.

    Args:
        names: from paths in the chat to the client's own.

    Attributes:
        messages: as `ChatAsk` takes them. names: with those of the messages.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.messages: list[dict[str, Any]] = []
        self.names = dict(names)

    def add(self, message: Mapping[str, Any], where: str, **fields: str) -> None:
        """A message that was written at `where`; of its `fields`, those that were written elsewhere."""
        place = f"messages.{len(self.messages)}"
        self.messages.append(dict(message))
        self.names[place] = where
        self.names |= {f"{place}.{field}": path for field, path in fields.items()}

    def call(self, id: object, name: object, arguments: object, where: str, fields: Mapping[str, str] = _SAME) -> None:
        """A call of a tool in the last message, written at `where`; `fields` of it are written elsewhere below that."""
        calls = self.messages[-1].setdefault("tool_calls", [])
        place = f"messages.{len(self.messages) - 1}.tool_calls.{len(calls)}"
        calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
        self.names[place] = where
        self.names |= {f"{place}.{field}": where + below for field, below in fields.items()}

    def ask(self, told: Mapping[str, Any]) -> ChatAsk:
        """The chat as a request, with what else is `told`.

        Raises:
            Refusal: naming the first field that is wrong, as its client does.
        """
        return translated(ChatAsk, {**told, "messages": self.messages}, self.names)
