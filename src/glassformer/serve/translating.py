"""Other APIs' requests as chats of OpenAI's kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from glassformer.serve.problems import Refusal

Made = TypeVar("Made", bound=BaseModel)


def said(error: ValidationError | Any) -> tuple[str, str]:
    """The first field that is wrong (its path, or ""), and the sentence about it."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    text = str(first["msg"]).removeprefix("Value error, ")
    return where, text if text.endswith((".", "?")) else f"{text}."


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
