"""ModernBERT's decoder (Ettin): windows in most layers, a norm of the embedding, and a head before the unembedding."""

from __future__ import annotations

import dataclasses
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families.alike import Alike
from glassformer.checkpoint.families.settings import (
    ACTIVATION_NAMES,
    activation,
    layer_types,
    one_window,
    rope,
    rope_kinds,
    rotary_of,
    scaling_settings,
    windows,
)
from glassformer.errors import UnsupportedError
from glassformer.model.config import Attention, Config, Head, Norm, Rotary

_BASES = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
_OLD = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _read(config: Config, attributes: Attributes) -> Config:
    """Windows are half of what the settings say; the first layer's attention reads the stream without a norm, which
    the embedding has had."""
    period = attributes.integer("global_attn_every_n_layers", 3)
    window = (attributes.integer("local_attention", 128, null=True) or 0) // 2 or None
    attributes.only("sliding_window", window, -1)
    each = windows(attributes, config.n_layers, window, lambda i: bool(window and period and i % period))
    tables, rotaries = rope_kinds(attributes), {}
    for kind, base in _BASES.items():
        theta, scaling = rope(attributes, config.context, attributes.number(_OLD[kind], base), tables.get(kind) or {})
        rotaries[kind] = Rotary(theta, scaling=scaling)
    layers = []
    for i, layer in enumerate(config.layers):
        assert isinstance(layer.mixer, Attention)
        own = each[i] if each else None
        rotary = rotaries["full_attention" if own is None else "sliding_attention"]
        mixer = dataclasses.replace(layer.mixer, window=own, rotary=rotary)
        layers.append(dataclasses.replace(layer, mixer=mixer, norms="before" if i else "feed"))
    head = Head(activation(attributes, "classifier_activation", "gelu"), attributes.flag("classifier_bias", False))
    norm = dataclasses.replace(config.norm, bias=attributes.flag("norm_bias", False))
    return dataclasses.replace(config, layers=tuple(layers), head=head, norm=norm)


def _write(config: Config) -> dict[str, Any]:
    if config.head is None:
        raise UnsupportedError("it has no head between its last layer and the final norm")
    tables = {}
    for window, kind in ((False, "full_attention"), (True, "sliding_attention")):
        rotary = rotary_of(config, window=window)
        scaling = {"rope_type": "default"} if rotary.scaling is None else scaling_settings(rotary.scaling)
        tables[kind] = {"rope_theta": rotary.theta, **scaling}
    return {
        "rope_theta": None,
        "rope_scaling": None,
        "rope_parameters": tables,
        "layer_types": layer_types(config),
        "local_attention": 2 * (one_window(config) or 64),
        "norm_bias": config.norm.biased,
        "classifier_activation": ACTIVATION_NAMES[config.head.activation],
        "classifier_bias": config.head.bias,
    }


MODERNBERT = Alike(
    "modernbert-decoder",
    "ModernBertDecoder",
    norm=Norm("layer", bias=False),
    keys={"activation": "hidden_activation", "eps": "norm_eps", "unembed_bias": "decoder_bias"},
    fixed={"n_kv_heads": None, "d_head": None, "embedding_norm": True},
    names={
        "ln1": "attn_norm",
        "ln2": "mlp_norm",
        **{f"attn.{p}": f"attn.{p}_proj" for p in "qkv"},
        "attn.o": "attn.Wo",
        "mlp.down": "mlp.Wo",
    },
    joined={"mlp.Wi": ("mlp.gate", "mlp.up")},
    outside={
        "embed": "model.embeddings.tok_embeddings",
        "embed_norm": "model.embeddings.norm",
        "head.norm": "model.final_norm",
        "head.dense": "lm_head.dense",
        "final": "lm_head.norm",
        "unembed": "decoder",
    },
    defaults={"activation": "gelu", "tied": True, "context": 8192, "eps": 1e-5, "unembed_bias": True},
    more={"bos_token_id": 0, "pad_token_id": 0},  # its class takes no nulls
    read=_read,
    write=_write,
    no_effect=frozenset(["initializer_cutoff_factor", "cls_token_id", "mlp_dropout", "global_attn_every_n_layers"]),
)
