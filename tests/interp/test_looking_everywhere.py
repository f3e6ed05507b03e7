"""Lens, patching, heads and neurons in the design of every family that opens, each beside runs of the changed model.

Every number is obtained a second time by the ordinary forward, all changes of one kind as rows of one batch: with a
place's stream put before the end (the lens), with one place of another text (patching), with one head or neuron
silenced (what it wrote, and what that came to), while norms divide by what they divided by and other parts give what
they gave. In float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from glassformer.errors import UnsupportedError
from glassformer.interp.heads import head_scores
from glassformer.interp.patching import PLACES, What, patch
from glassformer.interp.select import site_in
from glassformer.interp.trace import Trace
from glassformer.model.choices import Experts
from glassformer.model.norms import NormLayer
from glassformer.model.parts import copies
from glassformer.model.sites import Where
from tests.interp.helpers import close
from tests.interp.test_every_family import LENGTH, NAMES, traced
from tests.model.test_stacks import Everything


class Rows:
    """A tap that gives rows of a batch other numbers at some sites, and keeps what passes at others before that."""

    def __init__(self, *watched: str) -> None:
        self.changes: dict[str, list[Callable[[Tensor], None]]] = {}
        self.seen: dict[str, Tensor] = {}
        self.reads, self.count = frozenset(watched), 0

    @property
    def writes(self) -> frozenset[str]:
        return frozenset(self.changes)

    def row(self) -> int:
        self.count += 1
        return self.count - 1

    def put(self, site: str, index: Any, value: Tensor | float) -> None:
        """Has an index of the batch hold a value at a site."""
        self.changes.setdefault(site, []).append(lambda x: x.__setitem__(index, value))

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor:
        self.seen[site], x = x, x.clone()
        for change in self.changes.get(site, ()):
            change(x)
        return x

    def logits(self, run: Trace) -> Tensor:
        """Of every row after the last token, (row, vocab)."""
        with torch.no_grad():
            return run.transformer(torch.tensor([run.ids] * self.count), tap=self)[:, -1]


@functools.cache
def seen(name: str) -> dict[str, Tensor]:
    """Every place of the forward of the text, by a tap that looks at all of them."""
    run = traced(name)
    tap = Everything(run.config)
    with torch.no_grad():
        run.transformer(torch.tensor([run.ids]), tap=tap)
    return tap.seen


@contextmanager
def as_run(run: Trace, rows: int) -> Iterator[None]:
    """Within it, norms divide, and mixtures of copies and a head's activation multiply, by what they did in the run."""
    kept: dict[Any, Tensor] = {}
    learning = True

    def held(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def found(*given: Any) -> Tensor:
            key = of, given[0] if isinstance(given[0], torch.nn.Module) else None
            if learning:
                kept[key] = of(*given)
            return kept[key]

        return found

    scale = held(NormLayer.scale)

    def norm(self: NormLayer, x: Tensor, view: Any = None, name: str = "") -> Tensor:
        return self.apply_scale(x, scale(self, x))

    def gathered(x: Tensor, matrices: Any, held_: bool = False) -> Tensor:
        first, *rest = x.chunk(len(matrices) + 1, dim=-1)
        turned = [matrix(copy) for matrix, copy in zip(matrices, rest, strict=True)]
        ratios = [lengths(matrix, first, y) for matrix, y in zip(matrices, turned, strict=True)]
        return torch.stack([first, *(y * r for y, r in zip(turned, ratios, strict=True))]).mean(0)

    lengths = held(lambda matrix, like, y: copies.ratio(like, y))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NormLayer, "forward", norm)
        patch.setattr(copies.CopiesPart, "mixing", held(copies.CopiesPart.mixing))
        patch.setattr(copies.CopiesPart, "shares", held(copies.CopiesPart.shares))
        patch.setattr("glassformer.model.transformer.gathered", gathered)
        head = run.transformer.head
        if head is not None:
            times = held(lambda x, of=head.activation: of(x) / x)
            patch.setattr(head, "activation", lambda x: x * times(x))
        with torch.no_grad():
            run.transformer(torch.tensor([run.ids] * rows))
        learning = False
        yield


@pytest.mark.parametrize("name", NAMES)
def test_the_lens_reads_each_place_as_if_it_were_the_last(name: str) -> None:
    run, places = traced(name), seen(name)
    found = run.lens(3)
    last, tap = f"blocks.{run.config.n_layers - 1}.resid_post", Rows()
    assert found.places[-1] == last
    for place in found.places:
        tap.put(last, tap.row(), places["blocks.0.resid_pre" if place == "embed" else place][0])
    chances = tap.logits(run).softmax(-1)
    best = chances.topk(3, dim=-1)
    close(found.probabilities[:, -1], best.values, "probabilities", 1e-9)
    assert torch.equal(found.ids[:, -1], best.indices)
    close(found.chance[:, -1], chances[:, found.followed[-1]], "the followed token", 1e-9)
    close(found.probabilities[-1], places["logits"][0].softmax(-1).topk(3, dim=-1).values, "the model's own", 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_patching_gives_what_a_run_with_one_place_of_another_gives(name: str) -> None:
    clean, places = traced(name), seen(name)
    config = clean.config
    other = Trace(clean.transformer, [*clean.ids[:1], (clean.ids[1] + 1) % config.vocab_size, *clean.ids[2:]])
    tap = Rows()
    none, rows = tap.row(), {}
    for what, place in PLACES.items():
        rows[what] = torch.full((config.n_layers, config.most_heads if what == "heads" else LENGTH), none)
        for i, layer in enumerate(config.layers):
            if (inside := site_in(place, layer)) is None:
                continue
            site = f"blocks.{i}.{inside}"
            for column in range(places[site].shape[2] if what == "heads" else LENGTH):
                row = rows[what][i, column] = tap.row()
                index = (slice(None), column) if what == "heads" else (column,)
                tap.put(site, (int(row), *index), places[site][0][index])
    numbers = tap.logits(other)
    wanted = numbers[:, 1] - numbers[:, 2]
    for what in get_args(What):
        found = patch([(clean, other)], what, metric=lambda logits, _: logits[:, 1] - logits[:, 2], attribution=False)
        close(found.measured[0], wanted[rows[what]], what, 1e-8)
    assert found.clean == pytest.approx([float(places["logits"][0, -1, 1] - places["logits"][0, -1, 2])], rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_head_wrote_is_what_goes_when_it_is_silent(name: str) -> None:
    run, places = traced(name), seen(name)
    layers = [(i, x.mixer.prefix) for i, x in enumerate(run.config.layers) if x.mixer is not None]
    tap = Rows(*(f"blocks.{i}.{prefix}.out" for i, prefix in layers))
    whole = tap.row()
    rows = {}
    for i, prefix in layers:
        site = f"blocks.{i}.{prefix}.z"
        rows[i] = [tap.row() for _ in range(places[site].shape[2])]
        for head, row in enumerate(rows[i]):
            tap.put(site, (row, slice(None), head), 0.0)
    with as_run(run, tap.count):
        tap.logits(run)
    for i, prefix in layers:
        out = tap.seen[f"blocks.{i}.{prefix}.out"]
        close(run.head_outputs(i), out[whole] - out[rows[i]], f"heads of layer {i}", 1e-8)
    text = head_scores(run.transformer, text=run, length=2, shuffles=1).scores
    for i, prefix in layers:
        grid = places[f"blocks.{i}.{prefix}.pattern"][0]
        before = grid.diagonal(-1, -2, -1).mean(-1)
        close(text["text previous"][i, : len(grid)].double(), before, f"attention to the token before, {i}", 1e-6)
        close(text["text first"][i, : len(grid)].double(), grid[:, 1:, 0].mean(-1), f"to the first, {i}", 1e-6)


@pytest.mark.parametrize("name", ["opt", "modernbert-decoder", "bloom"])
def test_copying_is_of_all_that_stands_at_both_ends(name: str) -> None:
    """Narrow embeddings, a norm of them, a layer before the last norm: vocabulary × vocabulary, norms not dividing."""
    run = traced(name)
    transformer, ids = run.transformer, torch.arange(run.config.vocab_size)

    def undivided(norm: NormLayer | None, x: Tensor) -> Tensor:
        if norm is None:
            return x
        one = torch.ones_like(x[..., :1])
        return norm.apply_scale(x, one) - norm.apply_scale(torch.zeros_like(x), one)

    found = head_scores(transformer, length=2, shuffles=1).scores["copying"]
    entering, head = transformer.entering(transformer.embed.weight[ids]), transformer.head
    for layer, block in enumerate(transformer.blocks):
        part, read = block.attn, undivided(block.norm(1), entering)
        for i in range(part.heads):
            z = torch.zeros(len(ids), 1, part.heads, part.d_value, dtype=torch.float64)
            rows = part.value_matrix.view(-1, part.d_value, read.shape[1])[i // (part.heads // part.kv_heads)]
            z[:, 0, i] = read @ rows.T
            out = undivided(block.post_norm(1), part.write(z) - part.write(torch.zeros_like(z)))[:, 0]
            if head is not None:
                out = undivided(head.norm, out) @ head.dense.weight.T
            found_there = torch.linalg.eigvals(undivided(transformer.final, out) @ transformer.unembedding.T)
            wanted = float(found_there.real.sum() / found_there.abs().sum())
            assert float(found[layer, i]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_neuron_did_is_what_goes_when_it_is_silent(name: str) -> None:
    """Neurons of experts as well: each share alone, all of a layer together, and the sum that experts come to."""
    run, places = traced(name), seen(name)
    fed = [i for i, layer in enumerate(run.config.layers) if layer.feed_forward is not None]
    if not fed:
        with pytest.raises(UnsupportedError, match="it has no neurons"):
            run.neurons()
        return
    found = run.neurons(1, 2, k=24, words=1)
    number = "logits" if run.config.logit_softcap is None else "logits.precap"
    tap = Rows(number)
    tap.row()
    one = [next((x for x in found.neurons if x["layer"] == i), None) for i in fed]
    rows = {i: tap.row() for i in fed}
    alone = {i: tap.row() for i, x in zip(fed, one, strict=True) if x is not None}
    for i, x in zip(fed, one, strict=True):
        tap.put(f"blocks.{i}.mlp.post", rows[i], 0.0)
        if x is not None:
            tap.put(f"blocks.{i}.mlp.post", (alone[i], slice(None), x["index"]), 0.0)
            assert x["activation"] == pytest.approx(float(places[f"blocks.{i}.mlp.post"][0, -1, x["index"]]), rel=1e-9)
    for site in (site for site in places if site.endswith(".out")):
        layer = int(site.split(".")[1])
        own = {rows[layer], alone.get(layer)} if site.endswith("mlp.out") else set()
        tap.put(site, [row for row in range(tap.count) if row not in own], places[site])
    with as_run(run, tap.count):
        tap.logits(run)
    numbers = tap.seen[number][:, -1, 1] - tap.seen[number][:, -1, 2]
    shares = numbers[0] - numbers
    size = float(shares.abs().max())
    assert found.all == pytest.approx(float(shares[list(rows.values())].sum()), abs=1e-8 * size)
    for i, x in zip(fed, one, strict=True):
        if x is not None:
            assert x["contribution"] == pytest.approx(float(shares[alone[i]]), abs=1e-8 * size), i
        if isinstance(run.config.layers[i].feed_forward, Experts):
            assert run.experts(i, 1, 2, words=1).apart <= 1e-12
