"""Settings that several families share: activations, rotary positions, and their GGUF spellings."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.unread import LAYER_KINDS
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Activation, Attention, FeedForward, RopeScaling, Rotary
from glassformer.model.config import Config

# Several of Hugging Face's names compute the same function.
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}
ACTIVATION_NAMES: Mapping[str, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}


def activation(attributes: Attributes, name: str, default: str) -> Activation:
    """The activation a setting names.

    Raises:
        UnsupportedError: it is none of ours.
    """
    value = attributes.text(name, default)
    if value not in _ACTIVATIONS:
        raise attributes.unsupported(name, value)
    return _ACTIVATIONS[value]


def rope(
    attributes: Attributes, context: int, theta: float, parameters: Mapping[str, Any] | None = None
) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling, in the old spelling or the new.

    ``rope_theta`` beside ``rope_scaling`` is what transformers wrote up to version 4, ``rope_parameters`` holding
    everything is what it writes since; a filled ``rope_scaling`` wins, as it does there.

    Args:
        theta: the base where ``parameters`` names none.
        parameters: what to read instead of those two.
    """
    inner = rope_table(attributes) if parameters is None else attributes.inside(parameters, "rope_parameters")
    base = inner.number("rope_theta", theta)
    kind = inner.text("rope_type", inner.text("type", "default"))
    inner.only("mrope_section")
    if kind not in ("longrope", "su"):
        for name in ("short_factor", "long_factor"):
            inner.only(name)
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, RopeScaling("linear", factor=inner.number("factor"))
    if kind == "proportional":
        share = inner.number("partial_rotary_factor", 1.0)
        return base, RopeScaling("proportional", factor=inner.number("factor", 1.0), share=share)
    said = inner.integer("original_max_position_embeddings", context)
    original = attributes.integer("original_max_position_embeddings", said)
    if original < 1:
        raise inner.unsupported("original_max_position_embeddings", original)
    if kind == "llama3":
        return (
            base,
            RopeScaling(
                "llama3",
                factor=inner.number("factor"),
                original_context=original,
                low=inner.number("low_freq_factor"),
                high=inner.number("high_freq_factor"),
            ),
        )
    if kind == "yarn":
        return base, _yarn(inner, original, context)
    if kind in ("longrope", "su"):
        return base, _longrope(inner, original, context)
    if kind == "dynamic":
        return base, RopeScaling("dynamic", factor=inner.number("factor"), original_context=context)
    raise inner.unsupported("rope_type", kind)


def rope_table(attributes: Attributes) -> Attributes:
    """The rotary settings in either spelling, under the name that they have."""
    name = "rope_scaling" if attributes.table("rope_scaling") else "rope_parameters"
    return attributes.inside(attributes.table(name), name)


def rope_kinds(attributes: Attributes) -> dict[str, Any]:
    """The rotary settings by kind of layer.

    Raises:
        UnsupportedError: something else stands there.
    """
    kinds = attributes.table("rope_parameters")
    if kinds and not LAYER_KINDS & kinds.keys():
        raise attributes.unsupported("rope_parameters", kinds)
    for kind in kinds.keys() - LAYER_KINDS:
        raise attributes.inside(kinds, "rope_parameters").unsupported(kind, kinds[kind])
    return kinds


def rope_fraction(attributes: Attributes, name: str, default: float) -> float:
    """The rotated share of each head, in either spelling; ``name`` is the older one."""
    share: float = rope_table(attributes).number("partial_rotary_factor", attributes.number(name, default))
    return share


def all_rotated(attributes: Attributes) -> None:
    """Refuses a rotated share below 1, which these families' reference code does not compute either, unless it is the
    share of pairs that turn."""
    inner = rope_table(attributes)
    if "proportional" in (inner.text("rope_type", ""), inner.text("type", "")):
        return
    why = "though transformers rotates whole heads in this type, so what was trained is not known."
    for settings in (inner, attributes):
        settings.only("partial_rotary_factor", 1, why=why)


def one_rotation(attributes: Attributes) -> None:
    """Refuses rotary positions by kind of layer, which these families do not have.

    Raises:
        UnsupportedError: naming the first kind.
    """
    inner = rope_table(attributes)
    for kind in sorted(LAYER_KINDS & inner.values.keys()):
        inner.only(kind, why="but layers of this type all rotate alike: transformers takes what stands beside it.")


def _yarn(inner: Attributes, original: int, context: int) -> RopeScaling:
    factor = inner.number("factor", context / original)
    attention = inner.number("attention_factor", None)
    if attention is None:
        one, all_dims = inner.number("mscale", None), inner.number("mscale_all_dim", None)
        if one and all_dims:
            attention = yarn_temperature(factor, one) / yarn_temperature(factor, all_dims)
        else:
            attention = yarn_temperature(factor)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_context=original,
        low=inner.number("beta_slow", 1.0),
        high=inner.number("beta_fast", 32.0),
        attention_factor=attention,
        truncate=inner.flag("truncate", True),
    )


def _longrope(inner: Attributes, original: int, context: int) -> RopeScaling:
    factor = inner.number("factor", context / original)
    attention = inner.number("attention_factor", None)
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    lists = [inner.sequence(name) or [] for name in ("short_factor", "long_factor")]
    if any(not isinstance(x, (int, float)) or isinstance(x, bool) for factors in lists for x in factors):
        raise CheckpointError(f"{inner.where} sets short_factor and long_factor to lists that hold more than numbers.")
    short, long = (tuple(float(x) for x in factors) for factors in lists)
    return RopeScaling(
        "longrope",
        factor=factor,
        original_context=original,
        attention_factor=attention,
        factors=short,
        long_factors=long,
    )


def yarn_temperature(factor: float, scale: float = 1.0) -> float:
    """What cosines and sines are multiplied by, by default (arXiv:2309.00071, section 3.4)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def attention_of(config: Config, *, window: bool | None = None) -> Attention:
    """The attention that a layout's one set of settings describes: the first layer's, or the first with (or without)
    a window where there is one. Layers that differ from it are found when the settings are read back.

    Raises:
        UnsupportedError: the design has layers of another kind.
    """
    found = None
    for layer in config.layers:
        if not isinstance(layer.mixer, Attention):
            raise UnsupportedError("it has layers without softmax attention")
        if found is None or (window is not None and (layer.mixer.window is not None) is window):
            found = layer.mixer
            if window is None or (found.window is not None) is window:
                break
    assert found is not None
    return found


def feed_forward_of(config: Config) -> FeedForward:
    """The dense feed-forward part that a layout's one set of settings describes: the first layer's.

    Raises:
        UnsupportedError: the design has layers of another kind.
    """
    for layer in config.layers:
        if not isinstance(layer.feed_forward, FeedForward):
            raise UnsupportedError("it has layers without a dense feed-forward part")
    first = config.layers[0].feed_forward
    assert isinstance(first, FeedForward)
    return first


def rotary_of(config: Config, *, window: bool | None = None) -> Rotary:
    """The rotary positions that a layout's one set of settings describes.

    Raises:
        UnsupportedError: the design rotates nothing.
    """
    rotary = attention_of(config, window=window).rotary
    if rotary is None:
        raise UnsupportedError("it has layers without rotary positions")
    return rotary


def rope_settings(config: Config) -> dict[str, Any]:
    """`rope` the other way, in the spelling that every version of transformers reads."""
    rotary = rotary_of(config)
    scaling = rotary.scaling
    return {"rope_theta": rotary.theta, "rope_scaling": None if scaling is None else scaling_settings(scaling)}


def scaling_settings(scaling: RopeScaling) -> dict[str, Any]:
    """One scaling as ``rope_scaling`` says it."""
    settings: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        settings |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    elif scaling.kind == "yarn":
        settings |= {
            "beta_slow": scaling.low,
            "beta_fast": scaling.high,
            "attention_factor": float(scaling.attention_factor),
        }
        if not scaling.truncate:
            settings["truncate"] = False
    elif scaling.kind == "longrope":
        settings |= {
            "short_factor": list(scaling.factors),
            "long_factor": list(scaling.long_factors),
            "attention_factor": float(scaling.attention_factor),
        }
    elif scaling.kind == "proportional":
        settings["partial_rotary_factor"] = scaling.share
    elif scaling.kind == "dynamic":
        return settings
    elif scaling.kind == "factors":
        raise UnsupportedError(
            "Hugging Face layouts have no setting for rotary scaling 'factors', one divisor per rotated pair; "
            "export to GGUF or to the native layout."
        )
    if scaling.original_context:
        settings["original_max_position_embeddings"] = scaling.original_context
    return settings


def windows(attributes: Attributes, n_layers: int, window: int | None, sliding: Any) -> tuple[int | None, ...]:
    """Windows per layer from ``layer_types``; without it, layers for which ``sliding(i)`` holds."""
    kinds = attributes.sequence("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if sliding(i) else "full_attention" for i in range(n_layers)]
    if len(kinds) != n_layers:
        raise CheckpointError(f"{attributes.where} names {len(kinds)} layer_types for {n_layers} layers.")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise attributes.unsupported("layer_types", kind)
    if "sliding_attention" in kinds and window is None:
        raise CheckpointError(f"{attributes.where} has sliding_attention layers and no sliding_window.")
    each = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return each if any(each) else ()


def layer_types(config: Config) -> list[str]:
    """`windows` the other way."""
    return ["full_attention" if config.window(i) is None else "sliding_attention" for i in range(config.n_layers)]


def one_window(config: Config) -> int | None:
    """The window of the layers that have one; families hold a single size.

    Raises:
        UnsupportedError: two layers have windows of different sizes.
    """
    sizes = {window for i in range(config.n_layers) if (window := config.window(i)) is not None}
    if len(sizes) > 1:
        listed = ", ".join(str(size) for size in sorted(sizes))
        raise UnsupportedError(f"its windows have several sizes ({listed}), where there is room for one.")
    return sizes.pop() if sizes else None


def gguf_rope(attributes: Attributes) -> RopeScaling | None:
    """Rotary scaling from GGUF settings; a ``rope_freqs`` tensor is looked at elsewhere."""
    kind = attributes.text("rope.scaling.type", "none")
    if kind == "none":
        # Before rope.scaling.* existed there was one number.
        factor = attributes.number("rope.scale_linear", 1.0)
        return RopeScaling("linear", factor=factor) if factor != 1 else None
    factor = attributes.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return RopeScaling("linear", factor=factor) if factor != 1 else None
    if kind == "yarn":
        return RopeScaling(
            "yarn",
            factor=factor,
            original_context=attributes.integer("rope.scaling.original_context_length"),
            low=attributes.number("rope.scaling.yarn_beta_slow", 1.0),
            high=attributes.number("rope.scaling.yarn_beta_fast", 32.0),
            # The runtime multiplies the stored number by YaRN's own temperature.
            attention_factor=attributes.number("rope.scaling.attn_factor", 1.0) * yarn_temperature(factor),
        )
    raise attributes.unsupported("rope.scaling.type", kind)


def gguf_rope_settings(config: Config) -> dict[str, Any]:
    """`gguf_rope` the other way; "llama3" and "factors" travel as a tensor and write nothing here."""
    attention, rotary = attention_of(config, window=False), rotary_of(config, window=False)
    turned = {"rope.freq_base": rotary.theta, "rope.dimension_count": attention.rotary_dims}
    return {**turned, **gguf_scaling(rotary.scaling)}


def gguf_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """One scaling as GGUF says it; "llama3" and "factors" travel as a tensor."""
    if (
        scaling is None
        or scaling.kind in ("llama3", "factors")
        or (scaling.kind == "proportional" and scaling.factor == 1)
    ):
        return {}
    if scaling.kind == "longrope":
        return {
            "rope.scaling.original_context_length": scaling.original_context,
            "rope.scaling.attn_factor": scaling.attention_factor,
        }
    if scaling.varies or scaling.kind == "proportional":
        raise UnsupportedError(f"GGUF has no setting for rotary scaling {scaling.kind!r} that is read here.")
    settings: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        settings["rope.scaling.original_context_length"] = scaling.original_context
        settings["rope.scaling.yarn_beta_slow"] = scaling.low
        settings["rope.scaling.yarn_beta_fast"] = scaling.high
        settings["rope.scaling.attn_factor"] = scaling.attention_factor / yarn_temperature(scaling.factor)
    return settings


_STILL = 1e30  # the divisor of pairs that do not turn
SHORT, LONG, FACTORS = "rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"


def factor_tensors(config: Config) -> dict[str, tuple[float, ...]]:
    """The tensors of divisors that a design's rotary scaling is stored in, by name."""
    if (factors := rope_factors(config)) != ():
        return {FACTORS: factors}
    scaling = _any_scaling(config)
    if scaling is None or scaling.kind != "longrope":
        return {}
    return {
        SHORT: tuple(float32(factor) for factor in scaling.factors),
        LONG: tuple(float32(factor) for factor in scaling.long_factors),
    }


def _any_scaling(config: Config) -> RopeScaling | None:
    rotaries = (layer.mixer.rotary for layer in config.layers if isinstance(layer.mixer, Attention))
    return next((rotary.scaling for rotary in rotaries if rotary is not None and rotary.scaling is not None), None)


def rope_factors(config: Config) -> tuple[float, ...]:
    """The divisor of each rotated pair's frequency, for the scalings that GGUF stores as a tensor; else empty."""
    if not all(isinstance(layer.mixer, Attention) for layer in config.layers):
        return ()
    attention = attention_of(config, window=False)
    rotary = attention.rotary
    scaling = None if rotary is None else rotary.scaling
    if rotary is not None and scaling is not None and scaling.kind == "proportional" and scaling.factor == 1:
        turning = int(scaling.share * attention.rotary_dims // 2)
        return (1.0,) * turning + (float32(_STILL),) * (attention.rotary_dims // 2 - turning)
    if rotary is None or scaling is None or scaling.kind not in ("llama3", "factors"):
        return ()
    if scaling.kind == "factors":
        return tuple(float32(factor) for factor in scaling.factors)
    rotated, factors = attention.rotary_dims, []
    for pair in range(rotated // 2):
        turns = scaling.original_context / (2 * math.pi * rotary.theta ** (2 * pair / rotated))
        blend = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
        factors.append(float32(1 / ((1 - blend) / scaling.factor + blend)))
    return tuple(factors)


def named_factors(config: Config, factors: tuple[float, ...]) -> RopeScaling | None:
    """The scaling that a tensor of divisors stands for; Llama 3's by its name, which other layouts know."""
    if all(factor == 1 for factor in factors):
        return None
    turning = sum(factor == 1 for factor in factors)
    if turning and all(factor >= 0.9 * _STILL for factor in factors[turning:]) and set(factors[:turning]) == {1}:
        return RopeScaling("proportional", share=turning / len(factors))
    stored = RopeScaling("factors", factors=factors)
    guess = RopeScaling("llama3", factor=max(factors), original_context=8192, low=1.0, high=4.0)
    computed = rope_factors(with_scaling(config, guess))
    alike = len(computed) == len(factors) and all(
        math.isclose(a, b, rel_tol=1e-6) for a, b in zip(computed, factors, strict=True)
    )
    return guess if alike else stored


def with_scaling(config: Config, scaling: RopeScaling | None) -> Config:
    """The design with another rotary scaling in the layers that have none of their own base for windows."""
    wide = rotary_of(config, window=False)
    new = dataclasses.replace(wide, scaling=scaling)
    layers = []
    for layer in config.layers:
        mixer = layer.mixer
        if isinstance(mixer, Attention) and mixer.rotary == wide:
            layer = dataclasses.replace(layer, mixer=dataclasses.replace(mixer, rotary=new))
        layers.append(layer)
    return dataclasses.replace(config, layers=tuple(layers))


def float32(value: object) -> Any:
    """A float as a file of float32 holds it; anything else as it is."""
    return struct.unpack("<f", struct.pack("<f", value))[0] if isinstance(value, float) else value
