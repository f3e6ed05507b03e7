"""Which named places a design has, and the protocol of whoever looks at them.

The forward calls `see(tap, site, x)` at each place; with no tap that is `x` itself, so looking costs nothing when
nobody looks. What each place is stands in `site_table.py`; this module knows nothing of tensors.
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
from glassformer.model.site_table import ALIASES, BY_NAME, SITES, Site

if TYPE_CHECKING:
    from torch import Tensor

    from glassformer.model.config import Config, Layer

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
    def reads(self) -> frozenset[str]:
        """Full names of the sites that it reads."""

    @property
    def writes(self) -> frozenset[str]:
        """Full names of the sites that it changes."""

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
        prefix, part = f"blocks.{layer}.", ALIASES.get(part, part)
    else:
        prefix, part = "", ALIASES.get(name, name)
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
    "attn.router": "no router chooses among its heads.",
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
    return ALIASES.get(part, part)


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
        found["expert"] = getattr(mixer, "n_experts", 1)
        found["pair"] = max(mixer.n_heads // 2, 1)
        index = getattr(mixer, "index", None)
        if index is not None:
            found |= {"index_head": index.n_heads, "d_index": index.d_head}
        if leaf == "gate" and getattr(mixer, "gate", None) in ("head", "experts"):
            found["d_head"] = 1
    if config.copies and name.rpartition(".")[2] in ("resid_pre", "resid_late", "resid_post"):
        found["d_model"] = config.d_stream
    if (embedding := config.layers[layer].embedding) is not None:
        found["d_ple"] = embedding.d
    if feed is not None:
        found["d_ff"] = feed.neurons
        if isinstance(feed, Experts):
            found["latent"] = feed.latent or 0
            if ".attn." not in name:
                found["expert"] = feed.n_experts
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
        """Hand a tensor to the tap, and return what the forward goes on with."""
        return self.looking.visit(self.prefix + site, x)

    def wants(self, *sites: str) -> bool:
        """Whether any of these sites is read or written here."""
        declared = self.looking
        return any(self.prefix + s in declared.reads or self.prefix + s in declared.writes for s in sites)

    @property
    def where(self) -> Where:
        """Positions and padding of the forward."""
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
