"""The design of a transformer, as frozen data: a list of layers, each made of parts.

This module knows shapes and choices; it does not import torch, allocates nothing, and knows no
family by name. A field exists only because two supported checkpoints differ on it. Everything is
checked at construction, so a `Config` that exists is one that can be built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glassformer.errors import ConfigError, UnsupportedError
from glassformer.model.choices import (
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
    LinearAttention,
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
    softmax_of,
)
from glassformer.model.choices.common import positive
from glassformer.model.choices.layer import Layer, Placement
from glassformer.model.first_format import from_first_format
from glassformer.model.plain import build, build_layers, plain, plain_layers

__all__ = [
    "Attention",
    "Config",
    "Copies",
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
    "LinearAttention",
    "MatrixMemory",
    "Norm",
    "Parallel",
    "Placement",
    "RopeScaling",
    "Rotary",
    "SelectiveStateSpace",
    "ShortConvolution",
    "Sinusoids",
    "StateSpace",
    "uniform",
]


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
        final_eps: of that norm, where it is another than that of the layers' norms.
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
    final_eps: float | None = None
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
        if self.final_eps is not None and not (self.final_norm and self.final_eps > 0):
            raise ConfigError(f"final_eps is a number above 0 of a final norm that is there; got {self.final_eps}.")
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
    def packs(self) -> bool:
        """Whether several documents may lie in one row: only softmax attention looks at other positions, it chooses
        from all of them, and no angle depends on how long a text is."""
        mixers = [x.mixer for x in self.layers if x.mixer is not None]
        turns = [m.rotary.scaling for m in mixers if isinstance(m, Attention) and m.rotary is not None]
        return all(isinstance(m, Attention) and getattr(m, "index", None) is None for m in mixers) and not any(
            scaling is not None and scaling.varies for scaling in turns
        )

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
        found = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "layers"}
        return {**found, "layers": plain_layers(self.layers)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """A Config from what `to_dict` gave, after a trip through JSON; also from what earlier versions wrote.

        Raises:
            ConfigError: for a missing, unknown or wrongly typed field, by its name.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"config must be an object of named fields, not {type(data).__name__}.")
        if "attention" in data:
            return uniform(**from_first_format(data))
        return build(cls, {**data, "layers": build_layers(data.get("layers"))}, "config")


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
