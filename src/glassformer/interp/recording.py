"""Every named place of a traced forward, recomputed from what the trace kept.

Kept are queries, keys, values, per-head sums and what each part adds to the residual stream: linear
in the text's length. The rest is derived when asked for, through the model's own functions, so that a
derived number is the one the forward used. This module knows one forward and how its numbers follow
from each other (which part reads what: `recorded_layers`); it chooses nothing and explains nothing.

Indices along the query axis are slots: with left padding, slot 0 of a short text is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.interp.copies import walk_copies
from glassformer.interp.grids import grid_tile
from glassformer.interp.inside_experts import in_experts
from glassformer.interp.recorded_layers import GRIDS, RecordedLayers, grid_site
from glassformer.model.cache import State
from glassformer.model.choices import Attention, LatentAttention, Parallel, recurrence_of, softmax_of
from glassformer.model.layers import linear, softcap
from glassformer.model.parts.experts import ExpertsPart
from glassformer.model.parts.head import HeadPart
from glassformer.model.parts.index import Indexed
from glassformer.model.parts.parallel import ParallelPart
from glassformer.model.parts.short_convolution import ShortConvolutionPart
from glassformer.model.sites import layer_of

ALL = slice(None)

Index = slice | Int[Tensor, " query"]


class Recording(RecordedLayers):
    """One traced forward, and everything inside it by name."""

    def row(self, row: int) -> Recording:
        """One text of the batch, its padding cut off; shares the tensors."""
        pad = 0 if self.mask is None else int((~self.mask[row]).sum())
        recorded = {
            name: x[row : row + 1, pad:] if not grid_site(name) else x[row : row + 1, :, pad:, pad:]
            for name, x in self.recorded.items()
        }
        positions = self.positions[row : row + 1, pad:]
        return Recording(self.transformer, recorded, positions, None, self.edit, whole=(self, row, pad))

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
        if part in ("resid_pre", "resid_active", "resid_mid", "resid_late", "resid_post"):
            return self.stream(name, at)
        return self._inside(layer, part, at)

    def _outside(self, name: str, at: Index) -> Tensor:
        t = self.transformer
        if t.head is not None and name.startswith("head."):
            return self._in_head(t.head, name, at)
        if name == "final.scale" and t.final is not None:
            return t.final.scale(self.read_out(at))
        if name == "final.normed":
            if "final.scale" in self.recorded and t.final is not None:
                return t.final.apply_scale(self.read_out(at), self.recorded["final.scale"][:, at])
            return self.read_out(at) if t.final is None else t.final(self.read_out(at))
        if name == "logits.precap":
            logits = linear(self.get("final.normed", at), t.unembedding, t.unembed_bias)
            return logits if self.config.logit_scale is None else logits * self.config.logit_scale
        if name == "logits":
            if self.config.logit_softcap is not None:
                return softcap(self.get("logits.precap", at), self.config.logit_softcap)
            return t.unembed_hidden(self.get("final.normed", at))
        raise KeyError(name)

    def read_out(self, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """What the final norm reads: the last residual stream, through the head where there is one."""
        head = self.transformer.head
        return self.last(at) if head is None else head.activation(self.get("head.pre", at))

    def _in_head(self, head: HeadPart, name: str, at: Index) -> Tensor:
        if name == "head.scale":
            return head.norm.scale(self.last(at))
        if name == "head.normed":
            if "head.scale" in self.recorded:
                return head.norm.apply_scale(self.last(at), self.recorded["head.scale"][:, at])
            return head.norm(self.last(at))
        return head.dense(self.get("head.normed", at))

    def _inside(self, layer: int, part: str, at: Index) -> Tensor:
        block, prefix = self.block(layer), f"blocks.{layer}."
        head, _, leaf = part.partition(".")
        if head in ("ln1", "ln2"):
            number = int(head[2])
            norm = block.norm(number)
            assert norm is not None
            before = self.get(prefix + self.read_by(layer, number), at)
            if leaf == "scale":
                return norm.scale(before)
            if prefix + head + ".scale" in self.recorded:
                return norm.apply_scale(before, self.recorded[prefix + head + ".scale"][:, at])
            return norm(before)
        if head == "ple" and block.ple is not None:
            if leaf == "pre":
                late = self.get(prefix + "resid_late", at)
                return block.ple.gate(late if block.copies is None else block.copies.first(late))
            if leaf == "post":
                return block.ple.activation(
                    self.get(prefix + "ple.pre", at), self.recorded[prefix + "ple.input"][:, at]
                )
        if head == "attn":
            return self._in_attention(layer, leaf, at)
        if head != "mlp":
            return self._in_recurrence(layer, leaf, at)
        mlp = block.mlp
        if isinstance(mlp, ExpertsPart):
            return in_experts(self, layer, mlp, leaf, at)
        if part == "mlp.pre":
            return mlp.pre(self.input(layer, 2, at))
        if part == "mlp.pre_linear":
            return mlp.up(self.input(layer, 2, at))
        if part == "mlp.post":
            up = None if mlp.gate is None else self.get(prefix + "mlp.pre_linear", at)
            return mlp.post(self.get(prefix + "mlp.pre", at), up)
        raise KeyError(prefix + part)

    def fed(self, layer: int, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """What the feed-forward part gave, before a norm of its own and a residual scale."""
        mlp, prefix = self.block(layer).mlp, f"blocks.{layer}.mlp."
        post = self.get(prefix + "post", at)
        if not isinstance(mlp, ExpertsPart):
            out: Tensor = mlp.down(post)
            return out
        out = mlp.summed(mlp.written(post, self.recorded[prefix + "weights"][:, at]))
        return out if mlp.shared is None else out + self.get(prefix + "shared", at)

    def input(self, layer: int, number: int, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """What the mixer (1) or the feed-forward part (2) of a layer read: the stream after its norm."""
        block, prefix = self.block(layer), f"blocks.{layer}."
        if block.norm(number) is None:
            return self.get(prefix + self.read_by(layer, number), at)
        return self.get(f"{prefix}ln{number if getattr(block, f'ln{number}') is not None else 1}.normed", at)

    def _in_attention(self, layer: int, leaf: str, at: Index) -> Tensor:
        part, prefix = self.attention(layer), f"blocks.{layer}.attn."
        if leaf in ("rot_q", "rot_k"):
            return self.rotated(layer, self.get(prefix + leaf[-1], at), at, leaf[-1])
        if leaf == "router" and part.gate is not None:
            return part.gate(self.mixed_input(layer, 0, at))
        if leaf == "gate":
            if part.choice.gate == "experts":
                return part.chosen(self.get(prefix + "router", at))
            return part.gates(self.mixed_input(layer, 0, at))
        raise KeyError(prefix + leaf)

    def _in_recurrence(self, layer: int, leaf: str, at: Index) -> Tensor:
        part, prefix = self.recurrence(layer), f"blocks.{layer}.{self.recurrence(layer).choice.prefix}."
        if leaf == "gate":
            return part.gates(self.mixed_input(layer, 1, at))
        if leaf == "gate_in" and isinstance(part, ShortConvolutionPart):
            return part.gates_in(self.mixed_input(layer, 1, at))
        if leaf == "mixed":
            if self.edits_grid(layer):
                whole = self.grid(layer, f"{self.prefix(layer)}.pattern")
                beside = self.attention(layer).heads if isinstance(self.mixer(layer), ParallelPart) else 0
                return part.remix(self.kept(layer), whole[:, beside:])[:, at]
            return part.reread(self.kept(layer))[0][:, at]
        raise KeyError(prefix + leaf)

    # The residual stream

    def walk(self, at: Index = ALL, first: int = 0) -> Iterator[tuple[str, Float[Tensor, "batch query d_model"]]]:
        """The residual stream at every place from layer `first` or a little before it on, in order: added up as the
        forward added it, so bit by bit the same."""
        whole = isinstance(at, slice) and at == ALL
        begin, x = self._near if whole and self._near is not None and self._near[0] <= first else (0, None)
        x = self.entering(0, at) if x is None else x
        for layer, choice in enumerate(self.config.layers[begin:], begin):
            if whole and layer == first and not (x.requires_grad or x.is_inference()):
                self._near = layer, x  # places are asked for layer by layer: the next one goes on from here
            prefix = f"blocks.{layer}."
            if choice.copies is not None:
                for name, y in walk_copies(self, layer, x, at):
                    yield name, (x := y)
                continue
            block = self.block(layer)
            x = self._kept(prefix + "resid_pre", x, at)
            yield prefix + "resid_pre", x
            if choice.mixer is not None:
                x = block.joined(1, x, self.recorded[f"{prefix}{choice.mixer.prefix}.out"][:, at])
            if choice.mixer is not None and choice.feed_forward is not None and not choice.parallel:
                x = self._kept(prefix + "resid_mid", x, at)
                yield prefix + "resid_mid", x
            if choice.feed_forward is not None:
                x = block.joined(2, x, self.recorded[prefix + "mlp.out"][:, at])
            if choice.embedding is not None:
                x = self._kept(prefix + "resid_late", x, at)
                yield prefix + "resid_late", x
                x = x + self.recorded[prefix + "ple.out"][:, at]
            x = block.leaving(x)
            x = self._kept(prefix + "resid_post", x, at)
            yield prefix + "resid_post", x

    def joins(self, at: Index = ALL) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Every part in order: its site, what it added, and the stream (batch, query, d_model) before and after it."""
        for layer, choice in enumerate(self.config.layers):
            prefix, block = f"blocks.{layer}.", self.block(layer)
            if choice.copies is not None:  # those of the copy that the layer computes with
                places = [self.get(prefix + place, at) for place in ("resid_active", "resid_mid", "resid_late")]
                parts = [self.recorded[f"{prefix}{part}.out"][:, at] for part in ("attn", "mlp", "ple")]
                parts[0] = parts[0] + self.recorded[prefix + "laurel.out"][:, at]
                places[2] = self.transformer.gathered(places[2])
                after = self.transformer.gathered(self.get(prefix + "resid_post", at))
                ends = (places[1], places[1] + parts[1], after)
                for name, added, before, later in zip(choice.parts, parts, places, ends, strict=True):
                    yield f"{prefix}{name}.out", added, before, later
                continue
            x = self.get(prefix + "resid_pre", at)
            for number, part in enumerate((choice.mixer, choice.feed_forward, choice.embedding), 1):
                if part is None:
                    continue
                name = f"{prefix}{part.prefix}.out"
                before, added = x, self.recorded[name][:, at]
                x = x + added if number == 3 else block.joined(number, x, added)
                if part.prefix == choice.parts[-1]:
                    x = self._kept(prefix + "resid_post", block.leaving(x), at)
                elif number == 2 or choice.feed_forward is None:
                    x = self._kept(prefix + "resid_late", x, at)
                elif not choice.parallel:
                    x = self._kept(prefix + "resid_mid", x, at)
                yield name, added, before, x

    def _kept(self, name: str, x: Tensor, at: Index) -> Tensor:
        return self.recorded[name][:, at] if name in self.recorded else x

    def stream(self, name: str, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """The residual stream at one place."""
        for place, x in self.walk(at, layer_of(name) or 0):
            if place == name:
                return x
        raise KeyError(name)

    _near: tuple[int, Tensor] | None = None

    def entering(self, layer: int, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """The residual stream handed to a block, before anything a tap does at its `resid_pre`."""
        if layer > 0:
            return self.get(f"blocks.{layer - 1}.resid_post", at)
        x = self.recorded["embed"][:, at]
        x = x + self.recorded["pos_embed"][:, at] if "pos_embed" in self.recorded else x
        return self.transformer.in_copies(x)

    def last(self, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """The residual stream as it leaves the last block, its copies made one."""
        return self.transformer.gathered(self.get(f"blocks.{self.config.n_layers - 1}.resid_post", at))

    def state(self, layer: int, length: int) -> State:
        """What a recurrence left behind after the first `length` tokens, as its cache holds it."""
        part, before = self.recurrence(layer), getattr(self.recurrence(layer).choice, "conv", 1) - 1
        last = self.mixed_input(layer, 1, slice(max(0, length - before), length))
        return part.carried(last, self.kept(layer, length))

    def mixed_input(self, layer: int, member: int, at: Index = ALL) -> Float[Tensor, "batch query d_model"]:
        """What a layer's attention (0) or recurrence (1) reads: what its mixer reads, times a number where there are
        both."""
        x, mixer = self.input(layer, 1, at), self.mixer(layer)
        return mixer.read(member, x) if isinstance(mixer, ParallelPart) else x

    def kept(self, layer: int, length: int | None = None) -> dict[str, Tensor]:
        """What the trace keeps of a layer's recurrence, of the first `length` positions."""
        choice = recurrence_of(self.config.mixer(layer))
        assert choice is not None
        prefix, basis = f"blocks.{layer}.{choice.prefix}.", choice.basis()
        return {name: self.recorded[prefix + name][:, :length] for name in basis}

    # Attention grids

    def rotated(self, layer: int, x: Tensor, at: Index = ALL, side: str = "q") -> Tensor:
        """Queries or keys as the scores use them: rotated, and normed where the norm comes after."""
        part = self.attention(layer)
        angles = None
        if part.table is not None:
            if self._angles is None:
                self._angles = self.transformer.angles(self.positions)
            cos, sin = self._angles[part.table]
            angles = cos[:, at], sin[:, at]
        return part.rotate(x, angles, side, self.positions[:, at])

    _angles: tuple[tuple[Tensor, Tensor], ...] | None = None

    def inputs(self, at: Index = ALL, rows: int | None = None) -> dict[int, Tensor]:
        """Tokens' own vectors (batch, query, d_ple) in every layer that has them; one text's for each of `rows`."""
        found = {
            i: self.recorded[f"blocks.{i}.ple.input"][:, at]
            for i, layer in enumerate(self.config.layers)
            if layer.embedding is not None
        }
        return found if rows is None else {i: x.expand(rows, -1, -1) for i, x in found.items()}

    def shared(self, first: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values, (batch, kv_head, key, d_head), of layers before `first` that later ones use."""
        donors = {a.keys_from for layer in self.config.layers[first:] if (a := softmax_of(layer.mixer)) is not None} - {
            None
        }
        return {donor: self.keys_and_values(donor) for donor in donors if donor is not None and donor < first}

    def keys_and_values(self, layer: int, at: Index = ALL) -> tuple[Tensor, Tensor]:
        """Keys as the scores use them, and values, (batch, kv_head, key, d_head), of a layer that has its own."""
        return self.side(layer, "k", at, None), self.values(layer, at).transpose(1, 2)

    def side(self, layer: int, which: str, at: Index, heads: list[int] | None) -> Tensor:
        """Queries or keys as the scores use them, (batch, head, slot, d_head); keys of the heads' groups when heads are
        chosen."""
        if which == "k":
            layer = self.keys_of(layer)
        name = f"blocks.{layer}.attn.rot_{which}"
        a = self.config.attention(layer)
        groups = a.n_heads // a.n_kv_heads
        chosen = None if heads is None else heads if which == "q" else [h // groups for h in heads]

        def pick(x: Tensor) -> Tensor:
            x = x[:, at]
            if chosen is None:
                return x
            return x[:, :, chosen[0] : chosen[0] + 1] if len(chosen) == 1 else x[:, :, chosen]

        if name in self.recorded:
            return pick(self.recorded[name]).transpose(1, 2)
        if a.qk_norm_after and a.qk_norm != "head":  # the norm needs all heads
            return pick(self.rotated(layer, self.recorded[f"blocks.{layer}.attn.{which}"], ALL, which)).transpose(1, 2)
        x = self.recorded[f"blocks.{layer}.attn.{which}"]
        if which == "q" or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return self.rotated(layer, pick(x), at, which).transpose(1, 2)
        if self._keys is None or self._keys[0] != layer:  # every tile of a layer's grid meets the same keys
            self._keys = layer, self.rotated(layer, x, ALL, which)
        return pick(self._keys[1]).transpose(1, 2)

    _keys: tuple[int, Tensor] | None = None

    def values(self, layer: int, at: Index = ALL) -> Float[Tensor, "batch key kv_head d_head"]:
        """What each position hands over to the layer's heads: the values that its grid weighs."""
        mixer = self.config.mixer(layer)
        if isinstance(mixer, Parallel):
            return self.of_both(layer, lambda own: self._values(layer, own, at))
        return self._values(layer, mixer, at)

    def of_both(self, layer: int, of: Callable[[Any], Tensor | None], fill: float = 0.0) -> Tensor:
        """Numbers (batch, slot, head, d_head) of a layer's two mixers, for each of their heads, one after the other;
        ones where there are none."""
        part, found = self.mixer(layer), []
        assert isinstance(part, ParallelPart)
        for own in part.choice.members:
            x = of(own)
            if x is None:
                x = self.recorded[f"blocks.{layer}.{own.prefix}.z"].new_ones(1, 1, own.n_heads, own.value_size)
            if x.shape[2] != own.n_heads:
                x = x.repeat_interleave(own.n_heads // x.shape[2], dim=2)
            found.append(x.expand(*x.shape[:3], own.value_size))
        slots = max(x.shape[1] for x in found)
        rows = max(x.shape[0] for x in found)
        return part.joined([x.expand(rows, slots, *x.shape[2:]) for x in found], fill)

    def _values(self, layer: int, mixer: Any, at: Index) -> Tensor:
        if isinstance(mixer, Attention):
            return self.get(f"blocks.{self.keys_of(layer)}.attn.v", at)
        values = self.get(f"blocks.{layer}.{mixer.prefix}.{mixer.handed}", at)
        # a norm that takes a head's mean away takes it from every value
        return values - values.mean(-1, keepdim=True) if getattr(self.recurrence(layer), "centred", False) else values

    def indexed(self, layer: int) -> Indexed | None:
        """What the index of a layer's attention found, where there is one."""
        choice, prefix = self.config.attention(layer), f"blocks.{layer}.attn.index_"
        if not isinstance(choice, LatentAttention) or choice.index is None:
            return None
        return Indexed(choice.index, *(self.recorded[prefix + part] for part in ("q", "k", "weights")))

    def grid(
        self,
        layer: int,
        part: str,
        heads: list[int] | None = None,
        queries: Index = ALL,
        keys: slice = ALL,
    ) -> Float[Tensor, "batch head query key"] | Float[Tensor, "batch head query"]:
        """A tile of scores or pattern, through the score function that the forward uses; a sink's share has no keys."""
        return grid_tile(self, layer, part, heads, queries, keys)
