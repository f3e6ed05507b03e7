"""Families that differ in the names of their settings and tensors and in a few choices: one table for all of them.

`Alike` says where a family keeps each number of the design, which numbers are the same in all of its models, and what
its tensors are called. Reading fills a design from the settings, writing fills the settings from a design; what is
fixed is checked by reading back (`family.expressible`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.checkpoint.attributes import REQUIRED, Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    attention_of,
    feed_forward_of,
    layer_types,
    one_window,
    rope,
    rope_settings,
    rope_table,
    windows,
)
from glassformer.checkpoint.tables import Row
from glassformer.model.choices import Rotary
from glassformer.model.choices.feed_forward import LEARNED
from glassformer.model.config import Attention, Config, FeedForward, Norm, Placement, uniform

# Number of the design -> the setting that most families keep it in.
KEYS: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "context": "max_position_embeddings",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "activation": "hidden_act",
    "eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "bias": "attention_bias",
    "out_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "window": "sliding_window",
}
_INTEGERS = ("vocab_size", "d_model", "n_heads", "d_ff", "context", "n_kv_heads", "d_head")
_FLAGS = ("tied", "bias", "out_bias", "mlp_bias", "parallel", "unembed_bias")
_SCALES = ("eps", "scale", "softcap", "clip", "residual_scale", "embedding_scale", "logit_scale", "logit_softcap")

# Native key within a block, without `.weight` -> the name that most families have within a layer.
NAMES: Mapping[str, str] = {
    "ln1": "input_layernorm",
    **{f"attn.{p}": f"self_attn.{p}_proj" for p in "qkvo"},
    **{f"attn.{p}_norm": f"self_attn.{p}_norm" for p in "qk"},
    "ln2": "post_attention_layernorm",
    **{f"mlp.{p}": f"mlp.{p}_proj" for p in ("gate", "up", "down")},
}
OUTSIDE: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "pos_embed": "model.embed_positions",
    "embed_norm": "model.embed_norm",
    "final": "model.norm",
    "unembed": "lm_head",
}


_RMS = Norm("rms")


STRETCHED = frozenset({"apertus", "cwm", "gpt_oss"})
"""Families whose classes stretch positions where a config.json does not say that they are not stretched."""


@dataclass(frozen=True)
class Alike:
    """One family.

    Args:
        name: ``model_type``; stem: of its classes' names.
        keys: settings that are called otherwise than in `KEYS`, or that only this family has.
        fixed: numbers that are the same in all of its models.
        defaults: numbers of a design whose setting is missing.
        norm: its norms; eps is read.
        norms, gated, rotates: placement of norms, gated feed-forward parts, rotary positions.
        fraction: share of a head that is rotated where no setting says so.
        layer: what stands before a tensor's name in a layer.
        names: tensors of a layer that are called otherwise than in `NAMES`, "" for those that stand elsewhere; outside:
            the same outside the layers.
        bare: tensors of a layer without `.weight` after their name: native key -> name within a layer.
        joined: name within a layer -> our tensors that it holds, one after another.
        grouped: of the joined ones, those whose rows stand key-value head by key-value head.
        pairs: how the checkpoint pairs rotated dimensions: "half", "neighbours" or "swapped".
        transposed: matrices of layers are stored (in, out).
        skip: rows before the first position's.
        blocks: pieces in which joined tensors are joined.
        slides: layers have windows by ``layer_types``; the function says which do without them.
        rotates_layer: whether a layer rotates, from (layer, its window, the settings), where not all do.
        no_effect: settings that change no logit, as `Family` has them.
        inside: further ``model_type`` values that hold these settings under a name.
        more: further settings -> values that a written config.json has.
        gguf: the same family in GGUF.
        read: last changes of a design, from (design, settings).
        write: the settings that these changes stand for.
    """

    name: str
    stem: str
    keys: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    norm: Norm = _RMS
    norms: Placement = "before"
    gated: bool = True
    rotates: bool = True
    fraction: float = 1.0
    layer: str = "model.layers.{i}."
    names: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    bare: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: tuple[str, ...] = ()
    pairs: str = "half"
    transposed: bool = False
    skip: int = 0
    blocks: int = 1
    slides: Callable[[int], bool] | None = None
    rotates_layer: Callable[[int, int | None, Attributes], bool] | None = None
    base: str = ""
    architecture: str = ""
    prefixes: tuple[str, ...] = ("model.", "")
    ignored: tuple[str, ...] = (r"(^|\.)rotary_emb\.inv_freq$",)
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    no_effect: frozenset[str] = frozenset()
    inside: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    gguf: GgufTable | None = None
    read: Callable[[Config, Attributes], Config] | None = None
    write: Callable[[Config], dict[str, Any]] | None = None

    def key(self, number: str) -> str | None:
        """The setting that holds a number of the design; None where it is fixed or has none."""
        if number in self.fixed:
            return None
        return self.keys.get(number, KEYS.get(number))

    def family(self) -> Family:
        """The family, as everything else knows families."""
        return Family(
            name=self.name,
            architecture=self.architecture or f"{self.stem}ForCausalLM",
            base=self.base or f"{self.stem}Model",
            rows=self.rows(),
            read=self.config,
            write=self.settings,
            prefixes=self.prefixes,
            only=self.only,
            ignored=self.ignored,
            no_effect=self.no_effect,
            inside=self.inside,
            gguf=None if self.gguf is None else self.gguf.layout(self.config, self.settings, self.key),
        )

    # Tensors

    def rows(self) -> tuple[Row, ...]:
        """The tensor table."""
        outside, names = {**OUTSIDE, **self.outside}, {**NAMES, **self.names}
        rows: list[Row] = [Row(f"{outside['embed']}.weight", ("embed.weight",))]
        rows.append(Row(f"{outside['pos_embed']}.weight", ("pos_embed.weight",), skip=self.skip))
        held = {part for parts in self.joined.values() for part in parts}
        for kind in ("weight", "bias"):
            turned = self.transposed and kind == "weight"
            rows.append(Row(f"{outside['embed_norm']}.{kind}", (f"embed_norm.{kind}",)))
            for ours, theirs in names.items():
                if ours in held or not theirs:
                    continue
                if ours.removeprefix("mlp.") in LEARNED:
                    if kind == "weight":
                        rows.append(Row(f"{self.layer}{theirs}", (f"blocks.{{i}}.{ours}",)))
                    continue
                pairs = self.pairs if ours in ("attn.q", "attn.k", "attn.q_norm", "attn.k_norm") else "half"
                matrix = turned and ours.split(".")[0] in ("attn", "mlp") and not ours.endswith("norm")
                rows.append(Row(f"{self.layer}{theirs}.{kind}", (f"blocks.{{i}}.{ours}.{kind}",), matrix, pairs=pairs))
            for theirs, parts in self.joined.items():
                keys = tuple(f"blocks.{{i}}.{part}.{kind}" for part in parts)
                grouped = theirs in self.grouped
                rows.append(
                    Row(
                        f"{self.layer}{theirs}.{kind}",
                        keys,
                        turned,
                        per_head=grouped,
                        pairs=self.pairs,
                        blocks=self.blocks,
                    )
                )
            rows.append(Row(f"{outside['final']}.{kind}", (f"final.{kind}",)))
        rows += [Row(f"{self.layer}{theirs}", (f"blocks.{{i}}.{ours}",)) for ours, theirs in self.bare.items()]
        for side in ("project_in", "project_out", "head.norm", "head.dense"):
            if side in outside:
                rows += [Row(f"{outside[side]}.{kind}", (f"{side}.{kind}",)) for kind in ("weight", "bias")]
        rows.append(Row(f"{outside['unembed']}.weight", ("unembed.weight",)))
        rows.append(Row(f"{outside['unembed']}.bias", ("unembed_bias",)))
        return tuple(rows)

    # Settings

    def numbers(self, attributes: Attributes) -> dict[str, Any]:
        """The numbers that settings hold, and the fixed ones."""
        found: dict[str, Any] = {}
        for name in (*_INTEGERS, *_FLAGS, *_SCALES):
            key = self.key(name)
            if name in self.fixed:
                found[name] = self.fixed[name]
            elif key is not None:
                default = self.defaults.get(name, REQUIRED if name in _INTEGERS[:3] else None)
                if name in _INTEGERS:
                    found[name] = attributes.integer(key, default)
                elif name in _FLAGS:
                    found[name] = attributes.flag(key, bool(default))
                else:
                    found[name] = attributes.number(key, default)
        return found

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        n = self.numbers(attributes)
        heads, d_model = n["n_heads"], n["d_model"]
        d_head = n.get("d_head") or attributes.share(
            self.key("d_model") or "hidden_size", d_model, self.key("n_heads") or "num_attention_heads", heads
        )
        rotary = None
        if self.rotates:
            base = attributes.number("rope_theta", self.defaults.get("theta", 10_000.0))
            theta, scaling = rope(attributes, n["context"], base)
            rotary = Rotary(theta, self._fraction(attributes), scaling)
        layers = attributes.layers(self.key("n_layers") or "num_hidden_layers", self.defaults.get("n_layers", REQUIRED))
        each: tuple[int | None, ...] = ()
        if self.slides is not None:
            window = attributes.integer(self.key("window") or "sliding_window", self.defaults.get("window"), null=True)
            each = windows(attributes, layers, window, lambda i: window is not None and self._slides(i))
        d_ff = n.get("d_ff")
        chosen = self.fixed.get("activation") or activation(
            attributes, self.key("activation") or "hidden_act", self.defaults.get("activation", "silu")
        )
        norms: Placement = self.norms
        if norms == "shared" and not n.get("parallel", True):
            norms = "before"
        config = uniform(
            n["vocab_size"],
            d_model,
            layers,
            n["context"],
            Attention(
                heads,
                n.get("n_kv_heads") or heads,
                d_head,
                bias=bool(n.get("bias")),
                out_bias=bool(n.get("out_bias")),
                rotary=rotary,
                qk_norm=self.fixed.get("qk_norm"),
                qk_norm_kind=self.fixed.get("qk_norm_kind"),
                qk_norm_after=self.fixed.get("qk_norm_after", False),
                scale=_other(n.get("scale"), d_head**-0.5),
                softcap=n.get("softcap"),
                clip=n.get("clip"),
            ),
            FeedForward(4 * d_model if d_ff is None else d_ff, chosen, self.gated, bool(n.get("mlp_bias"))),
            dataclasses.replace(self.norm, eps=n.get("eps") or self.norm.eps),
            windows=each,
            norms=norms,
            parallel=bool(n.get("parallel", self.norms == "shared")),
            residual_scale=_other(n.get("residual_scale"), 1.0),
            learned_positions=bool(self.fixed.get("learned_positions")),
            embedding_norm=bool(self.fixed.get("embedding_norm")),
            tied=bool(n.get("tied")),
            unembed_bias=bool(n.get("unembed_bias")),
            embedding_scale=math.sqrt(d_model)
            if self.fixed.get("embedding_scale") == "root"
            else _other(n.get("embedding_scale"), 1.0),
            logit_scale=_other(n.get("logit_scale"), 1.0),
            logit_softcap=n.get("logit_softcap"),
        )
        if self.rotates_layer is not None:
            config = self._unrotated(config, attributes, each)
        return config if self.read is None else self.read(config, attributes)

    def _slides(self, layer: int) -> bool:
        return self.slides is not None and self.slides(layer)

    def _fraction(self, attributes: Attributes) -> float:
        inner = rope_table(attributes)
        if inner.text("rope_type", "default") == "proportional":
            return 1.0  # all pairs are formed; which of them turn is for the scaling to say
        said: float = inner.number("partial_rotary_factor", attributes.number("partial_rotary_factor", self.fraction))
        return said

    def _unrotated(self, config: Config, attributes: Attributes, each: tuple[int | None, ...]) -> Config:
        assert self.rotates_layer is not None
        layers = []
        for i, layer in enumerate(config.layers):
            assert isinstance(layer.mixer, Attention)
            if not self.rotates_layer(i, each[i] if each else None, attributes):
                layer = dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, rotary=None))
            layers.append(layer)
        return dataclasses.replace(config, layers=tuple(layers))

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design; what a family has fixed is found when they are read back."""
        rotating = next((layer for layer in config.layers if _rotary(layer.mixer) is not None), config.layers[0])
        shown = dataclasses.replace(config, layers=(rotating,))
        a, f, first = attention_of(config), feed_forward_of(config), config.layers[0]
        numbers: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "d_model": config.d_model,
            "n_layers": config.n_layers,
            "context": config.context,
            "n_heads": a.n_heads,
            "n_kv_heads": a.n_kv_heads,
            "d_head": a.d_head,
            "d_ff": f.d_ff,
            "activation": ACTIVATION_NAMES.get(f.activation, f.activation),
            "eps": config.norm.eps,
            "tied": config.tied,
            "bias": a.bias,
            "out_bias": a.out_bias,
            "mlp_bias": f.bias,
            "parallel": first.parallel,
            "unembed_bias": config.unembed_bias,
            "scale": a.score_scale,
            "softcap": a.softcap,
            "clip": a.clip,
            "residual_scale": 1.0 if first.residual_scale is None else first.residual_scale,
            "embedding_scale": 1.0 if config.embedding_scale is None else config.embedding_scale,
            "logit_scale": 1.0 if config.logit_scale is None else config.logit_scale,
            "logit_softcap": config.logit_softcap,
        }
        found: dict[str, Any] = {}
        for name, value in numbers.items():
            key = self.key(name)
            if key is not None:
                found[key] = value
        if self.rotates and _rotary(rotating.mixer) is not None:
            found |= rope_settings(shown)
            rotary = _rotary(rotating.mixer)
            assert rotary is not None
            if self.fraction != 1 or rotary.fraction != 1:
                found["partial_rotary_factor"] = rotary.fraction
                if found.get("rope_scaling"):
                    found["rope_scaling"]["partial_rotary_factor"] = rotary.fraction
            if self.name in STRETCHED and not found.get("rope_scaling"):
                found["rope_scaling"] = {"rope_type": "default"}
        if self.slides is not None:
            found |= {self.key("window") or "sliding_window": one_window(config), "layer_types": layer_types(config)}
        else:
            found.pop("sliding_window", None)
        return {**found, **self.more, **({} if self.write is None else self.write(config))}


def each_attention(config: Config, **changes: Any) -> Config:
    """The design with these fields of every attention changed."""
    layers = []
    for layer in config.layers:
        assert isinstance(layer.mixer, Attention)
        layers.append(dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, **changes)))
    return dataclasses.replace(config, layers=tuple(layers))


def _other(value: float | None, neutral: float) -> float | None:
    """A number, or None where it is the one that changes nothing."""
    return None if value is None or math.isclose(value, neutral, rel_tol=1e-9) else value


def _rotary(mixer: object) -> Rotary | None:
    return mixer.rotary if isinstance(mixer, Attention) else None
