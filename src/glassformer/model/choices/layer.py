"""One layer: what it is made of, where its norms stand, and how its parts join the residual stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from glassformer.errors import ConfigError, near
from glassformer.model.choices import (
    Attention,
    Component,
    Copies,
    Experts,
    Feed,
    FeedForward,
    LayerEmbedding,
    Mixer,
    Norm,
    members,
)
from glassformer.model.choices.common import positive

Placement = Literal["before", "after", "both", "feed", "feed_both", "shared", "sum"]
PLACEMENTS: tuple[str, ...] = ("before", "after", "both", "feed", "feed_both", "shared", "sum")


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
        stream_scales: multiply the stream where mixer and feed-forward part join it (MiniMax).
        part_scales: multiply what mixer and feed-forward part add.
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
    stream_scales: tuple[float, float] = (1.0, 1.0)
    part_scales: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.copies is not None and (
            not isinstance(self.mixer, Attention)
            or not isinstance(self.feed_forward, FeedForward)
            or self.embedding is None
            or self.norms != "both"
            or (self.parallel, self.residual_scale, self.averaged, self.scalar) != (False, None, None, False)
            or (self.stream_scales, self.part_scales) != ((1, 1), (1, 1))
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
        for name in ("stream_scales", "part_scales"):
            value = getattr(self, name)
            if len(value) != 2 or not min(value) > 0:
                raise ConfigError(
                    f"{name} are two numbers above 0, of the mixer and the feed-forward part; got {value}."
                )
        if self.stream_scales != (1, 1) and (self.parallel or self.averaged is not None):
            raise ConfigError(
                "A stream that is scaled where parts join it is joined by one after the other, unaveraged."
            )
        if self.residual_scale is not None and not self.residual_scale > 0:
            raise ConfigError(f"residual_scale must be above 0, or None; got {self.residual_scale}.")

    def part_scale(self, number: int) -> float:
        """What multiplies what the mixer (1) or the feed-forward part (2) adds to the stream."""
        if number == 3:
            return 1.0
        if self.copies is not None:
            return math.sqrt(0.5) if number == 1 else 1.0
        scale = (1.0 if self.residual_scale is None else self.residual_scale) * self.part_scales[number - 1]
        if number == 2 and isinstance(self.feed_forward, FeedForward):
            scale *= self.feed_forward.out_scale
        return scale if self.averaged is None else scale / math.sqrt(self._count(number))

    def stream_scale(self, number: int) -> float:
        """What multiplies the stream where the mixer (1) or the feed-forward part (2) joins it."""
        if self.copies is not None:
            return math.sqrt(0.5) if number == 1 else 1.0
        if (self.mixer, self.feed_forward)[number - 1] is None:
            return 1.0
        if self.averaged is None:
            return self.stream_scales[number - 1]
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
