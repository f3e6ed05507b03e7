"""What a layer can be made of, as frozen data: one file for each kind of part.

A choice knows its numbers, checks them, and says which parameters, sites and cache a part of that
kind has. It imports no torch; the module that computes it stands in `model/parts/` under the same
file name.
"""

from __future__ import annotations

from glassformer.model.choices.attention import Attention
from glassformer.model.choices.common import Component, Shape
from glassformer.model.choices.copies import Copies
from glassformer.model.choices.differential import DifferentialAttention
from glassformer.model.choices.experts import Experts
from glassformer.model.choices.feed_forward import ACTIVATIONS, Activation, FeedForward
from glassformer.model.choices.gated_delta import GatedDelta
from glassformer.model.choices.gated_linear_recurrence import GatedLinearRecurrence
from glassformer.model.choices.head import Head
from glassformer.model.choices.index import Index
from glassformer.model.choices.latent import LatentAttention
from glassformer.model.choices.layer_embedding import LayerEmbedding
from glassformer.model.choices.linear_attention import LinearAttention
from glassformer.model.choices.matrix_memory import MatrixMemory
from glassformer.model.choices.norm import Norm
from glassformer.model.choices.parallel import Parallel
from glassformer.model.choices.rotary import RopeScaling, Rotary
from glassformer.model.choices.selective_state_space import SelectiveStateSpace
from glassformer.model.choices.short_convolution import ShortConvolution
from glassformer.model.choices.sinusoids import Sinusoids
from glassformer.model.choices.state_space import StateSpace

Recurrence = (
    GatedDelta
    | GatedLinearRecurrence
    | LinearAttention
    | MatrixMemory
    | SelectiveStateSpace
    | ShortConvolution
    | StateSpace
)
Mixer = Attention | Parallel | Recurrence
Feed = FeedForward | Experts

# Kind as JSON names it -> choice.
MIXERS: dict[str, type] = {
    choice.kind: choice
    for choice in (
        Attention,
        LatentAttention,
        DifferentialAttention,
        GatedDelta,
        StateSpace,
        SelectiveStateSpace,
        ShortConvolution,
        GatedLinearRecurrence,
        Parallel,
        MatrixMemory,
        LinearAttention,
    )
}
FEEDS: dict[str, type] = {choice.kind: choice for choice in (FeedForward, Experts)}


def members(part: Mixer | Feed) -> tuple[Mixer | Feed, ...]:
    """The part itself, or the two mixers that it is made of."""
    return part.members if isinstance(part, Parallel) else (part,)


def softmax_of(mixer: Mixer | None) -> Attention | None:
    """The softmax attention that a layer's mixer is or holds."""
    mixer = mixer.attention if isinstance(mixer, Parallel) else mixer
    return mixer if isinstance(mixer, Attention) else None


def recurrence_of(mixer: Mixer | None) -> Recurrence | None:
    """The recurrence that a layer's mixer is or holds."""
    mixer = mixer.recurrence if isinstance(mixer, Parallel) else mixer
    return None if isinstance(mixer, Attention | Parallel) else mixer


__all__ = [
    "ACTIVATIONS",
    "FEEDS",
    "MIXERS",
    "Activation",
    "Attention",
    "Component",
    "Copies",
    "DifferentialAttention",
    "Experts",
    "Feed",
    "FeedForward",
    "GatedDelta",
    "GatedLinearRecurrence",
    "Head",
    "Index",
    "LatentAttention",
    "LayerEmbedding",
    "LinearAttention",
    "MatrixMemory",
    "Mixer",
    "Norm",
    "Parallel",
    "RopeScaling",
    "Rotary",
    "SelectiveStateSpace",
    "Shape",
    "ShortConvolution",
    "Sinusoids",
    "StateSpace",
    "members",
    "recurrence_of",
    "softmax_of",
]
