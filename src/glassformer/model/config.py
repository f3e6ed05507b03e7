"""The design of a transformer, as frozen data.

This module knows shapes and choices; it does not import torch, allocates nothing, and knows no
family by name. A field exists only because two supported checkpoints differ on it. Everything is
checked at construction, so a `Config` that exists is one that can be built.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from glassformer.errors import ConfigError, near

Activation = Literal["gelu", "gelu_tanh", "silu", "relu", "relu2"]
ACTIVATIONS: tuple[str, ...] = ("gelu", "gelu_tanh", "silu", "relu", "relu2")
SCALINGS: tuple[str, ...] = ("linear", "llama3", "yarn", "factors")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to reach a longer context.

    Args:
        kind: "linear" divides every frequency by `factor` (position interpolation,
            arXiv:2306.15595); "llama3" divides only the slow ones, blended between `low` and
            `high`; "yarn" interpolates by parts (arXiv:2309.00071); "factors" divides each
            frequency by its own number in `factors`.
        factor: the stretch; new length over the original one.
        original_context: tokens the model was first trained for ("llama3", "yarn").
        low, high: "llama3" low/high frequency factors; "yarn" beta_slow/beta_fast.
        attention_factor: "yarn": cosines and sines are multiplied by it.
        factors: "factors": one divisor per rotated pair.
    """

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float = 1.0
    original_context: int = 0
    low: float = 1.0
    high: float = 4.0
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise ConfigError(f"Rotary scaling {self.kind!r} is unknown; known are {', '.join(SCALINGS)}.")
        if not self.factor > 0 or not self.attention_factor > 0:
            raise ConfigError("Rotary scaling needs a factor and an attention_factor above 0.")
        if self.kind in ("llama3", "yarn"):
            if self.original_context < 1:
                raise ConfigError(f"Rotary scaling {self.kind!r} needs original_context, the length first trained for.")
            if not 0 < self.low < self.high:
                raise ConfigError(f"Rotary scaling {self.kind!r} needs 0 < low < high; got {self.low} and {self.high}.")
        if self.kind == "factors" and (not self.factors or min(self.factors) <= 0):
            raise ConfigError("Rotary scaling 'factors' needs one positive divisor per rotated pair.")


@dataclass(frozen=True)
class Position:
    """How a token learns where it stands.

    Args:
        kind: "rotary" turns pairs of query and key dimensions (arXiv:2104.09864; the first half of
            the rotated dimensions pairs with the second half); "learned" adds a trained vector per
            position.
        theta: rotary base.
        fraction: share of each head's dimensions that are rotated, in (0, 1].
        scaling: stretch of the frequencies, or None.
        local_theta: base for layers with a sliding window, unscaled, or None for the same as others.
    """

    kind: Literal["rotary", "learned"] = "rotary"
    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None
    local_theta: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("rotary", "learned"):
            raise ConfigError(f"Position kind {self.kind!r} is unknown; known are rotary and learned.")
        if not self.theta > 0 or (self.local_theta is not None and not self.local_theta > 0):
            raise ConfigError("A rotary base must be above 0.")
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"The rotated share of a head must be in (0, 1]; got {self.fraction}.")
        if self.kind == "learned" and (self.scaling is not None or self.local_theta is not None or self.fraction != 1):
            raise ConfigError("Learned positions take no rotary settings.")


@dataclass(frozen=True)
class Norm:
    """Normalisation of the residual stream before each part.

    Args:
        kind: "rms" divides by the root mean square (arXiv:1910.07467); "layer" also subtracts the
            mean and adds a bias (arXiv:1607.06450).
        eps: added to the mean square before the root.
        one_plus: the learned scale is 1 + weight (Gemma).
        post: a second norm after each part, before it enters the residual stream.
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    one_plus: bool = False
    post: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("rms", "layer"):
            raise ConfigError(f"Norm kind {self.kind!r} is unknown; known are rms and layer.")
        if not self.eps > 0:
            raise ConfigError(f"The norm's eps must be above 0; got {self.eps}.")
        if self.one_plus and self.kind != "rms":
            raise ConfigError("A scale of 1 + weight exists for rms norms only.")


@dataclass(frozen=True)
class Attention:
    """The attention part.

    Args:
        n_heads: query heads.
        n_kv_heads: key and value heads; n_heads for multi-head, 1 for multi-query attention.
        d_head: dimensions of each head.
        bias: biases on the query, key and value projections.
        out_bias: bias on the output projection.
        qk_norm: an rms norm over each head's query and key before rotation.
        scale: multiplies the scores; None for 1/sqrt(d_head).
        softcap: scores become softcap * tanh(scores / softcap), or None.
        windows: per layer, how many latest positions (itself included) a query sees, None for all;
            an empty tuple means None for every layer.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    scale: float | None = None
    softcap: float | None = None
    windows: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        _positive("attention", n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, d_head=self.d_head)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads evenly; "
                "n_heads must be a multiple of n_kv_heads."
            )
        if self.scale is not None and not self.scale > 0:
            raise ConfigError("The score scale must be above 0, or None for 1/sqrt(d_head).")
        if self.softcap is not None and not self.softcap > 0:
            raise ConfigError("A soft cap must be above 0, or None.")
        for window in self.windows:
            if window is not None and window < 1:
                raise ConfigError(f"A sliding window must hold at least 1 position; got {window}.")


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward part: down(act(up(x))), or down(act(gate(x)) * up(x)) when gated."""

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        _positive("feed_forward", d_ff=self.d_ff)
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"Activation {self.activation!r} is unknown; known are {', '.join(ACTIVATIONS)}."
                + near(self.activation, ACTIVATIONS)
            )


@dataclass(frozen=True)
class Config:
    """The whole decoder-only transformer.

    Args:
        vocab_size: tokens it knows.
        d_model: width of the residual stream.
        n_layers: blocks.
        context: the longest text it was made for, in tokens.
        attention, feed_forward, norm, position: the parts.
        parallel: both parts read the same residual stream (GPT-NeoX), instead of one after the other.
        tied: the unembedding matrix is the embedding matrix.
        embedding_scale: multiplies the embeddings (Gemma: sqrt(d_model)), or None.
        logit_softcap: logits become softcap * tanh(logits / softcap), or None.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    context: int
    attention: Attention
    feed_forward: FeedForward
    norm: Norm = field(default_factory=Norm)
    position: Position = field(default_factory=Position)
    parallel: bool = False
    tied: bool = False
    embedding_scale: float | None = None
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        _positive(
            "model", vocab_size=self.vocab_size, d_model=self.d_model, n_layers=self.n_layers, context=self.context
        )
        windows = self.attention.windows
        if windows and len(windows) != self.n_layers:
            raise ConfigError(f"attention.windows names {len(windows)} layers, the model has {self.n_layers}.")
        if self.position.kind == "rotary":
            rotated = self.rotary_dims
            if rotated < 2 or rotated % 2:
                raise ConfigError(
                    f"Rotary positions turn pairs, and {self.position.fraction} of {self.attention.d_head} dimensions "
                    f"is {rotated}; choose a share that gives an even number of at least 2."
                )
            scaling = self.position.scaling
            if scaling is not None and scaling.kind == "factors" and len(scaling.factors) != rotated // 2:
                raise ConfigError(
                    f"Rotary scaling gives {len(scaling.factors)} factors for {rotated // 2} rotated pairs."
                )
        if self.parallel and self.norm.post:
            raise ConfigError("Parallel blocks with post-norms are not a design any supported checkpoint has.")
        for name in ("embedding_scale", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, or None; got {value}.")

    @property
    def rotary_dims(self) -> int:
        """Dimensions of each head that are rotated (0 with learned positions)."""
        return int(self.attention.d_head * self.position.fraction) if self.position.kind == "rotary" else 0

    @property
    def score_scale(self) -> float:
        """What multiplies query·key."""
        scale = self.attention.scale
        return scale if scale is not None else 1.0 / math.sqrt(self.attention.d_head)

    def window(self, layer: int) -> int | None:
        """Positions a query of this layer sees, itself included; None for all before it."""
        return self.attention.windows[layer] if self.attention.windows else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` gives the equal Config back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """A Config from what `to_dict` gave, after a trip through JSON.

        Raises:
            ConfigError: for a missing, unknown or wrongly typed field, by its name.
        """
        return _build(cls, data, "config")


_PARTS: dict[str, type] = {
    "attention": Attention,
    "feed_forward": FeedForward,
    "norm": Norm,
    "position": Position,
    "scaling": RopeScaling,
}


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
        value = data[name]
        if name in _PARTS and value is not None:
            value = _build(_PARTS[name], value, f"{where}.{name}")
        elif isinstance(value, list):
            value = tuple(value)
        _check_type(f"{where}.{name}", str(spec.type), value)
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
    else:
        sound = True
    if not sound:
        raise ConfigError(f"{where} must be {annotation}; got {value!r}.")


def _positive(what: str, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{what}.{name} must be a whole number of at least 1; got {value!r}.")
