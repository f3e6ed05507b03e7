"""The graph of a model: who adds to the residual stream, who reads it, and every edge between them.

Senders are the embedding, attention heads, other mixers, feed-forward parts or experts. Receivers are each head's
query input (its output gate reads it too), each key-value head's key input and value input, the router's input and each
expert's, every other part's input, and the logits. An edge joins a sender with a receiver that stands downstream of it.
Knows a design and no numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from glassformer.errors import SiteError, UnsupportedError, near
from glassformer.model.choices import Attention, Experts
from glassformer.model.config import Config

MIXER, FEED, LOGITS = 1, 2, 3


@dataclass(frozen=True)
class Receiver:
    """One input read from the stream.

    Attributes:
        layer: None for the logits; place: MIXER, FEED or LOGITS.
        side: "q", "k" or "v" of attention, "router", else "in"; index: head, key-value head, or expert.
        seen: how many senders stand upstream of it; they are the first ones.
    """

    name: str
    layer: int | None
    place: int
    side: str
    index: int
    seen: int

    @property
    def carries(self) -> bool:
        """Whether what it reads at a position is carried on to later ones: keys, values, a recurrence's input."""
        return self.place == MIXER and self.side != "q"


class Graph:
    """Senders, receivers and edges of a design, in the order of the forward.

    Edge number `offset[r] + s` joins sender s with receiver r.

    Attributes:
        senders: names; receivers: see `Receiver`; total: number of edges.
        sent: the senders of a layer's mixer (MIXER) or feed-forward part (FEED), by (layer, place).
        read: the receivers of each place, by (layer, place); those of the logits by (None, LOGITS).
        inputs: per sender, the receivers whose inputs make it what it is.
    """

    def __init__(self, config: Config) -> None:
        if any(layer.norms == "sum" for layer in config.layers):
            raise UnsupportedError(
                "This model norms the sum of stream and part, so what a part adds does not stay in the stream as it "
                "was, and there are no edges to tell apart."
            )
        if any(layer.embedding is not None for layer in config.layers):
            raise UnsupportedError(
                "This model's layers have embeddings of tokens of their own, which read and write the stream and are "
                "not among the parts that edges join; why measures them."
            )
        if any(getattr(layer.mixer, "index", None) is not None for layer in config.layers):
            raise UnsupportedError(
                "In this model an index chooses the keys that a query attends to; it reads the stream beside the heads "
                "and is not among the parts that edges join."
            )
        self.config = config
        self.senders: list[str] = ["embed"]
        self.receivers: list[Receiver] = []
        self.inputs: list[tuple[int, ...]] = [()]
        self.sent: dict[tuple[int, int], range] = {}
        self.read: dict[tuple[int | None, int], range] = {}
        for i, layer in enumerate(config.layers):
            before = len(self.senders)
            if layer.mixer is not None:
                self._mixer(i)
            if layer.feed_forward is not None:
                self._feed(i, before if layer.parallel else len(self.senders))
        self._reads(None, LOGITS, [("logits", "in", 0)], len(self.senders))
        seen = torch.tensor([r.seen for r in self.receivers])
        self.offset: Int[Tensor, " receiver"] = seen.cumsum(0) - seen
        self.total = int(seen.sum())
        self.sender_of: Int[Tensor, " edge"] = torch.cat([torch.arange(r.seen) for r in self.receivers])
        self.receiver_of: Int[Tensor, " edge"] = torch.repeat_interleave(torch.arange(len(self.receivers)), seen)

    def _reads(self, layer: int | None, place: int, named: list[tuple[str, str, int]], seen: int) -> int:
        start = len(self.receivers)
        self.receivers += [Receiver(name, layer, place, side, index, seen) for name, side, index in named]
        self.read[layer, place] = range(start, len(self.receivers))
        return start

    def _sends(self, layer: int, place: int, named: list[str], inputs: Sequence[tuple[int, ...]]) -> None:
        start = len(self.senders)
        self.senders += named
        self.inputs += inputs
        self.sent[layer, place] = range(start, len(self.senders))

    def _mixer(self, layer: int) -> None:
        mixer, seen = self.config.layers[layer].mixer, len(self.senders)
        if not isinstance(mixer, Attention):
            assert mixer is not None
            name = f"{mixer.prefix}{layer}"
            at = self._reads(layer, MIXER, [(name, "in", 0)], seen)
            self._sends(layer, MIXER, [name], [(at,)])
            return
        heads, groups = mixer.n_heads, mixer.n_kv_heads
        named = [(f"a{layer}.h{h}.q", "q", h) for h in range(heads)]
        if mixer.keys_from is None:
            named += [(f"a{layer}.kv{g}.{side}", side, g) for side in "kv" for g in range(groups)]
        at = self._reads(layer, MIXER, named, seen)
        donor = at + heads if mixer.keys_from is None else self.read[mixer.keys_from, MIXER].start + self._heads(layer)
        groups_of = [h // (heads // groups) for h in range(heads)]
        own = [(at + h, donor + g, donor + groups + g) for h, g in enumerate(groups_of)]
        self._sends(layer, MIXER, [f"a{layer}.h{h}" for h in range(heads)], own)

    def _heads(self, layer: int) -> int:
        """How many query inputs stand before the key inputs that this layer shares."""
        donor = self.config.attention(layer).keys_from
        assert donor is not None
        return self.config.attention(donor).n_heads

    def _feed(self, layer: int, seen: int) -> None:
        feed, name = self.config.layers[layer].feed_forward, f"m{layer}"
        if not isinstance(feed, Experts):
            self._sends(layer, FEED, [name], [(self._reads(layer, FEED, [(name, "in", 0)], seen),)])
            return
        experts = [f"{name}.e{e}" for e in range(feed.n_experts)]
        named = experts + ([f"{name}.shared"] if feed.shared else [])
        reading = [(f"{name}.router", "router", 0), *((each, "in", i) for i, each in enumerate(named))]
        router = self._reads(layer, FEED, reading, seen)
        own = [router + 1 + i for i in range(len(named))]
        self._sends(layer, FEED, named, [(router, at) if i < len(experts) else (at,) for i, at in enumerate(own)])

    @property
    def logits(self) -> range:
        """The one receiver that the prediction is read from."""
        return self.read[None, LOGITS]

    def names(self, edge: int) -> tuple[str, str]:
        """Sender and receiver of an edge."""
        return self.senders[int(self.sender_of[edge])], self.receivers[int(self.receiver_of[edge])].name

    def edge(self, sender: str, receiver: str) -> int:
        """The number of an edge.

        Raises:
            SiteError: when there is no such sender, receiver or edge.
        """
        names = [r.name for r in self.receivers]
        for what, name, known in (("adds to", sender, self.senders), ("reads", receiver, names)):
            if name not in known:
                raise SiteError(f"Nothing called {name!r} {what} the stream of this model.{near(name, known)}")
        s, r = self.senders.index(sender), names.index(receiver)
        if s >= self.receivers[r].seen:
            raise SiteError(f"There is no edge from {sender} to {receiver}: it does not stand downstream.")
        return int(self.offset[r]) + s

    def places(self) -> Iterator[tuple[int | None, int, range]]:
        """Every place of the stream that is read: layer, place, its receivers."""
        for (layer, place), which in self.read.items():
            yield layer, place, which

    def edges_of(self, which: range) -> slice:
        """The edges into receivers that stand side by side."""
        last = which[-1]
        return slice(int(self.offset[which[0]]), int(self.offset[last]) + self.receivers[last].seen)
