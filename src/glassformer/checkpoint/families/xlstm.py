"""xLSTM: layers of a matrix memory, each with a feed-forward part."""

from __future__ import annotations

from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.family import Family
from glassformer.checkpoint.families.settings import feed_forward_of
from glassformer.checkpoint.tables import Row, row
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.model.config import Config, FeedForward, MatrixMemory, Norm, uniform

_LAYER, _BLOCK = "backbone.blocks.{i}.", "blocks.{i}."
_MEMORY = _LAYER + "mlstm_layer."

_ROWS: tuple[Row, ...] = (
    row("backbone.embeddings.weight", "embed.weight"),
    row(_LAYER + "norm_mlstm.weight", _BLOCK + "ln1.weight"),
    row(_MEMORY + "multihead_norm.weight", _BLOCK + "mlstm.norm", flat=True),
    row(_MEMORY + "out_proj.weight", _BLOCK + "mlstm.o.weight"),
    row(_LAYER + "norm_ffn.weight", _BLOCK + "ln2.weight"),
    row(_LAYER + "ffn.proj_down.weight", _BLOCK + "mlp.down.weight"),
    row("backbone.out_norm.weight", "final.weight"),
    row("lm_head.weight", "unembed.weight"),
)
_GATES = {"igate_preact": "input", "fgate_preact": "forget"}
_SINGLE: tuple[Row, ...] = (
    *(row(f"{_MEMORY}{part}.weight", f"{_BLOCK}mlstm.{part}.weight") for part in "qkv"),
    row(_MEMORY + "ogate_preact.weight", _BLOCK + "mlstm.gate.weight"),
    *(
        row(f"{_MEMORY}{theirs}.{kind}", f"{_BLOCK}mlstm.{ours}.{kind}")
        for theirs, ours in _GATES.items()
        for kind in ("weight", "bias")
    ),
    row(_LAYER + "ffn.proj_up_gate.weight", _BLOCK + "mlp.gate.weight"),
    row(_LAYER + "ffn.proj_up.weight", _BLOCK + "mlp.up.weight"),
)
_FUSED: tuple[Row, ...] = (
    row(_MEMORY + "qkv_opreact.weight", *(f"{_BLOCK}mlstm.{part}.weight" for part in ("q", "k", "v", "gate"))),
    *(
        row(f"{_MEMORY}ifgate_preact.{kind}", *(f"{_BLOCK}mlstm.{ours}.{kind}" for ours in _GATES.values()))
        for kind in ("weight", "bias")
    ),
    row(_LAYER + "ffn.proj_up_gate_z.weight", *(f"{_BLOCK}mlp.{part}.weight" for part in ("gate", "up"))),
)


def _heads(attributes: Attributes, which: str, size: int, heads: int) -> int:
    if size % heads:
        raise CheckpointError(f"{attributes.where}: {which} gives {size} dimensions, which {heads} heads cannot share.")
    return size // heads


def _read(attributes: Attributes) -> Config:
    d_model = attributes.integer("hidden_size", None, null=True) or attributes.integer("embedding_dim", 4096)
    layers = attributes.integer("num_hidden_layers", None, null=True) or attributes.integer("num_blocks", 32)
    for name, value in (("embedding_dim", d_model), ("num_blocks", layers)):
        attributes.only(name, value)
    attributes.only("use_bias", False)
    attributes.only("weight_mode", "single", "fused")
    heads, eps = attributes.integer("num_heads", 8), attributes.number("norm_eps", 1e-6)
    keys = int(d_model * attributes.number("qk_dim_factor", 0.5))
    values = int(d_model * attributes.number("v_dim_factor", 1.0))
    unit = attributes.integer("ffn_round_up_to_multiple_of", 64)
    d_ff = int((d_model * attributes.number("ffn_proj_factor", 2.667) + unit - 1) // unit) * unit
    return uniform(
        attributes.integer("vocab_size", 50304),
        d_model,
        layers,
        # a recurrence has no longest text; what was trained on is not said
        attributes.integer("max_position_embeddings", 1 << 20),
        MatrixMemory(
            heads,
            _heads(attributes, "qk_dim_factor", keys, heads),
            _heads(attributes, "v_dim_factor", values, heads),
            softcap=attributes.number("gate_soft_cap", 15.0),
            eps=attributes.number("eps", 1e-6),
            norm_eps=eps,
        ),
        FeedForward(d_ff),
        Norm("rms", eps=eps),
        tied=attributes.flag("tie_word_embeddings", False),
        logit_softcap=attributes.number("output_logit_soft_cap", 30.0),
    )


def _write(config: Config) -> dict[str, Any]:
    m, feed = config.layers[0].mixer, feed_forward_of(config)
    if not isinstance(m, MatrixMemory):
        raise UnsupportedError("it has layers of other parts than a matrix memory")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "embedding_dim": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_blocks": config.n_layers,
        "num_heads": m.n_heads,
        "use_bias": False,
        "qk_dim_factor": _factor(m.n_heads * m.d_key, config.d_model),
        "v_dim_factor": _factor(m.out_size, config.d_model),
        "ffn_proj_factor": feed.d_ff / config.d_model,
        "ffn_round_up_to_multiple_of": feed.d_ff,
        "gate_soft_cap": m.softcap,
        "output_logit_soft_cap": config.logit_softcap,
        "eps": m.eps,
        "norm_eps": config.norm.eps,
        "weight_mode": "single",
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.context,
    }


def _factor(size: int, d_model: int) -> float:
    """The share of the stream's width that gives this size, whatever the quotient is rounded to."""
    return size / d_model if int(d_model * (size / d_model)) == size else (size + 0.5) / d_model


XLSTM = Family(
    name="xlstm",
    architecture="xLSTMForCausalLM",
    base="xLSTMModel",
    rows=(*_ROWS, *_SINGLE),
    layouts=((*_ROWS, *_FUSED),),
    read=_read,
    write=_write,
    prefixes=("backbone.", ""),
    no_effect=frozenset(
        {
            *("norm_reduction_force_float32", "add_out_norm", "chunkwise_kernel", "sequence_kernel", "step_kernel"),
            *("mode", "chunk_size", "return_last_states", "autocast_kernel_dtype", "inference_state_dtype"),
            *("max_inference_chunksize", "force_bos_token_insert", "head_dim"),
        }
    ),
)
