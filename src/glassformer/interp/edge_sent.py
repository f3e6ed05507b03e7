"""What every sender adds and every receiver reads in a traced run, rescaling left out. Knows one run and no pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.interp.edge_graph import FEED, MIXER, Graph
from glassformer.interp.edge_run import rescaling, split_feed, split_heads
from glassformer.interp.recording import Recording
from glassformer.model.parts.attention import AttentionPart


def sent(forward: Recording, graph: Graph, here: slice) -> Float[Tensor, "sender query d_model"]:
    """What every sender adds at some positions."""
    _, joins = rescaling(forward)
    out = [forward.entering(0, here)]
    for i, choice in enumerate(forward.config.layers):
        block, prefix = forward.block(i), f"blocks.{i}."
        if choice.mixer is not None:
            if isinstance(block.mixer, AttentionPart):
                added = split_heads(block, forward.get(f"{prefix}attn.z", here))[:, 0]
            else:
                added = forward.get(f"{prefix}{choice.mixer.prefix}.out", here)
            out.append(added / joins[i, MIXER])
        if choice.feed_forward is not None:
            if len(graph.sent[i, FEED]) == 1:
                added = forward.get(f"{prefix}mlp.out", here)
            else:
                added = split_feed(block, forward.get(prefix + forward.read_by(i, FEED), here)[None])[:, 0]
            out.append(added / joins[i, FEED])
    return torch.cat(out)


def streams(forward: Recording, graph: Graph, here: slice) -> dict[int, Float[Tensor, "query d_model"]]:
    """The stream at every place that is read, by the number of senders before it."""
    reads, _ = rescaling(forward)
    found = {1: forward.entering(0, here)[0]}
    walk = dict(forward.walk(here))
    for layer, place, which in graph.places():
        name = "resid_pre" if layer is None else forward.read_by(layer, place)
        at = f"blocks.{forward.config.n_layers - 1}.resid_post" if layer is None else f"blocks.{layer}.{name}"
        found[graph.receivers[which[0]].seen] = walk[at][0] / reads[layer, place]
    return found
