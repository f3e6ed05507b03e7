"""Nemotron-H and Nemotron 3: every layer holds one part: a state space, attention, a feed-forward part or experts."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.folding import Folded
from glassformer.checkpoint.families.gguf_settings import read_state_space
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.hybrid import StateSpaceKeys, state_space_rows
from glassformer.checkpoint.families.settings import ACTIVATION_NAMES, activation
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Attention, Config, Experts, FeedForward, Layer, Norm, StateSpace

_LAYER, _BLOCK = "backbone.layers.{i}.", "blocks.{i}."
_AT = _LAYER + "mixer."
_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
_KEYS = StateSpaceKeys(
    {
        "n_heads": "mamba_num_heads",
        "d_head": "mamba_head_dim",
        "n_groups": "n_groups",
        "d_state": "ssm_state_size",
        "conv": "conv_kernel",
        "conv_bias": "use_conv_bias",
        "bias": "use_bias",
    },
    {"n_heads": 128, "d_head": 64, "n_groups": 8, "d_state": 128},
    expand="",
    activation="mamba_hidden_act",
    least="time_step_min",
)

_EACH = tuple(
    row(f"{_AT}experts.{{e}}.{part}_proj.weight", f"{_BLOCK}mlp.experts.{part}.weight") for part in ("up", "down")
)
_STACKED = tuple(row(f"{_AT}experts.{part}_proj", f"{_BLOCK}mlp.experts.{part}.weight") for part in ("up", "down"))
_ROWS: tuple[Row, ...] = (
    row("backbone.embeddings.weight", "embed.weight"),
    row(_LAYER + "norm.weight", _BLOCK + "ln1.weight"),
    row(_LAYER + "norm.weight", _BLOCK + "ln2.weight"),
    *(dataclasses.replace(one, theirs=_LAYER + one.theirs) for one in state_space_rows("mixer.")),
    *(row(f"{_AT}{p}_proj.weight", f"{_BLOCK}attn.{p}.weight") for p in "qkvo"),
    *(
        row(f"{_AT}{theirs}.{kind}", f"{_BLOCK}mlp.{ours}.{kind}")
        for theirs, ours in {
            "up_proj": "up",
            "down_proj": "down",
            "shared_experts.up_proj": "shared.up",
            "shared_experts.down_proj": "shared.down",
            "fc1_latent_proj": "narrow",
            "fc2_latent_proj": "widen",
        }.items()
        for kind in ("weight", "bias")
    ),
    row(_AT + "gate.weight", _BLOCK + "mlp.router.weight"),
    row(_AT + "gate.e_score_correction_bias", _BLOCK + "mlp.correction"),
    row("backbone.norm_f.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)


def _kinds(attributes: Attributes) -> list[str]:
    said = attributes.sequence("layers_block_type") or attributes.sequence("layer_types")
    if said is None:
        said = list(attributes.text("hybrid_override_pattern", "ME*-"))
    found = [_LETTERS.get(kind, _OLDER.get(kind, kind)) for kind in said]
    for kind in found:
        if kind not in _LETTERS.values():
            raise attributes.unsupported("layers_block_type", kind)
    if not found:
        raise CheckpointError(f"{attributes.where} names no layers.")
    return found


def _read(attributes: Attributes) -> Config:
    ask, kinds = attributes, _kinds(attributes)
    d_model, eps = ask.integer("hidden_size", 4096), ask.number("layer_norm_epsilon", 1e-5)
    chosen, bias = activation(ask, "mlp_hidden_act", "relu2"), ask.flag("mlp_bias", False)
    heads = ask.integer("num_attention_heads", 32)
    width = ask.integer("moe_shared_expert_intermediate_size", 7688)
    latent = ask.integer("moe_latent_size", None, null=True)
    norm = Norm("rms", eps=eps)
    config = Config(
        ask.integer("vocab_size", 131072),
        d_model,
        ask.integer("max_position_embeddings", 4096),
        (Layer(None, FeedForward(1)),),
        norm,
        tied=ask.flag("tie_word_embeddings", False),
    )
    of: dict[str, Any] = {
        "linear_attention": (_KEYS.read(ask, config), None),
        "full_attention": (
            Attention(
                heads,
                ask.integer("num_key_value_heads", 8, null=True) or heads,
                ask.integer("head_dim", 128),
                rotary=None,
            ),
            None,
        ),
        "mlp": (None, FeedForward(ask.integer("intermediate_size", 21504), chosen, False, bias)),
        "moe": (
            None,
            Experts(
                ask.integer("n_routed_experts", 8),
                ask.integer("num_experts_per_tok", 2),
                ask.integer("moe_intermediate_size", 7688),
                chosen,
                gated=False,
                scores="sigmoid",
                correction=True,
                groups=ask.integer("n_group", 1),
                top_groups=ask.integer("topk_group", 1),
                renormalise=ask.flag("norm_topk_prob", True),
                scale=ask.number("routed_scaling_factor", 1.0),
                shared=FeedForward(width, chosen, False, bias),
                latent=latent,
                latent_bias=bias and latent is not None,
            ),
        ),
    }
    return dataclasses.replace(config, layers=tuple(Layer(*of[kind]) for kind in kinds))


Part = TypeVar("Part")


def _first(config: Config, kind: type[Part], stand_in: Part) -> Part:
    parts = (part for layer in config.layers for part in (layer.mixer, layer.feed_forward))
    return next((part for part in parts if isinstance(part, kind)), stand_in)


def _kind(layer: Layer) -> str:
    parts = [part for part in (layer.mixer, layer.feed_forward) if part is not None]
    names = {Attention: "full_attention", StateSpace: "linear_attention", FeedForward: "mlp", Experts: "moe"}
    for kind, name in names.items():
        if len(parts) == 1 and isinstance(parts[0], kind):
            return name
    raise UnsupportedError("it has layers that are not one part alone")


def _write(config: Config) -> dict[str, Any]:
    kinds = [_kind(layer) for layer in config.layers]
    attention = _first(config, Attention, Attention(1, 1, config.d_model, rotary=None))
    dense = _first(config, FeedForward, FeedForward(config.d_model, "relu2", False))
    beside = FeedForward(dense.d_ff, dense.activation, False, dense.bias)
    experts = _first(config, Experts, Experts(2, 1, config.d_model, dense.activation, shared=beside))
    if "mlp" not in kinds and experts.shared is not None:
        dense = experts.shared
    if experts.shared is None:
        raise UnsupportedError("its experts have no part beside them")
    mixer = next((x.mixer for x in config.layers if isinstance(x.mixer, StateSpace)), None)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "max_position_embeddings": config.context,
        "layers_block_type": kinds,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.d_head,
        "intermediate_size": dense.d_ff,
        "mlp_hidden_act": ACTIVATION_NAMES.get(dense.activation, dense.activation),
        "mlp_bias": dense.bias,
        "n_routed_experts": experts.n_experts,
        "num_experts_per_tok": experts.n_active,
        "moe_intermediate_size": experts.d_ff,
        "moe_shared_expert_intermediate_size": experts.shared.d_ff,
        "moe_latent_size": experts.latent,
        "n_group": experts.groups,
        "topk_group": experts.top_groups,
        "norm_topk_prob": experts.renormalise,
        "routed_scaling_factor": experts.scale,
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.tied,
        **_KEYS.write(mixer, config),
    }


# GGUF

_NUMBERS = {
    "d_model": "hidden_size",
    "context": "max_position_embeddings",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "eps": "layer_norm_epsilon",
    "mlp_bias": "mlp_bias",
    "tied": "tie_word_embeddings",
}
_TELLING = {
    "ssm_in.weight": "linear_attention",
    "attn_output.weight": "full_attention",
    "ffn_gate_inp.weight": "moe",
    "ffn_up.weight": "mlp",
}


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp bounds no dt; which part a layer holds is told by its tensors."""
    layers = attributes.layers("block_count")
    tensors = [[kind for tensor, kind in _TELLING.items() if f"blk.{i}.{tensor}" in shapes] for i in range(layers)]
    for i, kinds in enumerate(tensors):
        if len(kinds) != 1:
            raise CheckpointError(f"{attributes.where} holds {len(kinds)} parts in layer {i}; there must be one.")
    kinds = [kind for (kind,) in tensors]
    more: dict[str, Any] = {"layers_block_type": kinds, "time_step_min": 0.0}
    if "linear_attention" in kinds:
        more |= read_state_space(attributes, shapes, _KEYS.keys)
    if "moe" in kinds:
        of = {name.partition(".ffn_")[2]: shape for name, shape in shapes.items() if ".ffn_" in name}
        more |= {
            "n_routed_experts": attributes.integer("expert_count"),
            "num_experts_per_tok": attributes.integer("expert_used_count"),
            "moe_intermediate_size": of.get("up_exps.weight", (0, 0))[1],
            "moe_shared_expert_intermediate_size": of.get("up_shexp.weight", (0,))[0],
            "moe_latent_size": of["latent_down.weight"][0] if "latent_down.weight" in of else None,
            "n_group": attributes.integer("expert_group_count", 1),
            "topk_group": attributes.integer("expert_group_used_count", 1),
            "norm_topk_prob": attributes.flag("expert_weights_norm", False),
            "routed_scaling_factor": attributes.number("expert_weights_scale", 1.0) or 1.0,
        }
        attributes.only("expert_gating_func", 0, 2)
    return more


def _write_gguf(config: Config) -> dict[str, Any]:
    """Lengths are 0 in layers that hold something else; where there are experts, all feed-forward parts have them."""
    parts = [layer.feed_forward for layer in config.layers]
    experts = next((part for part in parts if isinstance(part, Experts)), None)
    if experts is not None and any(isinstance(part, FeedForward) for part in parts):
        raise UnsupportedError("llama.cpp expects experts in every feed-forward layer of architecture nemotron_h_moe.")
    return {
        "feed_forward_length": [0 if part is None else part.d_ff for part in parts],
        "attention.layer_norm_epsilon": config.norm.eps,
        **({} if experts is None else {"expert_weights_scale": experts.scale}),
        **({} if experts is None or experts.latent is None else {"moe_latent_size": experts.latent}),
    }


def _unbounded(config: Config) -> Folded:
    """llama.cpp has no lower bound of dt, as the code that these models were trained with has none."""
    least = max((layer.mixer.dt_limit[0] for layer in config.layers if isinstance(layer.mixer, StateSpace)), default=0)
    layers = tuple(
        dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, dt_limit=(0.0, layer.mixer.dt_limit[1])))
        if isinstance(layer.mixer, StateSpace)
        else layer
        for layer in config.layers
    )
    said = (
        "" if least < 1e-8 else f"llama.cpp has no lower bound of dt, which transformers keeps at {least:g} at least."
    )
    return Folded(dataclasses.replace(config, layers=layers), unlike=said)


_GGUF = GgufTable(
    "nemotron_h",
    sparse="nemotron_h_moe",
    names={"ln2": "attn_norm", "mlp.narrow": "ffn_latent_down", "mlp.widen": "ffn_latent_up"},
    by_layer=("attention.head_count_kv", "feed_forward_length"),
    dense="any",
    read=_read_gguf,
    write=_write_gguf,
    fold=_unbounded,
)

NEMOTRON_H = Family(
    name="nemotron_h",
    architecture="NemotronHForCausalLM",
    base="NemotronHModel",
    rows=(*_ROWS, *_EACH),
    layouts=((*_ROWS, *_STACKED),),
    read=_read,
    write=_write,
    prefixes=("backbone.", "model.", ""),
    gguf=_GGUF.layout(_read, _write, _NUMBERS.get),
    only={"attention_bias": (False,)},
    ignored=(r"^mtp\.",),
    no_effect=frozenset(
        {
            *(
                "num_hidden_layers",
                "hybrid_override_pattern",
                "n_shared_experts",
                "moe_shared_expert_overlap",
                "expand",
            ),
            *("sliding_window", "use_mamba_kernels", "mamba_proj_bias", "mamba_ssm_cache_dtype", "chunk_size"),
            *("time_step_max", "time_step_floor", "time_step_limit", "rescale_prenorm_residual", "residual_in_fp32"),
            *("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern", "num_logits_to_keep"),
            # of other designs of the same code: nothing is rotated, and there is one eps
            *("rope_theta", "rope_parameters", "partial_rotary_factor", "norm_eps", "rms_norm_eps"),
            "attention_head_dim",
        }
    ),
)
