"""What a view may be asked for, checked: every field typed and bounded, unknown ones refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glassformer.errors import UsageError

Text = Annotated[str, Field(max_length=400_000)]
Count = Annotated[int, Field(ge=1, le=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AblateHead(_Strict):
    kind: Literal["ablate_head"]
    layer: int
    head: int


class AblateAttention(_Strict):
    kind: Literal["ablate_attn"]
    layer: int


class AblateFeedForward(_Strict):
    kind: Literal["ablate_mlp"]
    layer: int


class AblateNeuron(_Strict):
    kind: Literal["ablate_neuron"]
    layer: int
    neuron: int


class Knockout(_Strict):
    kind: Literal["knockout"]
    source: list[int] = Field(min_length=1, max_length=10_000)
    layer: int | None = None
    head: int | None = None


Edit = Annotated[
    AblateHead | AblateAttention | AblateFeedForward | AblateNeuron | Knockout, Field(discriminator="kind")
]


class Ask(_Strict):
    """A text, in a model, with edits."""

    model: str | None = None
    text: Text = ""
    bos: bool | None = None
    edits: list[Edit] = Field(default=[], max_length=200)


class At(Ask):
    """… at one position."""

    position: int = -1


class NextAsk(At):
    top: Count = 200


class VocabAsk(_Strict):
    model: str | None = None
    ids: list[int] = Field(max_length=5000)


class WordsAsk(At):
    limit: Count = 10


class ThumbnailsAsk(Ask):
    size: int = Field(default=24, ge=4, le=64)


class AttentionAsk(Ask):
    layer: int
    head: int | None = None
    q0: int = 0
    q1: int | None = None
    k0: int = 0
    k1: int | None = None
    stride: int = Field(default=1, ge=1, le=4096)


class CellAsk(Ask):
    layer: int
    head: int
    query: int
    key: int
    token: int | str | None = None


class LensAsk(Ask):
    top: int = Field(default=3, ge=1, le=20)
    start: int = 0
    stop: int | None = None


class JourneyAsk(At):
    token: int | str | None = None
    top: int = Field(default=5, ge=1, le=20)


class WhyAsk(At):
    token: int | str | None = None
    against: int | str | None = None
    words: bool = True
    parts: int = Field(default=400, ge=0, le=100_000)


class EffectsAsk(At):
    top: Count = 20


class NeuronsAsk(At):
    token: int | str | None = None
    against: int | str | None = None
    top: Count = 20


class HeadsAsk(_Strict):
    model: str | None = None


class Side(_Strict):
    model: str | None = None
    text: Text
    bos: bool | None = None
    edits: list[Edit] = Field(default=[], max_length=200)


class CompareAsk(_Strict):
    a: Side
    b: Side
    what: Literal["next", "lens", "attention"] = "next"
    layer: int | None = None
    head: int | None = None
    top: Count = 20


class PatchAsk(_Strict):
    model: str | None = None
    clean: Text
    corrupted: Text
    bos: bool | None = None
    what: Literal["stream", "attention", "feed_forward", "heads"] = "stream"


class MeaningAsk(_Strict):
    model: str | None = None
    bos: bool | None = None
    word: str = Field(min_length=1, max_length=200)
    texts: list[Text] = Field(min_length=2, max_length=12)


class SizeAsk(_Strict):
    model: str | None = None
    name: str | None = None
    context: int | None = Field(default=None, ge=1)


class RunsAsk(_Strict):
    pass


class RunAsk(_Strict):
    name: str


class RunStepAsk(Ask):
    rate: float | None = Field(default=None, gt=0)
    top: int = Field(default=8, ge=1, le=50)


class ModelsAsk(_Strict):
    pass


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
