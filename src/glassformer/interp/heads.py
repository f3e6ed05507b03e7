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

    text previous, text first    as above, over all queries but the first
    text same        mean attention from a word's token to earlier occurrences of the same word
    text induction   mean attention to the tokens that followed the same token earlier

The null is the same measurement, at the same places, on the same tokens shuffled, where no order is left to
find. Knows traces and weights; names nothing that its number does not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glassformer.errors import UsageError
from glassformer.interp.circuits import copying_scores
from glassformer.interp.recording import Recording
from glassformer.interp.trace_run import run
from glassformer.interp.vocabulary import known_ids
from glassformer.system.progress import Progress, quiet

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.interp.vocabulary import Vocabulary
    from glassformer.model import Transformer
    from glassformer.model.sites import Tap

# Queries at a time.
TILE = 256
LENGTH = 50
SHUFFLES = 3
# A head is named by its largest score when that is at least this, and twice every shuffle's.
CLEAR = 0.4
DEFINITIONS: dict[str, str] = {
    "previous": "on a random sequence repeated: mean attention to the token before",
    "first": "on a random sequence repeated: mean attention to the first token (a sink where heads rest)",
    "duplicate": "on a random sequence repeated: mean attention to the same token in the first half",
    "induction": "on a random sequence repeated: mean attention to what followed the same token in the first half",
    "copying": "sum of the real parts of the value-output circuit's eigenvalues over the sum of their sizes",
    "text previous": "on your text: mean attention to the token before",
    "text first": "on your text: mean attention to the first token",
    "text same": "on your text: mean attention to earlier occurrences of the same word",
    "text induction": "on your text: mean attention to what followed the same token earlier",
}
NAMED = ("induction", "duplicate", "previous", "first")
# These follow from positions alone, so shuffling the tokens does not lower them.
POSITIONAL = ("previous", "first", "text previous", "text first")


@dataclass(frozen=True)
class Heads:
    """Scores of every head.

    Attributes:
        scores: by name, (layer, head).
            A score of the text that no place in it can have (no word comes twice) is absent.
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
        """What a head does, or None when no score is clear and above its null.

        The largest clear score; "first" only where nothing else is clear, for heads rest there between their work.
        """
        best: tuple[float, str] | None = None
        for kind in NAMED:
            score = float(self.scores[kind][layer, head])
            # A head that looks a fixed way back scores the same on shuffled tokens: it found no content.
            beats = kind in POSITIONAL or score > 2 * float(self.null[kind][layer, head])
            if score >= CLEAR and beats and (best is None or (score > best[0] and kind != "first")):
                best = (score, kind)
        return None if best is None else best[1]

    def names(self) -> list[list[str | None]]:
        """The names of all heads, (layer, head)."""
        layers, heads = self.scores["previous"].shape
        return [[self.name(layer, head) for head in range(heads)] for layer in range(layers)]

    def ranked(self, kind: str, most: int = 10) -> list[dict[str, Any]]:
        """Heads by one score, with the null beside it.

        Raises:
            UsageError: for a score that is not there.
        """
        if kind not in self.scores:
            raise UsageError(f"There is no score {kind!r} here; there are {', '.join(self.scores)}.{self._why(kind)}")
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

    def _why(self, kind: str) -> str:
        if not kind.startswith("text ") or kind not in DEFINITIONS:
            return ""
        return " It needs a text." if self.tokens is None else " In this text no place has one: nothing comes twice."

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
    tap: Tap | None = None,
    length: int = LENGTH,
    seed: int = 0,
    shuffles: int = SHUFFLES,
    progress: Progress | None = None,
) -> Heads:
    """Score every head of a model.

    Args:
        vocabulary: keeps special tokens, and rows that are no token, out of the random sequence.
        bos: put first when the model's texts begin with it.
        text: a trace of the user's own text, for the scores that need one.
        tap: under which the sequences run; copying is of the weights alone.
        length: of the random sequence; made shorter where twice that does not fit the context or a window.
        seed: of the sequence and the shuffles; shuffles: how many.

    Raises:
        UsageError: for a sequence too short to be repeated, or no shuffle.
    """
    if length < 2 or shuffles < 1:
        raise UsageError("The random sequence needs at least 2 tokens, and at least 1 shuffle.")
    config = transformer.config
    reach = min([config.context, *(w for i in range(config.n_layers) if (w := config.window(i)) is not None)])
    lead = [] if bos is None else [bos]
    generator = torch.Generator().manual_seed(seed)
    left_out = frozenset(lead) if vocabulary is None else frozenset([*lead, *vocabulary.special_ids])
    known = frozenset(known_ids(vocabulary, config.vocab_size)) - left_out
    drawn = [i for i in torch.randperm(config.vocab_size, generator=generator).tolist() if i in known]
    drawn = drawn[: max(0, min(length, (reach - len(lead)) // 2))]
    n = len(drawn)
    if n < 2:
        raise UsageError(f"This model sees {reach} positions, too few to repeat a sequence in.")
    steps = shuffles * (1 if text is None else 2) + 2
    done = 0
    say = progress or quiet

    def traced(ids: list[int]) -> Recording:
        return run(transformer, [ids], len(ids), tap)

    def step() -> None:
        nonlocal done
        done += 1
        say(done, steps, "measuring heads")

    say(0, steps, "measuring heads")
    scores = _repeated(traced([*lead, *drawn, *drawn]), n, len(lead))
    step()
    nulls = []
    for _ in range(shuffles):
        mixed = [(drawn + drawn)[j] for j in torch.randperm(2 * n, generator=generator).tolist()]
        nulls.append(_repeated(traced([*lead, *mixed]), n, len(lead)))
        step()
    null = _largest(nulls)
    scores["copying"] = copying_scores(transformer)
    step()
    if text is not None:
        places = _places(text)
        scores |= _on_text(text.forward, places)
        keep = 1 if lead and text.ids[0] == bos else 0
        nulls = []
        for _ in range(shuffles):
            order = torch.randperm(len(text) - keep, generator=generator).tolist()
            mixed = [*text.ids[:keep], *(text.ids[keep + j] for j in order)]
            nulls.append(_on_text(traced(mixed), places))
            step()
        null |= _largest(nulls)
    return Heads(scores, null, n, seed, shuffles, None if text is None else len(text))


def _largest(nulls: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {kind: torch.stack([one[kind] for one in nulls]).amax(0) for kind in nulls[0]}


def _repeated(forward: Recording, n: int, lead: int) -> dict[str, Float[Tensor, "layer head"]]:
    rows: dict[str, list[Tensor]] = {"previous": [], "first": [], "duplicate": [], "induction": []}
    q = torch.arange(lead + n, lead + 2 * n)
    for layer in range(forward.config.n_layers):
        if not forward.config.n_heads(layer):
            for each in rows.values():
                each.append(torch.zeros(forward.config.most_heads))
            continue
        grid = _pattern(forward, layer, slice(None))
        for kind, keys in (("previous", q - 1), ("first", q * 0), ("duplicate", q - n), ("induction", q - n + 1)):
            rows[kind].append(grid[:, q, keys].mean(-1))
    return {kind: torch.stack(each) for kind, each in rows.items()}


@torch.no_grad()
def _pattern(forward: Recording, layer: int, queries: slice) -> Float[Tensor, "head query key"]:
    """A layer's grid, with rows of zeros for heads that other layers have and this one has not."""
    grid = forward.grid(layer, f"{forward.prefix(layer)}.pattern", None, queries, slice(None))[0].float().cpu()
    return torch.nn.functional.pad(grid, (0, 0, 0, 0, 0, forward.config.most_heads - len(grid)))


def _places(trace: Trace) -> dict[str, Bool[Tensor, "query key"]]:
    """Which keys count for each query, by score; rows without any are not averaged over."""
    n = len(trace)
    grids = {kind: torch.zeros(n, n, dtype=torch.bool) for kind in DEFINITIONS if kind.startswith("text ")}
    queries = torch.arange(1, n)
    grids["text previous"][queries, queries - 1] = True
    grids["text first"][queries, 0] = True
    earlier: dict[str, list[int]] = {}
    for word in trace.words:
        name = word.text.casefold()
        if word.special or (trace.vocabulary is not None and not any(map(str.isalnum, name))):
            continue
        for at in word.positions:
            grids["text same"][at, earlier.get(name, [])] = True
        earlier.setdefault(name, []).extend(word.positions)
    seen: dict[int, list[int]] = {}
    for at, id in enumerate(trace.ids):
        grids["text induction"][at, [p + 1 for p in seen.get(id, []) if p + 1 < at]] = True
        seen.setdefault(id, []).append(at)
    return {kind: grid for kind, grid in grids.items() if grid.any()}


def _on_text(forward: Recording, places: dict[str, Tensor]) -> dict[str, Float[Tensor, "layer head"]]:
    """Mean attention to the places, over the queries that have one."""
    shape = (forward.config.n_layers, forward.config.most_heads)
    out = {kind: torch.zeros(shape) for kind in places}
    for layer in range(shape[0]):
        if not forward.config.n_heads(layer):
            continue
        for low in range(0, forward.length, TILE):
            tile = _pattern(forward, layer, slice(low, low + TILE))
            for kind, grid in places.items():
                out[kind][layer] += (tile * grid[low : low + TILE]).sum((1, 2))
    return {kind: x / places[kind].any(1).sum() for kind, x in out.items()}
