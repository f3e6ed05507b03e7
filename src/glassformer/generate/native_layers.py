"""What of a design the native forward computes, and its settings in the library's structures.

Everything follows from the `Config`'s parts: a form of attention or of a feed-forward part is expressed wherever it
stands, and one that is not makes the whole design run through torch. It allocates nothing and reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from glassformer.kernels import infer_abi
from glassformer.model.config import Attention, Config, Experts, FeedForward, Layer, Norm
from glassformer.model.transformer import rotary_kinds

ACTIVATION = {
    "gelu": 0,
    "gelu_tanh": 1,
    "silu": 2,
    "relu": 3,
    "relu2": 4,
    "quick_gelu": 5,
}  # as the library numbers them
WIDEST_HEAD = 512


def refusal(config: Config, capacity: int | None = None) -> str | None:
    """What of a design the native forward does not compute, as the end of a sentence; None when it does all.

    Args:
        capacity: the longest text there will be; the model's context by default.
    """
    reasons = {
        "positions that turn by the text's length": _turns_within(
            config, config.context if capacity is None else capacity
        ),
        "a layer before the final norm": config.head is not None,
        "a final norm with an eps of its own": config.final_eps is not None,
        "embeddings of another width than the stream": config.d_embed is not None,
        "a stream in copies": config.copies is not None,
    }
    found = _first(reasons)
    for layer in config.layers:
        found = found or layer_refusal(layer)
    return found


def _turns_within(config: Config, capacity: int) -> bool:
    """Whether texts up to this long are turned in more than one way."""
    found = [r.scaling for r, _ in rotary_kinds(config) if r.scaling is not None and r.scaling.varies]
    return any(capacity > scaling.original_context for scaling in found)


def layer_refusal(layer: Layer) -> str | None:
    """The same of one layer."""
    feed = layer.feed_forward
    found = _first(
        {
            "embeddings of tokens in every layer": layer.embedding is not None,
            "norms after the sum of stream and part": layer.norms == "sum",
        }
    )
    if layer.mixer is not None:
        found = found or _attention_refusal(layer.mixer)
    if isinstance(feed, Experts):
        return found or _experts_refusal(feed)
    return found if feed is None else found or _feed_refusal(feed)


def _first(reasons: Mapping[str, bool]) -> str | None:
    return next((reason for reason, there in reasons.items() if there), None)


def _attention_refusal(a: object) -> str | None:
    if type(a) is not Attention:
        return "mixers other than softmax attention with keys and values of its own"
    return _first(
        {
            "norms of the heads' outputs": a.out_norm is not None,
            "heads that a router chooses": a.gate == "experts",
            "values that are keys cut after their norm": a.values_are_keys and a.clip is not None and a.clip_after,
            "ALiBi rounded to bfloat16": bool(a.alibi) and a.alibi_rounded,
            "norms over all heads after rotation": a.qk_norm == "whole" and a.qk_norm_after,
            f"heads of {max(a.d_head, a.value_size)} dimensions (up to {WIDEST_HEAD})": max(a.d_head, a.value_size)
            > WIDEST_HEAD,
        }
    )


def _feed_refusal(f: FeedForward) -> str | None:
    return _first(
        {
            f"the activation {f.activation}": f.activation not in ACTIVATION,
            "norms inside feed-forward parts": f.out_norm is not None,
            "gates cut by their own deviation": f.sparsity != 0,
        }
    )


def _experts_refusal(e: Experts) -> str | None:
    found = _first(
        {
            f"the activation {e.activation}": e.activation not in ACTIVATION,
            "experts chosen by a sparse mixer": e.scores == "sparse_mixer",
            "a bias on the experts' sum": e.sum_bias,
            "experts that read a latent": e.latent is not None,
            "experts with norms of their own": e.apart is not None,
            "weights on the inputs of experts with biases": e.on_input and e.bias,
        }
    )
    return found if e.shared is None else found or _feed_refusal(e.shared)


def attention_settings(layer: infer_abi.LayerWeights, a: Attention, norm: Norm, number: int) -> None:
    """The numbers of a layer's attention; its pointers stay as they are."""
    own = a.norm_of(norm)
    for name in ("n_heads", "n_kv_heads", "d_head"):
        setattr(layer, name, getattr(a, name))
    layer.d_value, layer.rotary = a.value_size, a.rotary_dims
    layer.window, layer.chunk = a.window or 0, a.chunk or 0
    layer.source = number if a.keys_from is None else a.keys_from
    layer.query_norm, layer.norm_after = infer_abi.QUERY_NORM[a.qk_norm], a.qk_norm_after
    layer.norm_eps, layer.norm_centred = own.eps, own.kind == "layer"
    layer.gate = infer_abi.HEAD_GATE[None if a.gate is None else a.gate_activation]
    layer.score_scale, layer.score_softcap = a.score_scale, a.softcap or 0.0
    layer.clip_after = a.clip is not None and a.clip_after
    layer.clip, layer.value_scale = a.clip or 0.0, 1.0 if a.value_scale is None else a.value_scale


def feed_settings(f: FeedForward | Experts) -> infer_abi.FeedWeights:
    """The numbers of a feed-forward part, or of each expert."""
    scale = f.pre_scale if isinstance(f, FeedForward) else 1.0
    return infer_abi.FeedWeights(
        d_ff=f.d_ff, activation=ACTIVATION[f.activation], scale=scale, cut=f.clamp or 0.0, shift=f.linear_shift
    )


def router_settings(e: Experts) -> infer_abi.RouterWeights:
    """How a layer's experts are chosen, and what weighs what they give."""
    shared = 1.0 if e.shared is None else e.shared.out_scale
    return infer_abi.RouterWeights(
        experts=e.n_experts,
        active=e.n_active,
        sigmoid=e.scores == "sigmoid",
        before=e.correction_of == "before",
        groups=e.groups,
        top_groups=e.top_groups,
        group_best=e.group_best,
        renormalise=e.renormalise,
        on_input=e.on_input,
        softcap=e.router_cap or 0.0,
        scale=e.scale,
        beside_scale=e.shared_scale * shared,
    )
