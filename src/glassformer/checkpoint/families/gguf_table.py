"""How a family stands in GGUF: its architecture's name and what is its own there, beside what all of them share.

GGUF has one vocabulary for settings and one for tensors. Both are written out here once (`SETTINGS`, `TENSORS`; a test
holds them to the tables of the `gguf` package); a `GgufTable` says what an architecture has otherwise. Settings are
read into those of a config.json, so that everything a family knows about these is said once, and written from them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import GgufLayout
from glassformer.checkpoint.families.folding import Folded
from glassformer.checkpoint.families.settings import (
    float32,
    gguf_rope,
    gguf_scaling,
    scaling_settings,
)
from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import recurrence_of, softmax_of
from glassformer.model.config import (
    Attention,
    Config,
    Experts,
    Rotary,
    SelectiveStateSpace,
    ShortConvolution,
    StateSpace,
)

Shapes = Mapping[str, Shape]

# Number of the design -> the setting that holds it.
SETTINGS: Mapping[str, str] = {
    "d_model": "embedding_length",
    "n_layers": "block_count",
    "context": "context_length",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "d_head": "attention.key_length",
    "d_ff": "feed_forward_length",
    "scale": "attention.scale",
    "softcap": "attn_logit_softcapping",
    "clip": "attention.clamp_kqv",
    "residual_scale": "residual_scale",
    "embedding_scale": "embedding_scale",
    "logit_scale": "logit_scale",
    "logit_softcap": "final_logit_softcapping",
}
_WHOLE = ("d_model", "context", "n_heads", "n_kv_heads", "d_head", "d_ff")
_SCORES = {"softmax": 1, "sigmoid": 2}

# Native part within a block -> its name within a layer.
TENSORS: Mapping[str, str] = {
    "ln1": "attn_norm",
    **{f"attn.{p}": f"attn_{p}" for p in "qkv"},
    "attn.o": "attn_output",
    **{f"attn.{p}_norm": f"attn_{p}_norm" for p in "qk"},
    "attn.gate": "attn_gate",
    "attn.out_norm": "attn_sub_norm",
    "ln1_post": "post_attention_norm",
    "ln2": "ffn_norm",
    **{f"mlp.{p}": f"ffn_{p}" for p in ("gate", "up", "down")},
    "mlp.out_norm": "ffn_sub_norm",
    "mlp.router": "ffn_gate_inp",
    **{f"mlp.experts.{p}": f"ffn_{p}_exps" for p in ("gate", "up", "down")},
    **{f"mlp.shared.{p}": f"ffn_{p}_shexp" for p in ("gate", "up", "down")},
    "mlp.shared_gate": "ffn_gate_inp_shexp",
    "ln2_post": "post_ffw_norm",
}
OUTSIDE: Mapping[str, str] = {
    "embed": "token_embd",
    "pos_embed": "position_embd",
    "embed_norm": "token_embd_norm",
    "final": "output_norm",
    "unembed": "output",
}
# What has no `.weight` or `.bias` of its own here.
BARE: Mapping[str, str] = {"attn.sink": "attn_sinks.weight", "mlp.correction": "exp_probs_b.bias"}
_SSM, _MAMBA, _CONV, _LATENT = (f"blocks.{{i}}.{part}." for part in ("ssm", "mamba", "conv", "attn"))


def _others(pairs: str) -> tuple[Row, ...]:
    """Tensors of recurrences, short convolutions and latent attention."""
    at = _LAYER
    rows = [
        Row(at + "ssm_dt.bias", (_SSM + "dt_bias",)),
        Row(at + "ssm_a", (_SSM + "a_log",), squeezed=1, exponent=True),
        Row(at + "ssm_d", (_SSM + "skip",), squeezed=1),
        Row(at + "ssm_norm.weight", (_SSM + "norm.weight",), cut="groups"),
        Row(at + "ssm_a", (_MAMBA + "a_log",), exponent=True),
        Row(at + "ssm_d", (_MAMBA + "skip",)),
        Row(at + "ssm_x.weight", tuple(f"{_MAMBA}{part}.weight" for part in ("dt_in", "b", "c"))),
        Row(at + "ssm_dt_norm.weight", (_MAMBA + "dt_in_norm.weight",)),
        *(Row(f"{at}ssm_{part}_norm.weight", (f"{_MAMBA}{part}_norm.weight",)) for part in "bc"),
        Row(at + "attn_k_b.weight", (_LATENT + "k_own.weight",), cut="heads", transposed=True),
        Row(at + "attn_v_b.weight", (_LATENT + "v_up.weight",), cut="heads"),
    ]
    for kind in ("weight", "bias"):
        ssm = tuple(f"{_SSM}{part}.{kind}" for part in ("gate", "x", "b", "c", "dt"))
        conv = tuple(f"{_CONV}{part}.{kind}" for part in ("gate_in", "gate", "v"))
        kv = tuple(f"{_LATENT}{part}.{kind}" for part in ("kv_down", "k_shared"))
        rows += [
            Row(f"{at}ssm_in.{kind}", ssm),
            Row(f"{at}ssm_in.{kind}", tuple(f"{_MAMBA}{part}.{kind}" for part in ("x", "gate"))),
            Row(f"{at}ssm_dt.{kind}", (f"{_MAMBA}dt.{kind}",)),
            *(Row(f"{at}ssm_conv1d.{kind}", (f"{part}conv.{kind}",)) for part in (_SSM, _MAMBA)),
            *(Row(f"{at}ssm_out.{kind}", (f"{part}o.{kind}",)) for part in (_SSM, _MAMBA)),
            Row(f"{at}shortconv.conv.{kind}", (f"{_CONV}conv.{kind}",)),
            Row(f"{at}shortconv.in_proj.{kind}", conv),
            Row(f"{at}shortconv.out_proj.{kind}", (f"{_CONV}o.{kind}",)),
            Row(f"{at}attn_q_a.{kind}", (f"{_LATENT}q_down.{kind}",)),
            Row(f"{at}attn_q_a_norm.{kind}", (f"{_LATENT}q_latent.{kind}",)),
            Row(f"{at}attn_q_b.{kind}", (f"{_LATENT}q_up.{kind}",), pairs=pairs),
            Row(f"{at}attn_kv_a_mqa.{kind}", kv, pairs=pairs),
            Row(f"{at}attn_kv_a_norm.{kind}", (f"{_LATENT}kv_latent.{kind}",)),
        ]
    return tuple(rows)


_NORMS = ("ln1", "ln2", "ln1_post", "ln2_post", "attn.q_norm", "attn.k_norm", "final")
_BLOCK, _LAYER = "blocks.{i}.", "blk.{i}."


@dataclass(frozen=True)
class GgufTable:
    """One architecture.

    Args:
        architecture: its name, which also prefixes its settings.
        pairs: how queries and keys stand there: llama.cpp turns halves ("half") or "neighbours".
        joined: what is written as one tensor: "qkv" (attn_qkv), "gate" (gates before the rest in ffn_up).
        names: tensors of a layer that are called otherwise than in `TENSORS`.
        rows: tensors that are laid out otherwise, instead of the usual rows of the same native keys.
        also: such rows as other files have them; read, not written.
        shift: norms are stored with 1 added.
        period: of so many layers the last has no window, where no list says so; 0 for windows in all layers, None
            where llama.cpp computes none.
        first: of so many layers the first has none instead.
        listed: a list may say which layers have windows; where not, rotary positions depend on it being the usual one.
        settings: further settings -> those of a config.json that hold the same.
        implied: settings of a config.json that llama.cpp takes for granted.
        says: settings that stand in every file with the same value.
        read, write: what these cannot say: (settings, shapes, those of a config.json so far) -> more of them, and
            (design) -> more settings.
        chosen: whether a file of this architecture is of this family, where several share its name.
        factors: rotary divisors may be a tensor.
        by_layer: settings that may be a list, one value a layer.
        ignored: patterns of tensors that may be there and are not needed.
        zeros: tensors that llama.cpp wants to see and does not compute with.
        dense: which layers may be without experts in a model that has them: "none", the "first" ones, or "any".
        sparse: the architecture's name for designs with experts, where it is another.
        fold: the design -> the same with the multipliers that the architecture has no place for in its weights.
    """

    architecture: str
    pairs: str = "half"
    joined: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    also: tuple[Row, ...] = ()
    shift: bool = False
    period: int | None = None
    first: bool = False
    listed: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    says: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Attributes, Shapes, dict[str, Any]], Mapping[str, Any]] | None = None
    write: Callable[[Config], dict[str, Any]] | None = None
    chosen: Callable[[Mapping[str, Any]], bool] | None = None
    factors: bool = False
    by_layer: tuple[str, ...] = ()
    dense: str = "none"
    ignored: tuple[str, ...] = ()
    zeros: Callable[[Config], dict[str, Shape]] | None = None
    sparse: str = ""
    fold: Callable[[Config], Folded] = Folded

    def layout(
        self,
        read: Callable[[Attributes], Config],
        write: Callable[[Config], dict[str, Any]],
        key: Callable[[str], str | None],
        experts: Any = None,
    ) -> GgufLayout:
        """The architecture as everything else knows them.

        Args:
            read, write: settings of a config.json -> design, and the other way.
            key: number of a design -> setting of a config.json.
            experts: the family's `Sparse`, where it has experts.
        """
        translation = _Translation(self, read, write, key, experts)
        return GgufLayout(
            self.architecture,
            self.tensors,
            translation.config,
            translation.settings,
            self.factors,
            self.chosen,
            self.by_layer,
            self.others,
            self.ignored,
            self.zeros,
            self.sparse,
            self.fold,
        )

    def others(self) -> tuple[tuple[Row, ...], ...]:
        """Tables of files that join what is written apart, or hold apart what is written joined."""
        toggled = tuple({*self.joined} ^ {"qkv"})
        both = f"{_BLOCK}mlp.experts."
        pair = (both + "gate.weight", both + "up.weight")
        found = []
        for joined, own in itertools.product((self.joined, toggled), {self.rows, self.also or self.rows}):
            rows = dataclasses.replace(self, joined=joined, rows=own).tensors()
            apart = tuple(row for row in rows if not row.ours[0].startswith((both + "gate.", both + "up.")))
            found += [rows, (*apart, Row(f"{_LAYER}ffn_gate_up_exps.weight", pair, axis=1))]
        return tuple(found)

    def tensors(self) -> tuple[Row, ...]:
        """The tensor table."""
        own = {key for row in self.rows for key in row.ours}
        held = {part for name in self.joined for part in _JOINED[name][1]}
        rows: list[Row] = []
        for kind in ("weight", "bias"):
            names = {**TENSORS, **{k: v for k, v in self.names.items() if k not in OUTSIDE}}
            inside = [(f"{_BLOCK}{p}", f"{_LAYER}{name}") for p, name in names.items()]
            outside = {**OUTSIDE, **{k: v for k, v in self.names.items() if k in OUTSIDE}}
            for ours, theirs in (*outside.items(), *inside):
                part = ours.removeprefix(_BLOCK)
                if part in held or f"{ours}.{kind}" in own or not theirs.removeprefix(_LAYER):
                    continue
                turned = part.startswith("attn.") and part[5:] in ("q", "k", "q_norm", "k_norm")
                shift = 1.0 if self.shift and kind == "weight" and part in _NORMS else 0.0
                rows.append(
                    Row(
                        f"{theirs}.{kind}",
                        (f"{ours}.{kind}",),
                        pairs=self.pairs if turned else "half",
                        shift=shift,
                    )
                )
            for name in self.joined:
                theirs, parts = _JOINED[name]
                rows.append(
                    Row(
                        f"{_LAYER}{theirs}.{kind}",
                        tuple(f"{_BLOCK}{part}.{kind}" for part in parts),
                        pairs=self.pairs if name == "qkv" else "half",
                    )
                )
        for part, name in {**BARE, **{k: v for k, v in self.names.items() if k in BARE}}.items():
            if f"{_BLOCK}{part}" not in own:
                rows.append(Row(f"{_LAYER}{name}", (f"{_BLOCK}{part}",)))
        rows.append(Row("output.bias", ("unembed_bias",)))
        others = (row for row in _others(self.pairs) if not own.intersection(row.ours))
        return (*rows, *others, *self.rows)


_JOINED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qkv": ("attn_qkv", ("attn.q", "attn.k", "attn.v")),
    "gate": ("ffn_up", ("mlp.gate", "mlp.up")),
}

# Settings that would change the computation, where nothing reads them: the values that do not.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
    "attention.scale": (),
    "attention.clamp_kqv": (0, 0.0),
    "attention.max_alibi_bias": (0, 0.0),
    "attention.value_scale": (1.0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0.0,),
    "rope.scaling.alpha": (),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "logit_scale": (),
    "embedding_scale": (),
    "residual_scale": (),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
}


def _trunk(attributes: Attributes) -> Attributes:
    """The settings without the layers at the end that guess further tokens, which are not read."""
    further = attributes.integer("nextn_predict_layers", 0)
    if not further:
        return attributes
    blocks = attributes.integer("block_count") - further
    return Attributes(
        {**attributes.values, attributes.prefix + "block_count": blocks}, attributes.where, attributes.prefix
    )


@dataclass(frozen=True)
class _Translation:
    """Settings of an architecture read into those of a config.json, and written from them."""

    table: GgufTable
    family_read: Callable[[Attributes], Config]
    family_write: Callable[[Config], dict[str, Any]]
    key: Callable[[str], str | None]
    experts: Any

    def config(self, attributes: Attributes, shapes: Shapes) -> Config:
        """The design that a file's settings and tensors describe."""
        attributes = _trunk(attributes)
        found = self._numbers(attributes, shapes)
        if self.experts is not None:
            found |= self._experts(attributes, shapes)
        found |= self.table.implied
        if self.table.read is not None:
            found |= self.table.read(attributes, shapes, found)
        for name, value in self.table.says.items():
            attributes.only(name, value, float32(value))
        for name, accepted in _ONLY.items():
            if attributes.prefix + name not in attributes.asked:
                attributes.only(name, *accepted)
        config = self.family_read(Attributes(found, attributes.where))
        for layer in config.layers:
            if isinstance(layer.feed_forward, Experts) and layer.feed_forward.scores in _SCORES:
                attributes.only("expert_gating_func", 0, _SCORES[layer.feed_forward.scores])
        return config

    def _numbers(self, attributes: Attributes, shapes: Shapes) -> dict[str, Any]:
        found: dict[str, Any] = {self.key("n_layers") or "num_hidden_layers": attributes.layers("block_count")}
        for number, theirs in SETTINGS.items():
            ours = self.key(number)
            if ours is None or number == "n_layers" or attributes.prefix + theirs not in attributes.values:
                continue
            if isinstance(value := attributes.values[attributes.prefix + theirs], list):
                attributes.asked.add(attributes.prefix + theirs)
                if all(isinstance(one, int) for one in value) and value:
                    found[ours] = max(value)  # 0 in layers without attention, which the tensors tell
                continue
            found[ours] = attributes.integer(theirs) if number in _WHOLE else attributes.number(theirs)
        for theirs, ours in self.table.settings.items():
            value = attributes.values.get(attributes.prefix + theirs)
            attributes.asked.add(attributes.prefix + theirs)
            if value is not None:
                found[ours] = value
        if (eps := self.key("eps")) is not None:
            for name in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"):
                if name in attributes:
                    found[eps] = attributes.number(name)
        found[self.key("vocab_size") or "vocab_size"] = shapes.get(
            "token_embd.weight", (attributes.integer("vocab_size", 0),)
        )[0]
        flags = {
            "bias": ("attn_q.bias", "attn_qkv.bias"),
            "out_bias": ("attn_output.bias",),
            "mlp_bias": ("ffn_down.bias",),
        }
        for flag, names in flags.items():
            if (ours := self.key(flag)) is not None:
                found[ours] = any(name.endswith(names) for name in shapes)
        if (ours := self.key("tied")) is not None:
            found[ours] = "output.weight" not in shapes
        if (ours := self.key("unembed_bias")) is not None:
            found[ours] = "output.bias" in shapes
        return found | self._rotary(attributes, found) | self._windows(attributes)

    def _rotary(self, attributes: Attributes, found: Mapping[str, Any]) -> dict[str, Any]:
        heads = attributes.values.get(attributes.prefix + "attention.head_count")
        heads = max(heads) if isinstance(heads, list) else heads
        if not heads:
            return {}
        d_head = attributes.integer("attention.key_length", None) or attributes.share(
            "embedding_length", attributes.integer("embedding_length"), "attention.head_count", heads
        )
        rotated = attributes.integer("rope.dimension_count", d_head)
        scaling = gguf_rope(attributes)
        said = {"rope_type": "default"} if scaling is None else scaling_settings(scaling)
        share = {} if rotated in (0, d_head) else {"partial_rotary_factor": rotated / d_head}
        return {
            "rope_theta": attributes.number("rope.freq_base", 10_000.0),
            "rope_scaling": {**said, **share} if scaling is not None else None,
            "partial_rotary_factor": rotated / d_head if rotated else 1.0,
        }

    def _windows(self, attributes: Attributes) -> dict[str, Any]:
        ours, period = self.key("window"), self.table.period
        if ours is None:
            return {}
        layers = attributes.layers("block_count")
        window = attributes.integer("attention.sliding_window", 0) if period is not None else 0
        listed = attributes.values.get(attributes.prefix + "attention.sliding_window_pattern")
        attributes.asked.add(attributes.prefix + "attention.sliding_window_pattern")
        if isinstance(listed, int) and not isinstance(listed, bool):
            period, listed = listed, None
        if not window:
            flags = [False] * layers
        elif isinstance(listed, list):
            if len(listed) < layers:
                raise CheckpointError(
                    f"{attributes.where} says of {len(listed)} layers whether they have a window; it has {layers}."
                )
            flags = [bool(flag) for flag in listed[:layers]]
        else:
            flags = usual_windows(layers, period or 0, self.table.first)
        kinds = ["sliding_attention" if flag else "full_attention" for flag in flags]
        return {ours: window or None, "layer_types": kinds}

    def _experts(self, attributes: Attributes, shapes: Shapes) -> dict[str, Any]:
        s, layers = self.experts, attributes.layers("block_count")
        flags = [
            any(f"blk.{i}.{name}.weight" in shapes for name in ("ffn_gate_inp", "ffn_down_exps")) for i in range(layers)
        ]
        n = attributes.integer("expert_count", 0)
        if True not in flags:
            if n:
                raise CheckpointError(
                    f"{attributes.where} sets expert_count to {n} and has no blk.*.ffn_gate_inp.weight; "
                    "the file is incomplete."
                )
            return {}
        i = flags.index(True)
        up = shapes.get(f"blk.{i}.ffn_up_exps.weight", shapes.get(f"blk.{i}.ffn_gate_up_exps.weight"))
        if up is None or len(up) != 3:
            raise CheckpointError(
                f"{attributes.where} has a router in layer {i} and no blk.{i}.ffn_up_exps.weight of all experts; "
                "files that hold experts one by one are of an older kind: convert the model again."
            )
        found: dict[str, Any] = {
            s.n_experts[0]: n,
            s.n_active: attributes.integer("expert_used_count"),
            s.d_ff[0]: up[1] if f"blk.{i}.ffn_up_exps.weight" in shapes else up[1] // 2,
            **s.layers.write(flags),
        }
        names = {
            "renormalise": "expert_weights_norm",
            "groups": "expert_group_count",
            "top_groups": "expert_group_used_count",
            "scale": "expert_weights_scale",
        }
        for number, ours in s.keys.items():
            if number == "renormalise":
                found[ours] = attributes.flag(names[number], False)
            elif number == "scale":
                found[ours] = attributes.number(names[number], 1.0) or 1.0
            elif number in names:
                found[ours] = attributes.integer(names[number], 1) or 1
            elif number == "correction":
                found[ours] = any(".exp_probs_b" in name for name in shapes)
        if s.shared is not None:
            beside = shapes.get(f"blk.{i}.ffn_up_shexp.weight", (0,))[0]
            if isinstance(s.shared, str):
                found[s.shared] = beside
            else:
                unit = found[s.d_ff[0]]
                found[s.shared[0]] = beside // unit
        return found

    def settings(self, config: Config) -> dict[str, Any]:
        """`config` the other way."""
        hf = self.family_write(config)
        found: dict[str, Any] = {"block_count": config.n_layers}
        for number, theirs in SETTINGS.items():
            ours = self.key(number)
            if ours is not None and hf.get(ours) is not None:
                found[theirs] = float(hf[ours]) if number not in (*_WHOLE, "n_layers") else hf[ours]
        found |= {theirs: hf[ours] for theirs, ours in self.table.settings.items() if hf.get(ours) is not None}
        kind = "layer_norm_epsilon" if config.norm.kind == "layer" else "layer_norm_rms_epsilon"
        found[f"attention.{kind}"] = config.norm.eps
        found |= self._attention(config)
        experts = next((x.feed_forward for x in config.layers if isinstance(x.feed_forward, Experts)), None)
        if experts is not None:
            found |= _experts_of(experts, config, self.experts)
            self._check_dense(config)
        width = next((x.feed_forward.d_ff for x in config.layers if x.feed_forward is not None), 0)
        found.setdefault("feed_forward_length", width)
        if any(recurrence_of(layer.mixer) is not None for layer in config.layers):
            found |= recurrence_settings(config)
            if "attention.head_count" in found and self.table.by_layer:
                heads = [a.n_kv_heads if (a := softmax_of(layer.mixer)) is not None else 0 for layer in config.layers]
                found["attention.head_count_kv"] = heads
        found |= self.table.says
        return {**found, **({} if self.table.write is None else self.table.write(config))}

    def _check_dense(self, config: Config) -> None:
        """Refuses layers without experts where llama.cpp expects them."""
        flags = [isinstance(layer.feed_forward, Experts) for layer in config.layers]
        first = flags.index(True)
        if self.table.dense == "any" or all(flags) or (self.table.dense == "first" and all(flags[first:])):
            return
        where = "after the first layers" if self.table.dense == "first" else "in every layer"
        raise UnsupportedError(f"llama.cpp expects experts {where} of architecture {self.table.architecture}.")

    def _attention(self, config: Config) -> dict[str, Any]:
        mixers = [a for layer in config.layers if (a := softmax_of(layer.mixer)) is not None]
        if not mixers:
            return {}
        a = next((a for a in mixers if a.window is None and a.rotary is not None), mixers[0])
        found: dict[str, Any] = {
            "attention.head_count": a.n_heads,
            "attention.head_count_kv": a.n_kv_heads,
            "attention.key_length": a.d_head,
            "attention.value_length": a.value_size,
        }
        rotary = next((x.rotary for x in (a, *mixers) if x.rotary is not None), None)
        if rotary is not None:
            found |= {"rope.freq_base": rotary.theta, "rope.dimension_count": _turned(a, rotary)}
            found |= gguf_scaling(rotary.scaling)
        windows = [config.window(i) for i in range(config.n_layers)]
        if any(windows) and self.table.period is not None:
            found["attention.sliding_window"] = next(window for window in windows if window)
            flags = [window is not None for window in windows]
            usual = usual_windows(config.n_layers, self.table.period, self.table.first)
            if flags != usual and self.table.listed:
                found["attention.sliding_window_pattern"] = flags
        return found


def _turned(attention: Attention, rotary: Rotary) -> int:
    return rotary.dims(attention.d_head)


def recurrence_settings(config: Config) -> dict[str, Any]:
    """Settings of the recurrences of a design, or of its short convolutions."""
    for layer in config.layers:
        mixer = recurrence_of(layer.mixer)
        if isinstance(mixer, ShortConvolution):
            return {"shortconv.l_cache": mixer.conv}
        if isinstance(mixer, StateSpace):
            return {
                "ssm.conv_kernel": mixer.conv,
                "ssm.state_size": mixer.d_state,
                "ssm.group_count": mixer.n_groups,
                "ssm.inner_size": mixer.out_size,
                "ssm.time_step_rank": mixer.n_heads,
            }
        if isinstance(mixer, SelectiveStateSpace):
            return {
                "ssm.conv_kernel": mixer.conv,
                "ssm.state_size": mixer.d_state,
                "ssm.inner_size": mixer.width,
                "ssm.time_step_rank": mixer.dt_rank,
            }
    return {}


def read_state_space(attributes: Attributes, shapes: Shapes, names: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a state space, by the names that a family has for them."""
    inner, heads = attributes.integer("ssm.inner_size"), attributes.integer("ssm.time_step_rank")
    numbers = {
        "n_heads": heads,
        "d_head": attributes.share("ssm.inner_size", inner, "ssm.time_step_rank", heads),
        "d_state": attributes.integer("ssm.state_size"),
        "n_groups": attributes.integer("ssm.group_count", 1),
        "conv": attributes.integer("ssm.conv_kernel"),
        "conv_bias": True,  # llama.cpp adds one always, and no other
        "bias": False,
        "norm": any(name.endswith(".ssm_norm.weight") for name in shapes),
        "expand": inner / attributes.integer("embedding_length"),
    }
    return {ours: numbers[number] for number, ours in names.items() if number in numbers}


def has(shapes: Shapes, tensor: str, layers: int) -> list[bool]:
    """Which layers have a tensor of this name."""
    return [f"blk.{i}.{tensor}" in shapes for i in range(layers)]


def usual_windows(layers: int, period: int, first: bool = False) -> list[bool]:
    """Which layers have windows where no list says so: all but the last, or the first, of every `period`."""
    if not period:
        return [True] * layers
    return [bool(i % period) if first else i % period < period - 1 for i in range(layers)]


def _experts_of(experts: Experts, config: Config, sparse: Any) -> dict[str, Any]:
    """Settings of experts."""
    flags = [isinstance(layer.feed_forward, Experts) for layer in config.layers]
    found: dict[str, Any] = {
        "expert_count": experts.n_experts,
        "expert_used_count": experts.n_active,
        "expert_feed_forward_length": experts.d_ff,
        "leading_dense_block_count": flags.index(True),
    }
    if experts.scores in _SCORES:
        found["expert_gating_func"] = _SCORES[experts.scores]
    keys = () if sparse is None else sparse.keys
    if "renormalise" in keys or experts.scores == "sigmoid":
        found["expert_weights_norm"] = experts.renormalise
    if "scale" in keys:
        found["expert_weights_scale"] = experts.scale
    if experts.groups > 1:
        if experts.group_best != 2:
            raise UnsupportedError(
                f"llama.cpp ranks groups of experts by the sum of their best two; this design takes "
                f"{experts.group_best}."
            )
        found |= {"expert_group_count": experts.groups, "expert_group_used_count": experts.top_groups}
    if experts.shared is not None:
        found["expert_shared_feed_forward_length"] = experts.shared.d_ff
        found["expert_shared_count"] = max(1, experts.shared.d_ff // experts.d_ff)
    return found


def normed(key: str) -> Callable[[Attributes, Shapes, dict[str, Any]], Mapping[str, Any]]:
    """Reads from the tensors whether queries and keys have norms."""
    return lambda attributes, shapes, found: {key: any(name.endswith("attn_q_norm.weight") for name in shapes)}


def sharing(table: GgufTable, **changes: Any) -> GgufTable:
    """The same architecture for another family."""
    return dataclasses.replace(table, **changes)
