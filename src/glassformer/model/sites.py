"""The named places of the transformer, and the protocol of whoever looks at them.

This table is the single source for documentation, tooltips and tests. The forward calls
`see(tap, site, x)` at each place; with no tap that is `x` itself, so looking costs nothing when
nobody looks. This module knows which places exist for a `Config` and nothing of tensors.

Axes: batch, query, key, head, kv_head, d_model, d_head, d_ff, vocab.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from glassformer.errors import SiteError, near

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.model.config import Config

RESIDUAL = ("batch", "query", "d_model")
SCALE = ("batch", "query", "one")
HEADS = ("batch", "query", "head", "d_head")
KV_HEADS = ("batch", "key", "kv_head", "d_head")
GRID = ("batch", "head", "query", "key")
HIDDEN = ("batch", "query", "d_ff")
VOCAB = ("batch", "query", "vocab")


@dataclass(frozen=True)
class Site:
    """One named place: its name (within a block or whole), axes, and meaning in one sentence."""

    name: str
    axes: tuple[str, ...]
    meaning: str
    in_block: bool = True


SITES: tuple[Site, ...] = (
    Site("embed", RESIDUAL, "Each token's row of the embedding matrix, scaled where the family scales it.", False),
    Site("pos_embed", RESIDUAL, "The trained vector of each position, added to the embedding.", False),
    Site("resid_pre", RESIDUAL, "The residual stream as it enters the block."),
    Site("ln1.scale", SCALE, "What the norm before attention divides by."),
    Site("ln1.normed", RESIDUAL, "The residual stream after the norm before attention, learned scale included."),
    Site("attn.q", HEADS, "Queries: what each position asks for, before rotation."),
    Site("attn.k", KV_HEADS, "Keys: what each position offers to be found by, before rotation."),
    Site("attn.v", KV_HEADS, "Values: what each position hands over when it is attended to."),
    Site("attn.rot_q", HEADS, "Queries after rotation by their position."),
    Site("attn.rot_k", KV_HEADS, "Keys after rotation by their position."),
    Site("attn.scores", GRID, "Scaled query-key products, soft-capped, minus infinity where a key is hidden."),
    Site("attn.pattern", GRID, "Attention weights: each row is a softmax over the keys and sums to one."),
    Site("attn.z", HEADS, "Each head's weighted sum of values, before the output projection."),
    Site("attn.out", RESIDUAL, "What attention adds to the residual stream, after a post-norm where there is one."),
    Site("resid_mid", RESIDUAL, "The residual stream between attention and feed-forward (sequential blocks)."),
    Site("ln2.scale", SCALE, "What the norm before the feed-forward layer divides by."),
    Site("ln2.normed", RESIDUAL, "The residual stream after the norm before the feed-forward layer."),
    Site("mlp.pre", HIDDEN, "Each neuron's input to the activation function (the gate, where there is one)."),
    Site("mlp.pre_linear", HIDDEN, "The linear half that the activated gate multiplies (gated layers)."),
    Site("mlp.post", HIDDEN, "Each neuron's output, which scales the column it writes."),
    Site("mlp.out", RESIDUAL, "What the feed-forward layer adds to the residual stream, after any post-norm."),
    Site("resid_post", RESIDUAL, "The residual stream as it leaves the block."),
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
    """

    positions: Tensor
    mask: Tensor | None
    start: int


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


def exists(site: Site, config: Config) -> bool:
    """Whether a model of this design has this place at all."""
    name = site.name
    if name == "pos_embed":
        return config.position.kind == "learned"
    if name in ("attn.rot_q", "attn.rot_k"):
        return config.position.kind == "rotary"
    if name == "resid_mid":
        return not config.parallel
    if name == "mlp.pre_linear":
        return config.feed_forward.gated
    if name == "logits.precap":
        return config.logit_softcap is not None
    return True


def names(config: Config) -> list[str]:
    """Every full site name of a model of this design, in the order the forward reaches them."""
    present = [site for site in SITES if exists(site, config)]
    first_block = next(i for i, site in enumerate(present) if site.in_block)
    head = [site.name for site in present[:first_block]]
    blocks = [f"blocks.{i}.{site.name}" for i in range(config.n_layers) for site in present if site.in_block]
    tail = [site.name for site in present[first_block:] if not site.in_block]
    return head + blocks + tail


def canonical(name: str, config: Config) -> str:
    """The full name of a site, from that name, a TransformerLens alias, or a negative layer.

    Raises:
        SiteError: when the model has no such place, with near matches.
    """
    match = _BLOCK.match(name)
    if match:
        layer, part = int(match[1]), match[2]
        if not -config.n_layers <= layer < config.n_layers:
            raise SiteError(
                f"There is no site {name!r}: the model has {config.n_layers} layers, "
                f"blocks.0 to blocks.{config.n_layers - 1}."
            )
        prefix, part = f"blocks.{layer % config.n_layers}.", _ALIASES.get(part, part)
    else:
        prefix, part = "", _ALIASES.get(name, name)
    site = BY_NAME.get(part)
    if site is None or site.in_block is not bool(prefix):
        if site is not None and site.in_block:
            raise SiteError(f"{name!r} is a place in every block; name the layer, as in blocks.0.{part}.")
        raise SiteError(f"There is no site {name!r}." + near(name, [*names(config), *(prefix + s.name for s in SITES)]))
    if not exists(site, config):
        raise SiteError(f"This model has no site {prefix + part!r}: {_absence(part)}")
    return prefix + part


def _absence(part: str) -> str:
    return {
        "pos_embed": "its positions are rotary, not added.",
        "attn.rot_q": "its positions are learned, so nothing is rotated; use attn.q.",
        "attn.rot_k": "its positions are learned, so nothing is rotated; use attn.k.",
        "resid_mid": "its attention and feed-forward run side by side.",
        "mlp.pre_linear": "its feed-forward layers are not gated.",
        "logits.precap": "its logits are not soft-capped; use logits.",
    }[part]


def site_of(name: str) -> Site:
    """The table's entry for a full canonical name."""
    match = _BLOCK.match(name)
    return BY_NAME[match[2] if match else name]


def layer_of(name: str) -> int | None:
    """The layer of a full canonical name, None outside the blocks."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


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
