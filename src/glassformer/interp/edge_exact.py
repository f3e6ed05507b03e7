"""What single edges are worth, measured: path patching of one edge at a time, many in a batch.

The receiver's input gets what the sender adds in the corrupted run instead of what it adds in the clean one; all else
is the clean run's, and everything downstream of the receiver is computed anew. The rows of a batch share one receiving
place and start at its layer and at the first position where the prompts differ, on the keys and values of the clean
trace. Knows one pair of prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.interp.edge_graph import FEED, LOGITS
from glassformer.interp.edge_pair import Pair
from glassformer.interp.edge_run import fed, split_feed
from glassformer.interp.effects import row_numbers
from glassformer.interp.taps import Bound, SiteAction
from glassformer.model.choices import Attention
from glassformer.model.parts.attention import AttentionPart
from glassformer.model.parts.experts import ExpertsPart

# Bytes of one layer's work on the rows in flight.
_WORK = 96 << 20


class Exact:
    """Measures edges of one pair."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.graph = pair, pair.graph
        self.transformer, self.config = pair.clean.transformer, pair.clean.config
        queries, seen = pair.change.shape[1], pair.at + 1
        per_row = queries * max(row_numbers(layer, seen, self.config.d_model) for layer in set(self.config.layers))
        self.step = max(1, _WORK // (per_row * pair.change.element_size()))
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
        done = 0
        for layer, place, which in self.graph.places():
            mine = ((receivers >= which.start) & (receivers < which.stop)).nonzero()[:, 0]
            mine = mine[(senders[mine] * self.pair.change.shape[1] + where[mine]).argsort()]
            for rows in mine.split(self.step) if len(mine) else ():
                kinds, variant = torch.unique(torch.stack([senders[rows], where[rows]]), dim=1, return_inverse=True)
                changed = self._changed(self.graph.receivers[which[0]].seen, kinds[0], kinds[1])
                changed = changed * self.pair.apart.reads[layer, place]
                last = self._run(layer, place, changed, variant, receivers[rows] - which.start)
                out[rows] = self.pair.of_clean - self.pair.numbers(last)
                done += len(rows)
                if progress is not None:
                    progress(done)
        return out

    def _changed(self, seen: int, senders: Tensor, where: Tensor) -> Float[Tensor, "variant query d_model"]:
        """What a receiver reads when one sender carries the corrupted run's value."""
        change = self.pair.change[senders]
        single = where >= 0
        if bool(single.any()):
            keep = torch.arange(change.shape[1])[None] == where[:, None]
            change = change * (keep | ~single[:, None]).to(change)[..., None]
        return self.streams[seen][None] + change

    def _run(
        self, layer: int | None, place: int, changed: Tensor, variant: Tensor, receiver: Tensor
    ) -> Float[Tensor, "row d_model"]:
        """The normed stream at the last position, of each row."""
        if place == LOGITS:
            return self.transformer.normed(changed[variant, -1:])[:, 0]
        assert layer is not None
        block, prefix = self.pair.apart.block(layer), f"blocks.{layer}."
        if place == FEED:
            was = self.pair.clean.forward.get(f"{prefix}mlp.out", self.pair.here)
            experts = isinstance(block.feed_forward, ExpertsPart)
            added = self._experts(layer, changed, variant, receiver) if experts else fed(block, changed)[variant]
            after = self.pair.clean.forward.get(f"{prefix}resid_post", self.pair.here)
            return self._rest(layer + 1, after + (added - was) * self.pair.clean.forward.within(layer, FEED), None)
        part = block.mixer
        assert part is not None
        if isinstance(part, AttentionPart):
            steps = self._attention(part, prefix, block.read(1, changed), variant, receiver)
        else:
            added = block.add(1, part(block.read(1, changed), self.pair.apart.begin(len(changed))))[variant]
            steps = [SiteAction(f"{prefix}{self.config.mixer(layer).prefix}.out", lambda site, x, where: added, True)]
        before = self.pair.clean.forward.entering(layer, self.pair.here)
        return self._rest(layer, before.expand(len(variant), -1, -1), Bound(steps))

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

    def _attention(
        self, part: AttentionPart, prefix: str, x: Tensor, variant: Tensor, receiver: Tensor
    ) -> list[SiteAction]:
        """Puts one head's query (with its gate), key or value in, row by row."""
        heads = part.heads
        steps = []

        def put(name: str, new: Tensor, rows: Tensor, index: Tensor) -> None:
            def action(site: str, old: Tensor, where: object) -> Tensor:
                old = old.clone()
                old[rows, :, index] = new[variant[rows], :, index]
                return old

            if len(rows):
                steps.append(SiteAction(prefix + name, action, True))

        rows = (receiver < heads).nonzero()[:, 0]
        if len(rows):
            put("attn.q", part.queries(x), rows, receiver[rows])
            if part.gate is not None:
                put("attn.gate", part.gates(x), rows, receiver[rows])
        if part.choice.keys_from is None and len(rows) < len(receiver):
            for number, (name, new) in enumerate(zip(("attn.k", "attn.v"), part.keys_and_values(x), strict=True)):
                low = heads + number * part.kv_heads
                rows = ((receiver >= low) & (receiver < low + part.kv_heads)).nonzero()[:, 0]
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
