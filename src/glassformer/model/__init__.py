"""The one transformer and its design. Imports torch only when the transformer itself is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glassformer.model.config import (
    Attention,
    Config,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Norm,
    RopeScaling,
    Rotary,
    StateSpace,
    uniform,
)

if TYPE_CHECKING:
    from glassformer.model.cache import Cache
    from glassformer.model.transformer import Transformer

__all__ = [
    "Attention",
    "Cache",
    "Config",
    "Experts",
    "FeedForward",
    "LatentAttention",
    "Layer",
    "Norm",
    "RopeScaling",
    "Rotary",
    "StateSpace",
    "Transformer",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name == "Transformer":
        from glassformer.model.transformer import Transformer

        return Transformer
    if name == "Cache":
        from glassformer.model.cache import Cache

        return Cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
