"""Every named place of a traced forward, recomputed from what the trace kept.

Kept are queries, keys, values, per-head sums and what each part adds to the residual stream: linear
in the text's length. The rest is derived when asked for, through the model's own functions, so that a
derived number is the one the forward used. This module knows one forward and how its numbers depend
on each other; it chooses nothing and explains nothing.

Indices along the query axis are slots: with left padding, slot 0 of a short text is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glassformer.interp.taps import Bound
from glassformer.model import Config, Transformer
from glassformer.model.attention import TILE, Visible, pattern, scores
from glassformer.model.layers import linear, rotate, softcap
from glassformer.model.sites import Where, layer_of, site_of
from glassformer.model.transformer import Block

BASIS = ("attn.q", "attn.k", "attn.v", "attn.z", "attn.out", "mlp.out")
GRIDS = ("attn.scores", "attn.pattern")
ALL = slice(None)

Index = slice | Int[Tensor, " query"]


def basis_sites(config: Config) -> list[str]:
    """The sites a trace keeps, in the order the forward reaches them."""
    top = ["embed"] + (["pos_embed"] if config.position.kind == "learned" else [])
    return top + [f"blocks.{i}.{part}" for i in range(config.n_layers) for part in BASIS]


def grid_site(name: str) -> bool:
    """Whether a full site name is a grid of queries and keys."""
    return site_of(name).axes[-1] == "key"


class Forward:
    """One traced forward.

    Args:
        transformer: the model that ran.
        recorded: kept tensors by full site name, batch axis first.
        positions: (batch, query); mask: (batch, query), False on padding, or None.
        edit: the tap the forward ran under, or None.
    """

    def __init__(
        self,
        transformer: Transformer,
        recorded: Mapping[str, Tensor],
        positions: Int[Tensor, "batch query"],
        mask: Bool[Tensor, "batch query"] | None,
        edit: Bound | None = None,
        whole: tuple[Forward, int, int] | None = None,
    ) -> None:
        self._whole = whole  # the batch that this is a row of, which row, and how much padding it had
        self.transformer = transformer
        self.config = transformer.config
        self.recorded = recorded
        self.positions = positions
        self.mask = mask
        self.edit = edit
        self._angles: dict[bool, tuple[Tensor, Tensor] | None] = {}
        self.where = Where(positions, mask, 0)
        self.visible = Visible(0, mask)

    @property
    def length(self) -> int:
        """Slots along the query axis."""
        return self.positions.shape[1]

    def block(self, layer: int) -> Block:
        """The model's block at this layer."""
        block = self.transformer.blocks[layer]
        assert isinstance(block, Block)
        return block

    def row(self, row: int) -> Forward:
        """One text of the batch, its padding cut off; shares the tensors."""
        pad = 0 if self.mask is None else int((~self.mask[row]).sum())
        recorded = {
            name: x[row : row + 1, pad:] if not grid_site(name) else x[row : row + 1, :, pad:, pad:]
            for name, x in self.recorded.items()
        }
        positions = self.positions[row : row + 1, pad:]
        return Forward(self.transformer, recorded, positions, None, self.edit, whole=(self, row, pad))

    # Places by name

    def get(self, name: str, at: Index = ALL) -> Tensor:
        """A site's tensor, batch axis first, at the chosen slots of its query (or key) axis."""
        if name in self.recorded and not grid_site(name):
            return self.recorded[name][:, at]
        layer = layer_of(name)
        if layer is None:
            return self._outside(name, at)
        part = name.split(".", 2)[2]
        if part in GRIDS:
            return self.grid(layer, part, None, at)
        if part in ("resid_pre", "resid_mid", "resid_post"):
            return self.stream(name, at)
        return self._inside(layer, part, at)

    def _outside(self, name: str, at: Index) -> Tensor:
        t = self.transformer
        if name == "final.scale":
            return t.final.scale(self.last(at))
        if name == "final.normed":
            if "final.scale" in self.recorded:
                return t.final.apply_scale(self.last(at), self.recorded["final.scale"][:, at])
            return t.final(self.last(at))
        if name == "logits.precap":
            return linear(self.get("final.normed", at), t.unembedding)
        if name == "logits":
            if self.config.logit_softcap is not None:
                return softcap(self.get("logits.precap", at), self.config.logit_softcap)
            return t.unembed_hidden(self.get("final.normed", at))
        raise KeyError(name)

    def _inside(self, layer: int, part: str, at: Index) -> Tensor:
        block, prefix = self.block(layer), f"blocks.{layer}."
        head, _, leaf = part.partition(".")
        if head in ("ln1", "ln2"):
            norm = block.ln1 if head == "ln1" else block.ln2
            before = self.get(prefix + ("resid_pre" if head == "ln1" or block.parallel else "resid_mid"), at)
            if leaf == "scale":
                return norm.scale(before)
            if prefix + head + ".scale" in self.recorded:
                return norm.apply_scale(before, self.recorded[prefix + head + ".scale"][:, at])
            return norm(before)
        if part in ("attn.rot_q", "attn.rot_k"):
            return self.turned(layer, self.get(f"{prefix}attn.{part[-1]}", at), at)
        if part == "mlp.pre":
            return (block.mlp.up if block.mlp.gate is None else block.mlp.gate)(self.get(prefix + "ln2.normed", at))
        if part == "mlp.pre_linear":
            return block.mlp.up(self.get(prefix + "ln2.normed", at))
        if part == "mlp.post":
            h = block.mlp.activation(self.get(prefix + "mlp.pre", at))
            return h if block.mlp.gate is None else h * self.get(prefix + "mlp.pre_linear", at)
        raise KeyError(prefix + part)

    # The residual stream

    def walk(self, at: Index = ALL) -> Iterator[tuple[str, Float[Tensor, "batch query d_model"]]]:
        """The residual stream at every place, in order: added up as the forward added it, so bit by bit the same."""
        x = self.recorded["embed"][:, at]
        if "pos_embed" in self.recorded:
            x = x + self.recorded["pos_embed"][:, at]
        for layer in range(self.config.n_layers):
            prefix = f"blocks.{layer}."
            x = self._kept(prefix + "resid_pre", x, at)
            yield prefix + "resid_pre", x
            x = x + self.recorded[prefix + "attn.out"][:, at]
            if not self.config.parallel:
                x = self._kept(prefix + "resid_mid", x, at)
                yield prefix + "resid_mid", x
            x = self._kept(prefix + "resid_post", x + self.recorded[prefix + "mlp.out"][:, at], at)
            yield prefix + "resid_post", x

    def _kept(self, name: str, x: Tensor, at: Index) -> Tensor:
        return self.recorded[name][:, at] if name in self.recorded else x

    def stream(self, name: str, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """The residual stream at one place."""
        for place, x in self.walk(at):
            if place == name:
                return x
        raise KeyError(name)

    def entering(self, layer: int, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """The residual stream handed to a block, before anything a tap does at its `resid_pre`."""
        if layer > 0:
            return self.get(f"blocks.{layer - 1}.resid_post", at)
        x = self.recorded["embed"][:, at]
        return x + self.recorded["pos_embed"][:, at] if "pos_embed" in self.recorded else x

    def last(self, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """The residual stream as it leaves the last block."""
        return self.get(f"blocks.{self.config.n_layers - 1}.resid_post", at)

    # Attention grids

    def turned(self, layer: int, x: Tensor, at: Index = ALL) -> Tensor:
        """Queries or keys after rotation (unchanged where positions are learned)."""
        windowed = self.config.window(layer) is not None
        if windowed not in self._angles:
            self._angles[windowed] = self.transformer.angles(self.positions, layer)
        angles = self._angles[windowed]
        return x if angles is None else rotate(x, angles[0][:, at], angles[1][:, at])

    def _side(self, layer: int, which: str, at: Index, heads: list[int] | None) -> Tensor:
        """Rotated queries or keys, (batch, head, slot, d_head); keys of the heads' groups when heads are chosen."""
        name = f"blocks.{layer}.attn.rot_{which}"
        groups = self.config.attention.n_heads // self.config.attention.n_kv_heads
        chosen = None if heads is None else heads if which == "q" else [h // groups for h in heads]

        def pick(x: Tensor) -> Tensor:
            x = x[:, at]
            if chosen is None:
                return x
            return x[:, :, chosen[0] : chosen[0] + 1] if len(chosen) == 1 else x[:, :, chosen]

        if name in self.recorded:
            return pick(self.recorded[name]).transpose(1, 2)
        x = pick(self.recorded[f"blocks.{layer}.attn.{which}"])
        return self.turned(layer, x, at).transpose(1, 2)

    def edits_grid(self, layer: int) -> bool:
        """Whether the traced forward changed this layer's scores or pattern."""
        return self.edit is not None and any(f"blocks.{layer}.{g}" in self.edit.writes for g in GRIDS)

    def grid(
        self,
        layer: int,
        part: str,
        heads: list[int] | None = None,
        queries: Index = ALL,
        keys: slice = ALL,
    ) -> Float[Tensor, "batch head query key"]:
        """A tile of scores or pattern, through the score function that the forward uses."""
        name = f"blocks.{layer}.{part}"
        if name in self.recorded or self.edits_grid(layer):
            whole = self.recorded[name] if name in self.recorded else self._edited_grid(layer, part)
            whole = whole if heads is None else whole[:, heads]
            return whole[:, :, queries, keys]
        if not isinstance(queries, slice):
            rows = [self.grid(layer, part, heads, slice(int(q), int(q) + 1), keys) for q in queries]
            return torch.cat(rows, dim=2)
        q0, q1, _ = queries.indices(self.length)
        k0, k1, _ = keys.indices(self.length)
        q1, k1 = max(q0, q1), max(k0, k1)
        k = self._side(layer, "k", slice(0, q1), heads)
        n_heads = self.config.attention.n_heads if heads is None else len(heads)
        fill = float("-inf") if part == "attn.scores" else 0.0
        out = k.new_full((k.shape[0], n_heads, q1 - q0, k1 - k0), fill)
        # Tiles of fewer queries when the keys are many: the work in flight stays in cache.
        for t0 in range(q0, q1, TILE):
            t1 = min(t0 + TILE, q1)
            tile = self._tile(layer, part, heads, k, t0, t1)
            low, high = tile[1], tile[1] + tile[0].shape[-1]
            a, b = max(k0, low), min(k1, high)
            if a < b:
                out[:, :, t0 - q0 : t1 - q0, a - k0 : b - k0] = tile[0][..., a - low : b - low]
        return out

    def _tile(self, layer: int, part: str, heads: list[int] | None, k: Tensor, q0: int, q1: int) -> tuple[Tensor, int]:
        """Scores or pattern of some queries over all keys they can see, and the first such key."""
        attention = self.block(layer).attn
        q = self._side(layer, "q", slice(q0, q1), heads)
        low, high = self.visible.keys_for(q0, q1, attention.window)
        allowed = self.visible.grid(q0, q1, low, high, attention.window, q.device)
        grid = scores(q, k[:, :, low:high], allowed, scale=attention.scale, cap=attention.cap)
        return (grid if part == "attn.scores" else pattern(grid)), low

    def _edited_grid(self, layer: int, part: str) -> Tensor:
        """The whole grid of a layer whose grid the forward's tap changed: formed again and changed again."""
        if self._whole is not None:
            batch, row, pad = self._whole
            return batch._edited_grid(layer, part)[row : row + 1, :, pad:, pad:]
        attention = self.block(layer).attn
        allowed = self.visible.grid(0, self.length, 0, self.length, attention.window, self.positions.device)
        q, k = self._side(layer, "q", ALL, None), self._side(layer, "k", ALL, None)
        grid = scores(q, k, allowed, scale=attention.scale, cap=attention.cap)
        grid = self._changed(f"blocks.{layer}.attn.scores", grid)
        if part == "attn.scores":
            return grid
        return self._changed(f"blocks.{layer}.attn.pattern", pattern(grid))

    def _changed(self, site: str, x: Tensor) -> Tensor:
        assert self.edit is not None
        for step in self.edit.steps:
            if step.site == site and step.writes:
                y = step.action(site, x, self.where)
                assert y is not None
                x = y
        return x
