"""Nemotron-H and Nemotron 3: every layer holds one part: a state space, attention, a feed-forward part or experts."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
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


NEMOTRON_H = Family(
    name="nemotron_h",
    architecture="NemotronHForCausalLM",
    base="NemotronHModel",
    rows=(*_ROWS, *_EACH),
    layouts=((*_ROWS, *_STACKED),),
    read=_read,
    write=_write,
    prefixes=("backbone.", "model.", ""),
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
