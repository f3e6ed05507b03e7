"""The named places of the transformer, and the protocol of whoever looks at them.

This table is the single source for documentation, tooltips and tests. The forward calls
`see(tap, site, x)` at each place; with no tap that is `x` itself, so looking costs nothing when
nobody looks. This module knows which places exist for a `Config` and nothing of tensors.

Axes: batch, query, key, head, kv_head, d_model, d_head, d_ff, vocab.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from glassformer.errors import SiteError, near
from glassformer.model.choices import Experts, Parallel, members

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.model.config import Config, Layer

RESIDUAL = ("batch", "query", "d_model")
SCALE = ("batch", "query", "one")
HEADS = ("batch", "query", "head", "d_head")
KV_HEADS = ("batch", "key", "kv_head", "d_head")
PER_HEAD = ("batch", "query", "head")
GRID = ("batch", "head", "query", "key")
HIDDEN = ("batch", "query", "d_ff")
EXPERTS = ("batch", "query", "expert")
OWN = ("batch", "query", "d_ple")
VOCAB = ("batch", "query", "vocab")


@dataclass(frozen=True)
class Site:
    """One named place: its name (within a block or whole), axes, and meaning in one sentence."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    in_block: bool = True


SITES: tuple[Site, ...] = (
    Site("embed", RESIDUAL, "Each token's row of the embedding matrix, scaled or normed where the family does.", False),
    Site("pos_embed", RESIDUAL, "The vector of each position, trained or fixed, added to the embedding.", False),
    Site("resid_pre", RESIDUAL, "The residual stream as it enters the block."),
    Site("resid_active", RESIDUAL, "The prediction of the first of several copies, with which the layer computes."),
    Site("ln1.scale", SCALE, "What the norm before the mixer (attention or a recurrence) divides by."),
    Site("ln1.normed", RESIDUAL, "The residual stream after the norm before the mixer, learned scale included."),
    Site("attn.q", HEADS, "Queries: what each position asks for, before rotation."),
    Site("attn.k", KV_HEADS, "Keys: what each position offers to be found by, before rotation."),
    Site("attn.v", KV_HEADS, "Values: what each position hands over when it is attended to."),
    Site("attn.rot_q", HEADS, "Queries as the scores use them, after rotation by their position."),
    Site("attn.rot_k", KV_HEADS, "Keys as the scores use them, after rotation by their position."),
    Site("attn.index_q", ("batch", "query", "index_head", "d_index"), "How a position looks for keys to attend to."),
    Site("attn.index_k", ("batch", "key", "d_index"), "What a position is found by when keys are chosen."),
    Site("attn.index_weights", ("batch", "query", "index_head"), "What each head's finding counts in that choice."),
    Site("attn.scores", GRID, "Scaled query-key products, soft-capped, minus infinity where a key is hidden."),
    Site("attn.sink", PER_HEAD, "The share of attention that the head's sink takes and that hands over nothing."),
    Site("attn.pattern", GRID, "Attention weights: each row, a sink included, is a softmax and sums to one."),
    Site("attn.gate", HEADS, "What multiplies each head's sum of values, from 0 on (output gates)."),
    Site(
        "attn.pair_scale",
        ("batch", "query", "pair"),
        "What the norm of each pair's difference divides by (differential attention).",
    ),
    Site("attn.z_scale", SCALE, "What the norm over all heads' outputs divides by (designs with one)."),
    Site(
        "attn.z",
        HEADS,
        "Each head's weighted sum of values, gated where there is a gate; the output projection reads it.",
    ),
    Site("attn.out", RESIDUAL, "What attention adds to the residual stream, after a post-norm where there is one."),
    Site("delta.gate", HEADS, "What gates each head's output, after its activation."),
    Site("delta.q", ("batch", "query", "key_head", "d_key"), "How a position reads the state: queries of one length."),
    Site("delta.k", ("batch", "key", "key_head", "d_key"), "Where a position is written in the state: unit keys."),
    Site("delta.v", KV_HEADS, "What each position hands over, by head, after the convolution: its values."),
    Site("delta.beta", PER_HEAD, "The share of a correction towards the value that each head makes at a position."),
    Site("delta.decay", PER_HEAD, "The logarithm of what each head's state keeps at a position."),
    Site(
        "delta.decays",
        ("batch", "query", "head", "d_key"),
        "The same where each channel of a head's keys has a decay of its own.",
    ),
    Site("delta.pattern", GRID, "The grid that decays and corrections imply: a head reads this times its values."),
    Site("delta.mixed", HEADS, "What each head reads from its state, before norm and gate."),
    Site("delta.z", HEADS, "Each head's output after norm and gate, before the output projection."),
    Site("delta.out", RESIDUAL, "What the delta rule adds to the residual stream, after any post-norm."),
    Site("ssm.gate", HEADS, "What gates each head's output, after its activation."),
    Site("ssm.x", KV_HEADS, "What each position hands over, by head, after the convolution: its values."),
    Site("ssm.b", ("batch", "key", "group", "d_state"), "How a position is written into the state: its keys."),
    Site("ssm.c", ("batch", "query", "group", "d_state"), "How a position reads the state: its queries."),
    Site("ssm.dt", PER_HEAD, "How much each head takes in at a position; its decay follows from it."),
    Site(
        "ssm.pattern",
        GRID,
        "The grid that decays imply: a head reads this times x (arXiv:2403.01590).",
    ),
    Site("ssm.mixed", HEADS, "What each head reads from its state, before gate and norm."),
    Site("ssm.z", HEADS, "Each head's output after gate and norm, before the output projection."),
    Site("ssm.out", RESIDUAL, "What the state space adds to the residual stream, after any post-norm."),
    Site("mamba.gate", HEADS, "What gates each channel's output, after its activation."),
    Site("mamba.x", KV_HEADS, "What each position hands over, by channel, after the convolution: its values."),
    Site("mamba.b", ("batch", "key", "d_state"), "How a position is written into every channel's state: its keys."),
    Site("mamba.c", ("batch", "query", "d_state"), "How a position reads every channel's state: its queries."),
    Site("mamba.dt", HEADS, "How much each channel takes in at a position; its decay follows from it."),
    Site("mamba.pattern", GRID, "The grid that decays imply: the mean over channels of each share's absolute value."),
    Site("mamba.mixed", HEADS, "What each channel reads from its state, before the gate."),
    Site("mamba.z", HEADS, "Each channel's output after the gate, before the output projection."),
    Site("mamba.out", RESIDUAL, "What the state space of channels adds to the residual stream, after any post-norm."),
    Site("mlstm.gate", HEADS, "What multiplies each head's normed output, between 0 and 1."),
    Site("mlstm.q", ("batch", "query", "key_head", "d_key"), "How a position reads the memory: its queries."),
    Site("mlstm.k", ("batch", "key", "key_head", "d_key"), "Where a position is written in the memory: its keys."),
    Site("mlstm.v", KV_HEADS, "What each position hands over, by head: its values."),
    Site("mlstm.input", PER_HEAD, "The logarithm of what each head takes in at a position."),
    Site("mlstm.decay", PER_HEAD, "The logarithm of what each head's memory keeps at a position."),
    Site("mlstm.pattern", GRID, "The grid that gates and divisor imply: a head reads this times its values."),
    Site("mlstm.mixed", HEADS, "What each head reads from its memory, before norm and gate."),
    Site("mlstm.z", HEADS, "Each head's output after norm and gate, before the output projection."),
    Site("mlstm.out", RESIDUAL, "What the matrix memory adds to the residual stream, after any post-norm."),
    Site("linear.gate", HEADS, "What multiplies each head's normed output, between 0 and 1."),
    Site("linear.q", ("batch", "query", "key_head", "d_key"), "How a position reads the state: its queries."),
    Site("linear.k", ("batch", "key", "key_head", "d_key"), "Where a position is written in the state: its keys."),
    Site("linear.v", KV_HEADS, "What each position hands over, by head: its values."),
    Site("linear.pattern", GRID, "Query-key products that fade with distance: a head reads this times its values."),
    Site("linear.mixed", HEADS, "What each head reads from its state, before norm and gate."),
    Site("linear.z", HEADS, "Each head's output after norm and gate, before the output projection."),
    Site("linear.out", RESIDUAL, "What linear attention adds to the residual stream, after any post-norm."),
    Site("lru.gate", HEADS, "What gates each channel's output, after its activation."),
    Site("lru.gate_in", HEADS, "What gates what each channel takes in, between 0 and 1."),
    Site("lru.decay", HEADS, "The logarithm of what each channel's number keeps at a position."),
    Site("lru.v", KV_HEADS, "What each position hands over, by channel, gated and scaled by what decays."),
    Site("lru.pattern", GRID, "The grid that decays imply: the mean over channels of each one's share."),
    Site("lru.mixed", HEADS, "What each channel holds, before the gate on its output."),
    Site("lru.z", HEADS, "Each channel's output after the gate, before the output projection."),
    Site("lru.out", RESIDUAL, "What the gated recurrence adds to the residual stream, after any post-norm."),
    Site("conv.gate", HEADS, "What gates each channel's output."),
    Site("conv.gate_in", HEADS, "What gates what each channel takes in."),
    Site("conv.v", KV_HEADS, "What each position hands over, by channel, after the gate on what it takes in."),
    Site("conv.pattern", GRID, "The convolution as a grid: the mean over channels of each weight's absolute value."),
    Site("conv.mixed", HEADS, "What the convolution gives, before the gate."),
    Site("conv.z", HEADS, "Each channel's output after the gate, before the output projection."),
    Site("conv.out", RESIDUAL, "What the short convolution adds to the residual stream, after any post-norm."),
    Site("mix.pattern", GRID, "The patterns of attention and of the recurrence beside it, head after head."),
    Site("mix.z", HEADS, "Outputs of attention's heads, then of the recurrence's, narrower ones filled up with zeros."),
    Site("mix.out", RESIDUAL, "What attention and the recurrence beside it add to the residual stream together."),
    Site("laurel.out", RESIDUAL, "What the normed stream and a matrix of low rank add beside attention (Gemma 3n)."),
    Site("resid_mid", RESIDUAL, "The residual stream between mixer and feed-forward (sequential blocks of two parts)."),
    Site("ln2.scale", SCALE, "What the norm before the feed-forward layer divides by."),
    Site("ln2.normed", RESIDUAL, "The residual stream after the norm before the feed-forward layer."),
    Site("mlp.router", EXPERTS, "The router's score of every expert, before softmax or sigmoid."),
    Site(
        "mlp.weights",
        EXPERTS,
        "What each expert's output is multiplied by: 0 for those that were not chosen; writing it switches experts.",
    ),
    Site("mlp.latent", ("batch", "query", "latent"), "What experts read where they work in a latent of their own."),
    Site("mlp.pre", HIDDEN, "Each neuron's input to the activation function (the gate, where there is one)."),
    Site("mlp.pre_linear", HIDDEN, "The linear half that the activated gate multiplies (gated layers)."),
    Site("mlp.post", HIDDEN, "Each neuron's output, its expert's weight in it, which scales the column it writes."),
    Site("mlp.shared_pre", HIDDEN, "As mlp.pre, of the feed-forward part that every token passes beside experts."),
    Site("mlp.shared_pre_linear", HIDDEN, "As mlp.pre_linear, of the part beside the experts."),
    Site("mlp.shared_post", HIDDEN, "As mlp.post, of the part beside the experts, before its gate."),
    Site("mlp.shared_gate", SCALE, "What multiplies the output of the part beside the experts, where it is gated."),
    Site("mlp.shared", RESIDUAL, "What the part beside the experts gives, its gate in it."),
    Site("mlp.out", RESIDUAL, "What the feed-forward layer adds to the residual stream, after any post-norm."),
    Site("resid_late", RESIDUAL, "The residual stream before the layer's own embedding of the token (Gemma 4)."),
    Site("ple.input", OWN, "The token's own vector in this layer: a row of a table, and a reading of its embedding."),
    Site("ple.pre", OWN, "What the stream gates that vector with, before the activation."),
    Site("ple.post", OWN, "The token's own vector, gated; the layer widens it to the stream."),
    Site("ple.out", RESIDUAL, "What the layer's own embedding of the token adds to the residual stream, normed."),
    Site("resid_post", RESIDUAL, "The residual stream as it leaves the block."),
    Site("head.scale", SCALE, "What the norm before the head's matrix divides by (designs with a head).", False),
    Site("head.normed", RESIDUAL, "The last residual stream as the head's matrix reads it.", False),
    Site(
        "head.pre",
        RESIDUAL,
        "What the head's matrix gives, before its activation; the final norm reads the rest.",
        False,
    ),
    Site("final.scale", SCALE, "What the final norm divides by.", False),
    Site("final.normed", RESIDUAL, "The last residual stream after the final norm: what the unembedding reads.", False),
    Site("logits.precap", VOCAB, "Scores of every next token before the soft cap (families that cap).", False),
    Site("logits", VOCAB, "Scores of every next token; their softmax is the prediction.", False),
)
BY_NAME: dict[str, Site] = {site.name: site for site in SITES}

# TransformerLens's names for the same places.
_ALIASES: dict[str, str] = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "hook_resid_pre": "resid_pre",
    "ln1.hook_scale": "ln1.scale",
    "ln1.hook_normalized": "ln1.normed",
    "attn.hook_q": "attn.q",
    "attn.hook_k": "attn.k",
    "attn.hook_v": "attn.v",
    "attn.hook_rot_q": "attn.rot_q",
    "attn.hook_rot_k": "attn.rot_k",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "attn.hook_z": "attn.z",
    "hook_attn_out": "attn.out",
    "hook_resid_mid": "resid_mid",
    "ln2.hook_scale": "ln2.scale",
    "ln2.hook_normalized": "ln2.normed",
    "mlp.hook_pre": "mlp.pre",
    "mlp.hook_pre_linear": "mlp.pre_linear",
    "mlp.hook_post": "mlp.post",
    "hook_mlp_out": "mlp.out",
    "hook_resid_post": "resid_post",
    "ln_final.hook_scale": "final.scale",
    "ln_final.hook_normalized": "final.normed",
}
_BLOCK = re.compile(r"^blocks\.(-?\d+)\.(.+)$")


@dataclass(frozen=True)
class Where:
    """Where a tensor stands: absolute positions and which rows are text.

    Args:
        positions: (batch, query) int64, each query's position in its own text; a cached forward
            starts at the number of tokens already cached.
        mask: (batch, query) bool, False on padding; None when nothing is padding.
        start: slot of the first query among the keys: query i stands at key start + i.
        tokens: (batch, query), their ids where the forward was given ids.
    """

    positions: Tensor
    mask: Tensor | None
    start: int
    tokens: Tensor | None = None


@runtime_checkable
class Tap(Protocol):
    """Whoever looks: declares before the forward what it reads and writes, then is called there.

    `__call__` returns a tensor of the same shape for a site it writes; its return value is ignored at
    sites it only reads. Sites are full names, such as ``blocks.3.attn.pattern``.
    """

    @property
    def reads(self) -> frozenset[str]: ...

    @property
    def writes(self) -> frozenset[str]: ...

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor | None: ...


@functools.lru_cache(maxsize=4096)
def block_sites(layer: Layer) -> tuple[str, ...]:
    """Names within the block of every place a layer of this design has, in the order the forward reaches them."""
    found = ["resid_pre"] + (["resid_active"] if layer.copies is not None else [])
    norms, mixer, feed = layer.norm_names, layer.mixer, layer.feed_forward
    for number, part in ((1, mixer), (2, feed)):
        if part is None:
            continue
        if number == 2 and mixer is not None and not layer.parallel:
            found += ["laurel.out"] if layer.copies is not None else []
            found.append("resid_mid")
        if f"ln{number}" in norms and layer.norms != "sum":
            found += [f"ln{number}.scale", f"ln{number}.normed"]
        inner = [own for own in members(part) if own is not part]
        found += [f"{own.prefix}.{site}" for own in inner for site in own.sites()]
        found += [f"{part.prefix}.{site}" for site in (*part.sites(), "out")]
    if layer.embedding is not None:
        found += ["resid_late", *(f"{layer.embedding.prefix}.{site}" for site in (*layer.embedding.sites(), "out"))]
    return (*found, "resid_post")


@functools.lru_cache(maxsize=4096)
def kept_places(layer: Layer) -> tuple[str, ...]:
    """The places within a layer that a trace keeps, in the order the forward reaches them."""
    found: list[str] = []
    for part in (layer.mixer, layer.feed_forward):
        if part is not None:
            inner = [own for own in members(part) if own is not part]
            found += [f"{own.prefix}.{site}" for own in inner for site in own.basis()]
            found += [f"{part.prefix}.{site}" for site in (*part.basis(), "out")]
        if part is layer.mixer and layer.copies is not None:
            found.append("laurel.out")
    if layer.embedding is not None:
        found += [f"{layer.embedding.prefix}.{site}" for site in (*layer.embedding.basis(), "out")]
    return tuple(found)


def outer_sites(config: Config) -> tuple[list[str], list[str]]:
    """Names of the places before and after the blocks."""
    head = ["embed", *(["pos_embed"] if config.adds_positions else [])]
    last = ["head.scale", "head.normed", "head.pre"] if config.head is not None else []
    tail = ["final.scale", "final.normed"] if config.final_norm else ["final.normed"]
    return head, [*last, *tail, *(["logits.precap"] if config.logit_softcap is not None else []), "logits"]


def names(config: Config) -> list[str]:
    """Every full site name of a model of this design, in the order the forward reaches them."""
    head, tail = outer_sites(config)
    return head + [f"blocks.{i}.{s}" for i, layer in enumerate(config.layers) for s in block_sites(layer)] + tail


def canonical(name: str, config: Config) -> str:
    """The full name of a site, from that name, a TransformerLens alias, or a negative layer.

    Raises:
        SiteError: when the model has no such place, with near matches.
    """
    match, layer = _BLOCK.match(name), 0
    if match:
        layer, part = int(match[1]), match[2]
        if not -config.n_layers <= layer < config.n_layers:
            raise SiteError(
                f"There is no site {name!r}: the model has {config.n_layers} layers, "
                f"blocks.0 to blocks.{config.n_layers - 1}."
            )
        layer %= config.n_layers
        prefix, part = f"blocks.{layer}.", _ALIASES.get(part, part)
    else:
        prefix, part = "", _ALIASES.get(name, name)
    site = BY_NAME.get(part)
    if site is None or site.in_block is not bool(prefix):
        if site is not None and site.in_block:
            raise SiteError(f"{name!r} is a place in every block; name the layer, as in blocks.0.{part}.")
        raise SiteError(f"There is no site {name!r}." + near(name, [*names(config), *(prefix + s.name for s in SITES)]))
    there = block_sites(config.layers[layer]) if match else (*chain(*outer_sites(config)),)
    if part not in there:
        raise SiteError(f"This model has no site {prefix + part!r}: {_absence(part, config, layer)}")
    return prefix + part


_ABSENT: dict[str, str] = {
    "pos_embed": "no vectors are added for positions.",
    "attn.rot_q": "nothing is rotated there; use attn.q.",
    "attn.rot_k": "nothing is rotated there; use attn.k.",
    "attn.sink": "its attention has no sink.",
    "attn.gate": "its attention has no output gate.",
    "resid_mid": "its attention and feed-forward run side by side, or there is only one of them.",
    "mlp.pre_linear": "its feed-forward layers are not gated.",
    "mlp.router": "its feed-forward part is one, not experts that are chosen.",
    "mlp.weights": "its feed-forward part is one, not experts that are chosen.",
    "mlp.latent": "its experts read the stream itself.",
    "mlp.shared": "it has no feed-forward part beside experts.",
    "logits.precap": "its logits are not soft-capped; use logits.",
    "final.scale": "it has no final norm.",
    "head.pre": "nothing stands between its last layer and the final norm.",
    "attn.z_scale": "nothing norms what its heads give.",
}


def _absence(part: str, config: Config, layer: int) -> str:
    donor = getattr(config.layers[layer].mixer, "keys_from", None)
    if donor is not None and part in ("attn.k", "attn.v", "attn.rot_k"):
        return f"its keys and values are those of layer {donor}; use blocks.{donor}.{part}."
    if part in _ABSENT:
        return _ABSENT[part]
    own = [*config.layers[layer].parts, *config.layers[layer].norm_names]
    return f"layer {layer} is made of {', '.join(own)}."


def canonical_part(part: str) -> str:
    """The name within the block of a place, from that name or a TransformerLens alias."""
    return _ALIASES.get(part, part)


def site_of(name: str) -> Site:
    """The table's entry for a full canonical name."""
    match = _BLOCK.match(name)
    return BY_NAME[match[2] if match else name]


def layer_of(name: str) -> int | None:
    """The layer of a full canonical name, None outside the blocks."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def axis_sizes(name: str, config: Config) -> dict[str, int]:
    """How long the axes of a full canonical name are that the design decides (all but batch, query and key)."""
    found = {"d_model": config.d_model, "vocab": config.vocab_size, "one": 1}
    layer = layer_of(name)
    if layer is None:
        return found
    mixer, feed = config.layers[layer].mixer, config.layers[layer].feed_forward
    if mixer is not None:
        prefix = name.split(".")[2]
        if isinstance(mixer, Parallel) and prefix != mixer.prefix:
            mixer = mixer.attention if prefix == mixer.attention.prefix else mixer.recurrence
        leaf = name.rpartition(".")[2]
        inner = leaf in ("q", "k", "rot_q", "rot_k")
        found |= {"head": mixer.n_heads, "d_head": mixer.d_head if inner else mixer.value_size}
        found["kv_head"] = getattr(mixer, "n_kv_heads", mixer.n_heads)
        found["key_head"], found["d_key"] = getattr(mixer, "n_key_heads", 1), getattr(mixer, "d_key", 1)
        found["group"], found["d_state"] = getattr(mixer, "n_groups", 1), getattr(mixer, "d_state", 1)
        found["pair"] = max(mixer.n_heads // 2, 1)
        index = getattr(mixer, "index", None)
        if index is not None:
            found |= {"index_head": index.n_heads, "d_index": index.d_head}
        if leaf == "gate" and getattr(mixer, "gate", None) == "head":
            found["d_head"] = 1
    if config.copies and name.rpartition(".")[2] in ("resid_pre", "resid_late", "resid_post"):
        found["d_model"] = config.d_stream
    if (embedding := config.layers[layer].embedding) is not None:
        found["d_ple"] = embedding.d
    if feed is not None:
        found["d_ff"] = feed.neurons
        if isinstance(feed, Experts):
            found["expert"], found["latent"] = feed.n_experts, feed.latent or 0
            if feed.shared is not None and name.rpartition(".")[2].startswith("shared"):
                found["d_ff"] = feed.shared.d_ff
    return found


class Looking:
    """One forward's use of a tap: checks its names, calls it, and sees that all of them fired.

    The layer is bound with `at`, outside the block, so that the block itself holds no site strings
    that differ by layer.
    """

    def __init__(self, tap: Tap, config: Config, where: Where) -> None:
        self.tap = tap
        self.where = where
        self.reads = _checked(tap.reads, config)
        self.writes = _checked(tap.writes, config)
        self._fired: set[str] = set()

    def at(self, layer: int) -> View:
        """The view that a block at this layer looks through."""
        return View(self, f"blocks.{layer}.")

    @property
    def top(self) -> View:
        """The view for places outside the blocks."""
        return View(self, "")

    def visit(self, name: str, x: Tensor) -> Tensor:
        """`x`, or what the tap writes in its place."""
        writes = name in self.writes
        if not writes and name not in self.reads:
            return x
        self._fired.add(name)
        y = self.tap(name, x, self.where)
        if not writes:
            return x
        if y is None or y.shape != x.shape:
            got = "nothing" if y is None else f"shape {tuple(y.shape)}"
            raise SiteError(f"The tap declared that it writes {name!r} and returned {got}; it needs {tuple(x.shape)}.")
        return y

    def finish(self, *, reached: Iterable[str] | None = None) -> None:
        """Raise for a declared site that the forward never reached."""
        missed = (self.reads | self.writes) - self._fired
        if reached is not None:
            missed &= set(reached)
        if missed:
            raise SiteError(
                f"The tap declared {', '.join(sorted(missed)[:4])} and this forward never reached "
                f"{'it' if len(missed) == 1 else 'them'}, so nothing was read or changed there."
            )


@dataclass(frozen=True)
class View:
    """A tap seen from one place in the forward: site names are relative to `prefix`."""

    looking: Looking
    prefix: str

    def visit(self, site: str, x: Tensor) -> Tensor:
        return self.looking.visit(self.prefix + site, x)

    def wants(self, *sites: str) -> bool:
        """Whether any of these sites is read or written here."""
        declared = self.looking
        return any(self.prefix + s in declared.reads or self.prefix + s in declared.writes for s in sites)

    @property
    def where(self) -> Where:
        return self.looking.where


def _checked(sites: Iterable[str], config: Config) -> frozenset[str]:
    sites = frozenset(sites)
    for name in sites:
        if canonical(name, config) != name:
            raise SiteError(f"A tap names sites in full; write {canonical(name, config)!r} for {name!r}.")
    return sites


def see(view: View | None, site: str, x: Tensor) -> Tensor:
    """`x` when nobody looks; otherwise what the tap makes of it."""
    return x if view is None else view.visit(site, x)
