"""Meaning: one word's vector in several texts, layer by layer.

At the embedding a word's vector is the same in every text; attention then brings in what stands around
it, and the vectors part. A word of several tokens is read at its last token, where attention has seen
the others; the answer says so. Knows traces and positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import TextError, UsageError

if TYPE_CHECKING:
    from glassformer.interp.token_words import Word
    from glassformer.interp.trace import Trace
    from glassformer.interp.traced import Traced
    from glassformer.model import Config


@dataclass(frozen=True)
class Meaning:
    """One word in several contexts.

    Attributes:
        word: as asked for; texts: tokens of each text; positions: of the word in each (its last token).
        pieces: how many tokens the word is in each text.
        ids: the word's token ids in each text; where they differ, so do the vectors at the embedding.
        places: "embed" (and "blocks.0.resid_pre", where learned positions are added to it), then each layer's
            "resid_mid" (where there is one) and "resid_post".
        vectors: (place, text, d_model) the word's vectors, in double precision.
        similarity: (place, text, text) cosine of the word's vectors.
        added: (layer, text, 2) length of what attention and feed-forward added at the word.
        parted: (layer, 2) how much attention and feed-forward lowered the mean cosine between texts; where they run
            side by side their steps cannot be told apart, and the first is both, the second not a number.
    """

    word: str
    texts: list[list[str]]
    positions: list[int]
    ids: list[list[int]]
    places: list[str]
    vectors: Float[Tensor, "place text d_model"]
    similarity: Float[Tensor, "place text text"]
    added: Float[Tensor, "layer text part"]
    parted: Float[Tensor, "layer part"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "word": self.word,
            "texts": [
                {"tokens": tokens, "position": position, "pieces": len(ids), "ids": ids}
                for tokens, position, ids in zip(self.texts, self.positions, self.ids, strict=True)
            ],
            "places": self.places,
            "similarity": self.similarity.tolist(),
            "added": self.added.tolist(),
            "parted": [[None if x != x else x for x in row] for row in self.parted.tolist()],
        }

    @property
    def mean(self) -> list[float]:
        """At each place, the mean cosine over pairs of texts."""
        n = self.similarity.shape[-1]
        off = ~torch.eye(n, dtype=torch.bool)
        return [float(x) for x in self.similarity[:, off].mean(-1)]


def find(trace: Traced, word: str, occurrence: int = -1) -> tuple[int, ...]:
    """Positions of a word's tokens in a traced text.

    Args:
        occurrence: which one, when it comes several times; the last by default.

    Raises:
        TextError: when the word is not there, naming the words that are.
    """
    hits = _hits(trace, word)
    if not hits:
        there = ", ".join(dict.fromkeys(w.text for w in trace.words if not w.special and w.text.strip()))
        raise TextError(
            f"The word {word.strip()!r} is not in “{''.join(trace.tokens)[:80]}”; its words are {there[:200]}."
        )
    if not -len(hits) <= occurrence < len(hits):
        raise TextError(f"{word.strip()!r} comes {len(hits)} times in the text; there is no occurrence {occurrence}.")
    return hits[occurrence].positions


def _hits(trace: Traced, word: str) -> list[Word]:
    wanted = word.strip().casefold()
    return [w for w in trace.words if w.text.casefold() == wanted and not w.special]


@torch.no_grad()
def vectors(trace: Trace, position: int) -> tuple[list[str], Float[Tensor, "place d_model"]]:
    """The residual stream at one position, at every half-step, with the places' names."""
    at = slice(position, position + 1)
    found = [("embed", trace.forward.get("embed", at))]
    learned = trace.config.adds_positions
    for name, x in trace.forward.walk(at):
        if name.endswith(("resid_late", "resid_active")):
            continue
        x = trace.transformer.gathered(x)
        if not name.endswith("resid_pre") or (learned and name == "blocks.0.resid_pre"):
            found.append((name, x))
    return [name for name, _ in found], torch.stack([x[0, 0].double().cpu() for _, x in found])


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
    for trace, where in zip(traces, found, strict=True):
        places, stream = vectors(trace, where[-1])
        streams.append(stream)
    gathered = torch.stack(streams, 1)
    x = F.normalize(gathered, dim=-1)
    similarity = x @ x.transpose(1, 2)
    added = torch.zeros(traces[0].config.n_layers, len(traces), 2, dtype=torch.float64)
    for i, (trace, where) in enumerate(zip(traces, found, strict=True)):
        for layer in range(trace.config.n_layers):
            choice = trace.config.layers[layer]
            for j, own in enumerate((choice.mixer, choice.feed_forward)):
                if own is None:
                    continue
                part = f"{own.prefix}.out"
                added[layer, i, j] = trace.at(f"blocks.{layer}.{part}", where[-1]).double().norm()
    return Meaning(
        word=word.strip(),
        texts=[trace.tokens for trace in traces],
        positions=[where[-1] for where in found],
        ids=[[trace.ids[p] for p in where] for trace, where in zip(traces, found, strict=True)],
        places=places,
        vectors=gathered,
        similarity=similarity,
        added=added,
        parted=_parted(similarity, traces[0].config),
    )


def _parted(similarity: Tensor, config: Config) -> Float[Tensor, "layer part"]:
    off = ~torch.eye(similarity.shape[-1], dtype=torch.bool)
    mean = similarity[:, off].mean(-1)
    if config.adds_positions:
        mean = mean[1:]  # adding positions is no layer's doing
    steps = mean[:-1] - mean[1:]
    out = torch.full((config.n_layers, 2), float("nan"), dtype=steps.dtype)
    at = 0
    for i, layer in enumerate(config.layers):
        # one step for parts side by side, or a layer of one part; else one for each
        places = [0, 1] if layer.mixer is not None and layer.feed_forward is not None and not layer.parallel else [0]
        if layer.mixer is None:
            places = [1]
        for place in places:
            out[i, place] = steps[at]
            at += 1
    return out


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
def nearest(
    word: str, example: Trace, traces: Iterable[Trace], *, occurrence: int = -1, layer: int = -1, k: int = 10
) -> list[Context]:
    """Occurrences of a word in the user's texts, by the cosine of their vectors to the example's after a layer."""
    place = f"blocks.{example.layer(layer)}.resid_post"
    at = find(example, word, occurrence)[-1]
    wanted = F.normalize(example.at(place, at).double(), dim=0)
    out = []
    for number, trace in enumerate(traces):
        for hit in _hits(trace, word):
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
