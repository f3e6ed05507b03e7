"""Meaning: one word's vector in several texts, layer by layer.

At the embedding a word's vector is the same in every text; attention then brings in what stands around
it, and the vectors part. A word of several tokens is read at its last token, where attention has seen
the others; the answer says so. Knows traces and positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import TextError, UsageError

if TYPE_CHECKING:
    from glassformer.inspect.trace import Trace


@dataclass(frozen=True)
class Meaning:
    """One word in several contexts.

    Attributes:
        word: as asked for; texts: tokens of each text; positions: of the word in each (its last token).
        pieces: how many tokens the word is in each text.
        places: "embed", then each layer's "resid_mid" (where there is one) and "resid_post".
        similarity: (place, text, text) cosine of the word's vectors.
        added: (layer, text, 2) length of what attention and feed-forward added at the word.
        parted: (layer, 2) how much each part lowered the mean cosine between texts, by attention and feed-forward.
    """

    word: str
    texts: list[list[str]]
    positions: list[int]
    pieces: list[int]
    places: list[str]
    similarity: Float[Tensor, "place text text"]
    added: Float[Tensor, "layer text part"]
    parted: Float[Tensor, "layer part"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "word": self.word,
            "texts": [
                {"tokens": tokens, "position": position, "pieces": pieces}
                for tokens, position, pieces in zip(self.texts, self.positions, self.pieces, strict=True)
            ],
            "places": self.places,
            "similarity": self.similarity.tolist(),
            "added": self.added.tolist(),
            "parted": self.parted.tolist(),
        }


def find(trace: Trace, word: str, occurrence: int = -1) -> tuple[int, int]:
    """Position of a word's last token in a traced text, and how many tokens it is.

    Args:
        occurrence: which one, when it comes several times; the last by default.

    Raises:
        TextError: when the word is not there, naming the words that are.
    """
    wanted = word.strip().casefold()
    hits = [w for w in trace.words if w.text.casefold() == wanted]
    if not hits:
        there = ", ".join(dict.fromkeys(w.text for w in trace.words if not w.special and w.text.strip()))
        raise TextError(
            f"The word {word.strip()!r} is not in “{''.join(trace.tokens)[:80]}”; its words are {there[:200]}."
        )
    if not -len(hits) <= occurrence < len(hits):
        raise TextError(f"{word.strip()!r} comes {len(hits)} times in the text; there is no occurrence {occurrence}.")
    return hits[occurrence].positions[-1], len(hits[occurrence].positions)


@torch.no_grad()
def vectors(trace: Trace, position: int) -> tuple[list[str], Float[Tensor, "place d_model"]]:
    """The residual stream at one position, at every half-step, with the places' names."""
    names = ["embed"]
    for layer in range(trace.config.n_layers):
        if not trace.config.parallel:
            names.append(f"blocks.{layer}.resid_mid")
        names.append(f"blocks.{layer}.resid_post")
    at = slice(position, position + 1)
    return names, torch.stack([trace.forward.get(name, at)[0, 0].double() for name in names])


@torch.no_grad()
def meaning(word: str, traces: Sequence[Trace], occurrence: int = -1) -> Meaning:
    """Compare a word's vectors across texts.

    Raises:
        UsageError: for fewer than two texts.
        TextError: when the word is missing from one of them.
    """
    if not word.strip():
        raise UsageError("Name the word to compare.")
    if len(traces) < 2:
        raise UsageError("A word's meaning is compared between texts; give at least two.")
    found = [find(trace, word, occurrence) for trace in traces]
    streams: list[Tensor] = []
    places: list[str] = []
    for trace, (position, _) in zip(traces, found, strict=True):
        places, stream = vectors(trace, position)
        streams.append(stream)
    x = F.normalize(torch.stack(streams, 1), dim=-1)
    similarity = x @ x.transpose(1, 2)
    added = torch.zeros(traces[0].config.n_layers, len(traces), 2, dtype=torch.float64)
    for i, (trace, (at, _)) in enumerate(zip(traces, found, strict=True)):
        for layer in range(trace.config.n_layers):
            for j, part in enumerate(("attn.out", "mlp.out")):
                added[layer, i, j] = trace.at(f"blocks.{layer}.{part}", at).double().norm()
    return Meaning(
        word=word.strip(),
        texts=[trace.tokens for trace in traces],
        positions=[at for at, _ in found],
        pieces=[n for _, n in found],
        places=places,
        similarity=similarity.cpu(),
        added=added,
        parted=_parted(similarity, traces[0].config.n_layers, traces[0].config.parallel).cpu(),
    )


def _parted(similarity: Tensor, layers: int, parallel: bool) -> Float[Tensor, "layer part"]:
    n = similarity.shape[-1]
    off = ~torch.eye(n, dtype=torch.bool)
    mean = similarity[:, off].mean(-1)
    if parallel:  # both parts read the same stream: their steps cannot be told apart
        steps = mean[:-1] - mean[1:]
        return torch.stack([steps, torch.full_like(steps, float("nan"))], -1)
    steps = mean[:-1] - mean[1:]
    return steps.view(layers, 2)


@dataclass(frozen=True)
class Context:
    """One occurrence of a word in the user's texts, and how close its vector is."""

    similarity: float
    before: str
    word: str
    after: str
    text: int
    position: int


@torch.no_grad()
def nearest(word: str, example: Trace, traces: Sequence[Trace], *, layer: int = -1, k: int = 10) -> list[Context]:
    """Occurrences of a word in the user's texts, by the cosine of their vectors to the example's after a layer."""
    place = f"blocks.{example.layer(layer)}.resid_post"
    at, _ = find(example, word)
    wanted = F.normalize(example.at(place, at).double(), dim=0)
    out = []
    for number, trace in enumerate(traces):
        hits = [w for w in trace.words if w.text.casefold() == word.strip().casefold()]
        for hit in hits:
            x = F.normalize(trace.at(place, hit.positions[-1]).double(), dim=0)
            low, high = hit.positions[0], hit.positions[-1]
            out.append(
                Context(
                    float(x @ wanted),
                    "".join(trace.tokens[max(0, low - 12) : low]),
                    "".join(trace.tokens[low : high + 1]),
                    "".join(trace.tokens[high + 1 : high + 13]),
                    number,
                    high,
                )
            )
    return sorted(out, key=lambda c: -c.similarity)[:k]
