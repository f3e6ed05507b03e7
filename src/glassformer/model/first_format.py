"""Designs as the first versions wrote them: one attention and one feed-forward part for all layers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from glassformer.errors import ConfigError, near
from glassformer.model.choices import Attention, FeedForward, Norm, RopeScaling, Rotary
from glassformer.model.plain import build, check_type


@dataclass(frozen=True)
class _Position:
    kind: str = "rotary"
    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: RopeScaling | None = None
    local_theta: float | None = None


def from_first_format(data: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `uniform` that make the same design.

    Raises:
        ConfigError: a field is missing, unknown or wrongly typed.
    """
    data = dict(data)
    position = build(_Position, data.pop("position", {}), "config.position")
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
        check_type(f"config.{name}", "int", data[name])
    rest: dict[str, Any] = {k: v for k, v in data.items() if k not in (*known, "feed_forward", "parallel")}
    allowed = ("tied", "embedding_scale", "logit_softcap")
    for name in rest:
        if name not in allowed:
            raise ConfigError(f"config has no field {name!r}." + near(str(name), (*known, *allowed)))
        check_type(f"config.{name}", "bool" if name == "tied" else "float | None", rest[name])
    parallel = data.get("parallel", False)
    check_type("config.parallel", "bool", parallel)
    mixer = build(Attention, attention, "config.attention")
    return {
        **{name: data[name] for name in known},
        "mixer": dataclasses.replace(mixer, rotary=rotary),
        "feed_forward": build(FeedForward, data.get("feed_forward"), "config.feed_forward"),
        "norm": build(Norm, norm, "config.norm"),
        "windows": windows,
        "local_rotary": local,
        "norms": "both" if post else "before",
        "parallel": parallel,
        "learned_positions": learned,
        **rest,
    }
