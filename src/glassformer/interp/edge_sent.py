"""What every sender adds and every receiver reads in a traced run, rescaling left out. Knows one run and no pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edge_graph import (
    BESIDE,
    CORRECTED,
    FEED,
    MIXER,
    NORMED_FEED,
    NORMED_MIXER,
    OWN,
    PREDICTED,
    Graph,
)
from glassformer.interp.edge_parts import made_anew, rescaling, split_feed, split_heads, widened
from glassformer.interp.recording import Recording
from glassformer.model.parts.attention import AttentionPart


def sent(forward: Recording, graph: Graph, here: slice) -> Float[Tensor, "sender query wide"]:
    """What every sender adds at some positions."""
    _, joins = rescaling(forward)
    out = [widened(forward.entering(0, here), graph.width)]
    for layer, place in graph.sent:
        added = _added(forward, graph, layer, place, here) / joins[layer, place]
        out.append(widened(added, graph.width))
    return torch.cat(out)


def _added(forward: Recording, graph: Graph, layer: int, place: int, here: slice) -> Float[Tensor, "sender query wide"]:
    """What the senders of a place add, or what the stream is after them, as the model computed it."""
    block, prefix = forward.block(layer), f"blocks.{layer}."
    if place == MIXER:
        mixer = forward.config.mixer(layer)
        if isinstance(block.mixer, AttentionPart):
            return split_heads(block, forward.get(f"{prefix}attn.z", here))[:, 0]
        return forward.get(f"{prefix}{mixer.prefix}.out", here)
    if place == FEED:
        if len(graph.sent[layer, FEED]) == 1:
            return forward.get(f"{prefix}mlp.out", here)
        return split_feed(block, forward.get(prefix + forward.read_by(layer, FEED), here)[None])[:, 0]
    if place == OWN:
        out = forward.get(f"{prefix}ple.out", here)
        return out if block.copies is None else block.copies.beside(out)
    if place == BESIDE:
        return forward.get(f"{prefix}laurel.out", here)
    if place == PREDICTED:
        return made_anew(block, place, widened(forward.get(f"{prefix}resid_pre", here), graph.width))
    if place == CORRECTED:
        return forward.get(f"{prefix}resid_late", here)
    follows = place == NORMED_MIXER and block.feed_forward is not None
    return forward.get(f"{prefix}{'resid_mid' if follows else 'resid_post'}", here)


def streams(forward: Recording, graph: Graph, here: slice) -> dict[int, Float[Tensor, "query wide"]]:
    """The stream at every place that is read, by the number of senders before it; rescaling left out."""
    reads, joins = rescaling(forward)
    found, walk = {1: widened(forward.entering(0, here)[0], graph.width)}, dict(forward.walk(here))
    for layer, place, which in graph.places():
        if (seen := graph.receivers[which[0]].seen) in found:
            continue
        if layer is None:
            last = walk[f"blocks.{forward.config.n_layers - 1}.resid_post"][0]
            found[seen] = widened(last / reads[layer, place], graph.width)
            continue
        prefix, choice = f"blocks.{layer}.", forward.config.layers[layer]
        if place in (NORMED_MIXER, NORMED_FEED, CORRECTED):  # what they read is no place of the stream
            part = MIXER if place == NORMED_MIXER else FEED
            name = "mlp" if part == FEED else forward.config.mixer(layer).prefix
            before = found[graph.receivers[graph.read[layer, part][0]].seen]
            added = forward.get(f"{prefix}{name}.out", here)[0] / joins[layer, part]
            found[seen] = before + widened(added, graph.width)
        elif choice.copies is not None and place in (MIXER, FEED):
            entering = widened(walk[f"{prefix}resid_pre"][0], graph.width)
            first = walk[prefix + forward.read_by(layer, place)][0] / reads[layer, place]
            others = made_anew(forward.block(layer), PREDICTED, entering)[..., forward.config.d_model :]
            found[seen] = torch.cat([first, others], -1)
        else:
            name = {OWN: "resid_late", PREDICTED: "resid_pre"}.get(place) or forward.read_by(layer, place)
            found[seen] = widened(walk[prefix + name][0] / reads[layer, place], graph.width)
    return found
