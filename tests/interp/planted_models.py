"""Small models into which a circuit is written by hand, so that their true edges are known.

The stream holds one-hot slots: the token, its position, a constant, and some to write into; the unembedding reads the
last. A planted head attends by position or by content and copies one slot into another, a planted feed-forward part
looks a slot up in a table. All other weights are small noise. Where the circuit stands, what it copies and which token
is changed follow from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from glassformer.interp.trace import Trace
from glassformer.model import Config, Transformer, uniform
from glassformer.model.config import Attention, FeedForward

VOCAB, PLACES, SLOTS = 12, 10, 5
TOKEN, AT, ONE = 0, VOCAB, VOCAB + PLACES
OUT = SLOTS - 1
NOISE = 0.02


def slot(number: int) -> int:
    """Where a slot begins in the stream."""
    return VOCAB + PLACES + 1 + number * VOCAB


@dataclass
class Planted:
    """A model, a pair of texts of as many tokens, the two answers, and the edges that carry their difference."""

    transformer: Transformer
    clean: list[int]
    corrupted: list[int]
    answer: int
    wrong: int
    true: set[tuple[str, str]]


class Builder:
    """Writes planted parts into a model of noise."""

    def __init__(self, seed: int, layers: int, noise: float = NOISE) -> None:
        self.draw = random.Random(seed)
        self.groups = self.draw.choice((2, 4))
        width = slot(SLOTS)
        config: Config = uniform(
            VOCAB,
            width,
            layers,
            PLACES,
            Attention(4, self.groups, VOCAB, rotary=None),
            FeedForward(24, gated=False, activation="relu", bias=True),
            learned_positions=True,
        )
        g = torch.Generator().manual_seed(seed)
        self.t = Transformer(config).double().requires_grad_(False)
        for name, p in self.t.named_parameters():
            drawn = torch.randn(p.shape, generator=g, dtype=p.dtype) * noise
            p.copy_(1 + drawn if p.ndim == 1 and not name.endswith("bias") else drawn)
        assert self.t.pos_embed is not None
        assert self.t.unembed is not None
        for weight in (self.t.embed.weight, self.t.pos_embed.weight, self.t.unembed.weight):
            weight.zero_()
        self.t.embed.weight[:, TOKEN : TOKEN + VOCAB] = torch.eye(VOCAB)
        self.t.embed.weight[:, ONE] = 1.0
        self.t.pos_embed.weight[:, AT : AT + PLACES] = torch.eye(PLACES)
        self.t.unembed.weight[:, slot(OUT) : slot(OUT) + VOCAB] = torch.eye(VOCAB)
        self.used: dict[int, set[int]] = {}
        self.true: set[tuple[str, str]] = set()

    def copies(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, read: int, write: int, gain: float = 1.0
    ) -> tuple[str, str]:
        """A head whose query and key are these matrices of the normed stream, and which copies one slot into another;
        names of the head and of its key-value head."""
        size, share = VOCAB, 4 // self.groups
        taken = self.used.setdefault(layer, set())
        head = self.draw.choice([h for h in range(4) if h // share not in taken])
        group = head // share
        taken.add(group)
        part = self.t.blocks[layer].attn
        mine, theirs = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
        part.q.weight[mine], part.k.weight[theirs] = query, key
        part.v.weight[theirs] = 0.0
        part.v.weight[theirs, read : read + VOCAB] = torch.eye(VOCAB, dtype=torch.double)
        part.o.weight[:, mine] = 0.0
        part.o.weight[write : write + VOCAB, mine] = gain / 5 * torch.eye(VOCAB, dtype=torch.double)
        return f"a{layer}.h{head}", f"a{layer}.kv{group}"

    def reads(self, start: int, wide: int = VOCAB, back: int = 0, by: float = 1.6) -> torch.Tensor:
        """A matrix onto a slot's one-hot; `back` moves positions towards the start."""
        out = torch.zeros(VOCAB, slot(SLOTS), dtype=torch.double)
        for i in range(wide - back):
            out[i, start + i + back] = by
        return out

    def constant(self, at: int, by: float = 1.6) -> torch.Tensor:
        """A matrix that asks for the same whatever stands there."""
        out = torch.zeros(VOCAB, slot(SLOTS), dtype=torch.double)
        out[at, ONE] = by
        return out

    def previous(self, layer: int, write: int) -> tuple[str, str]:
        """A head that copies the token before."""
        return self.copies(layer, self.reads(AT, PLACES, back=1), self.reads(AT, PLACES), TOKEN, write)

    def fetch(self, layer: int, place: int, read: int, write: int, gain: float = 1.0) -> tuple[str, str]:
        """A head that copies what stands at one position."""
        return self.copies(layer, self.constant(place), self.reads(AT, PLACES), read, write, gain)

    def table(self, layer: int, read: int, write: int) -> list[int]:
        """A feed-forward part that looks a slot up in a table, which it gives."""
        turned = self.draw.sample(range(VOCAB), VOCAB)
        part = self.t.blocks[layer].mlp
        for weight in (part.up.weight, part.up.bias, part.down.weight, part.down.bias):
            weight.zero_()
        for i, to in enumerate(turned):
            part.up.weight[i, read + i] = 1.0
            part.up.bias[i] = -1.0
            part.down.weight[write + to, i] = 0.5
        return turned

    def edges(self, *names: tuple[str, str]) -> None:
        """True edges."""
        self.true |= set(names)

    def done(self, clean: list[int], corrupted: list[int], answer: int, wrong: int) -> Planted:
        return Planted(self.t, clean, corrupted, answer, wrong, self.true)

    def steps(self, layer: int, read: int, write: int, ids: list[int], of: int) -> list[int]:
        """The same, each entry a step: nothing below nine tenths of what the slot holds of token `of` after this text,
        and no more above."""
        name = f"blocks.{layer}.ln2.normed"
        high = float(Trace(self.t, ids)[name][-1, read + of])
        turned = self.draw.sample(range(VOCAB), VOCAB)
        part = self.t.blocks[layer].mlp
        for weight in (part.up.weight, part.up.bias, part.down.weight, part.down.bias):
            weight.zero_()
        for i, to in enumerate(turned):
            for neuron, (begin, sign) in enumerate(((0.88, 1.0), (0.92, -1.0))):
                part.up.weight[2 * i + neuron, read + i] = 25 / high
                part.up.bias[2 * i + neuron] = -25 * begin
                part.down.weight[write + to, 2 * i + neuron] = sign
        return turned


def text(b: Builder, length: int = 8) -> list[int]:
    """Different tokens."""
    return b.draw.sample(range(VOCAB), length)


def swapped(b: Builder, ids: list[int], at: int) -> list[int]:
    """The text with another token at one position, which does not stand in it."""
    return [b.draw.choice([t for t in range(VOCAB) if t not in ids]) if i == at else id for i, id in enumerate(ids)]


def fetched(b: Builder) -> Planted:
    """One head copies a token into the answer."""
    ids, at = text(b), b.draw.randrange(7)
    head, group = b.fetch(b.draw.randrange(3), at, TOKEN, slot(OUT))
    b.edges(("embed", f"{group}.v"), (head, "logits"))
    other = swapped(b, ids, at)
    return b.done(ids, other, ids[at], other[at])


def looked_up(b: Builder) -> Planted:
    """A head copies a token, a feed-forward part looks it up."""
    ids, at = text(b), b.draw.randrange(7)
    layer = b.draw.randrange(2)
    head, group = b.fetch(layer, at, TOKEN, slot(0))
    later = b.draw.randrange(layer, 3)
    to = b.table(later, slot(0), slot(OUT))
    b.edges(("embed", f"{group}.v"), (head, f"m{later}"), (f"m{later}", "logits"))
    other = swapped(b, ids, at)
    return b.done(ids, other, to[ids[at]], to[other[at]])


def two_hops(b: Builder) -> Planted:
    """A head carries a token one position on, another from there to the end."""
    ids, at = text(b), b.draw.randrange(5)
    first, second = sorted(b.draw.sample(range(3), 2))
    head, group = b.previous(first, slot(0))
    last, others = b.fetch(second, at + 1, slot(0), slot(OUT))
    b.edges(("embed", f"{group}.v"), (head, f"{others}.v"), (last, "logits"))
    other = swapped(b, ids, at)
    return b.done(ids, other, ids[at], other[at])


def _induction(b: Builder, by: float = 1.6) -> tuple[list[int], int, tuple[str, str], tuple[str, str]]:
    ids, at = text(b, 7), b.draw.randrange(1, 4)
    ids.append(ids[at])
    first, second = sorted(b.draw.sample(range(3), 2))
    before = b.previous(first, slot(0))
    mine = b.copies(second, b.reads(TOKEN, by=by), b.reads(slot(0), by=by), TOKEN, slot(OUT))
    return ids, at, before, mine


def induction_by_key(b: Builder) -> Planted:
    """What followed the same token before; what stood before it changes."""
    ids, at, (head, group), (mine, own) = _induction(b)
    other = swapped(b, ids, at)
    b.edges(("embed", f"{group}.v"), (head, f"{own}.k"), (mine, "logits"))
    return b.done(ids, other, ids[at + 1], ids[-2])


def induction_by_value(b: Builder) -> Planted:
    """The same; what followed changes."""
    ids, at, _, (mine, own) = _induction(b)
    other = swapped(b, ids, at + 1)
    b.edges(("embed", f"{own}.v"), (mine, "logits"))
    return b.done(ids, other, ids[at + 1], other[at + 1])


def induction_by_query(b: Builder) -> Planted:
    """The same; the token that is looked for changes."""
    ids, at, _, (mine, _) = _induction(b)
    to = at + 2
    other = [*ids[:-1], ids[to]]
    b.edges(("embed", f"{mine}.q"), (mine, "logits"))
    return b.done(ids, other, ids[at + 1], ids[to + 1])


def in_parallel(b: Builder) -> Planted:
    """Two heads copy one token into the answer."""
    ids, at = text(b), b.draw.randrange(7)
    for layer in b.draw.sample(range(3), 2):
        head, group = b.fetch(layer, at, TOKEN, slot(OUT), 0.7)
        b.edges(("embed", f"{group}.v"), (head, "logits"))
    other = swapped(b, ids, at)
    return b.done(ids, other, ids[at], other[at])


def held_back(b: Builder) -> Planted:
    """A head copies a token, and a later one writes half of it back."""
    ids, at = text(b), b.draw.randrange(7)
    first, second = sorted(b.draw.sample(range(3), 2))
    head, group = b.fetch(first, at, TOKEN, slot(OUT))
    last, own = b.fetch(second, 7, slot(OUT), slot(OUT), -0.5)
    b.edges(("embed", f"{group}.v"), (head, "logits"), (head, f"{own}.v"), (last, "logits"))
    other = swapped(b, ids, at)
    return b.done(ids, other, ids[at], other[at])


def stepped(b: Builder) -> Planted:
    """A head copies a token, a feed-forward part looks it up, and answers by a step: flat where the clean run stands,
    flat where the corrupted one does."""
    ids, at = text(b), b.draw.randrange(7)
    layer = b.draw.randrange(2)
    head, group = b.fetch(layer, at, TOKEN, slot(0))
    later = b.draw.randrange(layer, 3)
    to = b.steps(later, slot(0), slot(OUT), ids, ids[at])
    b.edges(("embed", f"{group}.v"), (head, f"m{later}"), (f"m{later}", "logits"))
    other = swapped(b, ids, at)
    return b.done(ids, other, to[ids[at]], to[other[at]])


def switched(b: Builder) -> Planted:
    """Induction by a head so sharp that it looks at one place or the other and never at both; the token that is looked
    for changes."""
    ids, at, _, (mine, _) = _induction(b, by=8.0)
    to = at + 2
    other = [*ids[:-1], ids[to]]
    b.edges(("embed", f"{mine}.q"), (mine, "logits"))
    return b.done(ids, other, ids[at + 1], ids[to + 1])


# In these no slope says what the whole change does.
HARD: dict[str, Callable[[Builder], Planted]] = {f.__name__: f for f in (stepped, switched)}
KINDS: dict[str, Callable[[Builder], Planted]] = {
    f.__name__: f
    for f in (
        fetched,
        looked_up,
        two_hops,
        induction_by_key,
        induction_by_value,
        induction_by_query,
        in_parallel,
        held_back,
    )
}


def planted(kind: str, seed: int, noise: float = NOISE) -> Planted:
    """A model of a kind, its other weights normal with this deviation."""
    return (KINDS | HARD)[kind](Builder(seed, 3, noise))


def auroc(size: torch.Tensor, true: torch.Tensor) -> float:
    """The share of (true, other) pairs of edges of which the true one is larger."""
    above = size[true][:, None] - size[~true][None]
    return float(((above > 0).double() + 0.5 * (above == 0)).mean())
