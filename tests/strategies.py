"""Hypothesis strategies for valid designs, small enough to run in milliseconds."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from glassformer.model.choices import ACTIVATIONS
from glassformer.model.config import (
    Attention,
    Config,
    Copies,
    Experts,
    FeedForward,
    Head,
    Layer,
    LayerEmbedding,
    Norm,
    RopeScaling,
    Rotary,
    Sinusoids,
    uniform,
)
from tests.mixers import MIXERS, attentions


@st.composite
def scalings(draw: st.DrawFn, pairs: int) -> RopeScaling | None:
    kind = draw(st.sampled_from([None, "linear", "llama3", "yarn", "factors", "proportional"]))
    if kind is None:
        return None
    if kind == "factors":
        return RopeScaling("factors", factors=tuple(draw(st.lists(st.floats(1, 8), min_size=pairs, max_size=pairs))))
    if kind == "proportional":
        return RopeScaling("proportional", factor=2.0, share=0.5)
    if kind == "linear":
        return RopeScaling("linear", factor=draw(st.sampled_from([2.0, 8.0])))
    if kind == "llama3":
        return RopeScaling("llama3", factor=8.0, original_context=16, low=1.0, high=4.0)
    return RopeScaling("yarn", factor=4.0, original_context=16, low=1.0, high=32.0, attention_factor=1.1386)


@st.composite
def configs(draw: st.DrawFn, max_layers: int = 3) -> Config:
    """Any valid design of layers that are alike, attention and a dense part, with a context of 48."""
    n_layers = draw(st.integers(1, max_layers))
    n_kv_heads = draw(st.integers(1, 2))
    d_head = draw(st.sampled_from([4, 6, 8]))
    windows = draw(
        st.one_of(st.just([]), st.lists(st.sampled_from([None, 1, 3, 7]), min_size=n_layers, max_size=n_layers))
    )
    norm_kind = draw(st.sampled_from(["rms", "layer"]))
    parallel = draw(st.booleans())
    rotary = local = None
    if draw(st.booleans()):
        fraction = draw(st.sampled_from([1.0, 0.5])) if d_head % 4 == 0 else 1.0
        pairs = int(d_head * fraction) // 2
        rotary = Rotary(draw(st.sampled_from([100.0, 10_000.0])), fraction, draw(scalings(pairs)))
        local = draw(st.sampled_from([None, Rotary(50.0, fraction)]))
    return uniform(
        vocab_size=draw(st.integers(5, 40)),
        d_model=draw(st.sampled_from([8, 12])),
        n_layers=n_layers,
        context=48,
        mixer=Attention(
            n_heads=n_kv_heads * draw(st.integers(1, 3)),
            n_kv_heads=n_kv_heads,
            d_head=d_head,
            bias=draw(st.booleans()),
            out_bias=draw(st.booleans()),
            rotary=rotary,
            qk_norm=draw(st.sampled_from([None, "head"])),
            scale=draw(st.sampled_from([None, 0.3])),
            softcap=draw(st.sampled_from([None, 2.0])),
        ),
        feed_forward=draw(dense()),
        norm=Norm(
            norm_kind,  # type: ignore[arg-type]
            eps=draw(st.sampled_from([1e-5, 1e-6])),
            one_plus=norm_kind == "rms" and draw(st.booleans()),
        ),
        windows=windows,
        local_rotary=local,
        norms="both" if not parallel and draw(st.booleans()) else "before",
        parallel=parallel,
        learned_positions=rotary is None,
        tied=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from([None, 3.0])),
        logit_softcap=draw(st.sampled_from([None, 5.0])),
    )


@st.composite
def dense(draw: st.DrawFn) -> FeedForward:
    """A dense feed-forward part."""
    gated = draw(st.booleans())
    return FeedForward(
        d_ff=draw(st.sampled_from([8, 20])),
        activation=draw(st.sampled_from(ACTIVATIONS)),  # type: ignore[arg-type]
        gated=gated,
        bias=draw(st.booleans()),
        clamp=draw(st.sampled_from([None, 0.5])) if gated else None,
        linear_shift=draw(st.sampled_from([0.0, 1.0])) if gated else 0.0,
        out_norm=draw(st.sampled_from([None, None, Norm("rms")])),
    )


@st.composite
def scaled(draw: st.DrawFn) -> FeedForward:
    """A dense feed-forward part with numbers that multiply what it reads and gives."""
    scales = st.sampled_from([1.0, 0.7])
    return dataclasses.replace(draw(dense()), pre_scale=draw(scales), out_scale=draw(scales))


@st.composite
def experts(draw: st.DrawFn) -> Experts:
    """A few experts, chosen in any of the ways there are."""
    groups = draw(st.sampled_from([1, 2]))
    gated = draw(st.booleans())
    mixer = groups == 1 and draw(st.booleans())
    shared = draw(st.one_of(st.none(), dense()))
    return Experts(
        4,
        2 if mixer else draw(st.integers(1, 2)),
        draw(st.sampled_from([3, 6])),
        activation=draw(st.sampled_from(ACTIVATIONS)),  # type: ignore[arg-type]
        gated=gated,
        bias=draw(st.booleans()),
        clamp=draw(st.sampled_from([None, 0.5])) if gated else None,
        linear_shift=draw(st.sampled_from([0.0, 1.0])) if gated else 0.0,
        router_bias=draw(st.booleans()),
        router_cap=draw(st.sampled_from([None, 0.8])),
        on_input=draw(st.booleans()),
        scores="sparse_mixer" if mixer else draw(st.sampled_from(["softmax", "sigmoid"])),  # type: ignore[arg-type]
        jitter=0.3,
        correction=not mixer and draw(st.booleans()),
        correction_of=draw(st.sampled_from(["scores", "before"])),  # type: ignore[arg-type]
        groups=groups,
        top_groups=draw(st.integers(1, groups)),
        group_best=draw(st.integers(1, 2)),
        renormalise=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        shared=shared,
        shared_scale=draw(st.sampled_from([1.0, 0.5])),
        shared_gate=shared is not None and draw(st.booleans()),
        expert_scales=draw(st.booleans()),
        latent=(latent := draw(st.sampled_from([None, None, 5]))),
        latent_bias=latent is not None and draw(st.booleans()),
        apart=(apart := None if latent is not None else draw(st.sampled_from([None, 1e-3]))),
        sum_bias=latent is None and apart is None and draw(st.booleans()),
    )


@st.composite
def sharing(draw: st.DrawFn, layers: list[Layer]) -> list[Layer]:
    """The layers, some of whose attentions use the keys and values of an earlier one."""
    donors: list[int] = []
    for i, layer in enumerate(layers):
        mixer = layer.mixer
        if type(mixer) is not Attention:
            continue
        if not donors or not draw(st.booleans()):
            donors.append(i)
            continue
        donor = draw(st.sampled_from(donors))
        theirs = layers[donor].mixer
        assert isinstance(theirs, Attention)
        layers[i] = dataclasses.replace(
            layer,
            mixer=dataclasses.replace(
                mixer,
                n_heads=theirs.n_heads,
                n_kv_heads=theirs.n_kv_heads,
                d_head=theirs.d_head,
                d_value=theirs.d_value,
                rotary=mixer.rotary if mixer.d_head == theirs.d_head else None,  # a factor for each pair
                alibi=theirs.alibi,
                values_are_keys=theirs.values_are_keys,
                gate_active=min(mixer.gate_active, theirs.n_experts),
                keys_from=donor,
            ),
        )
    return layers


@st.composite
def stacks(draw: st.DrawFn, max_layers: int = 3, mixers: st.SearchStrategy = MIXERS) -> Config:
    """Any mixture of layers: attention of every form beside state spaces, with and without feed-forward parts."""
    layers = []
    for _ in range(draw(st.integers(1, max_layers))):
        mixer = draw(mixers)
        feeds = st.one_of(scaled(), experts())
        feed = draw(feeds) if mixer is None else draw(st.one_of(feeds, st.none()))
        parallel = mixer is not None and feed is not None and draw(st.booleans())
        scales = st.one_of(st.just((1.0, 1.0)), st.tuples(*[st.sampled_from([0.7, 1.4])] * 2))
        placements = ("before", "after", "shared") if parallel else ("before", "after", "both", "feed", "feed_both")
        layers.append(
            Layer(
                mixer,
                feed,
                draw(st.sampled_from(placements)),  # type: ignore[arg-type]
                parallel,
                draw(st.sampled_from([None, 0.5])),
                averaged := None if parallel else draw(st.sampled_from([None, len(layers) + 1])),
                draw(st.booleans()),
                stream_scales=draw(scales) if averaged is None and not parallel else (1.0, 1.0),
                part_scales=draw(scales),
            )
        )
    layers = draw(sharing(layers))
    if draw(st.booleans()):
        own = LayerEmbedding(3, draw(st.sampled_from(["gelu_tanh", "silu"])))
        layers = [dataclasses.replace(x, embedding=own) if draw(st.booleans()) else x for x in layers]
    alone = not draw(st.sampled_from([False, False, False, True]))
    if not alone:
        copies = Copies(draw(st.integers(2, 3)), 2)
        for i, layer in enumerate(layers):
            mixer = layer.mixer if type(layer.mixer) is Attention else Attention(2, 1, 4)
            feed = FeedForward(8, sparsity=draw(st.sampled_from([0.0, 0.6])))
            layers[i] = Layer(mixer, feed, "both", embedding=LayerEmbedding(3), copies=copies)
    kind = draw(st.sampled_from(["rms", "layer"]))
    weight, learned = draw(st.booleans()), alone and draw(st.booleans())
    return Config(
        draw(st.integers(5, 40)),
        draw(st.sampled_from([8, 12])),
        48,
        tuple(layers),
        Norm(
            kind,  # type: ignore[arg-type]
            eps=draw(st.sampled_from([1e-3, 1e-5])),
            one_plus=weight and draw(st.booleans()),
            weight=weight,
            bias=draw(st.sampled_from([None, False])),
        ),
        learned_positions=learned,
        sinusoids=None if learned or not alone else draw(st.sampled_from([None, Sinusoids(), Sinusoids(2, True)])),
        embedding_norm=draw(st.booleans()),
        head=draw(st.sampled_from([None, None, None, Head("gelu", bias=True)])) if alone else None,
        final_norm=draw(st.booleans()),
        tied=draw(st.booleans()),
        unembed_bias=draw(st.booleans()),
        embedding_scale=draw(st.sampled_from([None, 3.0])),
        logit_scale=draw(st.sampled_from([None, 0.25])),
        logit_softcap=draw(st.sampled_from([None, 5.0])),
    )


@st.composite
def native_stacks(draw: st.DrawFn) -> Config:
    """Any mixture of what the native forward computes: `stacks` of attention, what it does not compute taken out."""

    def kept(feed: FeedForward) -> FeedForward:
        return dataclasses.replace(feed, out_norm=None)

    config = draw(stacks(mixers=st.one_of(attentions(), attentions(), st.none())))
    layers = []
    for layer in config.layers:
        mixer, feed = layer.mixer, layer.feed_forward
        if isinstance(mixer, Attention):
            mixer = dataclasses.replace(
                mixer,
                out_norm=None,
                alibi_rounded=False,
                clip_after=mixer.clip_after and not mixer.values_are_keys,
                qk_norm_after=mixer.qk_norm_after and mixer.qk_norm != "whole",
                gate=None if mixer.gate == "experts" else mixer.gate,
                gate_active=0,
            )
        if isinstance(feed, Experts):
            feed = dataclasses.replace(
                feed,
                scores="softmax" if feed.scores == "sparse_mixer" else feed.scores,
                latent=None,
                latent_bias=False,
                apart=None,
                sum_bias=False,
                on_input=feed.on_input and not feed.bias,
                shared=None if feed.shared is None else kept(feed.shared),
            )
        elif feed is not None:
            feed = dataclasses.replace(kept(feed), sparsity=0.0)
        layers.append(dataclasses.replace(layer, mixer=mixer, feed_forward=feed, embedding=None, copies=None))
    return dataclasses.replace(config, layers=tuple(layers), head=None)


@st.composite
def trained_natively(draw: st.DrawFn) -> Config:
    """What the native training step computes: layers that are alike, of plain attention and a plain dense part."""
    n_kv_heads = draw(st.integers(1, 3))
    d_head = draw(st.sampled_from([2, 6, 10, 16]))
    rotary = draw(st.booleans())
    layer = draw(st.booleans())
    return uniform(
        vocab_size=draw(st.integers(5, 40)),
        d_model=draw(st.integers(8, 20)),
        n_layers=draw(st.integers(1, 3)),
        context=48,
        mixer=Attention(
            n_heads=n_kv_heads * draw(st.integers(1, 3)),
            n_kv_heads=n_kv_heads,
            d_head=d_head,
            bias=draw(st.booleans()),
            out_bias=draw(st.booleans()),
            rotary=Rotary(draw(st.sampled_from([100.0, 10_000.0])), 1.0, draw(scalings(d_head // 2)))
            if rotary
            else None,
            qk_norm=draw(st.sampled_from([None, "head"])),
            scale=draw(st.sampled_from([None, 0.3])),
        ),
        feed_forward=FeedForward(
            draw(st.integers(1, 40)),
            draw(st.sampled_from(["gelu_tanh", "silu"])),
            draw(st.booleans()),
            draw(st.booleans()),
        ),
        norm=Norm("layer" if layer else "rms", draw(st.sampled_from([1e-5, 1e-3]))),
        learned_positions=not rotary,
        tied=draw(st.booleans()),
    )
