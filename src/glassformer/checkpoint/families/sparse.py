"""Families whose feed-forward parts are experts: what is around them is a table of `alike`, the experts are one here.

`Sparse` says where a family keeps the numbers of its experts, which layers have them, and what their tensors are
called. Everything else about the family is the `Alike` that it wraps, which sees dense parts in the experts' place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Config, Experts, FeedForward

Flags = list[bool]
_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
_BLOCK = "blocks.{i}.mlp."
_MATRICES = ("gate", "up", "down")


# Which layers have experts: read from settings, and settings from it


@dataclass(frozen=True)
class Layers:
    """Which layers have experts.

    Args:
        read: (settings, number of layers) -> a flag for each.
        write: flags -> settings.
    """

    read: Callable[[Attributes, int], Flags]
    write: Callable[[Flags], dict[str, Any]]


def _first_dense(attributes: Attributes, layers: int) -> Flags:
    first = attributes.integer("first_k_dense_replace", 0)
    return [i >= first for i in range(layers)]


def _listed(attributes: Attributes, layers: int) -> Flags:
    kinds = attributes.sequence("mlp_layer_types")
    if kinds is None:
        return _first_dense(attributes, layers)
    if len(kinds) != layers or not set(kinds) <= {"dense", "sparse"}:
        raise CheckpointError(f"{attributes.where} names {kinds} as mlp_layer_types of {layers} layers.")
    return [kind == "sparse" for kind in kinds]


def _stepped(attributes: Attributes, layers: int) -> Flags:
    step, dense = attributes.integer("decoder_sparse_step", 1), attributes.sequence("mlp_only_layers") or []
    return [i not in dense and step > 0 and (i + 1) % step == 0 for i in range(layers)]


def _between(attributes: Attributes, layers: int) -> Flags:
    start, interval = attributes.integer("moe_layer_start_index", 1), attributes.integer("moe_layer_interval", 1)
    end = attributes.integer("moe_layer_end_index", -1)
    end = layers - 1 if end == -1 else end
    return [(i + 1) % interval == 0 and start <= i <= end for i in range(layers)]


def _leading(flags: Flags) -> int:
    return flags.index(True) if True in flags else len(flags)


EVERY = Layers(lambda attributes, layers: [True] * layers, lambda flags: {})
FIRST_DENSE = Layers(_first_dense, lambda flags: {"first_k_dense_replace": _leading(flags)})
LISTED = Layers(_listed, lambda flags: {"mlp_layer_types": ["sparse" if flag else "dense" for flag in flags]})
STEPPED = Layers(
    _stepped,
    lambda flags: {"decoder_sparse_step": 1, "mlp_only_layers": [i for i, flag in enumerate(flags) if not flag]},
)
BETWEEN = Layers(
    _between,
    lambda flags: {
        "moe_layer_start_index": _leading(flags),
        "moe_layer_end_index": len(flags) - 1,
        "moe_layer_interval": 1,
    },
)


# Tensors


def each(at: str = "mlp.experts.{e}.", names: Sequence[str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[Row, ...]:
    """A tensor for each matrix of each expert."""
    return tuple(
        Row(f"{at}{theirs}.weight", (f"{_BLOCK}experts.{ours}.weight",))
        for ours, theirs in zip(_MATRICES, names, strict=True)
    )


def fused(at: str, joined: str = "gate_up_proj", down: str = "down_proj", **how: Any) -> tuple[Row, ...]:
    """All experts stacked, gate and up joined in one tensor."""
    pair = (f"{_BLOCK}experts.gate.weight", f"{_BLOCK}experts.up.weight")
    plain = {name: value for name, value in how.items() if name != "alternating"}
    return (
        Row(f"{at}{joined}", pair, axis=1, **how),
        Row(f"{at}{down}", (f"{_BLOCK}experts.down.weight",), **plain),
    )


def shared(at: str, names: Sequence[str] = ("gate_proj", "up_proj", "down_proj")) -> tuple[Row, ...]:
    """The part that every token passes."""
    return tuple(
        Row(f"{at}{theirs}.{kind}", (f"{_BLOCK}shared.{ours}.{kind}",))
        for ours, theirs in zip(_MATRICES, names, strict=True)
        for kind in ("weight", "bias")
    )


def one(theirs: str, ours: str, **how: Any) -> Row:
    """A tensor of the router or of a gate."""
    return Row(theirs, (_BLOCK + ours,), **how)


class Around(Protocol):
    """A family without its experts: an `Alike`, or what reads and writes as one does."""

    @property
    def layer(self) -> str:
        """What stands before a tensor's name in a layer."""

    def family(self) -> Family:
        """The family with dense parts."""

    def key(self, number: str) -> str | None:
        """The setting that holds a number of the design; None where it is fixed or has none."""

    def config(self, attributes: Attributes) -> Config:
        """A design with dense parts."""

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings of a design with dense parts."""


@dataclass(frozen=True)
class Sparse:
    """One family.

    Args:
        alike: everything but the experts.
        rows: tensors of experts, router and shared part, by their names within a layer.
        n_experts, n_active, d_ff: the settings that hold these; of several names the first that is there is read, and
            the first is written.
        shared: the setting of how wide the shared part is, or ("setting", factor setting) where it is a multiple.
        fixed: fields of `Experts` that are the same in all of its models; keys: those that a setting holds; defaults:
            their values where the setting is missing.
        layers: which layers have experts.
        stacked: the same experts' rows as other versions store them.
        before: settings as the family's class completes them, from those of the file.
        read: last changes of the experts, from the settings.
        more: further settings of a written config.json, from the design.
        no_effect: settings that change no logit.
        gguf: the same family in GGUF.
    """

    alike: Around
    rows: tuple[Row, ...]
    n_experts: tuple[str, ...] = ("num_experts", "num_local_experts")
    n_active: str = "num_experts_per_tok"
    d_ff: tuple[str, ...] = ("moe_intermediate_size",)
    shared: str | tuple[str, str] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layers: Layers = EVERY
    stacked: tuple[tuple[Row, ...], ...] = ()
    before: Callable[[Attributes], Mapping[str, Any]] | None = None
    read: Callable[[Experts, Attributes], Experts] | None = None
    more: Callable[[Config], dict[str, Any]] | None = None
    no_effect: frozenset[str] = frozenset()
    gguf: GgufTable | None = None

    def family(self) -> Family:
        """The family, as everything else knows families."""
        plain = self.alike.family()
        common = frozenset({"output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size"})
        return dataclasses.replace(
            plain,
            rows=(*plain.rows, *self._within(self.rows)),
            layouts=tuple((*plain.rows, *self._within(rows)) for rows in self.stacked),
            read=self.config,
            write=self.settings,
            no_effect=plain.no_effect | common | self.no_effect,
            gguf=None if self.gguf is None else self.gguf.layout(self.config, self.settings, self._key, self),
        )

    def _key(self, number: str) -> str | None:
        """The setting that holds a number of the design, outside the experts."""
        return self.alike.key(number)

    def _within(self, rows: Sequence[Row]) -> tuple[Row, ...]:
        return tuple(dataclasses.replace(row, theirs=self.alike.layer + row.theirs) for row in rows)

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        seen = attributes
        if self.before is not None:
            seen = Attributes({**attributes.values, **self.before(attributes)}, attributes.where)
        dense = self.alike.config(seen)
        feed = dense.layers[0].feed_forward
        assert isinstance(feed, FeedForward)
        experts, flags = self._experts(seen, feed), self.layers.read(seen, dense.n_layers)
        if seen is not attributes:
            attributes.asked |= seen.asked
            attributes._inner.extend(seen._inner)
        layers = tuple(
            dataclasses.replace(layer, feed_forward=experts) if flag else layer
            for layer, flag in zip(dense.layers, flags, strict=True)
        )
        return dataclasses.replace(dense, layers=layers)

    def _experts(self, attributes: Attributes, feed: FeedForward) -> Experts:
        found: dict[str, Any] = {
            "n_experts": _first(attributes, self.n_experts, self.defaults.get("n_experts")),
            "n_active": attributes.integer(self.n_active, self.defaults.get("n_active", 2)),
            "d_ff": _first(attributes, self.d_ff, self.defaults.get("d_ff")),
            "activation": feed.activation,
            **self.fixed,
        }
        for name, key in self.keys.items():
            default = self.defaults.get(name, getattr(Experts, name))
            if isinstance(default, bool):
                found[name] = attributes.flag(key, default)
            elif isinstance(default, int):
                found[name] = attributes.integer(key, default, null=True) or default
            else:
                found[name] = attributes.number(key, default)
        if self.shared is not None and (width := self._shared_width(attributes, found["d_ff"])):
            found["shared"] = FeedForward(width, feed.activation, bias=found.pop("shared_bias", False))
        else:
            found.pop("shared_gate", None)
        return Experts(**found) if self.read is None else self.read(Experts(**found), attributes)

    def _shared_width(self, attributes: Attributes, d_ff: int) -> int:
        if isinstance(self.shared, str):
            width: int = attributes.integer(self.shared, 0, null=True) or 0
            return width
        assert self.shared is not None
        times: int = attributes.integer(self.shared[0], 0, null=True) or 0
        return times * (d_ff if not self.shared[1] else attributes.integer(self.shared[1]))

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design.

        Raises:
            UnsupportedError: it has no experts, or no dense part that could stand in their place.
        """
        experts = experts_of(config)
        flags = [isinstance(layer.feed_forward, Experts) for layer in config.layers]
        width = experts.d_ff
        stand_in = FeedForward(width, experts.activation, experts.gated)
        if False in flags:
            first = config.layers[flags.index(False)].feed_forward
            stand_in = first if isinstance(first, FeedForward) else stand_in
        layers = tuple(dataclasses.replace(layer, feed_forward=stand_in) for layer in config.layers)
        found = self.alike.settings(dataclasses.replace(config, layers=layers))
        found |= {self.n_experts[0]: experts.n_experts, self.n_active: experts.n_active, self.d_ff[0]: experts.d_ff}
        found |= {key: getattr(experts, name) for name, key in self.keys.items()}
        beside = 0 if experts.shared is None else experts.shared.d_ff
        if isinstance(self.shared, str):
            found[self.shared] = beside
        elif self.shared is not None:
            unit = experts.d_ff if not self.shared[1] else found[self.shared[1]]
            if beside % unit:
                raise UnsupportedError(f"its shared part of {beside} neurons is no multiple of {unit}")
            found[self.shared[0]] = beside // unit
        more = {} if self.more is None else self.more(config)
        if more.get("rope_parameters"):  # beside these, nothing else may speak of rotary positions
            found = {key: value for key, value in found.items() if key not in _ROTARY}
        return {**found, **self.layers.write(flags), **more}


def experts_of(config: Config) -> Experts:
    """The experts that a layout's one set of settings describes: the first.

    Raises:
        UnsupportedError: the design has none.
    """
    for layer in config.layers:
        if isinstance(layer.feed_forward, Experts):
            return layer.feed_forward
    raise UnsupportedError("it has no experts")


def _first(attributes: Attributes, names: Sequence[str], default: int | None) -> int:
    for name in names:
        if name in attributes:
            value: int = attributes.integer(name)
            return value
    return attributes.integer(names[0]) if default is None else default
