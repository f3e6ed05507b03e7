"""Softmax attention as data: heads, positions, what may be seen, and where norms and gates stand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from glassformer.errors import ConfigError
from glassformer.model.choices.common import Component, positive
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.rotary import Rotary


@dataclass(frozen=True)
class Attention:
    """Softmax attention.

    Args:
        n_heads: query heads.
        n_kv_heads: key and value heads; n_heads for multi-head, 1 for multi-query attention.
        d_head: dimensions of each query and key.
        d_value: dimensions of each value; None for d_head.
        bias: biases on the query, key and value projections.
        out_bias: bias on the output projection.
        rotary: how queries and keys are turned by their position, or None.
        alibi: one slope per query head, added to the scores times the (negative) distance
            (arXiv:2108.12409); empty for none.
        alibi_rounded: what ALiBi adds is each slope times the key's position, both rounded to bfloat16 as their product
            is, and joins the products of queries and keys before these are scaled (Falcon).
        window: how many latest positions (itself included) a query sees, or None for all.
        chunk: a query sees only its own chunk of this many positions, or None.
        sink: one learned score per head that joins the softmax and hands over nothing.
        gate: the heads' outputs are multiplied by the sigmoid of a projection of the input, one number
            per "element" or per "head"; None for no gate. With "experts" a router chooses among the query heads of
            every key head: its softmax over the best is what they are multiplied by, and 0 the others (a mixture of
            attention heads, arXiv:2210.05144).
        gate_active: how many of them it chooses.
        gate_activation: "softplus" instead of the sigmoid (Laguna).
        gate_bias: one learned number for each head is added to that projection (Beam).
        out_norm: an rms norm over all heads' outputs side by side, before the output projection (BitNet), or None.
        qk_norm: a norm of queries and keys: over each "head" with one weight for all heads, over "each" head with a
            weight of its own, over the "whole" width, or None.
        qk_norm_kind: what that norm is; None for an rms norm with the model's eps and scale.
        qk_norm_after: that norm comes after rotation instead of before.
        scale: multiplies the scores; None for 1/sqrt(d_head).
        softcap: scores become softcap * tanh(scores / softcap), or None.
        clip_after: queries and keys are cut after their norm (where that stands before rotation) instead.
        clip: queries, keys and values are cut to [-clip, clip] after their projection, or None.
        value_scale: multiplies the values, or None.
        value_norm: each head's values are divided by their root mean square, with the model's eps.
        values_are_keys: values are what the key projection gives, before norm and rotation (Gemma 4).
        length_scale: (β, original): queries at position p are multiplied by a number that grows with p, or None.
        length_rule: which: "log" for 1 + β log(1 + ⌊p / original⌋), "log_next" for the same at p + 1 (Llama 4),
            "power" for (1 + (p + 1) / original)^β (Beam).
        keys_from: the layer whose keys and values this one uses instead of its own, or None.
    """

    kind: ClassVar[str] = "attention"
    prefix: ClassVar[str] = "attn"

    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int | None = None
    bias: bool = False
    out_bias: bool = False
    rotary: Rotary | None = field(default_factory=Rotary)
    alibi: tuple[float, ...] = ()
    alibi_rounded: bool = False
    window: int | None = None
    chunk: int | None = None
    sink: bool = False
    gate: Literal["element", "head", "experts"] | None = None
    gate_active: int = 0
    gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    gate_bias: bool = False
    out_norm: Norm | None = None
    qk_norm: Literal["head", "each", "whole"] | None = None
    qk_norm_kind: Norm | None = None
    qk_norm_after: bool = False
    scale: float | None = None
    softcap: float | None = None
    clip: float | None = None
    clip_after: bool = False
    value_scale: float | None = None
    value_norm: bool = False
    values_are_keys: bool = False
    length_scale: tuple[float, float] | None = None
    length_rule: Literal["log", "log_next", "power"] = "log"
    keys_from: int | None = None

    def __post_init__(self) -> None:
        positive("attention", n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, d_head=self.d_head)
        positive("attention", d_value=self.value_size)
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads evenly; "
                "n_heads must be a multiple of n_kv_heads."
            )
        for name in ("scale", "softcap", "clip", "value_scale"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"attention.{name} must be above 0, or None; got {value}.")
        for name, what in (("window", "A sliding window"), ("chunk", "A chunk")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{what} must hold at least 1 position; got {value}.")
        if self.alibi and len(self.alibi) != self.n_heads:
            raise ConfigError(f"ALiBi needs one slope per query head: {len(self.alibi)} slopes, {self.n_heads} heads.")
        if self.gate not in (None, "element", "head", "experts"):
            raise ConfigError(f"attention.gate is per 'element', 'head' or of 'experts', or None; got {self.gate!r}.")
        if (self.gate == "experts") != (0 < self.gate_active <= self.n_experts):
            raise ConfigError(
                f"A router chooses 1 to {self.n_experts} of the query heads of each key head, and gate_active says how "
                f"many where gate is 'experts'; got {self.gate_active}."
            )
        if self.gate_activation not in ("sigmoid", "softplus"):
            raise ConfigError(f"attention.gate_activation is sigmoid or softplus; got {self.gate_activation!r}.")
        if self.values_are_keys and self.value_size != self.d_head:
            raise ConfigError("Values that are keys have the size of keys.")
        if self.gate_bias and self.gate in (None, "experts"):
            raise ConfigError("A gate's bias needs a gate, which is no router.")
        if self.length_rule not in ("log", "log_next", "power"):
            raise ConfigError(f"attention.length_rule is log, log_next or power; got {self.length_rule!r}.")
        if self.length_scale is not None and (len(self.length_scale) != 2 or not self.length_scale[1] > 0):
            raise ConfigError(f"attention.length_scale is a strength and a length above 0; got {self.length_scale}.")
        if self.out_norm is not None and (self.out_norm.kind != "rms" or self.out_norm.biased):
            raise ConfigError("The norm of the heads' outputs is an rms norm without a bias.")
        if self.qk_norm not in (None, "head", "each", "whole"):
            raise ConfigError(f"attention.qk_norm is over 'head', 'each' or the 'whole' width; got {self.qk_norm!r}.")
        if self.rotary is not None:
            self.rotary.dims(self.d_head)

    @property
    def value_size(self) -> int:
        """Dimensions of each value."""
        return self.d_head if self.d_value is None else self.d_value

    @property
    def n_experts(self) -> int:
        """Query heads of each key head, among which a router may choose."""
        return self.n_heads // self.n_kv_heads

    @property
    def gates(self) -> int:
        """Numbers that the gate's projection gives."""
        return {"element": self.out_size, "head": self.n_heads, "experts": self.n_experts}[self.gate or "head"]

    @property
    def rotary_dims(self) -> int:
        """Dimensions of each head that are rotated."""
        return 0 if self.rotary is None else self.rotary.dims(self.d_head)

    @property
    def score_scale(self) -> float:
        """What multiplies query·key."""
        return self.scale if self.scale is not None else 1.0 / math.sqrt(self.d_head)

    @property
    def out_size(self) -> int:
        """Width of all heads together, as the output projection reads them."""
        return self.n_heads * self.value_size

    @property
    def plain(self) -> Attention:
        """The same attention without gates, sinks, chunks, cuts, ALiBi, shared keys and norms other than per head
        before rotation: equal to itself where it has none of them."""
        return Attention(
            self.n_heads,
            self.n_kv_heads,
            self.d_head,
            bias=self.bias,
            out_bias=self.out_bias,
            rotary=self.rotary,
            window=self.window,
            qk_norm=None if self.qk_norm is None else "head",
            scale=self.scale,
            softcap=self.softcap,
        )

    def norm_of(self, norm: Norm) -> Norm:
        """The norm of queries and keys in a model whose norm this is."""
        kind = self.qk_norm_kind
        return Norm("rms", eps=norm.eps, one_plus=norm.one_plus) if kind is None else kind

    def components(self, d_model: int, norm: Norm) -> dict[str, Component]:
        """Its parameters by key within the part, in the order of the computation."""
        found: dict[str, Component] = {}

        def matrix(name: str, out: int, into: int, counted: str, bias: bool) -> None:
            found[f"{name}.weight"] = Component((out, into), counted)
            if bias:
                found[f"{name}.bias"] = Component((out,), "biases")

        sizes = {"q": self.n_heads * self.d_head, "k": self.n_kv_heads * self.d_head}
        matrix("q", sizes["q"], d_model, "query", self.bias)
        if self.keys_from is None:
            matrix("k", sizes["k"], d_model, "key", self.bias)
            if not self.values_are_keys:
                matrix("v", self.n_kv_heads * self.value_size, d_model, "value", self.bias)
        if self.gate is not None:
            matrix("gate", self.gates, d_model, "router" if self.gate == "experts" else "gate", False)
            if self.gate_bias:
                found["gate_bias"] = Component((self.n_heads,), "biases")
        if self.out_norm is not None:
            found |= self.out_norm.components("out_norm", self.out_size)
        matrix("o", d_model, self.out_size, "output", self.out_bias)
        if self.sink:
            found["sink"] = Component((self.n_heads,), "sinks")
        if self.qk_norm is not None:
            for side in "q" if self.keys_from is not None else "qk":
                width = sizes[side] if self.qk_norm == "whole" else self.d_head
                heads = sizes[side] // self.d_head if self.qk_norm == "each" else None
                found |= self.norm_of(norm).components(f"{side}_norm", width, heads)
        return found

    def sites(self) -> tuple[str, ...]:
        """Names of its places within the part, in the order the forward reaches them."""
        own = self.keys_from is None
        found = ["q", "k", "v"] if own else ["q"]
        if self.rotary is not None or self.qk_norm_after or self.length_scale is not None:
            found += ["rot_q", "rot_k"] if own else ["rot_q"]
        found += ["scores", *(["sink"] if self.sink else []), "pattern"]
        return (
            *found,
            *(["router"] if self.gate == "experts" else []),
            *(["gate"] if self.gate is not None else []),
            *(["z_scale"] if self.out_norm is not None else []),
            "z",
        )

    def basis(self) -> tuple[str, ...]:
        """The places that a trace keeps; the others follow from them."""
        kept = ("q", "k", "v") if self.keys_from is None else ("q",)
        return (*kept, *(("z_scale",) if self.out_norm is not None else ()), "z")

    @property
    def cached_numbers(self) -> int:
        """Numbers that generation keeps for each token in this layer."""
        return 0 if self.keys_from is not None else self.n_kv_heads * (self.d_head + self.value_size)

    @property
    def state_numbers(self) -> int:
        """Numbers that generation keeps in this layer however long the text: none."""
        return 0

    def seen(self, position: int) -> int:
        """How many keys the query at this position (from 0) sees."""
        seen = position + 1
        if self.window is not None:
            seen = min(seen, self.window)
        return seen if self.chunk is None else min(seen, position % self.chunk + 1)

    def flops(self, seen: float) -> float:
        """FLOPs of one query over `seen` keys, projections apart."""
        return 2 * self.n_heads * (self.d_head + self.value_size) * seen
