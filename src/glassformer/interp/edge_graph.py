"""The graph of a model: who adds to the residual stream, who reads it, and every edge between them.

Senders are the embedding, attention heads, other mixers, feed-forward parts or experts, and layers' own embeddings of
tokens. Receivers are each head's query input (its output gate reads it too), each key-value head's key input and value
input, an index's input, the router's input and each expert's, the token's own vector in a layer, every other part's
input, and the logits. An edge joins a sender with a receiver that stands downstream of it.

Where a design makes the stream anew, what makes it is a part as well: it reads everything since the last time, and what
comes later reads from it on. Such are norms of the sum of stream and part, and, of streams in copies, each layer's
prediction and correction of them. Knows a design and no numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from glassformer.errors import SiteError, near
from glassformer.model.choices import Attention, Experts
from glassformer.model.config import Config, Layer

# Places of a layer, and the end: its parts by their numbers in the block; the norm of the stream with what the mixer
# and the feed-forward part added; the token's own vector; the prediction of copies, what stands beside the mixer
# there, and their correction.
MIXER, FEED, OWN, NORMED_MIXER, NORMED_FEED, TOKEN, PREDICTED, BESIDE, CORRECTED, LOGITS = range(1, 11)
# After these the stream is what they send.
ANEW = (NORMED_MIXER, NORMED_FEED, PREDICTED, CORRECTED)


@dataclass(frozen=True)
class Receiver:
    """One input read from the stream.

    Attributes:
        layer: None for the logits; place: MIXER, FEED, …, LOGITS.
        side: "q", "k", "v" or "index" of attention, "router", else "in"; index: head, key-value head, or expert.
        since, seen: the senders that it reads are those from number `since` up to, and without, number `seen`.
    """

    name: str
    layer: int | None
    place: int
    side: str
    index: int
    since: int
    seen: int

    @property
    def reads(self) -> int:
        """How many senders it reads."""
        return self.seen - self.since

    @property
    def carries(self) -> bool:
        """Whether what it reads at a position is carried on to later ones: keys, values, a recurrence's input."""
        return self.place == MIXER and self.side != "q"


class Graph:
    """Senders, receivers and edges of a design, in the order of the forward.

    Edge number `offset[r] + s` joins sender `since + s` with receiver r.

    Attributes:
        senders: names; receivers: see `Receiver`; total: number of edges.
        sent: the senders of each place, by (layer, place), in the order of the forward.
        read: the receivers of each place, by (layer, place); those of the logits by (None, LOGITS).
        inputs: per sender, the receivers whose inputs make it what it is.
        width: of what senders add: that of the stream; where it stands in copies, of all of them, and behind them of
            the first one's prediction, which parts do not change.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.senders: list[str] = ["embed"]
        self.receivers: list[Receiver] = []
        self.inputs: list[tuple[int, ...]] = [()]
        self.sent: dict[tuple[int, int], range] = {}
        self.read: dict[tuple[int | None, int], range] = {}
        self.width = config.d_model if config.copies is None else config.d_stream + config.d_model
        self._since = 0
        for i, layer in enumerate(config.layers):
            self._layer(i, layer)
        self._reads(None, LOGITS, [("logits", "in", 0)], len(self.senders))
        reads = torch.tensor([r.reads for r in self.receivers])
        self.offset: Int[Tensor, " receiver"] = reads.cumsum(0) - reads
        self.total = int(reads.sum())
        self.sender_of: Int[Tensor, " edge"] = torch.cat([torch.arange(r.since, r.seen) for r in self.receivers])
        self.receiver_of: Int[Tensor, " edge"] = torch.repeat_interleave(torch.arange(len(self.receivers)), reads)

    def _layer(self, i: int, layer: Layer) -> None:
        """The senders and receivers of one layer."""
        if layer.copies is not None:
            self._one(i, PREDICTED, f"p{i}")
        before = len(self.senders)
        if layer.mixer is not None:
            self._mixer(i)
            if layer.copies is not None:
                self._one(i, BESIDE, f"l{i}", before)
            if layer.norms == "sum":
                self._one(
                    i, NORMED_MIXER, f"{'a' if isinstance(layer.mixer, Attention) else layer.mixer.prefix}{i}.norm"
                )
        if layer.feed_forward is not None:
            self._feed(i, before if layer.parallel else len(self.senders))
            if layer.norms == "sum":
                self._one(i, NORMED_FEED, f"m{i}.norm")
        if layer.copies is not None:
            self._one(i, CORRECTED, f"c{i}")
        if layer.embedding is not None:
            stream = self._reads(i, OWN, [(f"e{i}", "in", 0)], len(self.senders))
            token = self._reads(i, TOKEN, [(f"e{i}.token", "in", 0)], 1, 0)
            self._sends(i, OWN, [f"e{i}"], [(stream, token)])

    def _one(self, layer: int, place: int, name: str, seen: int | None = None) -> None:
        """A part that reads once and sends once."""
        at = self._reads(layer, place, [(name, "in", 0)], len(self.senders) if seen is None else seen)
        if place in ANEW:
            self._since = len(self.senders)
        self._sends(layer, place, [name], [(at,)])

    def _reads(
        self, layer: int | None, place: int, named: list[tuple[str, str, int]], seen: int, since: int | None = None
    ) -> int:
        start, since = len(self.receivers), self._since if since is None else since
        self.receivers += [Receiver(name, layer, place, side, index, since, seen) for name, side, index in named]
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
        indexed = getattr(mixer, "index", None) is not None
        if indexed:
            named += [(f"a{layer}.index", "index", 0)]
        at = self._reads(layer, MIXER, named, seen)
        donor = at + heads if mixer.keys_from is None else self.read[mixer.keys_from, MIXER].start + self._heads(layer)
        groups_of = [h // (heads // groups) for h in range(heads)]
        chooses = (at + len(named) - 1,) if indexed else ()
        own = [(at + h, donor + g, donor + groups + g, *chooses) for h, g in enumerate(groups_of)]
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
        if s < (since := self.receivers[r].since):
            raise SiteError(f"There is no edge from {sender} to {receiver}, which reads from {self.senders[since]} on.")
        return int(self.offset[r]) + s - since

    def places_of(self, layer: int) -> list[int]:
        """The places of a layer that send, in the order of the forward."""
        return [place for at, place in self.sent if at == layer]

    def places(self) -> Iterator[tuple[int | None, int, range]]:
        """Every place of the stream that is read: layer, place, its receivers."""
        for (layer, place), which in self.read.items():
            yield layer, place, which

    def edges_of(self, which: range) -> slice:
        """The edges into receivers that stand side by side."""
        last = which[-1]
        return slice(int(self.offset[which[0]]), int(self.offset[last]) + self.receivers[last].reads)
