"""The families of checkpoints Glassformer knows, and how to find one.

A family is a table used both ways (`family.Family`). Nothing here opens a file or imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassformer.checkpoint.families.afmoe import AFMOE
from glassformer.checkpoint.families.beam import BEAM
from glassformer.checkpoint.families.cohere import COHERE
from glassformer.checkpoint.families.dbrx import DBRX
from glassformer.checkpoint.families.delta_hybrids import DELTA_HYBRIDS
from glassformer.checkpoint.families.differential import DIFFLLAMA
from glassformer.checkpoint.families.dots_note import DOTS_NOTE
from glassformer.checkpoint.families.experts import EXPERTS
from glassformer.checkpoint.families.falcon import FALCON
from glassformer.checkpoint.families.falcon_h1 import FALCON_H1
from glassformer.checkpoint.families.family import Family, GgufLayout
from glassformer.checkpoint.families.fixed_positions import FIXED_POSITIONS
from glassformer.checkpoint.families.gemma import GEMMA2, GEMMA3
from glassformer.checkpoint.families.gemma3n import GEMMA3N
from glassformer.checkpoint.families.gemma4 import GEMMA4
from glassformer.checkpoint.families.gpt2 import GPT2
from glassformer.checkpoint.families.gpt_alike import GPT_ALIKE
from glassformer.checkpoint.families.granite import GRANITE_SPARSE, GRANITE_SWA
from glassformer.checkpoint.families.grouped_experts import GROUPED_EXPERTS
from glassformer.checkpoint.families.indexed import INDEXED
from glassformer.checkpoint.families.jamba import JAMBA
from glassformer.checkpoint.families.jetmoe import JETMOE
from glassformer.checkpoint.families.laguna import LAGUNA
from glassformer.checkpoint.families.latent import LATENT, LATENT_EXPERTS
from glassformer.checkpoint.families.lfm import LFM
from glassformer.checkpoint.families.lightning import LIGHTNING
from glassformer.checkpoint.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from glassformer.checkpoint.families.llama4 import LLAMA4
from glassformer.checkpoint.families.llama_alike import LLAMA_ALIKE
from glassformer.checkpoint.families.mamba1 import MAMBA1
from glassformer.checkpoint.families.mamba2 import MAMBA2
from glassformer.checkpoint.families.mamba_hybrids import MAMBA_HYBRIDS
from glassformer.checkpoint.families.mellum import MELLUM
from glassformer.checkpoint.families.mimo import MIMO
from glassformer.checkpoint.families.minimax import MINIMAX_M3
from glassformer.checkpoint.families.modernbert import MODERNBERT
from glassformer.checkpoint.families.mpt import MPT
from glassformer.checkpoint.families.nemotron_h import NEMOTRON_H
from glassformer.checkpoint.families.neox import NEOX, NEOX_JAPANESE
from glassformer.checkpoint.families.olmo import OLMO
from glassformer.checkpoint.families.qwen_delta import QWEN_DELTA
from glassformer.checkpoint.families.recurrent_gemma import RECURRENT_GEMMA
from glassformer.checkpoint.families.refused import NOT_READ
from glassformer.checkpoint.families.xlstm import XLSTM
from glassformer.errors import CheckpointError, UnsupportedError, near
from glassformer.model.config import Config

_ALL = (
    *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, GEMMA3N, GPT2, NEOX),
    *(alike.family() for alike in (*LLAMA_ALIKE, *OLMO, *COHERE, *GPT_ALIKE, MPT, GRANITE_SWA)),
    *(alike.family() for alike in FIXED_POSITIONS),
    *(family.family() for family in (*INDEXED, DOTS_NOTE, MINIMAX_M3)),
    *(DIFFLLAMA, FALCON, NEOX_JAPANESE, MODERNBERT.family()),
    *MAMBA1,
    MAMBA2,
    *(
        family.family()
        for family in (
            *LATENT,
            *EXPERTS,
            *GROUPED_EXPERTS,
            *GRANITE_SPARSE,
            MELLUM,
            DBRX,
            *LATENT_EXPERTS,
            *QWEN_DELTA,
            AFMOE,
            LAGUNA,
            MIMO,
            LLAMA4,
            BEAM,
            LIGHTNING,
            JETMOE,
            *GEMMA4,
        )
    ),
    *(family.family() for family in (*LFM, JAMBA, RECURRENT_GEMMA)),
    XLSTM,
    *(family.family() for family in MAMBA_HYBRIDS),
    NEMOTRON_H,
    FALCON_H1,
    *(family.family() for family in DELTA_HYBRIDS),
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "NOT_READ", "Family", "GgufLayout", "by_architecture", "by_model_type", "for_config", "named"]


def by_model_type(settings: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json names.

    Raises:
        CheckpointError: it names none.
        UnsupportedError: it names one that is not among ours.
    """
    name = settings.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError(f"{where} names no model_type; it is not the config.json of a Hugging Face model.")
    for family in FAMILIES.values():
        if name == family.name or name in family.inside:
            return family
    reason = (
        f"which is not read: {NOT_READ[name]}" if name in NOT_READ else f"none of the {len(FAMILIES)} that are read"
    )
    raise UnsupportedError(f"{where} is a model of type {name!r}, {reason} (docs/models.md).")


def by_architecture(name: object, where: str, settings: Mapping[str, Any]) -> Family:
    """The family that a GGUF header names in ``general.architecture``, by its other settings where several share it.

    Raises:
        CheckpointError: it names none.
        UnsupportedError: it names one that is not among ours.
    """
    known: dict[str, list[Family]] = {}
    for family in _ALL:
        if family.gguf is not None:
            for architecture in family.gguf.names:
                known.setdefault(architecture, []).append(family)
    if not isinstance(name, str):
        raise CheckpointError(f"{where} names no general.architecture, so it cannot be told what model it is.")
    if name not in known:
        raise UnsupportedError(
            f"{where} is a GGUF of architecture {name!r}, none of the {len(known)} that are read (docs/models.md)."
        )
    families = known[name]
    own = (f for f in families if f.gguf is not None and f.gguf.chosen is not None and f.gguf.chosen(settings))
    plain = (f for f in families if f.gguf is not None and f.gguf.chosen is None)
    return next(own, None) or next(plain, families[0])


def named(name: str) -> Family:
    """The family of that name.

    Raises:
        UnsupportedError: there is none.
    """
    if name not in FAMILIES:
        raise UnsupportedError(
            f"There is no family {name!r} among the {len(FAMILIES)} of docs/models.md.{near(name, FAMILIES)}"
        )
    return FAMILIES[name]


def for_config(config: Config) -> Family:
    """The first family whose Hugging Face layout expresses a design.

    Raises:
        UnsupportedError: none does; the message says what stands in the way of each.
    """
    reasons = []
    for family in FAMILIES.values():
        try:
            family.to_hf(config)
            return family
        except UnsupportedError as error:
            reasons.append(f"{family.name}: {error}")
    raise UnsupportedError("No family's Hugging Face layout expresses this design. " + " ".join(reasons))
