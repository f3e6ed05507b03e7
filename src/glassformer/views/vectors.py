"""Vectors: the embedding table as a cloud in a named plane, and sums of words with their rate of success."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.tokenizer.spelling import spelled_alone
from glassformer.views.arrays import packed
from glassformer.views.asks import Strict, Text
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session

# Pairs that stand in one relation, by relation; every two pairs of a relation are a question.
RELATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "man to woman": (("man", "woman"), ("king", "queen"), ("boy", "girl"), ("father", "mother"), ("son", "daughter")),
    "country to capital": (("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Spain", "Madrid")),
    "one to many": (("dog", "dogs"), ("car", "cars"), ("house", "houses"), ("tree", "trees"), ("book", "books")),
    "now to then": (("go", "went"), ("see", "saw"), ("take", "took"), ("give", "gave"), ("come", "came")),
    "more": (("big", "bigger"), ("small", "smaller"), ("fast", "faster"), ("strong", "stronger")),
}


class CloudAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    text: Text = Field(default="", description="Text whose tokens are lit.")
    plane: list[str] = Field(
        default=[], max_length=3, description="Three words whose plane is shown; none for the principal axes."
    )
    words: list[str] = Field(default=[], max_length=12, description="More words to place.")
    count: int = Field(default=5000, ge=10, le=20_000, description="Tokens in the cloud, at most.")


def _table(model: Model) -> Float[Tensor, "vocab d_model"]:
    return model.transformer.embed.weight.detach()


def _word(model: Model, word: str) -> Float[Tensor, " d_model"]:
    """A word's vector: its token's row with a space before it, or the mean of its tokens' rows."""
    from glassformer.predict.neighbours import term

    if not word.strip():
        raise UsageError("A word of the plane is empty; give three words, or none for the principal axes.")
    found = term(model.tokenizer, word.strip(), 1, len(_table(model)))
    return _table(model)[list(found.ids)].double().mean(0)


def _axes(
    points: Float[Tensor, "token d_model"], corners: list[Float[Tensor, " d_model"]]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "axis d_model"]]:
    """Origin and orthonormal axes: of the plane through three points, or the three principal ones."""
    if not corners:
        centre = points.mean(0)
        _, vectors = torch.linalg.eigh((points - centre).T @ (points - centre))
        return centre, vectors.flip(1)[:, :3].T
    first = corners[1] - corners[0]
    second = corners[2] - corners[0]
    one = first / first.norm()
    rest = second - (second @ one) * one
    if first.norm() < 1e-9 or rest.norm() < 1e-6 * second.norm():
        raise UsageError("The three words lie on one line, so there is no plane through them; choose others.")
    return corners[0], torch.stack([one, rest / rest.norm()])


@view(
    "cloud",
    CloudAsk,
    room="vectors",
    report=lambda draft: _cloud_of(draft),
    trims=("count",),
)
def cloud(session: Session, ask: CloudAsk, check: Check) -> Json:
    """Rows of the embedding matrix laid onto a plane or three axes, and what share of their variance that shows."""
    model = session.model(ask.model)
    table, tokenizer = _table(model), model.tokenizer
    if len(ask.plane) not in (0, 3):
        raise UsageError(f"A plane goes through three words; got {len(ask.plane)}.")
    # Whole words first: a tokenizer's earlier tokens are its more frequent ones.
    listed = [i for i in range(min(len(table), tokenizer.vocab_size)) if i not in tokenizer.special_ids]
    wordlike = [i for i in listed if (t := tokenizer.token_text(i)).startswith(" ") and t[1:].isalpha()]
    chosen = (wordlike if len(wordlike) >= min(ask.count, 100) else listed)[: ask.count]
    points = table[chosen].double().cpu()
    check()
    origin, axes = _axes(points, [_word(model, word).cpu() for word in ask.plane])

    def placed(x: Tensor) -> Tensor:
        return (x.double().cpu() - origin) @ axes.T

    spread = points - points.mean(0)
    shares = (spread @ axes.T).pow(2).sum(0) / spread.pow(2).sum()
    ids = model.ids(ask.text) if ask.text else []
    at = dict.fromkeys([*ask.plane, *ask.words])
    return {
        "model": model.name,
        "count": len(chosen),
        "vocabulary": len(table),
        "width": table.shape[1],
        "shares": shares.tolist(),
        "points": packed(placed(points)),
        "ids": chosen,
        "tokens": spelled_alone(tokenizer, chosen),
        "lit": [{"id": i, "token": spelled_alone(tokenizer, [i])[0], "at": placed(table[i]).tolist()} for i in ids],
        "words": [{"word": word, "at": placed(_word(model, word)).tolist()} for word in at],
    }


def _cloud_of(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    return draft.kept("cloud", count=1500, words=["king", "man", "woman"])


class SumAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")
    words: str = Field(default="king - man + woman", min_length=1, max_length=300, description="Words with signs.")
    top: int = Field(default=8, ge=1, le=50, description="Nearest tokens listed.")
    matrix: Literal["embedding", "unembedding"] = Field(default="embedding", description="Which table is searched.")


@view(
    "sum", SumAsk, room="vectors", report=lambda draft: draft.kept("sum"), trims=("top",),
    python="model.neighbours({words!r}, k={top})",
)  # fmt: skip
def word_sum(session: Session, ask: SumAsk, check: Check) -> Json:
    """The tokens nearest to a sum of words, by cosine."""
    return session.model(ask.model).neighbours(ask.words, k=ask.top, matrix=ask.matrix).to_json()


class RateAsk(Strict):
    model: str | None = Field(default=None, description="Model, as it was opened; by default the current one.")


@view("sums", RateAsk, room="vectors", report=lambda draft: draft.kept("sums"))
def rate(session: Session, ask: RateAsk, check: Check) -> Json:
    """How often a − b + c is nearest to the right word, over a built-in list of relations.

    A question counts when all four words are single tokens; the three that are given are left out of the answer, as
    is usual, and `naive` says how often the right one is nearest with them in.
    """
    model = session.model(ask.model)
    tokenizer, table = model.tokenizer, _table(model).double()
    unit = table / table.norm(dim=1, keepdim=True).clamp(min=1e-12)
    out: list[Json] = []
    for relation, pairs in RELATIONS.items():
        check()
        ids = [[tokenizer.id_of(f" {word}") for word in pair] for pair in pairs]
        known = [(a, b) for a, b in ids if a is not None and b is not None]
        asked = [(a, b, c, d) for a, b in known for c, d in known if a != c]
        right = naive = 0
        if asked:
            sums = torch.stack([unit[b] - unit[a] + unit[c] for a, b, c, _ in asked])
            near = sums @ unit.T
            naive = sum(int(row.argmax()) == d for row, (_, _, _, d) in zip(near, asked, strict=True))
            for row, (a, b, c, d) in zip(near, asked, strict=True):
                row[[a, b, c]] = -torch.inf
                right += int(row.argmax()) == d
        example = pairs[:2]
        out.append({"relation": relation, "asked": len(asked), "right": right, "naive": naive, "example": example})
    counted = {name: sum(int(one[name]) for one in out) for name in ("asked", "right", "naive")}
    return {"model": model.name, "relations": out, **counted}
