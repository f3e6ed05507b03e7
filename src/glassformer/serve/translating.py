"""Other APIs' requests as chats of OpenAI's kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from glassformer.serve.problems import Refusal

Made = TypeVar("Made", bound=BaseModel)


# Kinds that pydantic names in a path where a field may be of several; what is sent has no such parts.
_KIND = re.compile(r"(bool|str|int|float|none|[a-z-]+\[.*\])", re.IGNORECASE)
_SHOULD = "Input should be "


def said(error: ValidationError | Any) -> tuple[str, str]:
    """The first field that is wrong (its path, or ""), and the sentence about it."""
    found = [(_path(one["loc"]), _text(one)) for one in error.errors()]
    where, text = found[0]
    if text.startswith(_SHOULD):  # a field of several kinds is none of them
        kinds = [other.removeprefix(_SHOULD) for place, other in found if place == where and other.startswith(_SHOULD)]
        text = _SHOULD + " or ".join(dict.fromkeys(kinds))
    return where, text if text.endswith((".", "?")) else f"{text}."


def _path(parts: Sequence[Any]) -> str:
    return ".".join(str(part) for at, part in enumerate(parts) if at == 0 or not _KIND.fullmatch(str(part)))


def _text(one: Mapping[str, Any]) -> str:
    if one["type"] == "extra_forbidden":
        return "There is no such field here"
    text = str(one["msg"]).removeprefix("Value error, ")
    text = text.replace(" or object to extract fields from", "")
    return text.replace("a valid dictionary", "an object").replace("a valid list", "a list")


def translated(kind: type[Made], data: Mapping[str, Any]) -> Made:
    """Data as a request.

    Raises:
        Refusal: naming the first field that is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        where, text = said(error)
        raise Refusal(400, f"{where or 'The request'}: {text}", param=where or None) from None
