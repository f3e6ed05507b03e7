"""Where every parameter, FLOP and byte of a design goes, from its config alone.

Arithmetic only: nothing is allocated, torch is not imported, no file is opened. What it counts as
built equals, number for number, the tensors that a `Transformer` of the same config holds.

Conventions. A multiply-add is 2 FLOPs, and only matrix products are counted (norms, softmax,
activations and rotations are below a hundredth of them). Reading a row of the embedding is free; the
unembedding is a product, tied or not. The backward pass costs twice the forward one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glassformer.errors import ConfigError, UsageError, near
from glassformer.model.choices import Component, softmax_of
from glassformer.model.config import Attention, Config, FeedForward, LatentAttention, Norm, Rotary, uniform

# Bits of one weight. The two block formats hold 32 weights and a 16-bit scale.
WEIGHT_BITS: dict[str, float] = {"float32": 32, "bfloat16": 16, "8-bit blocks": 8.5, "4-bit blocks": 4.5}
CACHE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2}

PER_LAYER = ("query", "key", "value", "decay", "convolution", "output", "router", "gate", "up", "down")
ATTENTION = ("query", "key", "value", "output")
FEED_FORWARD = ("router", "gate", "up", "down")
AS_BUILT = "as built"
MATRICES_ONLY = "matrices only, untied"


@dataclass(frozen=True)
class Tally:
    """Parameters by component under one convention.

    Args:
        label: the convention.
        whole: component -> parameters in the whole model.
        layer: component -> parameters in one layer, the first of its kind where layers differ.
        head: matrix -> parameters that one query head uses; key and value may be shared by several. Empty
            where no layer has softmax attention.
    """

    label: str
    whole: dict[str, int]
    layer: dict[str, int]
    head: dict[str, int]

    @property
    def total(self) -> int:
        """All parameters under this convention."""
        return sum(self.whole.values())

    def of(self, components: Iterable[str]) -> int:
        """Parameters of several components together."""
        return sum(self.whole.get(name, 0) for name in components)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "label": self.label,
            "total": self.total,
            "components": self.whole,
            "attention": self.of(ATTENTION),
            "feed_forward": self.of(FEED_FORWARD),
            "per_layer": {**self.layer, "total": sum(self.layer.values())},
            "per_head": {**self.head, "total": sum(self.head.values())},
        }


@dataclass(frozen=True)
class Count:
    """What a design costs. Memory is in bytes, FLOPs are for one token.

    Args:
        name: what was counted.
        config: its design.
        context: tokens of context that FLOPs and the cache are stated for.
        tallies: parameters by component, the model as built last.
    """

    name: str
    config: Config
    context: int
    tallies: tuple[Tally, ...]

    @property
    def built(self) -> Tally:
        """The parameters the model really holds."""
        return self.tallies[-1]

    @property
    def parameters(self) -> int:
        """How many parameters the model holds."""
        return self.built.total

    @property
    def inference_flops(self) -> int:
        """Of one more token behind `context - 1` others: 2 per matrix weight, 4 per head dimension and key seen."""
        return 2 * self._multiplied + int(self._mixing(self._seen_last))

    @property
    def training_flops(self) -> float:
        """Of a token on average over a sequence of `context`: three forwards, each query seeing its past only."""
        return 3 * (2 * self._multiplied + self._mixing(self._seen_mean))

    @property
    def formulas(self) -> dict[str, str]:
        """How the FLOPs come about, with this design's numbers."""
        weights = f"2 × {self._multiplied:,} matrix weights"
        dims = {m.n_heads * m.d_head for x in self.config.layers if isinstance(m := x.mixer, Attention)}
        plain = self.config.all_softmax and len(dims) == 1
        if plain:
            (width,) = dims
            mixing = f"4 × {width:,} head dimensions ×"
            last = f"{mixing} {sum(self._seen_last(i) for i in self._layers):,} keys seen, summed over layers"
            mean = f"{mixing} {sum(self._seen_mean(i) for i in self._layers):,.0f} keys seen, summed over layers"
        else:
            last = f"{self._mixing(self._seen_last):,.0f} between positions"
            mean = f"{self._mixing(self._seen_mean):,.0f} between positions"
        return {"inference": f"{weights} + {last}", "training": f"3 × ({weights} + {mean}, on average)"}

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Memory of the weights, by number format."""
        return {name: int(self.parameters * bits) // 8 for name, bits in WEIGHT_BITS.items()}

    @property
    def cache_bytes_per_token(self) -> dict[str, int]:
        """Memory of one token's keys and values in every layer, by number format."""
        numbers = sum(layer.mixer.cached_numbers for layer in self.config.layers if layer.mixer is not None)
        return {name: numbers * size for name, size in CACHE_BYTES.items()}

    @property
    def state_bytes(self) -> dict[str, int]:
        """Memory of the recurrences' states, the same however long the text, by number format."""
        numbers = sum(layer.mixer.state_numbers for layer in self.config.layers if layer.mixer is not None)
        return {name: numbers * size for name, size in CACHE_BYTES.items()}

    @property
    def optimizer_bytes(self) -> dict[str, int]:
        """Optimizer state in float32: AdamW keeps two numbers a parameter, Muon one for each of the blocks'
        matrices and AdamW's two for the rest."""
        matrices = self.built.of(PER_LAYER)
        return {"adamw": 8 * self.parameters, "muon": 4 * matrices + 8 * (self.parameters - matrices)}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "config": self.config.to_dict(),
            "context": self.context,
            "parameters": self.built.to_dict(),
            "active_parameters": self.active_parameters,
            "tallies": [tally.to_dict() for tally in self.tallies],
            "flops_per_token": {
                "inference": self.inference_flops,
                "training": self.training_flops,
                "formulas": self.formulas,
            },
            "bytes": {
                "weights": self.weight_bytes,
                "cache_per_token": self.cache_bytes_per_token,
                "cache": {name: size * self.context for name, size in self.cache_bytes_per_token.items()},
                "state": self.state_bytes,
                "gradients": 4 * self.parameters,
                "optimizer": self.optimizer_bytes,
            },
        }

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all but those of experts that are not chosen for it."""
        return int(sum(math.prod(c.shape) * c.share for c in self.config.components().values()))

    @property
    def _multiplied(self) -> int:
        """Weights that a token is multiplied with; the unembedding among them, tied or not."""
        found = sum(math.prod(c.shape) * c.share for c in self.config.components().values() if c.counted in PER_LAYER)
        return int(found) + self.config.vocab_size * self.config.d_model

    def _mixing(self, seen: Callable[[int], float]) -> float:
        """FLOPs between positions, summed over layers."""
        mixers = ((i, layer.mixer) for i, layer in enumerate(self.config.layers))
        return sum(mixer.flops(seen(i)) for i, mixer in mixers if mixer is not None)

    @property
    def _layers(self) -> range:
        return range(self.config.n_layers)

    def _seen_last(self, layer: int) -> int:
        mixer = self.config.layers[layer].mixer
        return 0 if mixer is None else mixer.seen(self.context - 1)

    def _seen_mean(self, layer: int) -> float:
        mixer = self.config.layers[layer].mixer
        if mixer is None:
            return 0.0
        attention = softmax_of(mixer)
        if attention is None or attention.chunk is None:
            window = mixer.seen(self.context - 1)
            return (window * (window + 1) / 2 + (self.context - window) * window) / self.context
        return sum(mixer.seen(i) for i in range(self.context)) / self.context


def count(
    design: str | Config | object, context: int | None = None, *, read: Callable[[str], Config] | None = None
) -> Count:
    """Count the parameters, FLOPs and memory of a design.

    Args:
        design: the name of a known design ("gpt3", "llama-7b"), a `Config`, or anything that has one
            as `.config` (a loaded model).
        context: tokens of context to state FLOPs and the cache for; the design's own by default.
        read: how to get the config of a name that is no known design; the command line reads checkpoints.

    Raises:
        ConfigError: for an unknown name.
        UsageError: for a context that the design cannot have.
    """
    name, convention = "this design", False
    if isinstance(design, str):
        name = design
        key = design.lower()
        if key in DESIGNS:
            design, convention = DESIGNS[key](), key == "gpt3"
        elif read is not None:
            design = read(design)
        else:
            raise ConfigError(
                f"No design is called {name!r}; known are {', '.join(DESIGNS)}.{near(key, DESIGNS)} "
                "For a checkpoint, count its loaded model or config."
            )
    elif not isinstance(design, Config):
        name, design = getattr(design, "name", name), getattr(design, "config", None)
        if not isinstance(design, Config):
            raise ConfigError("count() takes the name of a design, a Config, or a model that has one.")
    if context is None:
        context = design.context
    if context < 1:
        raise UsageError(f"A context has at least 1 token; {context} was asked for.")
    if context > design.context and design.learned_positions:
        raise UsageError(
            f"{name} has {design.context:,} trained positions, so its context cannot be {context:,} tokens; "
            f"ask for at most {design.context:,}."
        )
    built = _built(design)
    return Count(name, design, context, (_matrices_only(design), built) if convention else (built,))


def _lines(components: Mapping[str, Component]) -> dict[str, int]:
    """Parameters by line of the tally."""
    found: dict[str, int] = {}
    for component in components.values():
        found[component.counted] = found.get(component.counted, 0) + math.prod(component.shape)
    return found


def _head(c: Config) -> dict[str, int]:
    attention = next((m for layer in c.layers if isinstance(m := layer.mixer, Attention)), None)
    if attention is None or isinstance(attention, LatentAttention):  # a latent is all heads'
        return {}
    return dict.fromkeys(ATTENTION, attention.d_head * c.d_model)


def _built(c: Config) -> Tally:
    layer = _lines(c.layers[0].components(c.d_model, c.norm))
    for other in c.layers[1:]:
        if other is not c.layers[0] and other != c.layers[0]:
            for name, size in _lines(other.components(c.d_model, c.norm)).items():
                layer.setdefault(name, size)
    whole = _lines(c.components())
    order = ("embedding", "positions", *PER_LAYER, "unembedding")
    ordered = {name: whole.get(name, 0) for name in order} | whole
    return Tally(AS_BUILT, ordered, {"norms": 0, "biases": 0} | layer, _head(c))


def _matrices_only(c: Config) -> Tally:
    """The explainers' convention: the matrices and nothing else, the unembedding as one of its own."""
    layer = {name: size for name, size in _built(c).layer.items() if name in PER_LAYER}
    ends = c.vocab_size * c.d_model
    whole = {"embedding": ends, **{name: size * c.n_layers for name, size in layer.items()}, "unembedding": ends}
    return Tally(MATRICES_ONLY, whole, layer, _head(c))


def _gpt(layers: int, d_model: int, heads: int, context: int = 1024) -> Config:
    """GPT-2's design (and GPT-3's, whose locally banded layers change no count)."""
    return uniform(
        vocab_size=50257,
        d_model=d_model,
        n_layers=layers,
        context=context,
        mixer=Attention(heads, heads, d_model // heads, bias=True, out_bias=True, rotary=None),
        feed_forward=FeedForward(4 * d_model, "gelu_tanh", gated=False, bias=True),
        norm=Norm("layer"),
        learned_positions=True,
        tied=True,
    )


def _llama(
    layers: int,
    d_model: int,
    heads: tuple[int, int],
    d_ff: int,
    *,
    vocab: int = 32000,
    context: int = 2048,
    tied: bool = False,
    theta: float = 10_000.0,
    d_head: int | None = None,
    windows: tuple[int | None, ...] = (),
    **attention: Any,
) -> Config:
    """Llama's design: RMSNorm, rotary positions, gated SiLU, no biases; `heads` are query and key-value heads."""
    return uniform(
        vocab_size=vocab,
        d_model=d_model,
        n_layers=layers,
        context=context,
        mixer=Attention(*heads, d_head or d_model // heads[0], rotary=Rotary(theta), **attention),
        feed_forward=FeedForward(d_ff),
        windows=windows,
        tied=tied,
    )


def _smollm2() -> Config:
    return _llama(30, 576, (9, 3), 1536, vocab=49152, context=8192, tied=True, theta=100_000.0)


# Known designs, each built when asked for.
DESIGNS: dict[str, Callable[[], Config]] = {
    "gpt2": lambda: _gpt(12, 768, 12),
    "gpt2-medium": lambda: _gpt(24, 1024, 16),
    "gpt2-large": lambda: _gpt(36, 1280, 20),
    "gpt2-xl": lambda: _gpt(48, 1600, 25),
    "gpt3": lambda: _gpt(96, 12288, 96, 2048),
    "smollm2": _smollm2,
    "smollm2-135m": _smollm2,
    "smollm2-360m": lambda: _llama(32, 960, (15, 5), 2560, vocab=49152, context=8192, tied=True, theta=100_000.0),
    "smollm2-1.7b": lambda: _llama(24, 2048, (32, 32), 8192, vocab=49152, context=8192, tied=True, theta=130_000.0),
    "llama-7b": lambda: _llama(32, 4096, (32, 32), 11008),
    "llama-13b": lambda: _llama(40, 5120, (40, 40), 13824),
    "llama-65b": lambda: _llama(80, 8192, (64, 64), 22016),
    "llama-2-7b": lambda: _llama(32, 4096, (32, 32), 11008, context=4096),
    "llama-2-70b": lambda: _llama(80, 8192, (64, 8), 28672, context=4096),
    "llama-3-8b": lambda: _llama(32, 4096, (32, 8), 14336, vocab=128256, context=8192, theta=500_000.0),
    "llama-3-70b": lambda: _llama(80, 8192, (64, 8), 28672, vocab=128256, context=8192, theta=500_000.0),
    "mistral-7b": lambda: _llama(32, 4096, (32, 8), 14336, context=32768, windows=(4096,) * 32),
    "qwen3-0.6b": lambda: _llama(
        28, 1024, (16, 8), 3072, vocab=151936, context=40960, tied=True, theta=1e6, d_head=128, qk_norm="head"
    ),
}
