"""Edges of designs whose stream is more than a sum, against forwards written out here.

Each forward below is one design in plain products. What a receiver reads of a sender is the sender's value and a share
of what it differs by in the other text: with one share at 1 that edge is patched, the gradient by all shares is the
first-order estimate of every edge, and shares of 1 outside a set run the set alone.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glassformer.errors import SiteError
from glassformer.interp.circuit_edit import RunCircuit
from glassformer.interp.edge_graph import Graph
from glassformer.interp.edges import edges
from glassformer.interp.trace import Trace
from glassformer.model.config import (
    Attention,
    Config,
    Copies,
    FeedForward,
    Index,
    LatentAttention,
    Layer,
    LayerEmbedding,
    Norm,
    Rotary,
)
from tests.model.test_stacks import drawn

CLEAN, CORRUPTED = [5, 9, 1, 7, 8, 4], [5, 9, 2, 7, 8, 4]
RIGHT, WRONG, HEADS, SIZE, WIDE = 3, 7, 2, 4, 8

Sent = dict[str, Tensor]
Hear = Callable[[str, str], Tensor]  # what a receiver reads of a sender
Send = Callable[[str, Tensor], Tensor]  # a sender's value, as a receiver that no edge leads to reads it


class Hand:
    """One forward by hand.

    Args:
        other: what each sender is in the other text; shares: by edge, how much of it is read instead.
    """

    def __init__(self, config: Config, ids: list[int], other: Sent | None = None, shares: Tensor | None = None) -> None:
        self.config, self.ids, self.sent = config, ids, Sent()
        self.t = drawn(config)
        self.w = {name: p.detach() for name, p in self.t.named_parameters()}
        self.other, self.shares, self.graph = other, shares, Graph(config)

    def of(self, sender: str, receiver: str) -> Tensor:
        """What a receiver reads of a sender."""
        x = self.sent[sender]
        if self.other is None or self.shares is None:
            return x
        return x + self.shares[self.graph.edge(sender, receiver)] * (self.other[sender] - x)

    def total(self, senders: list[str], receiver: str) -> Tensor:
        """The sum of what it reads."""
        return torch.stack([self.of(sender, receiver) for sender in senders]).sum(0)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMS norm."""
        return x / (x.square().mean(-1, keepdim=True) + self.config.norm.eps).sqrt() * self.w[f"{name}.weight"]

    def attended(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
        """One head's sum of values."""
        hidden = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        hidden = hidden if allowed is None else hidden | ~allowed
        return (q @ k.T / q.shape[-1] ** 0.5).masked_fill(hidden, float("-inf")).softmax(-1) @ v

    def heads(self, i: int, read: Callable[[str], Tensor]) -> list[Tensor]:
        """What each head of a layer with one pair of keys and values writes; `read` is its normed input."""
        w, b = self.w, f"blocks.{i}.attn."
        k, v = read(f"a{i}.kv0.k") @ w[f"{b}k.weight"].T, read(f"a{i}.kv0.v") @ w[f"{b}v.weight"].T
        out = []
        for h in range(HEADS):
            mine = slice(h * SIZE, (h + 1) * SIZE)
            q = read(f"a{i}.h{h}.q") @ w[f"{b}q.weight"][mine].T
            out.append(self.attended(q, k, v) @ w[f"{b}o.weight"][:, mine].T)
        return out

    def fed(self, i: int, x: Tensor) -> Tensor:
        """A gated feed-forward part."""
        w, b = self.w, f"blocks.{i}.mlp."
        gate, up = x @ w[f"{b}gate.weight"].T, x @ w[f"{b}up.weight"].T
        return (F.silu(gate) * up) @ w[f"{b}down.weight"].T

    def tokens_own(self, i: int) -> Tensor:
        """Each token's own vector in a layer."""
        w, layers, d = self.w, self.config.n_layers, 3
        read = (self.embedding() @ w["layer_inputs.project.weight"].T * WIDE**-0.5).view(-1, layers, d)[:, i]
        row = w["layer_inputs.embed.weight"][self.ids].view(-1, layers, d)[:, i] * d**0.5
        return (self.norm(read, "layer_inputs.norm") + row) * 2**-0.5

    def embedding(self) -> Tensor:
        """Rows of the embedding matrix."""
        return self.w["embed.weight"][self.ids]

    def own(self, i: int, x: Tensor) -> Tensor:
        """What a layer's own embedding of the token adds."""
        w, b = self.w, f"blocks.{i}.ple."
        self.sent[f"token{i}"] = self.tokens_own(i)
        token = self.sent[f"token{i}"]
        if self.other is not None and self.shares is not None:
            edge = self.graph.edge("embed", f"e{i}.token")
            token = token + self.shares[edge] * (self.other[f"token{i}"] - token)
        gated = F.gelu(x @ w[f"{b}gate.weight"].T, approximate="tanh") * token
        return self.norm(gated @ w[f"{b}up.weight"].T, f"blocks.{i}.ln3_post")

    def number(self, last: Tensor) -> Tensor:
        """The difference of two logits."""
        logits = last[-1] @ self.w["embed.weight"].T
        return logits[RIGHT] - logits[WRONG]

    def run(self) -> Tensor:
        """The metric; `sent` then holds every sender's value."""
        raise NotImplementedError


class NormedSums(Hand):
    """Norms after the sum of stream and part, with learned positions (the first GPT)."""

    def run(self) -> Tensor:
        self.sent["embed"] = self.embedding() + self.w["pos_embed.weight"][: len(self.ids)]
        since = ["embed"]
        for i in range(self.config.n_layers):
            for h, added in enumerate(self.heads(i, lambda name, at=tuple(since): self.total(list(at), name))):
                self.sent[f"a{i}.h{h}"] = added
            both = [*since, *(f"a{i}.h{h}" for h in range(HEADS))]
            self.sent[f"a{i}.norm"] = self.norm(self.total(both, f"a{i}.norm"), f"blocks.{i}.ln1")
            self.sent[f"m{i}"] = self.fed(i, self.of(f"a{i}.norm", f"m{i}"))
            both = [f"a{i}.norm", f"m{i}"]
            self.sent[f"m{i}.norm"] = self.norm(self.total(both, f"m{i}.norm"), f"blocks.{i}.ln2")
            since = [f"m{i}.norm"]
        return self.number(self.total(since, "logits"))


class OwnEmbeddings(Hand):
    """Layers with embeddings of tokens of their own, a learned scale of the stream, and norms on both sides (Gemma 4);
    numbers of senders are divided by what the stream was multiplied by before they joined it."""

    def run(self) -> Tensor:
        self.sent["embed"], times = self.embedding(), torch.tensor(1.0, dtype=torch.float64)
        so_far = ["embed"]
        for i in range(self.config.n_layers):
            b, at = f"blocks.{i}.", list(so_far)

            def read(name: str, at: list[str] = at, times: Tensor = times, b: str = b) -> Tensor:
                return self.norm(times * self.total(at, name), f"{b}ln1")

            each = self.heads(i, read)
            # the norm after the part divides by what the sum of its heads is
            scale = (sum(each).square().mean(-1, keepdim=True) + self.config.norm.eps).sqrt()
            for h, added in enumerate(each):
                self.sent[f"a{i}.h{h}"] = added / scale * self.w[f"{b}ln1_post.weight"] / times
            so_far += [f"a{i}.h{h}" for h in range(HEADS)]
            x = self.norm(times * self.total(so_far, f"m{i}"), f"{b}ln2")
            self.sent[f"m{i}"] = self.norm(self.fed(i, x), f"{b}ln2_post") / times
            so_far.append(f"m{i}")
            self.sent[f"e{i}"] = self.own(i, times * self.total(so_far, f"e{i}")) / times
            so_far.append(f"e{i}")
            times = times * self.w[f"{b}scalar"][0]
        return self.number(self.norm(times * self.total(so_far, "logits"), "final"))


class InCopies(Hand):
    """A stream in three copies, predicted and corrected by every layer (Gemma 3n). What senders add is (copy, query,
    d_model), and as a fourth the first copy's prediction, which no part adds to."""

    n = 3

    def routed(self, i: int, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(x, f"blocks.{i}.copies.norm") / WIDE @ self.w[f"blocks.{i}.copies.router.weight"].T)

    def first(self, x: Tensor) -> Tensor:
        """What a part adds, to the first copy."""
        return torch.cat([x[None], torch.zeros(self.n, *x.shape, dtype=x.dtype)])

    def run(self) -> Tensor:
        x, copies = self.embedding(), []
        for j in range(self.n - 1):
            y = x @ self.w[f"spread.{j}.weight"].T
            copies.append(y * (x.square().mean(-1, keepdim=True) / y.square().mean(-1, keepdim=True)).sqrt())
        self.sent["embed"] = torch.stack([x, *copies, torch.zeros_like(x)])
        since, half = ["embed"], 0.5**0.5
        for i in range(self.config.n_layers):
            b = f"blocks.{i}."
            entering = self.total(since, f"p{i}")[: self.n]
            mixing = (self.routed(i, entering[0]) @ self.w[f"{b}copies.predict.weight"].T).view(-1, self.n, self.n)
            predicted = entering + torch.einsum("tij,jtd->itd", mixing, entering)
            self.sent[f"p{i}"] = torch.cat([predicted, predicted[:1]])
            each = self.heads(i, lambda name, i=i, b=b: self.norm(self.of(f"p{i}", name)[0], f"{b}ln1"))
            scale = (sum(each).square().mean(-1, keepdim=True) + self.config.norm.eps).sqrt()
            # the sum of stream and mixer is multiplied by √½, which is kept out of what heads add
            for h, added in enumerate(each):
                self.sent[f"a{i}.h{h}"] = self.first(added / scale * self.w[f"{b}ln1_post.weight"])
            y = self.norm(self.of(f"p{i}", f"l{i}")[0], f"{b}ln1")
            low = y @ self.w[f"{b}laurel.down.weight"].T @ self.w[f"{b}laurel.up.weight"].T
            self.sent[f"l{i}"] = self.first(y + self.norm(low, f"{b}laurel.norm"))
            so_far = [f"p{i}", *(f"a{i}.h{h}" for h in range(HEADS)), f"l{i}"]
            x = self.norm(half * self.total(so_far, f"m{i}")[0], f"{b}ln2")
            self.sent[f"m{i}"] = self.first(self.norm(self.fed(i, x), f"{b}ln2_post") / half)
            whole = self.total([*so_far, f"m{i}"], f"c{i}")
            active, base = half * whole[0], torch.cat([whole[3:], whole[1:3]])
            shares = self.routed(i, active) @ self.w[f"{b}copies.correct.weight"].T + 1
            corrected = base + shares.T[..., None] * (active - whole[3])
            self.sent[f"c{i}"] = torch.cat([corrected, torch.zeros_like(x)[None]])
            added = self.own(i, self.of(f"c{i}", f"e{i}")[0] * self.w[f"{b}copies.scale"])
            nothing = torch.zeros_like(added)
            self.sent[f"e{i}"] = torch.stack([nothing, added, added, nothing])
            since = [f"c{i}", f"e{i}"]
        last, turned = self.total(since, "logits"), []
        turned.append(last[0])
        for j in range(self.n - 1):
            y = last[j + 1] @ self.w[f"gather.{j}.weight"].T
            turned.append(y * (last[0].square().mean(-1, keepdim=True) / y.square().mean(-1, keepdim=True)).sqrt())
        return self.number(self.norm(torch.stack(turned).mean(0), "final"))


class Indexed(Hand):
    """Latent attention whose index chooses two keys for each query (DeepSeek 3.2)."""

    def turned(self, x: Tensor) -> Tensor:
        """The first two dimensions, turned by the position."""
        angle, (a, b) = torch.arange(len(x), dtype=torch.float32), (x[:, 0], x[:, 1])
        cos, sin = angle.cos().double(), angle.sin().double()
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
        return torch.cat([turned, x[:, 2:]], -1)

    def latent(self, x: Tensor, name: str) -> Tensor:
        """A normed latent."""
        x = x @ self.w[f"{name}_down.weight"].T
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}_latent.weight"]

    def chosen(self, b: str, x: Tensor) -> Tensor:
        """True where a query attends to a key."""
        w = self.w
        k = F.layer_norm(
            x @ w[f"{b}index_k.weight"].T, (SIZE,), w[f"{b}index_norm.weight"], w[f"{b}index_norm.bias"], 1e-6
        )
        q = self.latent(x, f"{b}q") @ w[f"{b}index_q.weight"].T
        weights = x @ w[f"{b}index_weights.weight"].T * 3**-0.5
        grid = 0.0
        for h in range(3):
            products = self.turned(q[:, h * SIZE : (h + 1) * SIZE]) @ self.turned(k).T * SIZE**-0.5
            grid = grid + weights[:, h, None] * products.relu()
        grid = grid.masked_fill(torch.ones_like(grid, dtype=torch.bool).triu(1), float("-inf"))
        best = grid.sort(dim=-1, descending=True, stable=True).indices[:, :2]  # of equal scores the earlier position
        return torch.zeros_like(grid, dtype=torch.bool).scatter(-1, best, True)

    def run(self) -> Tensor:
        self.sent["embed"] = self.embedding()
        so_far = ["embed"]
        for i in range(self.config.n_layers):
            b = f"blocks.{i}.attn."

            def read(name: str, i: int = i, at: tuple[str, ...] = tuple(so_far)) -> Tensor:
                return self.norm(self.total(list(at), name), f"blocks.{i}.ln1")

            allowed = self.chosen(b, read(f"a{i}.index"))
            for h in range(HEADS):
                mine, own = slice(h * SIZE, (h + 1) * SIZE), slice(h * 2, (h + 1) * 2)
                q = self.latent(read(f"a{i}.h{h}.q"), f"{b}q") @ self.w[f"{b}q_up.weight"][mine].T
                x = read(f"a{i}.kv{h}.k")
                shared = x @ self.w[f"{b}k_shared.weight"].T
                k = torch.cat([shared, self.latent(x, f"{b}kv") @ self.w[f"{b}k_own.weight"][own].T], -1)
                v = self.latent(read(f"a{i}.kv{h}.v"), f"{b}kv") @ self.w[f"{b}v_up.weight"][mine].T
                z = self.attended(self.turned(q), self.turned(k), v, allowed)
                self.sent[f"a{i}.h{h}"] = z @ self.w[f"{b}o.weight"][:, mine].T
            so_far += [f"a{i}.h{h}" for h in range(HEADS)]
            self.sent[f"m{i}"] = self.fed(i, self.norm(self.total(so_far, f"m{i}"), f"blocks.{i}.ln2"))
            so_far.append(f"m{i}")
        return self.number(self.norm(self.total(so_far, "logits"), "final"))


def of(*layers: Layer, **rest: object) -> Config:
    """A small design."""
    return Config(12, WIDE, 16, layers, Norm("rms", eps=1e-5), tied=True, **rest)  # type: ignore[arg-type]


PLAIN, FEED = Attention(HEADS, 1, SIZE, rotary=None), FeedForward(6)
LATENT = LatentAttention(HEADS, HEADS, SIZE, rotary=Rotary(100.0, 2 / SIZE), kv_rank=5, q_rank=3, index=Index(3, 4, 2))
DESIGNS: dict[type[Hand], Config] = {
    NormedSums: of(*[Layer(PLAIN, FEED, "sum")] * 2, learned_positions=True, final_norm=False),
    OwnEmbeddings: of(*[Layer(PLAIN, FEED, "both", scalar=True, embedding=LayerEmbedding(3))] * 2),
    InCopies: of(*[Layer(PLAIN, FEED, "both", embedding=LayerEmbedding(3), copies=Copies(3, 2))] * 2),
    Indexed: of(*[Layer(LATENT, FEED)] * 2),
}


@pytest.mark.parametrize("kind", DESIGNS, ids=lambda kind: kind.__name__)
def test_edges_are_those_by_hand(kind: type[Hand]) -> None:
    config = DESIGNS[kind]
    graph, transformer = Graph(config), drawn(config)
    other = kind(config, CORRUPTED)
    corrupted, hand = other.run(), kind(config, CLEAN)
    clean = hand.run()
    logits = transformer(torch.tensor([CLEAN, CORRUPTED]))[:, -1]
    torch.testing.assert_close(torch.stack([clean, corrupted]), logits[:, RIGHT] - logits[:, WRONG], rtol=0, atol=1e-10)
    pair = [(Trace(transformer, CLEAN), Trace(transformer, CORRUPTED))]
    found = edges(pair, answer=RIGHT, wrong=WRONG, method="eap", exact="all")

    def moved(shares: Tensor) -> Tensor:
        return kind(config, CLEAN, other.sent, shares).run()

    each = torch.eye(graph.total, dtype=torch.float64)
    exact = torch.stack([clean - moved(shares) for shares in each])
    torch.testing.assert_close(found.exact[0], exact, rtol=0, atol=1e-10)
    none = torch.zeros(graph.total, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(moved(none), none)
    torch.testing.assert_close(found.estimate[0], -slope, rtol=0, atol=1e-10)
    whole = edges(pair, answer=RIGHT, wrong=WRONG, method="eap-ig", steps=200, exact="none")
    if kind is not Indexed:  # which jumps
        assert whole.adds_up == pytest.approx(1, abs=0.05)
    g = torch.Generator().manual_seed(3)
    between = 0
    for inside in torch.rand(6, graph.total, generator=g) < 0.85:
        alone = float(moved((~inside).double()))
        edit = RunCircuit(transformer, tuple(graph.names(int(n)) for n in inside.nonzero()[:, 0]), tuple(CORRUPTED))
        logits = transformer(torch.tensor([CLEAN]), tap=edit.bind(config))[0, -1]
        assert float(logits[RIGHT] - logits[WRONG]) == pytest.approx(alone, abs=1e-10)
        between += min(abs(alone - float(clean)), abs(alone - float(corrupted))) > 1e-3
    assert between > 1


def test_what_an_index_reads_is_measured() -> None:
    """Which keys are chosen has no slope: such estimates are 0 and not believed where there is a choice."""
    transformer = drawn(DESIGNS[Indexed])
    told = edges([(Trace(transformer, CLEAN), Trace(transformer, CORRUPTED))], answer=RIGHT, wrong=WRONG)
    graph = told.graph
    into = torch.tensor([graph.receivers[int(r)].side == "index" for r in graph.receiver_of])
    assert not told.reliable[into].any()
    assert told.measured[into].all()
    assert not told.estimate[0, into].any()
    assert float(told.exact[0, into].abs().max()) > 1e-3
    short = [ids[1:4] for ids in (CLEAN, CORRUPTED)]
    few = drawn(of(Layer(LatentAttention(**{**vars(LATENT), "index": Index(3, 4, 3)}), FEED)))
    told = edges([(Trace(few, short[0]), Trace(few, short[1]))], answer=RIGHT, wrong=WRONG, exact="all")
    graph = told.graph
    into = torch.tensor([graph.receivers[int(r)].side == "index" for r in graph.receiver_of])
    assert told.reliable[into].all()
    assert float(told.exact[0, into].abs().max()) < 1e-12


def test_edges_end_where_the_stream_is_made_anew() -> None:
    graph = Graph(DESIGNS[NormedSums])
    with pytest.raises(SiteError, match=r"no edge from embed to m0, which reads from a0\.norm on"):
        graph.edge("embed", "m0")
    # embed to 2 queries, a key, a value and a norm; 2 heads to that; norm and part on; and the same again; the logits
    assert graph.total == 2 * (4 + 3 + 1 + 2) + 1
