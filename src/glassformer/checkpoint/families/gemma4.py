"""The text part of Gemma 4: heads of two sizes, normed values, shared keys and values, and a number for each layer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import KEYS
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes, sharing
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    layer_types,
    one_window,
    rope,
    rope_kinds,
    windows,
)
from glassformer.checkpoint.families.sparse import fused
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import LayerEmbedding, RopeScaling, Rotary
from glassformer.model.config import Attention, Config, Experts, FeedForward, Layer, Norm

LAYER, BLOCK = "model.layers.{i}.", "blocks.{i}."
_NAMES = {
    "ln1": "input_layernorm",
    **{f"attn.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
    **{f"attn.{part}_norm": f"self_attn.{part}_norm" for part in "qk"},
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    **{f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    "ln2_post": "post_feedforward_layernorm",
}
ROWS: tuple[Row, ...] = (
    row("model.embed_tokens.weight", "embed.weight"),
    *(
        row(f"{LAYER}{theirs}.{kind}", f"{BLOCK}{ours}.{kind}")
        for ours, theirs in _NAMES.items()
        for kind in ("weight", "bias")
    ),
    row(f"{LAYER}layer_scalar", f"{BLOCK}scalar"),
    # embeddings of tokens in every layer
    row("model.embed_tokens_per_layer.weight", "layer_inputs.embed.weight"),
    row("model.per_layer_model_projection.weight", "layer_inputs.project.weight"),
    row("model.per_layer_projection_norm.weight", "layer_inputs.norm.weight"),
    row(f"{LAYER}per_layer_input_gate.weight", f"{BLOCK}ple.gate.weight"),
    row(f"{LAYER}per_layer_projection.weight", f"{BLOCK}ple.up.weight"),
    row(f"{LAYER}post_per_layer_input_norm.weight", f"{BLOCK}ln3_post.weight"),
    # experts beside the dense part
    *(row(f"{LAYER}mlp.{part}_proj.weight", f"{BLOCK}mlp.shared.{part}.weight") for part in ("gate", "up", "down")),
    row(f"{LAYER}router.proj.weight", f"{BLOCK}mlp.router.weight"),
    row(f"{LAYER}router.scale", f"{BLOCK}mlp.router_scale"),
    row(f"{LAYER}router.per_expert_scale", f"{BLOCK}mlp.scales"),
    *(dataclasses.replace(line, theirs=LAYER + line.theirs) for line in fused("experts.")),
    row(f"{LAYER}pre_feedforward_layernorm_2.weight", f"{BLOCK}mlp.ln_in.weight"),
    row(f"{LAYER}post_feedforward_layernorm_1.weight", f"{BLOCK}mlp.ln_shared.weight"),
    row(f"{LAYER}post_feedforward_layernorm_2.weight", f"{BLOCK}mlp.ln_out.weight"),
    row("model.norm.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)
# Tensors of the parts that see and hear, and of keys and values that a layer takes from an earlier one instead.
IGNORED = (
    r"(^|\.)rotary_emb\.inv_freq$",
    r"^(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder|multi_modal_projector)\.",
    r"\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.",
)
_FULL, _SLIDING = "full_attention", "sliding_attention"


def _gguf_rows() -> tuple[Row, ...]:
    """GGUF's tensors that only these models have, and the dense part beside experts, which has the usual names."""
    at, mlp = "blk.{i}.", f"{BLOCK}mlp."
    return (
        row("per_layer_token_embd.weight", "layer_inputs.embed.weight"),
        row("per_layer_model_proj.weight", "layer_inputs.project.weight"),
        row("per_layer_proj_norm.weight", "layer_inputs.norm.weight"),
        row(at + "layer_output_scale.weight", f"{BLOCK}scalar"),
        row(at + "inp_gate.weight", f"{BLOCK}ple.gate.weight"),
        row(at + "proj.weight", f"{BLOCK}ple.up.weight"),
        row(at + "post_norm.weight", f"{BLOCK}ln3_post.weight"),
        *(row(f"{at}ffn_{part}.weight", f"{mlp}shared.{part}.weight") for part in ("gate", "up", "down")),
        row(at + "ffn_gate_inp.scale", mlp + "router_scale"),
        row(at + "ffn_down_exps.scale", mlp + "scales"),
        row(at + "ffn_gate_up_exps.weight", mlp + "experts.gate.weight", mlp + "experts.up.weight", axis=1),
        row(at + "pre_ffw_norm_2.weight", mlp + "ln_in.weight"),
        row(at + "post_ffw_norm_1.weight", mlp + "ln_shared.weight"),
        row(at + "post_ffw_norm_2.weight", mlp + "ln_out.weight"),
    )


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    layers, d_head = attributes.layers("block_count"), attributes.integer("attention.key_length")
    near = attributes.integer("attention.key_length_swa", d_head)
    kinds, kv, ff = found["layer_types"], _each(attributes, "attention.head_count_kv"), _each(attributes, _FF)
    own = layers - attributes.integer("attention.shared_kv_layers", 0)
    slides = [kind == _SLIDING for kind in kinds]
    usual = next((n for n, flag in zip(kv, slides, strict=True) if flag), kv[0])
    theta = attributes.number("rope.freq_base", 1_000_000.0)
    wide = [i for i in range(own) if not slides[i]]
    routed, width = "blk.0.ffn_gate_inp.weight" in shapes, shapes.get("blk.0.ffn_down_exps.weight", (0, 0, 0))
    return {
        "head_dim": near,
        "num_key_value_heads": usual,
        "per_layer_config": {
            str(i): {"head_dim": d_head, "num_key_value_heads": kv[i]} for i in range(layers) if not slides[i]
        },
        "attention_k_eq_v": any(f"blk.{i}.attn_v.weight" not in shapes for i in wide),
        "num_kv_shared_layers": layers - own,
        "sliding_window": attributes.integer("attention.sliding_window"),
        "rope_parameters": {
            _FULL: {"rope_type": "default", "rope_theta": theta},
            _SLIDING: {"rope_type": "default", "rope_theta": attributes.number("rope.freq_base_swa", 10_000.0)},
        },
        "intermediate_size": min(ff),
        "use_double_wide_mlp": len(set(ff)) > 1,
        "hidden_size_per_layer_input": attributes.integer("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": shapes.get("per_layer_token_embd.weight", (found["vocab_size"],))[0],
        "enable_moe_block": routed,
        "num_experts": attributes.integer("expert_count", 0) or None,
        "top_k_experts": attributes.integer("expert_used_count", None),
        "moe_intermediate_size": width[-1] or None,
        "final_logit_softcapping": attributes.number("final_logit_softcapping", None),
    }


_FF = "feed_forward_length"


def _each(attributes: Attributes, name: str) -> list[int]:
    """A number for each layer, said once or layer by layer."""
    layers, said = attributes.layers("block_count"), attributes.values.get(attributes.prefix + name)
    if not isinstance(said, list):
        return [attributes.integer(name)] * layers
    if len(said) != layers or not all(isinstance(one, int) and one > 0 for one in said):
        raise CheckpointError(
            f"{attributes.where} sets {name} to {said}; it must be a number for each of {layers} layers."
        )
    return said


def _write_gguf(config: Config) -> dict[str, Any]:
    mixers = [config.attention(i) for i in range(config.n_layers)]
    near = next((m for m in mixers if m.window is not None), mixers[0])
    shared = sum(m.keys_from is not None for m in mixers)
    first = config.n_layers - shared
    for m in mixers[first:]:
        if m.keys_from != first - (1 if m.window is None else 2):
            raise UnsupportedError(
                "llama.cpp takes shared keys and values from the last two layers that have their own."
            )
    widths = [feed.d_ff for layer in config.layers if (feed := _dense(layer)) is not None]
    return {
        "attention.head_count_kv": [m.n_kv_heads for m in mixers],
        "attention.key_length_swa": near.d_head,
        "attention.value_length_swa": near.d_head,
        "attention.shared_kv_layers": shared,
        "attention.sliding_window": near.window or 0,
        "attention.sliding_window_pattern": [m.window is not None for m in mixers],
        "rope.freq_base_swa": 10_000.0 if near.rotary is None else near.rotary.theta,
        "rope.dimension_count_swa": near.rotary_dims,
        "feed_forward_length": widths,
        "embedding_length_per_layer_input": config.layer_embedding or 0,
    }


GGUF_ROWS = _gguf_rows()
_GGUF = GgufTable(
    "gemma4",
    rows=GGUF_ROWS,
    period=6,
    factors=True,
    by_layer=("attention.head_count_kv", _FF),
    read=_read_gguf,
    write=_write_gguf,
    ignored=(r"^blk\.\d+\.attn_(k|v|k_norm)\.weight$",),
)
_UNIFIED = sharing(_GGUF, chosen=lambda settings: False)
_KEYS = {
    **KEYS,
    "logit_softcap": "final_logit_softcapping",
    **dict.fromkeys(("d_head", "n_kv_heads", "d_ff", "mlp_bias")),
}


@dataclass(frozen=True)
class Kind:
    """One of the two kinds of layers.

    Args:
        d_head, n_kv_heads: its heads.
        rotary: how they are turned.
    """

    d_head: int
    n_kv_heads: int
    rotary: Rotary


@dataclass(frozen=True)
class Gemma4:
    """One family.

    Args:
        name: ``model_type``; stem: of its classes' names.
        context, window: where no setting says so.
        more: whether it may have embeddings of tokens in every layer, and experts.
        inside: further ``model_type`` that holds these settings.
    """

    name: str
    stem: str
    context: int
    window: int
    inside: str
    more: bool = False

    def family(self) -> Family:
        """The family, as everything else knows families."""
        return Family(
            name=self.name,
            architecture=f"{self.stem}ForCausalLM",
            base=f"{self.stem}TextModel",
            rows=ROWS,
            read=self.config,
            write=self.settings,
            prefixes=("model.", "model.language_model.", "language_model.model.", ""),
            only={"use_bidirectional_attention": ("vision", False)},
            ignored=IGNORED,
            inside={self.inside: "text_config"},
            gguf=(_GGUF if self.more else _UNIFIED).layout(self.config, self.settings, _KEYS.get),
        )

    def config(self, attributes: Attributes) -> Config:
        """The design that the settings of a config.json describe."""
        layers, d_model = attributes.layers("num_hidden_layers", 30), attributes.integer("hidden_size", 2304)
        context = attributes.integer("max_position_embeddings", self.context)
        window = attributes.integer("sliding_window", self.window)
        each = windows(attributes, layers, window, lambda i: bool((i + 1) % 6) and i < layers - 1)
        each = each or (None,) * layers
        if each[-1] is not None:
            raise attributes.unsupported("layer_types", attributes.sequence("layer_types"))
        heads, bias = attributes.integer("num_attention_heads", 8), attributes.flag("attention_bias", False)
        kinds = self._kinds(attributes, each, context)
        same = attributes.flag("attention_k_eq_v", False)
        donors = shared_from(attributes, each)
        d_ff, wide = attributes.integer("intermediate_size", 9216), attributes.flag("use_double_wide_mlp", False)
        act = activation(attributes, "hidden_activation", "gelu_pytorch_tanh")
        found = []
        for i in range(layers):
            kind = kinds[i]
            mixer = Attention(
                heads,
                kind.n_kv_heads,
                kind.d_head,
                bias=bias,
                out_bias=bias,
                rotary=kind.rotary,
                window=each[i],
                qk_norm="head",
                scale=1.0,
                value_norm=True,
                values_are_keys=same and each[i] is None,
                keys_from=donors[i],
            )
            feed = FeedForward(d_ff * (2 if wide and donors[i] is not None else 1), act)
            found.append(Layer(mixer, feed, "both", scalar=True))
        eps = attributes.number("rms_norm_eps", 1e-6)
        if self.more:
            found = _with_more(found, attributes, eps)
        vocab = attributes.integer("vocab_size", 262_144)
        own = attributes.integer("vocab_size_per_layer_input", 262_144) if self.more else None
        return Config(
            vocab,
            d_model,
            context,
            tuple(found),
            Norm("rms", eps=eps),
            tied=attributes.flag("tie_word_embeddings", True),
            embedding_scale=math.sqrt(d_model),
            logit_softcap=attributes.number("final_logit_softcapping", None, null=True),
            layer_vocab=None if own == vocab or found[0].embedding is None else own,
        )

    def _kinds(self, attributes: Attributes, each: tuple[int | None, ...], context: int) -> list[Kind]:
        """Heads and rotation of every layer."""
        d_head, n_kv_heads = attributes.integer("head_dim", 256), attributes.integer("num_key_value_heads", 4)
        ropes = {sliding: _rotary(attributes, sliding, context) for sliding in (True, False)}
        own = attributes.by_layer("per_layer_config")
        if "per_layer_config" not in attributes:
            more: dict[str, Any] = {"head_dim": attributes.integer("global_head_dim", 512)}
            number = attributes.integer("num_global_key_value_heads", None, null=True)
            if number is not None and attributes.flag("attention_k_eq_v", False):
                more["num_key_value_heads"] = number
            own = {i: more for i, window in enumerate(each) if window is None}
        found = []
        for i, window in enumerate(each):
            one = attributes.inside(own.get(i, {}), f"per_layer_config.{i}")
            found.append(
                Kind(
                    one.integer("head_dim", d_head),
                    one.integer("num_key_value_heads", n_kv_heads),
                    ropes[window is not None],
                )
            )
        return found

    def settings(self, config: Config) -> dict[str, Any]:
        """The settings that describe a design."""
        mixers = [config.attention(i) for i in range(config.n_layers)]
        wide = next((m for m in mixers if m.window is None), mixers[0])
        near = next((m for m in mixers if m.window is not None), wide)
        experts = [layer.feed_forward for layer in config.layers if isinstance(layer.feed_forward, Experts)]
        feeds = [_dense(layer) for layer in config.layers]
        if not all(isinstance(feed, FeedForward) for feed in feeds):
            raise UnsupportedError("it has layers without a dense feed-forward part")
        sizes = [feed.d_ff for feed in feeds if isinstance(feed, FeedForward)]
        first = feeds[0]
        assert isinstance(first, FeedForward)
        return {
            **(_more_settings(config, experts) if self.more else {}),
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "intermediate_size": sizes[0],
            "use_double_wide_mlp": len(set(sizes)) > 1,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": near.n_heads,
            "num_key_value_heads": near.n_kv_heads,
            "head_dim": near.d_head,
            "per_layer_config": {
                str(i): {"head_dim": m.d_head, "num_key_value_heads": m.n_kv_heads}
                for i, m in enumerate(mixers)
                if (m.d_head, m.n_kv_heads) != (near.d_head, near.n_kv_heads)
            },
            "attention_bias": near.bias,
            "attention_k_eq_v": any(m.values_are_keys for m in mixers),
            "num_kv_shared_layers": sum(m.keys_from is not None for m in mixers),
            "final_logit_softcapping": config.logit_softcap,
            "sliding_window": one_window(config) or self.window,
            "layer_types": layer_types(config),
            "hidden_activation": ACTIVATION_NAMES.get(first.activation, first.activation),
            "max_position_embeddings": config.context,
            "rms_norm_eps": config.norm.eps,
            "tie_word_embeddings": config.tied,
            "rope_parameters": {_FULL: _rope_settings(wide), _SLIDING: _rope_settings(near)},
        }


def _dense(layer: Layer) -> FeedForward | None:
    """The dense part of a layer, beside experts or alone."""
    feed = layer.feed_forward
    if isinstance(feed, Experts):
        feed = feed.shared
    return feed if isinstance(feed, FeedForward) else None


def _with_more(layers: list[Layer], attributes: Attributes, eps: float) -> list[Layer]:
    """The layers with embeddings of tokens of their own and experts, as far as the settings have them."""
    dense = layers[0].feed_forward
    assert isinstance(dense, FeedForward)
    if d := attributes.integer("hidden_size_per_layer_input", 256, null=True):
        layers = [dataclasses.replace(layer, embedding=LayerEmbedding(d, dense.activation)) for layer in layers]
    n_experts, n_active = (attributes.integer(name, None) for name in ("num_experts", "top_k_experts"))
    width = attributes.integer("moe_intermediate_size", None)
    if not attributes.flag("enable_moe_block", False):
        return layers
    if not n_experts or not n_active or not width:
        raise CheckpointError(
            f"{attributes.where} sets enable_moe_block, and not all of num_experts, top_k_experts and "
            "moe_intermediate_size."
        )
    experts = Experts(n_experts, n_active, width, dense.activation, apart=eps, expert_scales=True)
    return [
        dataclasses.replace(layer, feed_forward=dataclasses.replace(experts, shared=_dense(layer))) for layer in layers
    ]


def _more_settings(config: Config, experts: list[Experts]) -> dict[str, Any]:
    """`_with_more` the other way."""
    rows = config.vocab_size if config.layer_vocab is None else config.layer_vocab
    found: dict[str, Any] = {
        "hidden_size_per_layer_input": config.layer_embedding or 0,
        "vocab_size_per_layer_input": rows,
        "enable_moe_block": bool(experts),
    }
    if experts:
        one = experts[0]
        found |= {"num_experts": one.n_experts, "top_k_experts": one.n_active, "moe_intermediate_size": one.d_ff}
    return found


def shared_from(attributes: Attributes, each: tuple[int | None, ...], default: int = 0) -> list[int | None]:
    """For each layer, whose keys and values it uses: those of the last layer of its kind that has its own.

    Raises:
        CheckpointError: there is none.
    """
    count = attributes.integer("num_kv_shared_layers", default)
    first = len(each) - count
    donors: list[int | None] = [None] * len(each)
    for i in range(max(first, 0), len(each)):
        own = [j for j in range(max(first, 0)) if (each[j] is None) == (each[i] is None)]
        if not own:
            raise CheckpointError(
                f"{attributes.where} sets num_kv_shared_layers to {count}, and no layer of the kind of layer {i} has "
                "keys and values of its own."
            )
        donors[i] = own[-1]
    return donors


def _rotary(attributes: Attributes, sliding: bool, context: int) -> Rotary:
    kinds = rope_kinds(attributes)
    name = _SLIDING if sliding else _FULL
    default: dict[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}
    if not sliding:
        default = {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25}
    own = kinds.get(name) if kinds else default
    inner = attributes.inside(own if isinstance(own, dict) else default, f"rope_parameters.{name}")
    if inner.text("rope_type", "default") != "proportional":
        inner.only("partial_rotary_factor", 1, 1.0)
        theta, scaling = rope(attributes, context, 10_000.0, inner.values)
        return Rotary(theta, scaling=scaling)
    share, factor = inner.number("partial_rotary_factor", 1.0), inner.number("factor", 1.0)
    return Rotary(inner.number("rope_theta", 10_000.0), scaling=RopeScaling("proportional", factor, share=share))


def _rope_settings(mixer: Attention) -> dict[str, Any]:
    rotary = mixer.rotary
    if rotary is None:
        raise UnsupportedError("it has layers without rotary positions")
    if rotary.scaling is None:
        return {"rope_type": "default", "rope_theta": rotary.theta}
    if rotary.scaling.kind != "proportional":
        raise UnsupportedError(f"its rotary scaling is {rotary.scaling.kind!r}")
    found = {"rope_type": "proportional", "rope_theta": rotary.theta, "partial_rotary_factor": rotary.scaling.share}
    return found | ({} if rotary.scaling.factor == 1 else {"factor": rotary.scaling.factor})


GEMMA4 = (
    Gemma4("gemma4_unified_text", "Gemma4Unified", 262_144, 1024, "gemma4_unified"),
    Gemma4("gemma4_text", "Gemma4", 131_072, 512, "gemma4", more=True),
)
