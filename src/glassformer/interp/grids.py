"""Grids of queries and keys of a traced forward: formed tile by tile, and as a tap changed them.

Grids are not kept. They are formed again through the score function that the forward used; where its tap changed
one, the whole grid is formed and changed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.model.attention import TILE
from glassformer.model.parts.parallel import ParallelPart

if TYPE_CHECKING:
    from glassformer.interp.recording import Index, Recording

ALL = slice(None)


def grid_tile(
    forward: Recording, layer: int, part: str, heads: list[int] | None, queries: Index, keys: slice
) -> Float[Tensor, "batch head query key"] | Float[Tensor, "batch head query"]:
    """A tile of scores or pattern, or a sink's share of each query; see `Recording.grid`."""
    name = f"blocks.{layer}.{part}"
    if part == "attn.sink":
        return forward.attention(layer).sink_share(forward.grid(layer, "attn.pattern", heads, queries))
    if name in forward.recorded or forward.edits_grid(layer):
        whole = forward.recorded[name] if name in forward.recorded else _edited(forward, layer, part)
        whole = whole if heads is None else whole[:, heads]
        return whole[:, :, queries, keys]
    if part == "mix.pattern":
        return _both(forward, layer, heads, queries, keys)
    if not isinstance(queries, slice):
        rows = [forward.grid(layer, part, heads, slice(int(q), int(q) + 1), keys) for q in queries]
        return torch.cat(rows, dim=2)
    q0, q1, _ = queries.indices(forward.length)
    k0, k1, _ = keys.indices(forward.length)
    q1, k1 = max(q0, q1), max(k0, k1)
    if not part.startswith("attn."):
        return _implied(forward, layer, heads, q0, q1)[..., k0:k1]
    k = forward.side(layer, "k", slice(0, q1), heads)
    n_heads = forward.config.attention(layer).n_heads if heads is None else len(heads)
    fill = float("-inf") if part == "attn.scores" else 0.0
    out: Tensor | None = None
    # Tiles of fewer queries when the keys are many: the work in flight stays in cache.
    for t0 in range(q0, q1, TILE):
        t1 = min(t0 + TILE, q1)
        tile = _tile(forward, layer, part, heads, k, t0, t1)
        low, high = tile[1], tile[1] + tile[0].shape[-1]
        if (t0, t1, low, high) == (q0, q1, k0, k1):
            return tile[0]
        out = k.new_full((k.shape[0], n_heads, q1 - q0, k1 - k0), fill) if out is None else out
        a, b = max(k0, low), min(k1, high)
        if a < b:
            out[:, :, t0 - q0 : t1 - q0, a - k0 : b - k0] = tile[0][..., a - low : b - low]
    return k.new_full((k.shape[0], n_heads, q1 - q0, k1 - k0), fill) if out is None else out


def _both(forward: Recording, layer: int, heads: list[int] | None, queries: Index, keys: slice) -> Tensor:
    """Patterns of a layer's two mixers, one after the other, or of some of their heads."""
    part = forward.mixer(layer)
    assert isinstance(part, ParallelPart)
    first = part.parts[0].heads
    grids = []
    for own, low in zip(part.choice.members, (0, first), strict=True):
        chosen = None if heads is None else [h - low for h in heads if low <= h < low + own.n_heads]
        if chosen is None or chosen:
            grids.append(forward.grid(layer, f"{own.prefix}.pattern", chosen, queries, keys))
    return grids[0] if len(grids) == 1 else part.joined_grids(grids)


def _tile(
    forward: Recording, layer: int, part: str, heads: list[int] | None, k: Tensor, q0: int, q1: int
) -> tuple[Tensor, int]:
    """Scores or pattern of some queries over all keys they can see, and the first such key."""
    attention = forward.attention(layer)
    q = forward.side(layer, "q", slice(q0, q1), heads)
    low, high = forward.visible.keys_for(q0, q1, attention.choice)
    indexed = forward.indexed(layer)
    grid = attention.scores(q, k[:, :, low:high], forward.visible, q0, q1, low, high, heads, indexed)
    return (grid if part == "attn.scores" else attention.pattern(grid, heads)), low


def _implied(forward: Recording, layer: int, heads: list[int] | None, q0: int, q1: int) -> Tensor:
    """Rows q0 to q1 of the grid that a recurrence implies, over all keys."""
    grid = forward.recurrence(layer).implied(forward.kept(layer, q1), q0)
    grid = grid if heads is None else grid[:, heads]
    return torch.nn.functional.pad(grid, (0, forward.length - q1))


def _edited(forward: Recording, layer: int, part: str) -> Tensor:
    """The whole grid of a layer whose grid the forward's tap changed: formed again and changed again."""
    if forward.whole is not None:
        batch, row, pad = forward.whole
        return _edited(batch, layer, part)[row : row + 1, :, pad:, pad:]
    if part == "mix.pattern":
        return _changed(forward, f"blocks.{layer}.mix.pattern", _both(forward, layer, None, ALL, ALL))
    if not part.startswith("attn."):
        return _changed(forward, f"blocks.{layer}.{part}", _implied(forward, layer, None, 0, forward.length))
    attention = forward.attention(layer)
    q, k = forward.side(layer, "q", ALL, None), forward.side(layer, "k", ALL, None)
    grid = attention.scores(q, k, forward.visible, 0, forward.length, 0, forward.length, None, forward.indexed(layer))
    grid = _changed(forward, f"blocks.{layer}.attn.scores", grid)
    if part == "attn.scores":
        return grid
    weights = attention.pattern(grid)
    if attention.sink is not None:
        share = attention.sink_share(weights)
        changed = _changed(forward, f"blocks.{layer}.attn.sink", share)
        weights = attention.with_sink_share(weights, share, changed)
    return _changed(forward, f"blocks.{layer}.attn.pattern", weights)


def _changed(forward: Recording, site: str, x: Tensor) -> Tensor:
    assert forward.edit is not None
    for one in forward.edit.actions:
        if one.site == site and one.writes:
            y = one.action(site, x, forward.where)
            assert y is not None
            x = y
    return x
