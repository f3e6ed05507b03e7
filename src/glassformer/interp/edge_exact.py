"""What single edges are worth, measured: path patching of one edge at a time, many in a batch.

The receiver's input gets what the sender adds in the corrupted run instead of what it adds in the clean one; all else
is the clean run's, and everything downstream of the receiver is computed anew. The rows of a batch share one receiving
place and start at its layer and at the first position where the prompts differ, on the keys and values of the clean
trace; where few rows share a place, those of the next places start with them. Knows one pair of prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.interp.edge_graph import (
    ANEW,
    BESIDE,
    CORRECTED,
    FEED,
    LOGITS,
    MIXER,
    NORMED_MIXER,
    OWN,
    PREDICTED,
    TOKEN,
)
from glassformer.interp.edge_pair import Pair
from glassformer.interp.edge_parts import beside, embedded, fed, first_copy, index_sides, made_anew, split_feed
from glassformer.interp.effects import row_numbers
from glassformer.interp.taps import Action, Bound, SiteAction
from glassformer.model.choices import Attention
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.experts import ExpertsPart

# Bytes of one layer's work on the rows in flight.
_WORK = 96 << 20
# As many tokens are worth a run of their own; fewer wait for those of the next place and start with them.
_MANY = 120


@dataclass(frozen=True)
class _Rows:
    """Rows whose change is read at one place.

    Attributes:
        rows: their numbers in the answer; changed: what is read there, one for each `variant`; receiver: which of the
            place's receivers reads it.
    """

    layer: int | None
    place: int
    rows: Int[Tensor, " row"]
    changed: Float[Tensor, "variant query wide"]
    variant: Int[Tensor, " row"]
    receiver: Int[Tensor, " row"]


def _put(rows: Tensor, new: Float[Tensor, "row query ..."], head: Tensor | None = None) -> Action:
    """Puts something of their own into some rows, or into one head of each."""

    def action(site: str, old: Tensor, where: object) -> Tensor:
        old = old.clone()
        old[(rows,) if head is None else (rows, slice(None), head)] = new
        return old

    return action


class Exact:
    """Measures edges of one pair."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.graph = pair, pair.graph
        self.transformer, self.config = pair.clean.transformer, pair.clean.config
        queries, seen = pair.change.shape[1], pair.at + 1
        per_row = queries * max(row_numbers(layer, seen, self.config.d_model) for layer in set(self.config.layers))
        self.step, self.many = max(1, _WORK // (per_row * pair.change.element_size())), _MANY // queries
        self.streams = pair.streams(pair.clean)

    @torch.no_grad()
    def __call__(
        self,
        edges: Int[Tensor, " row"],
        positions: Int[Tensor, " row"] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Float[Tensor, " row"]:
        """What the metric loses when each of these edges carries the corrupted run's value.

        Args:
            positions: for each, the only position (counted from the first difference) that is changed; None for all.
            progress: called with how many are done.
        """
        out = torch.zeros(len(edges), dtype=torch.float64)
        receivers, senders = self.graph.receiver_of[edges], self.graph.sender_of[edges]
        where = torch.full_like(senders, -1) if positions is None else positions.cpu()
        waiting: list[_Rows] = []
        done = held = 0

        def run() -> None:
            nonlocal done, held
            if held:
                out[torch.cat([part.rows for part in waiting])] = self.pair.of_clean - self._together(waiting)
                done += held
                waiting.clear()
                held = 0
                if progress is not None:
                    progress(done)

        for layer, place, which in self.graph.places():
            mine = ((receivers >= which.start) & (receivers < which.stop)).nonzero()[:, 0]
            mine = mine[(senders[mine] * self.pair.change.shape[1] + where[mine]).argsort()]
            for rows in mine.split(self.step) if len(mine) else ():
                if held + len(rows) > self.step or held >= self.many or place == LOGITS:
                    run()
                kinds, variant = torch.unique(torch.stack([senders[rows], where[rows]]), dim=1, return_inverse=True)
                changed = self._changed(which, kinds[0], kinds[1])
                waiting.append(_Rows(layer, place, rows, changed, variant, receivers[rows] - which.start))
                held += len(rows)
        run()
        return out

    def _changed(self, which: range, senders: Tensor, where: Tensor) -> Float[Tensor, "variant query wide"]:
        """What a receiver reads when one sender carries the corrupted run's value, rescaling left out."""
        if which.start in self.pair.tokens:
            clean, token = self.pair.tokens[which.start]
            change = token.expand(len(senders), -1, -1)
        else:
            clean, change = self.streams[self.graph.receivers[which[0]].seen], self.pair.change[senders]
        single = where >= 0
        if bool(single.any()):
            keep = torch.arange(change.shape[1])[None] == where[:, None]
            change = change * (keep | ~single[:, None]).to(change)[..., None]
        return clean[None] + change

    def _together(self, parts: list[_Rows]) -> Float[Tensor, " row"]:
        """The metric of each row. All start at the first place that one of them changes."""
        first, forward, apart = parts[0], self.pair.clean.forward, self.pair.apart
        if first.place == LOGITS:
            last = first.changed[first.variant, -1:, : self.config.d_stream] * apart.reads[None, LOGITS]
            return self.pair.numbers(self.transformer.normed(last)[:, 0])
        assert first.layer is not None
        after = first.place == FEED and self.graph.places_of(first.layer)[-1] == FEED
        start = first.layer + after
        if after:
            x = forward.get(f"blocks.{first.layer}.resid_post", self.pair.here)
        else:
            x = forward.entering(start, self.pair.here)
        x = x.repeat(sum(len(part.rows) for part in parts), 1, 1)
        steps: list[SiteAction] = []
        low = 0
        for part in parts:
            own = torch.arange(low, low + len(part.rows))
            low += len(part.rows)
            assert part.layer is not None
            if part.place == MIXER:
                steps += self._mixed(part, own)
                continue
            site, new = self._put_in(part)
            if part.layer < start:
                x[own] += (new - forward.get(site, self.pair.here)) * forward.within(part.layer, FEED)
            else:
                steps.append(SiteAction(site, _put(own, new), True))
        return self.pair.numbers(self._rest(start, x, Bound(steps) if steps else None))

    def _mixed(self, part: _Rows, own: Tensor) -> list[SiteAction]:
        """What a mixer does where its rows read the change."""
        assert part.layer is not None
        block, prefix = self.pair.apart.block(part.layer), f"blocks.{part.layer}."
        changed = first_copy(block, part.changed) * self.pair.apart.reads[part.layer, MIXER]
        mixer, x = block.mixer, block.read(MIXER, changed)
        assert mixer is not None
        if isinstance(mixer, AttentionPart):
            return self._attention(mixer, prefix, x, part, own)
        added = block.add(MIXER, mixer(x, self.pair.apart.begin(len(x))))[part.variant]
        return [SiteAction(f"{prefix}{self.config.mixer(part.layer).prefix}.out", _put(own, added), True)]

    def _put_in(self, part: _Rows) -> tuple[str, Float[Tensor, "row query d"]]:
        """Where else than in a mixer rows differ, and what stands there in each."""
        layer, place = part.layer, part.place
        assert layer is not None
        block, prefix, times = self.pair.apart.block(layer), f"blocks.{layer}.", self.pair.apart.reads[layer, place]
        copies = slice(self.config.d_stream)
        if place == PREDICTED:  # made of the whole stream as it enters the layer
            return f"{prefix}resid_pre", part.changed[part.variant][..., copies]
        if place in ANEW:
            late = "resid_late" if place == CORRECTED else "resid_post"
            follows = place == NORMED_MIXER and block.feed_forward is not None
            site = prefix + ("resid_mid" if follows else late)
            return site, made_anew(block, place, part.changed, times)[part.variant][..., copies]
        if place in (OWN, TOKEN):
            many = len(part.changed)
            stream = self.streams[self.graph.receivers[self.graph.read[layer, OWN][0]].seen].expand(many, -1, -1)
            token = self.pair.tokens[self.graph.read[layer, TOKEN].start][0].expand(many, -1, -1)
            stream, token = (stream, part.changed) if place == TOKEN else (part.changed, token)
            x = first_copy(block, stream) * self.pair.apart.reads[layer, OWN]
            return f"{prefix}ple.out", embedded(block, x, token)[part.variant]
        changed = first_copy(block, part.changed) * times
        if place == BESIDE:
            return f"{prefix}laurel.out", beside(block, changed)[part.variant]
        return f"{prefix}mlp.out", self._fed(dataclasses.replace(part, changed=changed))

    def _fed(self, part: _Rows) -> Float[Tensor, "row query d_model"]:
        """What a feed-forward part adds where its rows read the change."""
        assert part.layer is not None
        block = self.pair.apart.block(part.layer)
        if isinstance(block.feed_forward, ExpertsPart):
            return self._experts(part.layer, part.changed, part.variant, part.receiver)
        return fed(block, part.changed)[part.variant]

    def _experts(
        self, layer: int, changed: Tensor, variant: Tensor, receiver: Tensor
    ) -> Float[Tensor, "row query d_model"]:
        """What experts add where, row by row, one of router, experts and the part beside them reads the change."""
        which = self.graph.read[layer, FEED]
        clean = self.streams[self.graph.receivers[which[0]].seen] * self.pair.apart.reads[layer, FEED]
        out = []
        for rows in torch.arange(len(variant)).split(max(1, self.step // len(which))):
            own = clean.expand(len(which), len(rows), -1, -1).clone()
            own[receiver[rows], torch.arange(len(rows))] = changed[variant[rows]]
            out.append(split_feed(self.pair.apart.block(layer), own).sum(0))
        return torch.cat(out)

    def _attention(self, mixer: AttentionPart, prefix: str, x: Tensor, part: _Rows, own: Tensor) -> list[SiteAction]:
        """Puts one head's query (with its gate), key or value in, row by row."""
        heads, receiver = mixer.heads, part.receiver
        steps = []

        def put(name: str, new: Tensor, rows: Tensor, index: Tensor) -> None:
            if len(rows):
                steps.append(SiteAction(prefix + name, _put(own[rows], new[part.variant[rows], :, index], index), True))

        rows = (receiver < heads).nonzero()[:, 0]
        if len(rows):
            put("attn.q", mixer.queries(x), rows, receiver[rows])
            if mixer.gate is not None:
                put("attn.gate", mixer.gates(x), rows, receiver[rows])
        index = heads + 2 * mixer.kv_heads
        rows = (receiver == index).nonzero()[:, 0]
        if len(rows) and mixer.choice.keys_from is None:
            for name, new in index_sides(mixer, x, self.pair.apart.begin(len(x))).items():
                steps.append(SiteAction(f"{prefix}attn.{name}", _put(own[rows], new[part.variant[rows]]), True))
        if mixer.choice.keys_from is None and bool(((receiver >= heads) & (receiver < index)).any()):
            for number, (name, new) in enumerate(zip(("attn.k", "attn.v"), mixer.keys_and_values(x), strict=True)):
                low = heads + number * mixer.kv_heads
                rows = ((receiver >= low) & (receiver < low + mixer.kv_heads)).nonzero()[:, 0]
                put(name, new, rows, receiver[rows] - low)
        return steps

    def _rest(self, layer: int, x: Float[Tensor, "row query d_model"], tap: Bound | None) -> Tensor:
        """The rows through all layers from this one on."""
        apart, rows = self.pair.apart, len(x)
        if layer < self.config.n_layers:
            state = apart.begin(rows)
            x = self.transformer.stream(
                x,
                state.where.positions,
                start=apart.first,
                layers=range(layer, self.config.n_layers),
                cache=state.cache,
                tap=tap,
                shared=self._shared(layer, rows),
                inputs=self.pair.clean.forward.inputs(self.pair.here, rows),
            )
        return self.transformer.normed(x[:, -1:])[:, 0]

    def _shared(self, layer: int, rows: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values of layers that do not run again, for those that share them."""
        found = {}
        for later in self.config.layers[layer:]:
            donor = later.mixer.keys_from if isinstance(later.mixer, Attention) else None
            if donor is not None and donor < layer:
                keys, values = self.pair.apart.context.keys[donor], self.pair.apart.context.values[donor]
                assert keys is not None
                assert values is not None
                found[donor] = keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)
        return found
