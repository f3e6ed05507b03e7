"""Hypothesis strategies for valid designs, small enough to run in milliseconds."""

from __future__ import annotations

from hypothesis import strategies as st

from glassformer.model.config import (
    ACTIVATIONS,
    Attention,
    Config,
    FeedForward,
    Norm,
    Position,
    RopeScaling,
)


@st.composite
def scalings(draw: st.DrawFn, pairs: int) -> RopeScaling | None:
    kind = draw(st.sampled_from([None, "linear", "llama3", "yarn", "factors"]))
    if kind is None:
        return None
    if kind == "factors":
        return RopeScaling("factors", factors=tuple(draw(st.lists(st.floats(1, 8), min_size=pairs, max_size=pairs))))
    if kind == "linear":
        return RopeScaling("linear", factor=draw(st.sampled_from([2.0, 8.0])))
    if kind == "llama3":
        return RopeScaling("llama3", factor=8.0, original_context=16, low=1.0, high=4.0)
    return RopeScaling("yarn", factor=4.0, original_context=16, low=1.0, high=32.0, attention_factor=1.1386)


@st.composite
def configs(draw: st.DrawFn, max_layers: int = 3) -> Config:
    """Any valid design with a context of 48 and a handful of dimensions."""
    n_layers = draw(st.integers(1, max_layers))
    n_kv_heads = draw(st.integers(1, 2))
    d_head = draw(st.sampled_from([4, 6, 8]))
    windows = draw(
        st.one_of(st.just(()), st.lists(st.sampled_from([None, 1, 3, 7]), min_size=n_layers, max_size=n_layers))
    )
    norm_kind = draw(st.sampled_from(["rms", "layer"]))
    parallel = draw(st.booleans())
    if draw(st.booleans()):
        fraction = draw(st.sampled_from([1.0, 0.5])) if d_head % 4 == 0 else 1.0
        pairs = int(d_head * fraction) // 2
        position = Position(
            "rotary",
            theta=draw(st.sampled_from([100.0, 10_000.0])),
            fraction=fraction,
            scaling=draw(scalings(pairs)),
            local_theta=draw(st.sampled_from([None, 50.0])),
        )
    else:
        position = Position("learned")
    return Config(
        vocab_size=draw(st.integers(5, 40)),
        d_model=draw(st.sampled_from([8, 12])),
        n_layers=n_layers,
        context=48,
        attention=Attention(
            n_heads=n_kv_heads * draw(st.integers(1, 3)),
            n_kv_heads=n_kv_heads,
            d_head=d_head,
            bias=draw(st.booleans()),
            out_bias=draw(st.booleans()),
            qk_norm=draw(st.booleans()),
            scale=draw(st.sampled_from([None, 0.3])),
            softcap=draw(st.sampled_from([None, 2.0])),
            windows=tuple(windows),
        ),
        feed_forward=FeedForward(
            d_ff=draw(st.sampled_from([8, 20])),
            activation=draw(st.sampled_from(ACTIVATIONS)),  # type: ignore[arg-type]
            gated=draw(st.booleans()),
            bias=draw(st.booleans()),
        ),
        norm=Norm(
            norm_kind,  # type: ignore[arg-type]
            eps=draw(st.sampled_from([1e-5, 1e-6])),
            one_plus=norm_kind == "rms" and draw(st.booleans()),
            post=not parallel and draw(st.booleans()),
        ),
        position=position,
        parallel=parallel,
        tied=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from([None, 3.0])),
        logit_softcap=draw(st.sampled_from([None, 5.0])),
    )
