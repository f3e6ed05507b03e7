"""What several views are asked for: a text, in a model, with edits; every field bounded, unknown ones refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from glassformer.errors import UsageError
from glassformer.views.edits import Edit, Edits, Strict

Text = Annotated[str, Field(max_length=400_000)]
Count = Annotated[int, Field(ge=1, le=1000)]


TokenChoice = Annotated[int | str | None, Field(description="Token, as its id or its text; by default the likeliest.")]
Against = Annotated[
    int | str | None, Field(description="Token it is compared with; by default the mean of the vocabulary.")
]


class Ask(Strict):
    """A text, in a model, with edits."""

    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    text: Text = Field(default="", description="The text.")
    bos: bool | None = Field(
        default=None, description="Whether the beginning-of-text token is put first; by default as the tokenizer does."
    )
    edits: Edits = Field(default=[])


class At(Ask):
    """… at one position."""

    position: int = Field(default=-1, description="Token after which it is asked; negative counts from the end.")


def parsed(schema: type[BaseModel], data: object) -> Any:
    """`data` as a `schema`.

    Raises:
        UsageError: naming the first field that is wrong.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the request"
        raise UsageError(f"{where}: {first['msg']}.") from None


__all__ = ["Against", "Ask", "At", "Count", "Edit", "Edits", "Strict", "Text", "TokenChoice", "parsed"]
