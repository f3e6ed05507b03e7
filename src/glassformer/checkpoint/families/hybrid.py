"""Families in which some layers have another mixer than attention: the table around it is any other family's.

`Hybrid` says which layers have the other mixer, where its numbers are kept and what its tensors are called. Everything
else about the family is the `Around` that it wraps, which sees attention in every layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.sparse import Around
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Attention, Config, Placement, Rotary, StateSpace

Flags = list[bool]
PARTS = ("gate", "x", "b", "c", "dt")


# The state space of Mamba 2: tensors and settings


def state_space_rows(at: str) -> tuple[Row, ...]:
    """Tensors of a state space as Mamba 2's reference code names them, behind `at` in a layer."""
    block = "blocks.{i}.ssm."
    found = [
        Row(at + "conv1d.weight", (block + "conv.weight",), squeezed=1),
        Row(at + "conv1d.bias", (block + "conv.bias",)),
        Row(at + "dt_bias", (block + "dt_bias",)),
        Row(at + "A_log", (block + "a_log",)),
        Row(at + "D", (block + "skip",)),
        Row(at + "norm.weight", (block + "norm.weight",)),
    ]
    for kind in ("weight", "bias"):
        found.append(Row(f"{at}in_proj.{kind}", tuple(f"{block}{part}.{kind}" for part in PARTS)))
        found.append(Row(f"{at}out_proj.{kind}", (f"{block}o.{kind}",)))
    return tuple(found)


def bounds(attributes: Attributes, name: str = "time_step_limit") -> tuple[float, float]:
    """What a state space's dt is kept within; JSON has no infinity, so an object or null stands for it."""
    said = attributes.sequence(name)
    if said is None:
        return (0.0, math.inf)
    numbers = [math.inf if isinstance(x, dict) or x is None else x for x in said]
    if len(numbers) != 2 or not all(isinstance(x, (int, float)) for x in numbers):
        raise attributes.unsupported(name, said)
    return (float(numbers[0]), float(numbers[1]))


def said_bounds(limit: tuple[float, float]) -> list[Any]:
    """`bounds` the other way."""
    low, high = limit
    return [low, {"__float__": "Infinity"} if math.isinf(high) else high]


@dataclass(frozen=True)
class Layers:
    """Which layers have the other mixer.

    Args:
        read: (settings, number of layers) -> a flag for each.
        write: flags -> settings.
    """

    read: Callable[[Attributes, int], Flags]
    write: Callable[[Flags], dict[str, Any]]


_TYPES = {"linear_attention": True, "mamba": True, "full_attention": False, "attention": False}


def by_types(default: Callable[[int], bool], key: str = "layer_types", names: Mapping[str, bool] = _TYPES) -> Layers:
    """Named layer by layer; `default` says which have the other mixer where nothing is named.

    Args:
        names: what a layer may be called -> whether it then has the other mixer; the first of each kind is written.
    """
    written = {kind: next(name for name, other in names.items() if other is kind) for kind in (True, False)}

    def read(attributes: Attributes, layers: int) -> Flags:
        said = attributes.sequence(key)
        if said is None:
            return [default(i) for i in range(layers)]
        if len(said) != layers:
            raise CheckpointError(f"{attributes.where} names {len(said)} {key} for {layers} layers.")
        for kind in said:
            if kind not in names:
                raise attributes.unsupported(key, kind)
        return [names[kind] for kind in said]

    return Layers(read, lambda flags: {key: [written[flag] for flag in flags]})


def _listed(attributes: Attributes, layers: int) -> Flags:
    attention = attributes.sequence("attn_layer_indices") or ()
    return [i not in attention for i in range(layers)]


ATTENTION_LISTED = Layers(
    _listed, lambda flags: {"attn_layer_indices": [i for i, flag in enumerate(flags) if not flag]}
)


def _any_attention(config: Config) -> Attention:
    return Attention(1, 1, config.d_model, rotary=Rotary() if config.d_model % 4 == 0 else None)


@dataclass(frozen=True)
class Hybrid:
    """One family.

    Args:
        alike: everything but the other mixer.
        rows: the other mixer's tensors, by their names within a layer.
        layers: which layers have it.
        read: (settings, design with attention everywhere) -> the other mixer.
        write: (the other mixer, or None where no layer has it; the design) -> its settings.
        norms: where norms stand in these layers; None for where the others have them.
        beside: where norms stand in layers of attention, where `norms` says otherwise of these.
        stand_in: the design -> what the settings say of attention where no layer has it.
        no_effect: settings that change no logit.
        gguf: the same family in GGUF.
    """

    alike: Around
    rows: tuple[Row, ...]
    layers: Layers
    read: Callable[[Attributes, Config], Mixer]
    write: Callable[[Mixer | None, Config], dict[str, Any]]
    norms: Placement | None = None
    beside: Placement = "before"
    stand_in: Callable[[Config], Attention] = _any_attention
    layouts: tuple[tuple[Row, ...], ...] = ()
    no_effect: frozenset[str] = frozenset()
    gguf: GgufTable | None = None

    @property
    def layer(self) -> str:
        """What stands before a tensor's name in a layer."""
        return self.alike.layer

    def family(self) -> Family:
        """The family, as everything else knows families."""
        plain = self.alike.family()
        within = self._within(self.rows)
        others = tuple((*plain.rows, *self._within(rows)) for rows in self.layouts)
        return dataclasses.replace(
            plain,
            rows=(*plain.rows, *within),
            layouts=(*((*rows, *within) for rows in plain.layouts), *others),
            read=self.config,
            write=self.settings,
            no_effect=plain.no_effect | self.no_effect,
            gguf=None if self.gguf is None else self.gguf.layout(self.config, self.settings, self.key),
        )

    def key(self, number: str) -> str | None:
        """The setting that holds a number of the design; None where it is fixed or has none."""
        return self.alike.key(number)

    def _within(self, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(dataclasses.replace(row, theirs=self.layer + row.theirs) for row in rows)

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        whole = self.alike.config(attributes)
        flags, other = self.layers.read(attributes, whole.n_layers), self.read(attributes, whole)
        layers = tuple(
            dataclasses.replace(layer, mixer=other, norms=self.norms or layer.norms) if flag else layer
            for layer, flag in zip(whole.layers, flags, strict=True)
        )
        return dataclasses.replace(whole, layers=layers)

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design; what a family has fixed is found when they are read back."""
        flags = [not isinstance(layer.mixer, Attention) for layer in config.layers]
        other = next((layer.mixer for layer, flag in zip(config.layers, flags, strict=True) if flag), None)
        attention = next((layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)), None)
        if attention is None:
            attention = self.stand_in(config)
        layers = tuple(
            dataclasses.replace(layer, mixer=attention, norms=self.beside if self.norms else layer.norms)
            if flag
            else layer
            for layer, flag in zip(config.layers, flags, strict=True)
        )
        found = self.alike.settings(dataclasses.replace(config, layers=layers))
        return {**found, **self.layers.write(flags), **self.write(other, config)}


@dataclass(frozen=True)
class StateSpaceKeys:
    """Where a hybrid keeps the numbers of its state space.

    Args:
        keys: number of `StateSpace` -> the setting that holds it.
        defaults: numbers whose setting is missing.
        expand: the setting of the inner width over that of the stream, which heads and their size must give; "" where
            they alone decide.
        inner: a setting of the inner width itself, which comes before.
        activation: the setting of the activation before the gate, which is silu in all of them.
        least: the setting of dt's lower bound, where ``time_step_limit`` is not what bounds it.
    """

    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    expand: str = "mamba_expand"
    inner: str = ""
    activation: str = "hidden_act"
    least: str = ""

    def read(self, attributes: Attributes, config: Config) -> StateSpace:
        """The state space that the settings describe."""
        ask = attributes
        heads = ask.integer(self.keys["n_heads"], self.defaults["n_heads"])
        d_head = self._head_size(ask, config, heads)
        if ask.text(self.activation, "silu") not in ("silu", "swish"):
            raise ask.unsupported(self.activation, ask.values.get(self.activation))
        groups = ask.integer(self.keys["n_groups"], self.defaults.get("n_groups", 1))
        return StateSpace(
            heads,
            d_head,
            ask.integer(self.keys["d_state"], self.defaults["d_state"]),
            n_groups=groups,
            conv=ask.integer(self.keys["conv"], 4),
            conv_bias=ask.flag(self.keys["conv_bias"], True),
            bias=ask.flag(self.keys["bias"], False),
            norm_groups=groups,
            norm_eps=config.norm.eps,
            norm=self._flag(ask, "norm", True),
            norm_first=self._flag(ask, "norm_first", False),
            dt_limit=(ask.number(self.least, 0.001), math.inf) if self.least else bounds(ask),
        )

    def _flag(self, ask: Attributes, name: str, fixed: bool) -> bool:
        """A choice that a setting holds where the family has one for it."""
        return ask.flag(self.keys[name], self.defaults.get(name, False)) if name in self.keys else fixed

    def _head_size(self, ask: Attributes, config: Config, heads: int) -> int:
        size = self.keys["d_head"]
        if not self.expand:
            alone: int = ask.integer(size, self.defaults["d_head"])
            return alone
        expand = ask.number(self.expand, 2.0)
        inner = ask.integer(self.inner, None) if self.inner else None
        inner = int(expand * config.d_model) if inner is None else inner
        said = None if ask.values.get(size) == "auto" else ask.integer(size, None)
        ask.asked.add(size)
        d_head: int = ask.share(self.inner or self.expand, inner, self.keys["n_heads"], heads) if said is None else said
        if heads * d_head != inner:
            raise CheckpointError(
                f"{ask.where} sets {self.keys['n_heads']} to {heads} and {size} to {d_head}, which does not give the "
                f"inner width of {inner}."
            )
        return d_head

    def write(self, mixer: Mixer | None, config: Config) -> dict[str, Any]:
        """`read` the other way."""
        if mixer is None:
            mixer = StateSpace(1, config.d_model, 1)
        if not isinstance(mixer, StateSpace):
            raise UnsupportedError("it has layers that are neither attention nor a state space")
        inner = mixer.n_heads * mixer.d_head
        expand = inner / config.d_model
        return {
            **{key: getattr(mixer, name) for name, key in self.keys.items()},
            **({self.expand: int(expand) if expand == int(expand) else expand} if self.expand else {}),
            **({self.inner: inner} if self.inner else {}),
            self.activation: "silu",
            **({self.least: mixer.dt_limit[0]} if self.least else {"time_step_limit": said_bounds(mixer.dt_limit)}),
        }
