"""The settings of a GGUF header, read into those of a config.json and written from them.

Everything a family knows about these is said once, in its config.json's terms; an architecture's `GgufTable` says what
it has otherwise. Names of tensors are that table's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.settings import float32, gguf_rope, gguf_scaling, scaling_settings
from glassformer.checkpoint.keys import Shape
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

if TYPE_CHECKING:
    from glassformer.checkpoint.families.gguf_table import GgufTable

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

# Settings that would change the computation, where nothing reads them: the values that do not.
_ONLY: Mapping[str, tuple[object, ...]] = {
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


def refuse_unread(attributes: Attributes) -> None:
    """Refuses settings that would change the computation and that nothing has read.

    Raises:
        UnsupportedError: one of them has a value that does.
    """
    for name, accepted in _ONLY.items():
        if attributes.prefix + name not in attributes.asked:
            attributes.only(name, *accepted)


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
class Translation:
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
        refuse_unread(attributes)
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
        return found | self._rotary(attributes) | self._windows(attributes)

    def _rotary(self, attributes: Attributes) -> dict[str, Any]:
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
