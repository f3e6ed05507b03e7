"""The rules by which RelP propagates relevance backwards instead of a gradient (arXiv:2508.21258).

They are taps that leave every number as it is and change what a backward pass sees: norms divide by what they divided
by, attention weights and experts' weights are held, an activation counts as what it multiplied its input by, and the
two halves of a gated neuron share its output evenly (of what was added to a half, the neuron keeps the share). So
nothing goes back through queries and keys; gates on heads' outputs are held too, and recurrences pass on their
gradient. Knows a design and no prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glassformer.interp.edge_graph import FEED, MIXER, OWN
from glassformer.interp.taps import SiteAction
from glassformer.model.choices import Attention, FeedForward
from glassformer.model.config import Config
from glassformer.model.sites import Where, block_sites


def hold(site: str, x: Tensor, where: Where) -> Tensor:
    """The same numbers, through which nothing goes back."""
    return x.detach()


def neurons(
    prefix: str, gated: bool, second: str = "pre_linear", *, shift: float = 0.0, clamp: float | None = None
) -> list[SiteAction]:
    """Steps at the neurons of one feed-forward part, whose sites begin with `prefix`; `second` is what a gated neuron's
    activation is multiplied by, once it was cut to ±`clamp` and `shift` was added, whose share of the output is the
    neuron's own."""
    read: list[Tensor] = []

    def keep(site: str, x: Tensor, where: Where) -> Tensor:
        read.append(x)
        return x

    def share(site: str, post: Tensor, where: Where) -> Tensor:
        out, halves = post.detach(), read.copy()
        read.clear()
        for index, x in enumerate(halves):
            whole = x.detach()
            part = torch.ones_like(whole)
            if index and shift:
                part = part if clamp is None else clamp / whole.abs().clamp(min=clamp)
                whole = whole * part + shift
            slope = part * torch.where(whole == 0, torch.zeros_like(out), post.detach() / whole) / len(halves)
            out = out + slope * (x - x.detach())
        return out

    inputs = ("pre", second) if gated else ("pre",)
    return [*(SiteAction(prefix + name, keep, False) for name in inputs), SiteAction(prefix + "post", share, True)]


def of_layer(config: Config, layer: int, place: int) -> list[SiteAction]:
    """Steps in one layer's mixer, feed-forward part or embedding; who computes them holds norms before and after."""
    choice, prefix = config.layers[layer], f"blocks.{layer}."
    if place == MIXER:
        if not isinstance(choice.mixer, Attention):
            return []
        divides = ("z_scale",) if choice.mixer.out_norm is not None else ()
        held = ("pattern", *(("gate",) if choice.mixer.gate is not None else ()), *divides)
        return [SiteAction(f"{prefix}attn.{site}", hold, True) for site in held]
    if place == OWN:
        return neurons(f"{prefix}ple.", True, "input")
    feed = choice.feed_forward
    assert feed is not None
    shared = None if isinstance(feed, FeedForward) else feed.shared
    found = neurons(f"{prefix}mlp.", feed.gated, shift=feed.linear_shift, clamp=feed.clamp)
    if shared is not None:
        found += neurons(f"{prefix}mlp.shared_", shared.gated, shift=shared.linear_shift, clamp=shared.clamp)
    return found


def of_stream(config: Config) -> list[SiteAction]:
    """Steps in all layers, norms before parts included; what a norm after a part divides by passes on its gradient."""
    norms = [
        SiteAction(f"blocks.{layer}.{site}", hold, True)
        for layer, choice in enumerate(config.layers)
        for site in block_sites(choice)
        if site in ("ln1.scale", "ln2.scale")
    ]
    parts = [
        step
        for layer, choice in enumerate(config.layers)
        for place, part in ((MIXER, choice.mixer), (FEED, choice.feed_forward))
        if part is not None
        for step in of_layer(config, layer, place)
    ]
    return norms + parts


def of_end(config: Config) -> list[SiteAction]:
    """Steps after the last layer."""
    return [SiteAction("final.scale", hold, True)] if config.final_norm else []
