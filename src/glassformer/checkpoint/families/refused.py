"""Types of model that are known and not read: what stands in the way of each, in one clause.

A type leaves this table when its parts are there and it becomes a family.
"""

from __future__ import annotations

from collections.abc import Mapping

_DISTANCES = "each token adds a bias of its own for every distance to its attention scores (relative logits)"
_INKLING = f"{_DISTANCES}, and short convolutions follow its keys, values and parts"
_INKLING2 = f"{_DISTANCES}, and its layers read a mixture of earlier streams (block attention residuals)"
_QWEN4 = "its stream stands in copies that gates mix, and embeddings of hashed n-grams of tokens are added to them"
_SHARED_BLOCK = (
    "one block of attention with the same weights works at several depths and reads the embedding beside the stream"
)

NOT_READ: Mapping[str, str] = {
    "axk2": "a gate of low rank follows its norms, and its latent attention has an output gate beside an index of keys",
    "deepseek_v4": "its attention reads compressed entries of earlier tokens, its stream stands in copies mixed by "
    "hyper-connections, and a table of token ids chooses the experts of its first layers",
    "doge": "a function of each value is added to its attention scores and may hide them (dynamic mask attention)",
    "hrm_text": "it runs two stacks of layers in turn, several times over (hierarchical recurrence)",
    "hy_v4": "its stream stands in copies mixed by hyper-connections",
    "inkling_mm_model": _INKLING,
    "inkling_text": _INKLING,
    "inkling2": _INKLING2,
    "inkling2_text": _INKLING2,
    "longcat_flash": "its layers hold two attentions and two dense parts, whose sum experts join beside them, and some "
    "experts give back their input (zero experts)",
    "qwen4_exp": _QWEN4,
    "qwen4_exp_text": _QWEN4,
    "rwkv": "its time mixing (a recurrence of channels, each token mixed with the last) is no part of Glassformer",
    "zamba": _SHARED_BLOCK,
    "zamba2": f"{_SHARED_BLOCK}, with adapters of its own at each",
    "zaya": "convolutions mix its queries and keys, half of each value comes from the token before, and its routers "
    "pass a state from layer to layer",
}
