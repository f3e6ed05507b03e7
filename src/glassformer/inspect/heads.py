"""What heads do: scores with their definitions, evidence and a null, and names where a score is clear.

On a random sequence of tokens that is then repeated (no head can know it from training), at query q of
the second half, with n tokens in the sequence:

    previous    mean pattern[q, q−1]
    first       mean pattern[q, 0]: the sink where heads rest
    duplicate   mean pattern[q, q−n]: the same token, earlier
    induction   mean pattern[q, q−n+1]: what followed the same token earlier (arXiv:2209.11895)
    copying     Σ Re λ / Σ |λ| of the head's value-output circuit between embedding and unembedding: near 1
                when attending to a token raises that token (transformer-circuits.pub/2021/framework)

and on the user's own text

    same        mean attention from a token to its own earlier occurrences, over queries that have one

The null is the same measurement on the same tokens shuffled, where no order is left to find. Knows
traces and weights; names nothing that its number does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.inspect.circuits import copying_scores

if TYPE_CHECKING:
    from glassformer.inspect.trace import Trace
    from glassformer.inspect.vocabulary import Vocabulary
    from glassformer.model import Transformer

LENGTH = 50
SHUFFLES = 3
# A head is named by its largest score when that is at least this, and above every shuffle's.
CLEAR = 0.4
DEFINITIONS: dict[str, str] = {
    "previous": "mean attention to the token before",
    "first": "mean attention to the first token (a sink where heads rest)",
    "duplicate": "on a random sequence repeated: mean attention to the same token in the first half",
    "induction": "on a random sequence repeated: mean attention to what followed the same token in the first half",
    "copying": "sum of the real parts of the value-output circuit's eigenvalues over the sum of their sizes",
    "same": "on your text: mean attention to earlier occurrences of the same token",
}
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Heads:
    """Scores of every head.

    Attributes:
        scores: by name, (layer, head).
        null: by name, (layer, head): the largest score over the shuffles; copying has none.
        length, seed, shuffles: of the random sequence. tokens: how long the user's text was, None without one.
    """

    scores: dict[str, Float[Tensor, "layer head"]]
    null: dict[str, Float[Tensor, "layer head"]]
    length: int
    seed: int
    shuffles: int
    tokens: int | None = None
    definitions: dict[str, str] = field(default_factory=lambda: dict(DEFINITIONS))

    def name(self, layer: int, head: int) -> str | None:
        """What a head mostly does, or None when no score is clear and above its null."""
        best: tuple[float, str] | None = None
        for kind in ("induction", "duplicate", "previous", "first"):
            score = float(self.scores[kind][layer, head])
            # Position-only heads score the same on shuffled text: the null says something of content only.
            beats = kind in ("previous", "first") or score > float(self.null[kind][layer, head])
            if score >= CLEAR and beats and (best is None or score > best[0]):
                best = (score, kind)
        return None if best is None else best[1]

    def names(self) -> list[list[str | None]]:
        """The names of all heads, (layer, head)."""
        layers, heads = self.scores["previous"].shape
        return [[self.name(layer, head) for head in range(heads)] for layer in range(layers)]

    def ranked(self, kind: str, most: int = 10) -> list[dict[str, Any]]:
        """Heads by one score, with the null beside it."""
        if kind not in self.scores:
            raise UsageError(f"There is no score {kind!r}; there are {', '.join(self.scores)}.")
        grid = self.scores[kind]
        order = grid.flatten().argsort(descending=True)[:most].tolist()
        heads = grid.shape[1]
        return [
            {
                "layer": i // heads,
                "head": i % heads,
                "score": float(grid.flatten()[i]),
                "null": float(self.null[kind].flatten()[i]) if kind in self.null else None,
            }
            for i in order
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "length": self.length,
            "seed": self.seed,
            "shuffles": self.shuffles,
            "tokens": self.tokens,
            "definitions": {k: v for k, v in self.definitions.items() if k in self.scores},
            "scores": {k: v.tolist() for k, v in self.scores.items()},
            "null": {k: v.tolist() for k, v in self.null.items()},
            "names": self.names(),
        }


@torch.no_grad()
def head_scores(
    transformer: Transformer,
    *,
    vocabulary: Vocabulary | None = None,
    bos: int | None = None,
    text: Trace | None = None,
    length: int = LENGTH,
    seed: int = 0,
    shuffles: int = SHUFFLES,
    progress: Progress | None = None,
) -> Heads:
    """Score every head of a model.

    Args:
        vocabulary: keeps special tokens out of the random sequence.
        bos: put first when the model's texts begin with it.
        text: a trace of the user's own text, for the scores that need one.
        length: of the random sequence; made shorter where twice that does not fit the context or a window.
        seed: of the sequence and the shuffles; shuffles: how many.
    """
    from glassformer.inspect.trace import Trace as Traced

    if length < 2 or shuffles < 1:
        raise UsageError("The random sequence needs at least 2 tokens, and at least 1 shuffle.")
    config = transformer.config
    reach = min([config.context, *(w for w in config.attention.windows if w is not None)])
    lead = [] if bos is None else [bos]
    n = min(length, (reach - len(lead)) // 2, config.vocab_size)
    if n < 2:
        raise UsageError(f"This model sees {reach} positions, too few to repeat a sequence in.")
    generator = torch.Generator().manual_seed(seed)
    special = frozenset() if vocabulary is None else frozenset(vocabulary.special_ids)
    drawn = [i for i in torch.randperm(config.vocab_size, generator=generator).tolist() if i not in special][:n]
    n = len(drawn)
    say = progress or (lambda done, total, what: None)
    say(0, shuffles + 2, "measuring heads")
    scores = _repeated(Traced(transformer, [*lead, *drawn, *drawn]), n, len(lead))
    nulls = []
    for i in range(shuffles):
        mixed = [(drawn + drawn)[j] for j in torch.randperm(2 * n, generator=generator).tolist()]
        nulls.append(_repeated(Traced(transformer, [*lead, *mixed]), n, len(lead)))
        say(i + 1, shuffles + 2, "measuring heads")
    null = {kind: torch.stack([one[kind] for one in nulls]).amax(0) for kind in scores}
    scores["copying"] = copying_scores(transformer)
    tokens = None
    if text is not None:
        tokens = len(text)
        scores["same"] = same_token(text)
    return Heads(scores, null, n, seed, shuffles, tokens)


def _repeated(trace: Trace, n: int, lead: int) -> dict[str, Float[Tensor, "layer head"]]:
    rows: dict[str, list[Tensor]] = {"previous": [], "first": [], "duplicate": [], "induction": []}
    q = torch.arange(lead + n, lead + 2 * n)
    for layer in range(trace.config.n_layers):
        grid = trace.pattern(layer).float()
        for kind, keys in (("previous", q - 1), ("first", q * 0), ("duplicate", q - n), ("induction", q - n + 1)):
            rows[kind].append(grid[:, q, keys].mean(-1))
    return {kind: torch.stack(each).cpu() for kind, each in rows.items()}


@torch.no_grad()
def same_token(trace: Trace) -> Float[Tensor, "layer head"]:
    """Mean attention from a token to its own earlier occurrences; NaN where no token comes twice."""
    ids: Sequence[int] = trace.ids
    earlier: dict[int, list[int]] = {}
    pairs: list[tuple[int, list[int]]] = []
    for at, id in enumerate(ids):
        if id in earlier:
            pairs.append((at, list(earlier[id])))
        earlier.setdefault(id, []).append(at)
    shape = (trace.config.n_layers, trace.config.attention.n_heads)
    if not pairs:
        return torch.full(shape, float("nan"))
    out = torch.zeros(shape)
    for layer in range(shape[0]):
        for at, keys in pairs:
            out[layer] += trace.pattern(layer, queries=at)[:, keys].float().sum(-1).cpu()
    return out / len(pairs)
