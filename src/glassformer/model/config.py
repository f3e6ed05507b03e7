"""The design of a transformer, as frozen data: a list of layers, each made of parts.

This module knows shapes and choices; it does not import torch, allocates nothing, and knows no
family by name. A field exists only because two supported checkpoints differ on it. Everything is
checked at construction, so a `Config` that exists is one that can be built.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from glassformer.errors import ConfigError, UnsupportedError, near
from glassformer.model.choices import (
    FEEDS,
    MIXERS,
    Attention,
    Component,
    Copies,
    DifferentialAttention,
    Experts,
    Feed,
    FeedForward,
    GatedDelta,
    GatedLinearRecurrence,
    Head,
    Index,
    LatentAttention,
    LayerEmbedding,
    MatrixMemory,
    Mixer,
    Norm,
    Parallel,
    RopeScaling,
    Rotary,
    SelectiveStateSpace,
    ShortConvolution,
    Sinusoids,
    StateSpace,
    members,
    softmax_of,
)
from glassformer.model.choices.common import positive

Placement = Literal["before", "after", "both", "feed", "feed_both", "shared", "sum"]
PLACEMENTS: tuple[str, ...] = ("before", "after", "both", "feed", "feed_both", "shared", "sum")

__all__ = [
    "Attention",
    "Config",
    "DifferentialAttention",
    "Experts",
    "FeedForward",
    "GatedDelta",
    "GatedLinearRecurrence",
    "Head",
    "Index",
    "LatentAttention",
    "Layer",
    "LayerEmbedding",
    "MatrixMemory",
    "Norm",
    "Parallel",
    "RopeScaling",
    "Rotary",
    "SelectiveStateSpace",
    "ShortConvolution",
    "Sinusoids",
    "StateSpace",
    "uniform",
]


@dataclass(frozen=True)
class Layer:
    """One layer: a mixer, which moves information between positions, and a feed-forward part.

    Args:
        mixer: how positions speak to each other, or None.
        feed_forward: what is added at each position alone, or None.
        norms: where norms stand: "before" each part; "after" each part, before its output enters the
            stream; "both"; "feed" (before the feed-forward part alone);
            "feed_both" (both for the feed-forward part, before the mixer); "shared" (one before both
            parts, which run side by side); or after the "sum" of stream and part (the first GPT).
        parallel: both parts read the same residual stream, instead of one after the other.
        residual_scale: multiplies what each part adds to the stream, or None.
        averaged: how many things the stream is made of before this layer, the embedding among them, where all count
            the same: part number n joins as stream · √((n−1)/n) + part / √n (Beam). None where parts are just added.
        scalar: the stream is multiplied by a learned number as it leaves the layer (Gemma 4).
        embedding: what the layer's own embedding of the token adds after the parts, normed, or None.
        copies: the stream stands in several copies, of which the layer computes with one; None for one stream.
    """

    mixer: Mixer | None
    feed_forward: Feed | None
    norms: Placement = "before"
    parallel: bool = False
    residual_scale: float | None = None
    averaged: int | None = None
    scalar: bool = False
    embedding: LayerEmbedding | None = None
    copies: Copies | None = None

    def __post_init__(self) -> None:
        if self.copies is not None and (
            not isinstance(self.mixer, Attention)
            or not isinstance(self.feed_forward, FeedForward)
            or self.embedding is None
            or self.norms != "both"
            or (self.parallel, self.residual_scale, self.averaged, self.scalar) != (False, None, None, False)
        ):
            raise ConfigError(
                "A layer that computes with one of several copies has attention, a dense feed-forward part and an "
                "embedding of its own, with norms on both sides of each, and nothing else."
            )
        if self.embedding is not None and self.norms == "sum":
            raise ConfigError("A layer whose norms stand after the sum has no embedding of its own.")
        if self.averaged is not None:
            positive("layer", averaged=self.averaged)
            if self.parallel or self.norms == "sum":
                raise ConfigError("Parts side by side, or normed with the stream, are not averaged with it.")
        if self.mixer is None and self.feed_forward is None:
            raise ConfigError("A layer needs a mixer or a feed-forward part.")
        if self.norms not in PLACEMENTS:
            raise ConfigError(
                f"Norms stand {', '.join(PLACEMENTS)}; {self.norms!r} is none of these." + near(self.norms, PLACEMENTS)
            )
        if self.norms == "shared" and not self.parallel:
            raise ConfigError("Parts that share a norm run side by side; set parallel.")
        if self.parallel and (self.mixer is None or self.feed_forward is None):
            raise ConfigError("Only a layer of two parts can run them side by side.")
        if self.parallel and self.norms in ("both", "feed", "feed_both", "sum"):
            raise ConfigError(
                f"Parallel parts with norms {self.norms!r} are not a design any supported checkpoint has."
            )
        if self.residual_scale is not None and not self.residual_scale > 0:
            raise ConfigError(f"residual_scale must be above 0, or None; got {self.residual_scale}.")

    def part_scale(self, number: int) -> float:
        """What multiplies what the mixer (1) or the feed-forward part (2) adds to the stream."""
        if number == 3:
            return 1.0
        if self.copies is not None:
            return math.sqrt(0.5) if number == 1 else 1.0
        scale = 1.0 if self.residual_scale is None else self.residual_scale
        if number == 2 and isinstance(self.feed_forward, FeedForward):
            scale *= self.feed_forward.out_scale
        return scale if self.averaged is None else scale / math.sqrt(self._count(number))

    def stream_scale(self, number: int) -> float:
        """What multiplies the stream where the mixer (1) or the feed-forward part (2) joins it."""
        if self.copies is not None:
            return math.sqrt(0.5) if number == 1 else 1.0
        if self.averaged is None or (self.mixer, self.feed_forward)[number - 1] is None:
            return 1.0
        return math.sqrt(1 - 1 / self._count(number))

    def _count(self, number: int) -> int:
        assert self.averaged is not None
        return self.averaged + (2 if number == 2 and self.mixer is not None else 1)

    @property
    def parts(self) -> tuple[str, ...]:
        """Prefixes of its parts, in the order the forward reaches them: ("attn", "mlp") for most."""
        return tuple(part.prefix for part in (self.mixer, self.feed_forward, self.embedding) if part is not None)

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Names of its norms of the residual stream, in the order the forward reaches them."""
        found: list[str] = []
        for number, part in ((1, self.mixer), (2, self.feed_forward)):
            if part is None:
                continue
            alone = {"shared": 1, "feed": 2}.get(self.norms, number)  # the one part that has a norm before it
            if self.norms != "after" and number == alone:
                found.append(f"ln{number}")
            if self.norms in ("after", "both") or (self.norms == "feed_both" and number == 2):
                found.append(f"ln{number}_post")
        return (*found, *(["ln3_post"] if self.embedding is not None else []))

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the block, in the order of the computation."""
        found: dict[str, Component] = {}
        names = self.norm_names
        for number, part in ((1, self.mixer), (2, self.feed_forward)):
            if part is None:
                continue
            if f"ln{number}" in names:
                found |= norm.components(f"ln{number}", d_model)
            for own in members(part):
                inner = (
                    own.components(d_model) if isinstance(own, FeedForward | Experts) else own.components(d_model, norm)
                )
                found |= {f"{own.prefix}.{key}": component for key, component in inner.items()}
            if f"ln{number}_post" in names:
                found |= norm.components(f"ln{number}_post", d_model)
        if self.embedding is not None:
            inner = self.embedding.components(d_model)
            found |= {f"{self.embedding.prefix}.{key}": component for key, component in inner.items()}
            found |= norm.components("ln3_post", d_model)
        if self.copies is not None:
            found |= self.copies.components(d_model, norm)
        if self.scalar:
            found["scalar"] = Component((1,), "norms")
        return found


@dataclass(frozen=True)
class Config:
    """The whole decoder-only transformer.

    Args:
        vocab_size: tokens it knows.
        d_model: width of the residual stream.
        context: the longest text it was made for, in tokens.
        layers: what each layer is made of, first to last.
        norm: the final norm, and what the layers' norms are.
        learned_positions: a trained vector per position is added to the embeddings.
        sinusoids: a fixed vector per position is added to the embeddings instead; None for none.
        embedding_norm: the embeddings are normed before the first layer (BLOOM).
        head: a layer of its own between the last one and the final norm, or None.
        final_norm: the stream is normed before the unembedding.
        d_embed: width of the embedding and unembedding matrices, which a matrix each way joins to the stream; None
            for d_model.
        tied: the unembedding matrix is the embedding matrix.
        unembed_bias: a bias on the logits.
        embedding_scale: multiplies the embeddings (Gemma: sqrt(d_model)), or None.
        logit_scale: multiplies the logits, or None.
        logit_softcap: logits become softcap * tanh(logits / softcap), or None.
        layer_vocab: tokens that layers' own embeddings know; None for all. Others have the first token's.
    """

    vocab_size: int
    d_model: int
    context: int
    layers: tuple[Layer, ...]
    norm: Norm = field(default_factory=Norm)
    learned_positions: bool = False
    sinusoids: Sinusoids | None = None
    embedding_norm: bool = False
    head: Head | None = None
    final_norm: bool = True
    d_embed: int | None = None
    tied: bool = False
    unembed_bias: bool = False
    embedding_scale: float | None = None
    logit_scale: float | None = None
    logit_softcap: float | None = None
    layer_vocab: int | None = None

    def __post_init__(self) -> None:
        if self.layer_vocab is not None:
            positive("model", layer_vocab=self.layer_vocab)
        if len({layer.copies for layer in self.layers}) > 1:
            raise ConfigError("Either all layers compute with one of the same number of copies, or none does.")
        if self.copies and (self.adds_positions or self.head is not None):
            raise ConfigError("A stream in copies has no vectors of positions and no head.")
        if len({layer.embedding.d for layer in self.layers if layer.embedding is not None}) > 1:
            raise ConfigError("Layers' own embeddings of tokens are of one size.")
        positive("model", vocab_size=self.vocab_size, d_model=self.d_model, context=self.context)
        if self.d_embed is not None:
            positive("model", d_embed=self.d_embed)
        if not self.layers:
            raise ConfigError("A model needs at least one layer.")
        if self.sinusoids is not None:
            if self.learned_positions:
                raise ConfigError("Positions are trained or fixed vectors, not both.")
            if self.d_model % 2 or self.d_model < 4:
                raise ConfigError(f"Sines and cosines need an even width of at least 4; d_model is {self.d_model}.")
        for name in ("embedding_scale", "logit_scale", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, or None; got {value}.")
        for i, layer in enumerate(self.layers):
            mixer = layer.mixer
            if isinstance(mixer, Attention) and (donor := mixer.keys_from) is not None:
                theirs = self.layers[donor].mixer if 0 <= donor < i else None
                if not isinstance(theirs, Attention) or theirs.keys_from is not None:
                    raise ConfigError(f"Layer {i} shares the keys of layer {donor}, which has none before it.")
                if (theirs.n_kv_heads, theirs.d_head, theirs.value_size) != (
                    mixer.n_kv_heads,
                    mixer.d_head,
                    mixer.value_size,
                ):
                    raise ConfigError(f"Layer {i} shares the keys of layer {donor}, whose heads have other sizes.")

    @property
    def adds_positions(self) -> bool:
        """Whether a vector of its own, trained or fixed, is added for each position."""
        return self.learned_positions or self.sinusoids is not None

    @property
    def turns_by_length(self) -> bool:
        """Whether the length of the whole text decides how its positions are turned: a text that grows past such a
        point is computed anew from its first token."""
        mixers = (layer.mixer for layer in self.layers)
        rotaries = (a.rotary for mixer in mixers if (a := softmax_of(mixer)) is not None)
        return any(r is not None and r.scaling is not None and r.scaling.varies for r in rotaries)

    @property
    def n_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def attention(self, layer: int) -> Attention:
        """The softmax attention of this layer.

        Raises:
            UnsupportedError: the layer mixes positions in another way.
        """
        mixer = self.layers[layer].mixer
        if (attention := softmax_of(mixer)) is not None:
            return attention
        what = "has no part that mixes positions" if mixer is None else f"is a {mixer.kind.replace('_', ' ')}"
        raise UnsupportedError(f"Layer {layer} {what}, so it has no queries and keys.")

    def mixer(self, layer: int) -> Mixer:
        """The part of this layer that mixes positions.

        Raises:
            UnsupportedError: the layer has none.
        """
        mixer = self.layers[layer].mixer
        if mixer is None:
            raise UnsupportedError(f"Layer {layer} has no part that mixes positions, so it has no heads.")
        return mixer

    def feed_forward(self, layer: int) -> Feed:
        """The feed-forward part of this layer.

        Raises:
            UnsupportedError: the layer has none.
        """
        part = self.layers[layer].feed_forward
        if part is None:
            raise UnsupportedError(f"Layer {layer} has no feed-forward part, so it has no neurons.")
        return part

    def n_heads(self, layer: int) -> int:
        """Heads of this layer's mixer; 0 where it has none."""
        mixer = self.layers[layer].mixer
        return 0 if mixer is None else mixer.n_heads

    @property
    def copies(self) -> int | None:
        """How many copies of the stream there are; None for one stream."""
        return None if self.layers[0].copies is None else self.layers[0].copies.n

    @property
    def d_stream(self) -> int:
        """Width of the stream between layers, all of its copies together."""
        return self.d_model * (self.copies or 1)

    @property
    def layer_embedding(self) -> int | None:
        """Dimensions of layers' own embeddings of tokens; None where no layer has one."""
        return next((layer.embedding.d for layer in self.layers if layer.embedding is not None), None)

    @property
    def keys_from(self) -> dict[int, int]:
        """Layers that use another layer's keys and values, and which."""
        found = {i: getattr(layer.mixer, "keys_from", None) for i, layer in enumerate(self.layers)}
        return {layer: donor for layer, donor in found.items() if donor is not None}

    @property
    def most_heads(self) -> int:
        """Heads of the layer that has most."""
        return max(self.n_heads(i) for i in range(self.n_layers))

    def window(self, layer: int) -> int | None:
        """Positions a query of this layer sees, itself included; None for all before it."""
        attention = softmax_of(self.layers[layer].mixer)
        return None if attention is None else attention.window

    @property
    def all_softmax(self) -> bool:
        """Whether every layer has softmax attention and a dense feed-forward part."""
        return all(isinstance(x.mixer, Attention) and isinstance(x.feed_forward, FeedForward) for x in self.layers)

    @property
    def alike(self) -> Layer | None:
        """The one layer that all are equal to, windows and rotary bases apart; None where they differ."""
        plain = {_plain(layer) for layer in self.layers}
        return self.layers[0] if len(plain) == 1 else None

    def components(self) -> dict[str, Component]:
        """Every parameter by native key, in the order of the computation."""
        width = self.d_model if self.d_embed is None else self.d_embed
        found = {"embed.weight": Component((self.vocab_size, width), "embedding")}
        if self.d_embed is not None:
            found["project_in.weight"] = Component((self.d_model, width), "embedding")
            found["project_out.weight"] = Component((width, self.d_model), "unembedding")
        if (d := self.layer_embedding) is not None:
            rows = self.vocab_size if self.layer_vocab is None else self.layer_vocab
            found["layer_inputs.embed.weight"] = Component((rows, self.n_layers * d), "embedding")
            found["layer_inputs.project.weight"] = Component((self.n_layers * d, self.d_model), "up")
            found |= self.norm.components("layer_inputs.norm", d)
        for i in range((self.copies or 1) - 1):
            found[f"spread.{i}.weight"] = Component((self.d_model, self.d_model), "up")
            found[f"gather.{i}.weight"] = Component((self.d_model, self.d_model), "down")
        if self.learned_positions:
            found["pos_embed.weight"] = Component((self.context, self.d_model), "positions")
        if self.embedding_norm:
            found |= self.norm.components("embed_norm", self.d_model)
        for i, layer in enumerate(self.layers):
            inner = layer.components(self.d_model, self.norm)
            found |= {f"blocks.{i}.{key}": component for key, component in inner.items()}
        if self.head is not None:
            found |= self.head.components(self.d_model, self.norm)
        if self.final_norm:
            found |= self.norm.components("final", self.d_model)
        if not self.tied:
            found["unembed.weight"] = Component((self.vocab_size, width), "unembedding")
        if self.unembed_bias:
            found["unembed_bias"] = Component((self.vocab_size,), "biases")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; equal neighbouring layers are written once with a count."""
        plain = {f.name: _plain_value(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "layers"}
        layers: list[dict[str, Any]] = []
        for i, layer in enumerate(self.layers):
            if i and layer == self.layers[i - 1]:
                layers[-1]["count"] += 1
            else:
                layers.append({"count": 1, **_plain_value(layer)})
        return {**plain, "layers": layers}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """A Config from what `to_dict` gave, after a trip through JSON; also from what earlier versions wrote.

        Raises:
            ConfigError: for a missing, unknown or wrongly typed field, by its name.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"config must be an object of named fields, not {type(data).__name__}.")
        if "attention" in data:
            return _from_first_format(data)
        entries = data.get("layers")
        if not isinstance(entries, list):
            raise ConfigError("config.layers must be a list of layers.")
        layers: list[Layer] = []
        for i, entry in enumerate(entries):
            where = f"config.layers[{i}]"
            if not isinstance(entry, dict):
                raise ConfigError(f"{where} must be an object of named fields, not {type(entry).__name__}.")
            count = entry.get("count", 1)
            positive(where, count=count)
            if len(layers) + count > MOST_LAYERS:
                raise ConfigError(f"{where}: a model has at most {MOST_LAYERS:,} layers.")
            layers += [_build(Layer, {k: v for k, v in entry.items() if k != "count"}, where)] * count
        return _build(cls, {**data, "layers": tuple(layers)}, "config")


MOST_LAYERS = 10_000


def uniform(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    context: int,
    mixer: Mixer,
    feed_forward: Feed | None,
    norm: Norm | None = None,
    *,
    windows: Sequence[int | None] = (),
    local_rotary: Rotary | None = None,
    norms: Placement = "before",
    parallel: bool = False,
    residual_scale: float | None = None,
    **rest: Any,
) -> Config:
    """A design whose layers are alike but for what they see.

    Args:
        n_layers: how many.
        windows: per layer, how many latest positions a query sees, None for all; empty for all in every layer.
        local_rotary: rotary positions of layers with a window, where they differ from the others'.
        norms, parallel, residual_scale: as in `Layer`.
        rest: further fields of `Config`.

    Raises:
        ConfigError: the design cannot be built.
    """
    positive("model", n_layers=n_layers)
    if windows and len(windows) != n_layers:
        raise ConfigError(f"windows names {len(windows)} layers, the model has {n_layers}.")
    layers = []
    for i in range(n_layers):
        own = mixer
        if windows and isinstance(mixer, Attention):
            own = dataclasses.replace(mixer, window=windows[i])
        if isinstance(own, Attention) and own.window is not None and local_rotary is not None:
            own = dataclasses.replace(own, rotary=local_rotary)
        layers.append(Layer(own, feed_forward, norms, parallel, residual_scale))
    return Config(vocab_size, d_model, context, tuple(layers), Norm() if norm is None else norm, **rest)


def _plain(layer: Layer) -> Layer:
    mixer = layer.mixer
    if not isinstance(mixer, Attention):
        return layer
    rotary = None if mixer.rotary is None else Rotary(fraction=mixer.rotary.fraction)
    return dataclasses.replace(layer, mixer=dataclasses.replace(mixer, window=None, rotary=rotary))


# Plain data and back

_NESTED: Mapping[str, type] = {
    "norm": Norm,
    "qk_norm_kind": Norm,
    "embedding": LayerEmbedding,
    "copies": Copies,
    "rotary": Rotary,
    "scaling": RopeScaling,
    "sinusoids": Sinusoids,
    "out_norm": Norm,
    "head": Head,
    "index": Index,
}


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: _plain_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = getattr(value, "kind", None) if type(value) in (*MIXERS.values(), *FEEDS.values()) else None
        return plain if kind is None else {"kind": kind, **plain}
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return None
    return value


def _kind(table: Mapping[str, type], data: Any, where: str) -> Any:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object of named fields, not {type(data).__name__}.")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in table:
        raise ConfigError(f"{where}.kind {kind!r} is unknown; known are {', '.join(table)}." + near(str(kind), table))
    return _build(table[kind], {k: v for k, v in data.items() if k != "kind"}, where)


def _build(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} must be an object of named fields, not {type(data).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise ConfigError(f"{where} has no field {name!r}." + near(str(name), fields))
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name not in data:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where} lacks the field {name!r}.")
            continue
        value, place = data[name], f"{where}.{name}"
        if name == "mixer" or (cls is Parallel and name in ("attention", "recurrence")):
            value = _kind(MIXERS, value, place)
        elif name in ("feed_forward", "shared") and cls is not Config:
            value = _kind(FEEDS, value, place)
        elif name in _NESTED and isinstance(value, dict):
            value = _build(_NESTED[name], value, place)
        elif name == "dt_limit" and isinstance(value, (list, tuple)):
            value = tuple(float("inf") if v is None else v for v in value)
        elif isinstance(value, list):
            value = tuple(value)
        _check_type(place, str(spec.type), value)
        values[name] = value
    return cls(**values)


def _check_type(where: str, annotation: str, value: Any) -> None:
    if value is None:
        sound = "None" in annotation
    elif annotation.startswith("int"):
        sound = isinstance(value, int) and not isinstance(value, bool)
    elif annotation.startswith("float"):
        sound = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    elif annotation.startswith("bool"):
        sound = isinstance(value, bool)
    elif annotation.startswith("tuple[int"):
        sound = isinstance(value, tuple) and all(v is None or type(v) is int for v in value)
    elif annotation.startswith("tuple[float"):
        sound = isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
    elif annotation.startswith("Norm"):
        sound = isinstance(value, Norm)
    elif annotation.startswith("Rotary"):
        sound = isinstance(value, Rotary)
    elif annotation.startswith("Index"):
        sound = isinstance(value, Index)
    elif annotation.startswith("Head"):
        sound = isinstance(value, Head)
    elif annotation.startswith("Sinusoids"):
        sound = isinstance(value, Sinusoids)
    elif annotation.startswith("RopeScaling"):
        sound = isinstance(value, RopeScaling)
    elif annotation.startswith("tuple[Layer"):
        sound = isinstance(value, tuple) and all(isinstance(v, Layer) for v in value)
    else:
        sound = True
    if not sound:
        raise ConfigError(f"{where} must be {annotation}; got {value!r}.")


# The first format: one attention and one feed-forward part for all layers.


@dataclass(frozen=True)
class _Position:
    kind: str = "rotary"
    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None
    local_theta: float | None = None


def _from_first_format(data: dict[str, Any]) -> Config:
    data = dict(data)
    position = _build(_Position, data.pop("position", {}), "config.position")
    if position.kind not in ("rotary", "learned"):
        raise ConfigError(f"Position kind {position.kind!r} is unknown; known are rotary and learned.")
    attention, norm = data.pop("attention"), data.pop("norm", {})
    if not isinstance(attention, dict) or not isinstance(norm, dict):
        raise ConfigError("config.attention and config.norm must be objects of named fields.")
    attention, norm = dict(attention), dict(norm)
    windows, post = attention.pop("windows", ()), norm.pop("post", False)
    if attention.pop("qk_norm", False):
        attention["qk_norm"] = "head"
    learned = position.kind == "learned"
    rotary = None if learned else Rotary(position.theta, position.fraction, position.scaling)
    local = None if learned or position.local_theta is None else Rotary(position.local_theta, position.fraction)
    known = ("vocab_size", "d_model", "n_layers", "context")
    for name in known:
        if name not in data:
            raise ConfigError(f"config lacks the field {name!r}.")
        _check_type(f"config.{name}", "int", data[name])
    rest: dict[str, Any] = {k: v for k, v in data.items() if k not in (*known, "feed_forward", "parallel")}
    allowed = ("tied", "embedding_scale", "logit_softcap")
    for name in rest:
        if name not in allowed:
            raise ConfigError(f"config has no field {name!r}." + near(str(name), (*known, *allowed)))
        _check_type(f"config.{name}", "bool" if name == "tied" else "float | None", rest[name])
    parallel = data.get("parallel", False)
    _check_type("config.parallel", "bool", parallel)
    mixer = _build(Attention, attention, "config.attention")
    return uniform(
        data["vocab_size"],
        data["d_model"],
        data["n_layers"],
        data["context"],
        dataclasses.replace(mixer, rotary=rotary),
        _build(FeedForward, data.get("feed_forward"), "config.feed_forward"),
        _build(Norm, norm, "config.norm"),
        windows=windows,
        local_rotary=local,
        norms="both" if post else "before",
        parallel=parallel,
        learned_positions=learned,
        **rest,
    )
