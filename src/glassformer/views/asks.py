"""What several views are asked for: a text, in a model, with edits; every field bounded, unknown ones refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glassformer.errors import UsageError

Text = Annotated[str, Field(max_length=400_000)]
Count = Annotated[int, Field(ge=1, le=1000)]


TokenChoice = Annotated[int | str | None, Field(description="Token, as its id or its text; by default the likeliest.")]
Against = Annotated[
    int | str | None, Field(description="Token it is compared with; by default the mean of the vocabulary.")
]


class Strict(BaseModel):
    """Plain data with known fields only."""

    model_config = ConfigDict(extra="forbid")


class AblateHead(Strict):
    """One attention head writes nothing."""

    kind: Literal["ablate_head"]
    layer: int
    head: int


class AblateAttention(Strict):
    """One layer's attention writes nothing."""

    kind: Literal["ablate_attn"]
    layer: int


class AblateFeedForward(Strict):
    """One layer's feed-forward writes nothing."""

    kind: Literal["ablate_mlp"]
    layer: int


class AblateNeuron(Strict):
    """One feed-forward neuron is zero."""

    kind: Literal["ablate_neuron"]
    layer: int
    neuron: int


class Knockout(Strict):
    """No later token attends to these positions."""

    kind: Literal["knockout"]
    source: list[int] = Field(min_length=1, max_length=10_000)
    layer: int | None = None
    head: int | None = None


Edit = Annotated[
    AblateHead | AblateAttention | AblateFeedForward | AblateNeuron | Knockout, Field(discriminator="kind")
]


class Ask(Strict):
    """A text, in a model, with edits."""

    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    text: Text = Field(default="", description="The text.")
    bos: bool | None = Field(
        default=None, description="Whether the beginning-of-text token is put first; by default as the tokenizer does."
    )
    edits: list[Edit] = Field(default=[], max_length=200, description="What is switched off or changed in the model.")


class At(Ask):
    """… at one position."""

    position: int = Field(default=-1, description="Token after which it is asked; negative counts from the end.")


def parsed(schema: type[BaseModel], data: Any) -> Any:
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
