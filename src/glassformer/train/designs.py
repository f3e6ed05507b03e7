"""Designs that a recipe names: the parts of a published family in a recipe's own shape.

A design is what the family's config.json would say, spelled out for a shape; the family's own table reads it, so a
model trained in it is of that family and exports as it. This module knows shapes and names; it does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glassformer.errors import CheckpointError, ConfigError, UnsupportedError, UsageError
from glassformer.model.config import Config

PLAIN = ("qwen3", "llama", "gpt2", "relu2")
"""qwen3, llama and gpt2 are what Hugging Face and llama.cpp know by those names; relu2 is ours alone."""
EXPERTS = 8
"""How many there are where a recipe does not say."""


@dataclass(frozen=True)
class ModelSizes:
    """What a recipe says of a model's sizes; numbers that it leaves to the design are 0.

    Attributes:
        vocab, layers, width, heads, kv_heads, head_dims, d_ff, context, theta, tied: as in a recipe.
        experts, active: how many experts there are, and how many a token meets.
    """

    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dims: int
    d_ff: int
    context: int
    theta: float
    tied: bool
    experts: int
    active: int

    @property
    def hidden(self) -> int:
        """Neurons of a dense part: 8/3 of the width, rounded up to 32."""
        return self.d_ff or _rounded(self.width * 8 / 3)

    @property
    def each(self) -> int:
        """Neurons of one expert: those that a token meets are together as many as a dense part has."""
        return self.d_ff or _rounded(self.hidden / self.some)

    @property
    def many(self) -> int:
        """Experts."""
        return self.experts or EXPERTS

    @property
    def some(self) -> int:
        """Experts that a token meets."""
        return self.active or min(2, self.many)

    @property
    def head(self) -> int:
        """Dimensions of a head."""
        return self.head_dims or self.width // self.heads

    @property
    def shared(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    def common(self) -> dict[str, Any]:
        """The settings of config.json that nearly every family has."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
        }

    def attention(self) -> dict[str, Any]:
        """Common settings, those of attention and of a dense part."""
        return {
            **self.common(),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.shared,
            "intermediate_size": self.hidden,
            "rope_theta": self.theta,
        }

    def sparse(self) -> dict[str, Any]:
        """How many experts a token meets, of how many neurons each."""
        return {"num_experts_per_tok": self.some, "moe_intermediate_size": self.each}

    def every(self, period: int, one: str, other: str) -> list[str]:
        """`one` for every layer, and `other` for each of number `period`, and for the last."""
        last = self.layers - 1
        return [other if i % period == period - 1 or i == last else one for i in range(self.layers)]

    def state(self) -> tuple[int, int]:
        """Heads of a state space, of 16 or more dimensions, and those: twice the width together."""
        size = next((n for n in (64, 32, 16, 8) if 2 * self.width % n == 0 and n <= self.width), 2 * self.width)
        return 2 * self.width // size, size


def _rounded(number: float) -> int:
    return -(-round(number) // 32) * 32


def _olmoe(s: ModelSizes) -> dict[str, Any]:
    return {
        **s.attention(),
        "intermediate_size": s.each,
        "num_experts": s.many,
        "num_experts_per_tok": s.some,
        "norm_topk_prob": False,
    }


def _gpt_oss(s: ModelSizes) -> dict[str, Any]:
    return {
        **s.attention(),
        "head_dim": s.head,
        "intermediate_size": s.each,
        "num_local_experts": s.many,
        "num_experts_per_tok": s.some,
        "layer_types": s.every(2, "sliding_attention", "full_attention"),
        "sliding_window": max(1, s.context // 4),
        "rope_parameters": {"rope_type": "default", "rope_theta": s.theta},
    }


def _deepseek(s: ModelSizes) -> dict[str, Any]:
    turned = max(2, s.head // 4 * 2)
    return {
        **s.attention(),
        **s.sparse(),
        "num_key_value_heads": s.heads,
        "q_lora_rank": max(1, s.width // 2),
        "kv_lora_rank": max(1, s.width // 4),
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": max(1, s.head - turned),
        "v_head_dim": s.head,
        "n_routed_experts": s.many,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": min(1, s.layers - 1),
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }


def _qwen3_next(s: ModelSizes) -> dict[str, Any]:
    return {
        **s.attention(),
        **s.sparse(),
        "head_dim": s.head,
        "num_experts": s.many,
        "shared_expert_intermediate_size": s.each,
        "linear_num_value_heads": s.heads,
        "linear_num_key_heads": s.heads,
        "linear_key_head_dim": s.head,
        "linear_value_head_dim": s.head,
        "layer_types": s.every(4, "linear_attention", "full_attention"),
        "rope_parameters": {"rope_type": "default", "rope_theta": s.theta, "partial_rotary_factor": 0.5},
    }


def _mamba(s: ModelSizes) -> dict[str, Any]:
    return {**s.common(), "state_size": 16, "expand": 2}


def _mamba2(s: ModelSizes) -> dict[str, Any]:
    heads, size = s.state()
    return {**s.common(), "num_heads": heads, "head_dim": size, "state_size": 32, "n_groups": 1, "expand": 2}


def _jamba(s: ModelSizes) -> dict[str, Any]:
    return {
        **{key: value for key, value in s.attention().items() if key != "rope_theta"},
        "intermediate_size": s.each,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": s.many,
        "num_experts_per_tok": s.some,
    }


def _falcon_h1(s: ModelSizes) -> dict[str, Any]:
    heads, size = s.state()
    return {
        **s.attention(),
        "head_dim": s.head,
        "mamba_d_ssm": heads * size,
        "mamba_n_heads": heads,
        "mamba_d_head": size,
        "mamba_n_groups": 1,
        "mamba_d_state": 32,
    }


def _lfm2(s: ModelSizes) -> dict[str, Any]:
    return {
        **s.attention(),
        "block_auto_adjust_ff_dim": False,
        "layer_types": s.every(3, "conv", "full_attention"),
    }


def _recurrent_gemma(s: ModelSizes) -> dict[str, Any]:
    return {
        **s.attention(),
        # Its parts are half as wide as the setting says.
        "intermediate_size": 2 * s.hidden,
        "block_types": ["recurrent", "recurrent", "attention"],
        "attention_window_size": max(1, s.context // 2),
        "lru_width": s.width,
    }


def _xlstm(s: ModelSizes) -> dict[str, Any]:
    return {**s.common(), "num_heads": s.heads, "ffn_round_up_to_multiple_of": 32}


def _diffllama(s: ModelSizes) -> dict[str, Any]:
    return {**s.attention(), "head_dim": s.head}


def _gemma(s: ModelSizes) -> dict[str, Any]:
    """What Gemma 3n and 4 share: local and global layers, the latest of which use earlier ones' keys and values, and
    an embedding of the token for every layer."""
    return {
        **{key: value for key, value in s.attention().items() if key != "rope_theta"},
        "head_dim": s.head,
        "layer_types": s.every(2, "sliding_attention", "full_attention"),
        "sliding_window": max(1, s.context // 4),
        "hidden_size_per_layer_input": max(1, s.width // 8),
        "vocab_size_per_layer_input": s.vocab,
        "num_kv_shared_layers": 2 if s.layers >= 4 and s.layers % 2 == 0 else 0,
        "final_logit_softcapping": 30.0,
    }


def _gemma3n(s: ModelSizes) -> dict[str, Any]:
    sparse = [0.95] * min(2, s.layers - 1)
    return {
        **_gemma(s),
        "intermediate_size": [s.hidden] * s.layers,
        "activation_sparsity_pattern": sparse + [0.0] * (s.layers - len(sparse)),
        "altup_num_inputs": 4,
        "laurel_rank": max(1, s.width // 8),
    }


def _gemma4(s: ModelSizes) -> dict[str, Any]:
    return {
        **_gemma(s),
        "global_head_dim": s.head,
        "enable_moe_block": True,
        "num_experts": s.many,
        "top_k_experts": s.some,
        "moe_intermediate_size": s.each,
    }


_TINY: Mapping[str, tuple[str, Callable[[ModelSizes], dict[str, Any]]]] = {
    "olmoe-tiny": ("olmoe", _olmoe),
    "gpt-oss-tiny": ("gpt_oss", _gpt_oss),
    "deepseek-tiny": ("deepseek_v3", _deepseek),
    "qwen3-next-tiny": ("qwen3_next", _qwen3_next),
    "mamba-tiny": ("mamba", _mamba),
    "mamba2-tiny": ("mamba2", _mamba2),
    "jamba-tiny": ("jamba", _jamba),
    "falcon-h1-tiny": ("falcon_h1", _falcon_h1),
    "lfm2-tiny": ("lfm2", _lfm2),
    "recurrentgemma-tiny": ("recurrent_gemma", _recurrent_gemma),
    "xlstm-tiny": ("xlstm", _xlstm),
    "diffllama-tiny": ("diffllama", _diffllama),
    "gemma3n-tiny": ("gemma3n_text", _gemma3n),
    "gemma4-tiny": ("gemma4_text", _gemma4),
}
TINY = tuple(_TINY)
"""Designs with parts that other families have; named after the family, in any sizes that a recipe gives."""
DESIGNS = (*PLAIN, *TINY)
SPARSE = ("olmoe-tiny", "gpt-oss-tiny", "deepseek-tiny", "qwen3-next-tiny", "jamba-tiny", "gemma4-tiny")
"""Those with experts."""


def tiny(name: str, sizes: ModelSizes) -> Config:
    """The transformer that a design of `TINY` is in these sizes.

    Raises:
        UsageError: the sizes cannot be had in this design.
    """
    from glassformer.checkpoint.families import named

    kind, settings = _TINY[name]
    try:
        return named(kind).from_hf({"model_type": kind, **settings(sizes)}, f"The design {name}")
    except (CheckpointError, ConfigError, UnsupportedError) as error:
        raise UsageError(f"The design {name} cannot be had in this shape: {error}") from None


def idle(name: str, sizes: ModelSizes) -> list[str]:
    """Settings of sizes that are given and that a design of `TINY` has no place for."""
    if name not in TINY:
        return []
    settings, found = _TINY[name][1], []
    for key in ("kv_heads", "head_dims", "d_ff"):
        value = getattr(sizes, key)
        if value and settings(sizes) == settings(dataclasses.replace(sizes, **{key: 32 * value})):
            found.append(key)
    return found


def exports(name: str) -> tuple[str, ...]:
    """The layouts that other libraries can load a model of this design from."""
    if name == "relu2":
        return ()
    if name in PLAIN:
        return ("hf", "gguf")
    from glassformer.checkpoint.families import named

    return ("hf",) if named(_TINY[name][0]).gguf is None else ("hf", "gguf")
