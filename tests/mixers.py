"""Hypothesis strategies for every kind of mixer, small enough to run in milliseconds."""

from __future__ import annotations

from hypothesis import strategies as st

from glassformer.model.config import (
    Attention,
    DifferentialAttention,
    GatedDelta,
    GatedLinearRecurrence,
    Index,
    LatentAttention,
    LinearAttention,
    MatrixMemory,
    Norm,
    Parallel,
    RopeScaling,
    Rotary,
    SelectiveStateSpace,
    ShortConvolution,
    StateSpace,
)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Attention with anything it may have, shared keys apart."""
    n_kv_heads = draw(st.integers(1, 2))
    n_heads = n_kv_heads * draw(st.integers(1, 2))
    gate = draw(st.sampled_from([None, "element", "head", "experts"]))
    keys = draw(st.sampled_from([False, False, True]))
    turning = Rotary(50.0, scaling=RopeScaling("proportional", 2.0, share=0.5))
    d_head = draw(st.sampled_from([4, 8]))
    pairs = d_head // 2  # of positions that turn otherwise in longer texts; no text here grows past that length
    long = RopeScaling("longrope", 4.0, 64, attention_factor=1.2, factors=(1.5,) * pairs, long_factors=(3.0,) * pairs)
    return Attention(
        n_heads,
        n_kv_heads,
        d_head,
        d_value=None if keys else draw(st.sampled_from([None, 6])),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        rotary=draw(st.sampled_from([None, Rotary(100.0), Rotary(fraction=0.5), Rotary(100.0, scaling=long), turning])),
        alibi=draw(st.sampled_from([(), tuple(2.0**-i for i in range(n_heads))])),
        alibi_rounded=draw(st.booleans()),
        window=draw(st.sampled_from([None, 3])),
        chunk=draw(st.sampled_from([None, 5])),
        sink=draw(st.booleans()),
        gate=gate,  # type: ignore[arg-type]
        gate_activation=draw(st.sampled_from(["sigmoid", "softplus"])),  # type: ignore[arg-type]
        gate_bias=gate in ("element", "head") and draw(st.booleans()),
        gate_active=draw(st.integers(1, n_heads // n_kv_heads)) if gate == "experts" else 0,
        qk_norm=draw(st.sampled_from([None, "head", "each", "whole"])),
        qk_norm_after=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 2.0])),
        clip=draw(st.sampled_from([None, 0.7])),
        clip_after=draw(st.booleans()),
        out_norm=draw(st.sampled_from([None, Norm("rms", eps=1e-3)])),
        value_scale=draw(st.sampled_from([None, 0.7])),
        value_norm=draw(st.booleans()),
        values_are_keys=keys,
        length_scale=draw(st.sampled_from([None, (0.1, 4.0)])),
        length_rule=draw(st.sampled_from(["log", "log_next", "power"])),  # type: ignore[arg-type]
    )


@st.composite
def differentials(draw: st.DrawFn) -> DifferentialAttention:
    """Differential attention: pairs of heads."""
    return DifferentialAttention(
        4,
        draw(st.sampled_from([2, 4])),
        4,
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        rotary=draw(st.sampled_from([None, Rotary(100.0)])),
        window=draw(st.sampled_from([None, 3])),
        sink=draw(st.booleans()),
        qk_norm=draw(st.sampled_from([None, "head"])),
        softcap=draw(st.sampled_from([None, 2.0])),
        start=draw(st.sampled_from([0.2, 0.6])),
        pair_eps=1e-3,
    )


@st.composite
def latents(draw: st.DrawFn) -> LatentAttention:
    """Latent attention with anything it may have."""
    n_heads = draw(st.integers(1, 3))
    return LatentAttention(
        n_heads,
        n_heads,
        6,
        d_value=draw(st.sampled_from([None, 5])),
        bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        rotary=(rotary := draw(st.sampled_from([None, Rotary(100.0, 2 / 6), Rotary(100.0, 4 / 6)]))),
        d_shared=draw(st.sampled_from([2, 3])) if rotary is None else None,
        gate=draw(st.sampled_from([None, "element", "head"])),
        sink=draw(st.booleans()),
        window=draw(st.sampled_from([None, 3])),
        out_norm=draw(st.sampled_from([None, Norm("rms", weight=False)])),
        scale=draw(st.sampled_from([None, 0.3])),
        kv_rank=draw(st.sampled_from([3, 7])),
        q_rank=(q_rank := draw(st.sampled_from([None, 5]))),
        latent_scale=draw(st.sampled_from([None, (1.5, 0.7)])),
        shared_norm=draw(st.booleans()),
        index=draw(st.sampled_from([None, Index(5, 4, 4)])) if rotary is not None and q_rank is not None else None,
    )


@st.composite
def state_spaces(draw: st.DrawFn) -> StateSpace:
    """A state space of a few heads."""
    groups = draw(st.integers(1, 2))
    return StateSpace(
        groups * draw(st.integers(1, 2)),
        4,
        3,
        n_groups=groups,
        conv=draw(st.sampled_from([1, 4])),
        conv_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        norm=draw(st.booleans()),
        norm_groups=groups,
        norm_first=draw(st.booleans()),
        out_bias=draw(st.sampled_from([None, True, False])),
        scales=draw(st.sampled_from([(), (0.5, 1.5, 0.7, -1.2, 0.9)])),
    )


@st.composite
def gated_deltas(draw: st.DrawFn) -> GatedDelta:
    """A gated delta rule of a few heads."""
    keys = draw(st.integers(1, 2))
    return GatedDelta(
        keys * draw(st.integers(1, 2)),
        keys,
        3,
        4,
        conv=draw(st.sampled_from([1, 4])),
        channels=draw(st.booleans()),
        floor=draw(st.sampled_from([None, -2.0])),
        rank=draw(st.sampled_from([None, 2])),
        gate_activation=draw(st.sampled_from(["silu", "sigmoid"])),  # type: ignore[arg-type]
        beta_scale=draw(st.sampled_from([1.0, 2.0])),
    )


@st.composite
def selective(draw: st.DrawFn) -> SelectiveStateSpace:
    """A state space of a few channels, each by itself."""
    return SelectiveStateSpace(
        draw(st.sampled_from([5, 8])),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
        conv=draw(st.sampled_from([1, 4])),
        conv_bias=draw(st.booleans()),
        bias=draw(st.booleans()),
        inner_norm=draw(st.sampled_from([None, "plain", "weighted"])),
        inner_eps=1e-3,
    )


@st.composite
def gated_recurrences(draw: st.DrawFn) -> GatedLinearRecurrence:
    """A gated linear recurrence of a few channels."""
    blocks = draw(st.integers(1, 2))
    return GatedLinearRecurrence(blocks * 4, blocks, draw(st.sampled_from([1, 4])))


@st.composite
def memories(draw: st.DrawFn) -> MatrixMemory:
    """A matrix memory of a few heads."""
    return MatrixMemory(draw(st.integers(1, 3)), 3, 4, draw(st.sampled_from([None, 2.0])), 1e-2, 1e-3)


@st.composite
def linear_attentions(draw: st.DrawFn) -> LinearAttention:
    """Linear attention of a few heads."""
    return LinearAttention(draw(st.integers(1, 3)), 3, draw(st.sampled_from([1.0, 0.4])), 1e-3)


@st.composite
def short_convolutions(draw: st.DrawFn) -> ShortConvolution:
    """A short convolution of a few channels."""
    conv = draw(st.sampled_from([1, 3]))
    return ShortConvolution(draw(st.sampled_from([5, 8])), conv, draw(st.booleans()), draw(st.booleans()))


@st.composite
def parallels(draw: st.DrawFn) -> Parallel:
    """Attention, latent or not, beside a recurrence."""
    scales = st.sampled_from([1.0, 0.6, -1.3])
    return Parallel(
        draw(st.one_of(attentions(), latents())),
        draw(st.one_of(gated_deltas(), state_spaces())),
        (draw(scales), draw(scales)),
        (draw(scales), draw(scales)),
    )


MIXERS = st.one_of(
    attentions(),
    latents(),
    differentials(),
    gated_deltas(),
    state_spaces(),
    selective(),
    gated_recurrences(),
    memories(),
    linear_attentions(),
    short_convolutions(),
    parallels(),
    st.none(),
)
