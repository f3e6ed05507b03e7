"""OLMo Hybrid, Kimi Linear and Ling 3: layers of a gated delta rule, and some of attention between them."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike, each_attention
from glassformer.checkpoint.families.folding import untied
from glassformer.checkpoint.families.gguf_settings import has
from glassformer.checkpoint.families.gguf_table import GgufTable, Shapes
from glassformer.checkpoint.families.grouped_experts import GROUPED
from glassformer.checkpoint.families.hybrid import Hybrid, Layers, by_types
from glassformer.checkpoint.families.latent import LatentAlike
from glassformer.checkpoint.families.sparse import LISTED, Sparse, each, one, shared
from glassformer.checkpoint.tables import Row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.choices import Mixer
from glassformer.model.config import Config, GatedDelta, LatentAttention, Rotary

_BLOCK = "blocks.{i}.delta."


def _rows(at: str, names: dict[str, str], **conv: Any) -> tuple[Row, ...]:
    """Tensors of a gated delta rule: matrices by name, and a convolution in three."""
    rows = [Row(f"{at}{theirs}.weight", (f"{_BLOCK}{ours}.weight",)) for ours, theirs in names.items()]
    rows += [Row(f"{at}{p}_proj.weight", (f"{_BLOCK}{p}.weight",)) for p in "qkv"]
    rows.append(Row(at + "o_norm.weight", (_BLOCK + "norm",)))
    rows.append(Row(at + "dt_bias", (_BLOCK + "dt_bias",)))
    rows.append(Row(at + "{p}_conv1d.weight", (_BLOCK + "conv.weight",), squeezed=1, spread=("q", "k", "v"), **conv))
    return tuple(rows)


def _delta(mixer: Mixer | None) -> GatedDelta | None:
    if mixer is not None and not isinstance(mixer, GatedDelta):
        raise UnsupportedError("it has layers that are neither attention nor a gated delta rule")
    return mixer


# OLMo Hybrid


def _olmo(attributes: Attributes, config: Config) -> GatedDelta:
    heads = config.attention(0).n_heads
    key_heads = attributes.integer("linear_num_key_heads", heads)
    d_key = attributes.integer("linear_key_head_dim", int(0.75 * config.d_model / key_heads))
    return GatedDelta(
        attributes.integer("linear_num_value_heads", heads),
        key_heads,
        d_key,
        attributes.integer("linear_value_head_dim", 2 * d_key),
        conv=attributes.integer("linear_conv_kernel_dim", 4),
        norm_eps=1e-5,
        beta_scale=2.0 if attributes.flag("linear_allow_neg_eigval", True) else 1.0,
    )


def _says_olmo(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    delta = _delta(mixer)
    if delta is None or all(isinstance(layer.mixer, GatedDelta) for layer in config.layers):
        raise UnsupportedError("its layers are all of one kind, where there must be both")
    return {
        "linear_num_value_heads": delta.n_heads,
        "linear_num_key_heads": delta.n_key_heads,
        "linear_key_head_dim": delta.d_key,
        "linear_value_head_dim": delta.d_head,
        "linear_conv_kernel_dim": delta.conv,
        "linear_allow_neg_eigval": delta.beta_scale != 1,
    }


def _olmo_rotates(config: Config, attributes: Attributes) -> Config:
    """Nothing is rotated where the settings name no base."""
    inner = attributes.inside(attributes.table("rope_parameters"), "rope_parameters")
    turns = inner.number("rope_theta", attributes.number("rope_theta", None)) is not None
    return config if turns else each_attention(config, rotary=None)


def _says_rotation(config: Config) -> dict[str, Any]:
    rotary = config.attention(0).rotary
    if rotary is None:
        return {"rope_parameters": None}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": rotary.theta}} if rotary.scaling is None else {}


_OLMO_NAMES = {"gate": "g_proj", "beta": "b_proj", "decay": "a_proj", "o": "o_proj"}
_OLMO_DECAY, _AFTER = Row("linear_attn.A_log", (_BLOCK + "a_log",)), ("blocks.{i}.ln1_post.weight",)


def _every_fourth(layer: int) -> bool:
    return layer % 4 != 3


_OLMO = Hybrid(
    Alike(
        "olmo_hybrid",
        "OlmoHybrid",
        norms="after",
        names={
            "ln1": "attention_layer_norm",
            "ln2": "feedforward_layer_norm",
            "ln2_post": "post_feedforward_layernorm",
        },
        fixed={"mlp_bias": False, "qk_norm": "whole", "d_head": None},
        defaults={"eps": 1e-6},
        read=_olmo_rotates,
        write=_says_rotation,
    ),
    (Row("post_attention_layernorm.weight", _AFTER), _OLMO_DECAY, *_rows("linear_attn.", _OLMO_NAMES)),
    by_types(_every_fourth),
    _olmo,
    _says_olmo,
    norms="before",
    beside="after",
    # as transformers writes them: the convolution in equal shares, not those of queries, keys and values
    layouts=(
        (
            Row("feedforward_layer_norm.weight", _AFTER),
            _OLMO_DECAY,
            *_rows("linear_attn.", _OLMO_NAMES, evenly=True),
        ),
    ),
    no_effect=frozenset(
        {"linear_a_log_max", "linear_a_log_min", "linear_dt_init_floor", "linear_dt_max", "linear_dt_min"}
    ),
)


# Kimi Linear and Ling 3: a decay for each channel, latent attention, experts by sigmoid

_RENAMED = {
    "max_position_embeddings": "model_max_length",
    "norm_topk_prob": "moe_renormalize",
    "n_group": "num_expert_group",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
    "num_local_experts": "num_experts",
}


def _spelled(attributes: Attributes) -> dict[str, Any]:
    """Either spelling of what these classes have two names for, as the newer one."""
    found: dict[str, Any] = {}
    for older, newer in _RENAMED.items():
        if newer not in attributes and older in attributes:
            found[newer] = attributes.values[older]
    return found


def _latent_stand_in(config: Config, rotary: Rotary | None) -> LatentAttention:
    return LatentAttention(
        1, 1, 6, rotary=rotary, d_shared=4 if rotary is None else None, gate=None if rotary is None else "head"
    )


def _kimi_settings(attributes: Attributes) -> dict[str, Any]:
    """Published files keep what is said of the gated delta rule in an object, with layers counted from 1."""
    found = _spelled(attributes)
    attributes.only("num_nextn_predict_layers", 0)
    attributes.only("moe_router_activation_func", "sigmoid")
    attributes.only("moe_layer_freq", 1)
    attributes.only("use_grouped_topk", True)
    attributes.only("mla_use_nope", True)
    attributes.only("head_dim", attributes.values.get("qk_rope_head_dim"), attributes.values.get("head_dim"))
    inner = attributes.inside(attributes.table("linear_attn_config"), "linear_attn_config")
    names = {
        "linear_head_dim": "head_dim",
        "linear_num_heads": "num_heads",
        "linear_conv_kernel_dim": "short_conv_kernel_size",
    }
    for ours, theirs in names.items():
        if theirs in inner:
            found[ours] = inner.integer(theirs)
    layers = attributes.layers("num_hidden_layers", 27)
    full, rest = inner.sequence("full_attn_layers"), inner.sequence("kda_layers")
    if full is not None and rest is not None and attributes.sequence("layer_types") is None:
        if sorted([*full, *rest]) != list(range(1, layers + 1)):
            raise CheckpointError(f"{inner.where} does not name each of {layers} layers once.")
        found["layer_types"] = ["full_attention" if i + 1 in full else "linear_attention" for i in range(layers)]
    return {**found, "head_dim": None}


def _kimi(attributes: Attributes, config: Config) -> GatedDelta:
    size, heads = attributes.integer("linear_head_dim", 128), attributes.integer("linear_num_heads", 32)
    return GatedDelta(
        heads,
        heads,
        size,
        size,
        conv=attributes.integer("linear_conv_kernel_dim", 4),
        norm_eps=config.norm.eps,
        channels=True,
        rank=size,
        gate_activation="sigmoid",
    )


def _says_kimi(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    delta = _delta(mixer) or GatedDelta(1, 1, 4, 4)
    return {
        "linear_head_dim": delta.d_head,
        "linear_num_heads": delta.n_heads,
        "linear_conv_kernel_dim": delta.conv,
        "moe_layer_freq": 1,
    }


_KDA = {
    "gate_down": "g_a_proj",
    "gate": "g_b_proj",
    "decay_down": "f_a_proj",
    "decay": "f_b_proj",
    "beta": "b_proj",
    "o": "o_proj",
}
_KEYS = {"d_head": "qk_rope_head_dim", "context": "model_max_length"}
_EXPERTS: dict[str, Any] = {
    **GROUPED,
    "keys": {
        "renormalise": "moe_renormalize",
        "scale": "routed_scaling_factor",
        "groups": "num_expert_group",
        "top_groups": "topk_group",
    },
    "n_experts": ("num_experts",),
    "n_active": "num_experts_per_token",
    "shared": ("num_shared_experts", ""),
    "layers": LISTED,
}
_W = ("w1", "w3", "w2")
_KIMI_ROWS = (
    one("block_sparse_moe.gate.weight", "router.weight"),
    one("block_sparse_moe.gate.e_score_correction_bias", "correction"),
    *each("block_sparse_moe.experts.{e}.", _W),
    *shared("block_sparse_moe.shared_experts."),
)


def _dense(at: str) -> tuple[Row, ...]:
    return tuple(Row(f"{at}{p}_proj.weight", (f"blocks.{{i}}.mlp.{p}.weight",)) for p in ("gate", "up", "down"))


def _read_gguf(attributes: Attributes, shapes: Shapes, found: dict[str, Any]) -> dict[str, Any]:
    """Which layers have which mixer is told by their tensors; heads are as many in both."""
    shared, heads = attributes.integer("rope.dimension_count"), attributes.integer("attention.head_count")
    return {
        **by_types(_every_fourth).write(has(shapes, "ssm_f_a.weight", attributes.layers("block_count"))),
        "linear_head_dim": attributes.integer("kda.head_dim"),
        "linear_num_heads": heads,
        "linear_conv_kernel_dim": attributes.integer("ssm.conv_kernel"),
        "num_key_value_heads": heads,
        "qk_rope_head_dim": shared,
        "qk_nope_head_dim": attributes.integer("attention.key_length_mla") - shared,
        "v_head_dim": attributes.integer("attention.value_length_mla"),
        "kv_lora_rank": attributes.integer("attention.kv_lora_rank"),
        "moe_renormalize": True,
    }


def _write_gguf(config: Config) -> dict[str, Any]:
    mixers = [layer.mixer for layer in config.layers]
    a = next((mixer for mixer in mixers if isinstance(mixer, LatentAttention)), None)
    delta = next((mixer for mixer in mixers if isinstance(mixer, GatedDelta)), None)
    if a is None or delta is None:
        raise UnsupportedError("llama.cpp expects both kinds of layers in architecture kimi-linear.")
    return {
        "attention.head_count_kv": [int(isinstance(mixer, LatentAttention)) for mixer in mixers],
        "attention.key_length": a.kv_rank + a.shared_size,
        "attention.value_length": a.kv_rank,
        "attention.key_length_mla": a.d_head,
        "attention.value_length_mla": a.value_size,
        "attention.kv_lora_rank": a.kv_rank,
        "rope.dimension_count": a.shared_size,
        "ssm.conv_kernel": delta.conv,
        "kda.head_dim": delta.d_head,
    }


def _kda_rows(conv: int | tuple[int, ...], decay: int | tuple[int, ...]) -> tuple[Row, ...]:
    """Tensors of the gated delta rule, by the axes of length 1 that two of them have there."""
    names = {"gate_down": "ssm_g_a", "gate": "ssm_g_b", "decay_down": "ssm_f_a", "decay": "ssm_f_b"}
    names |= {"beta": "ssm_beta", "o": "attn_output", **{p: f"attn_{p}" for p in "qkv"}}
    return (
        *(Row(f"blk.{{i}}.{theirs}.weight", (f"{_BLOCK}{ours}.weight",)) for ours, theirs in names.items()),
        Row("blk.{i}.ssm_norm.weight", (_BLOCK + "norm",)),
        Row("blk.{i}.ssm_dt.bias", (_BLOCK + "dt_bias",)),
        Row("blk.{i}.ssm_a", (_BLOCK + "a_log",), squeezed=decay, exponent=True),
        Row("blk.{i}.ssm_conv1d_{p}.weight", (_BLOCK + "conv.weight",), squeezed=conv, spread=("q", "k", "v")),
    )


_GGUF = GgufTable(
    "kimi-linear",
    pairs="halves",
    rows=_kda_rows(1, 1),
    also=_kda_rows((0, 2), (0, 1, 3)),
    by_layer=("attention.head_count_kv",),
    dense="first",
    read=_read_gguf,
    write=_write_gguf,
    fold=untied,
)

_KIMI = Sparse(
    Hybrid(
        LatentAlike(
            "kimi_linear",
            "KimiLinear",
            keys=_KEYS,
            fixed={"mlp_bias": False},
            rotates=False,
            names={"mlp.gate": "", "mlp.up": "", "mlp.down": ""},
            defaults={"eps": 1e-5, "context": 1 << 20},
        ),
        (*_rows("self_attn.", _KDA), Row("self_attn.A_log", (_BLOCK + "a_log",), squeezed=(0, 1, 3))),
        by_types(lambda layer: not layer or layer % 4 != 0),
        _kimi,
        _says_kimi,
        stand_in=lambda config: _latent_stand_in(config, None),
        no_effect=frozenset({"rope_theta", "rope_scaling", "rope_parameters", "first_k_dense_replace"}),
    ),
    (*_KIMI_ROWS, *_dense("mlp.")),
    stacked=((*_KIMI_ROWS, *_dense("block_sparse_moe.")),),  # as transformers writes them
    before=_kimi_settings,
    gguf=_GGUF,
    **_EXPERTS | {"defaults": {"renormalise": True, "scale": 2.446, "n_active": 8}},
)


# Ling 3


def _ling_settings(attributes: Attributes) -> dict[str, Any]:
    """A head's size is that of the gated delta rule, unless that has a setting of its own."""
    found = _spelled(attributes)
    attributes.integer("head_dim", 128)
    own = attributes.integer("linear_head_dim", attributes.integer("head_dim", 128))
    return {**found, "linear_head_dim": own, "head_dim": None}


def _ling(attributes: Attributes, config: Config) -> GatedDelta:
    size = attributes.integer("linear_head_dim")
    heads = attributes.integer("linear_num_heads", attributes.integer("num_attention_heads", 32))
    kernel = attributes.integer("linear_conv_kernel_dim", attributes.integer("short_conv_kernel_size", 4))
    floor = attributes.number("kda_lower_bound", -5.0)
    return GatedDelta(
        heads,
        heads,
        size,
        size,
        conv=kernel,
        norm_eps=config.norm.eps,
        channels=True,
        floor=floor if attributes.flag("kda_safe_gate", True) else None,
        gate_activation="sigmoid",
    )


def _says_ling(mixer: Mixer | None, config: Config) -> dict[str, Any]:
    delta = _delta(mixer) or GatedDelta(1, 1, 4, 4, floor=-5.0)
    return {
        "head_dim": delta.d_head,
        "linear_head_dim": delta.d_head,
        "linear_num_heads": delta.n_heads,
        "short_conv_kernel_size": delta.conv,
        "linear_conv_kernel_dim": delta.conv,
        "kda_safe_gate": delta.floor is not None,
        "kda_lower_bound": -5.0 if delta.floor is None else delta.floor,
    }


def _grouped(attributes: Attributes, layers: int) -> list[bool]:
    size = attributes.integer("layer_group_size", 6)
    return (
        _BY_TYPES.read(attributes, layers)
        if "layer_types" in attributes
        else [(i + 1) % size != 0 for i in range(layers)]
    )


_BY_TYPES = by_types(lambda layer: True)
_LING_KDA = {"gate": "g_proj", "decay": "f_proj", "beta": "b_proj", "o": "dense"}
_LING = Sparse(
    Hybrid(
        LatentAlike(
            "bailing_hybrid",
            "BailingHybrid",
            pairs="neighbours",
            keys=_KEYS,
            fixed={"mlp_bias": False},
            names={"attn.o": "attention.dense"},
            outside={"embed": "model.word_embeddings"},
            at="attention.",
            gate="head",
            defaults={"eps": 1e-6, "context": 262_144, "theta": 6_000_000.0},
            no_effect=frozenset({"mtp_loss_scaling_factor", "num_nextn_predict_layers", "num_mtp_layers"}),
        ),
        (*_rows("attention.", _LING_KDA), Row("attention.A_log", (_BLOCK + "a_log",))),
        Layers(_grouped, _BY_TYPES.write),
        _ling,
        _says_ling,
        stand_in=lambda config: _latent_stand_in(config, Rotary(6_000_000.0, 4 / 6)),
        no_effect=frozenset({"layer_group_size", "first_k_dense_replace"}),
    ),
    (
        one("mlp.gate.weight", "router.weight"),
        one("mlp.gate.expert_bias", "correction"),
        *each(),
        *shared("mlp.shared_experts."),
    ),
    before=_ling_settings,
    **_EXPERTS | {"defaults": {"renormalise": True, "scale": 2.5, "n_active": 8, "groups": 8, "top_groups": 4}},
)

DELTA_HYBRIDS = (_OLMO, _KIMI, _LING)
