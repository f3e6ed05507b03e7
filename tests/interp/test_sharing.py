"""Layers that use another's keys and values, and streams that are rescaled on the way: seen, changed and explained."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from glassformer.count import count
from glassformer.errors import SiteError
from glassformer.interp.edits import ablate, tap
from glassformer.interp.reasons import Part
from glassformer.interp.trace import Trace
from glassformer.model import Attention, Cache, Config, FeedForward, Rotary
from glassformer.model.choices import Copies, LayerEmbedding
from glassformer.model.config import Layer
from tests.interp.test_patching import check
from tests.model.test_stacks import drawn

IDS = [3, 17, 5, 22, 9, 30, 17, 5, 11]


def design() -> Config:
    """Two layers with keys of their own, of two head sizes, and two that share them; the stream is rescaled, and two
    layers have embeddings of tokens of their own."""
    near = Attention(4, 2, 8, window=4, rotary=Rotary(100.0))
    wide = Attention(4, 1, 6, qk_norm="head", rotary=Rotary(500.0))
    mixers = [near, wide, dataclasses.replace(near, keys_from=0), dataclasses.replace(wide, keys_from=1)]
    layers = [
        Layer(
            mixer,
            FeedForward(12),
            averaged=2 * i + 1,
            scalar=i % 2 == 1,
            embedding=LayerEmbedding(5) if i in (1, 2) else None,
        )
        for i, mixer in enumerate(mixers)
    ]
    return Config(40, 16, 64, tuple(layers))


@pytest.fixture(scope="module")
def run() -> Trace:
    return Trace(drawn(design()), IDS)


def test_keys_are_kept_once() -> None:
    config = design()
    cache = Cache(config, 1, 16)
    assert [x is None for x in cache.keys] == [False, False, True, True]
    assert cache.values[0].shape == (1, 2, 16, 8)
    assert not any(name.startswith(("blocks.2.attn.k", "blocks.3.attn.v")) for name in config.components())
    assert count(config).cache_bytes_per_token["float32"] == 4 * (2 * 16 + 12)


def test_it_is_said_whose_keys_are_used(run: Trace) -> None:
    assert run.config.keys_from == {2: 0, 3: 1}
    found = run.why(words=0)
    assert found.to_dict()["keys_from"] == [{"layer": 2, "from": 0}, {"layer": 3, "from": 1}]
    assert "layer 2 uses those of layer 0" in found.sentence()
    assert run.cell(2, 1, 6, 4).to_dict()["keys_from"] == 0
    with pytest.raises(SiteError, match=r"those of layer 0; use blocks\.0\.attn\.v"):
        run["blocks.2.attn.v"]


def test_totals_of_every_part_are_those_of_whole_forwards(run: Trace) -> None:
    """Taking a head out of a layer that gives its keys changes the layers that use them."""
    found = run.why(words=0)
    assert abs(found.residual) <= 1e-12
    goal = found.target
    for layer in range(4):
        for kind, site in (("feed_forward", "mlp.out"), ("layer_embedding", "ple.out")):
            if site == "ple.out" and layer in (0, 3):
                continue
            gone = ablate(f"blocks.{layer}.{site}", positions=len(IDS) - 1)
            number = float(Trace(run.transformer, IDS, tap=gone)["final.normed"][-1].double() @ goal.way.vector)
            at = found.parts.of(kind, layer)
            assert abs(goal.value - number - goal.way.offset - float(found.parts.total[at])) <= 1e-9, (kind, layer)


def test_patching_one_layer_after_another_is_a_whole_forward() -> None:
    check(drawn(design()))


def test_gradients_from_the_middle_are_those_of_differences(run: Trace) -> None:
    site = "blocks.2.attn.q"
    grads = run.gradient(site, 7)
    x, step = run[site], 1e-6
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def number(sign: float) -> float:
        after = Trace(run.transformer, IDS, tap=tap(site, lambda y, where: y + sign * step * direction))
        logits = after["logits"][-1]
        return float(logits[7] - logits.mean())

    measured = (number(1) - number(-1)) / (2 * step)
    assert abs(measured - float((grads * direction).sum())) <= 1e-6 * max(1.0, abs(measured))


def in_copies() -> Config:
    """Three copies of the stream, gates that are cut, shared keys, and embeddings of tokens in every layer."""
    mixer = Attention(4, 2, 8, window=4, value_norm=True, qk_norm="head", scale=1.0)
    mixers = [mixer, dataclasses.replace(mixer, window=None), dataclasses.replace(mixer, keys_from=0)]
    layers = [
        Layer(m, FeedForward(12, sparsity=0.5 * (i == 1)), "both", embedding=LayerEmbedding(5), copies=Copies(3, 4))
        for i, m in enumerate(mixers)
    ]
    return Config(40, 16, 64, tuple(layers), embedding_scale=4.0)


@pytest.fixture(scope="module")
def copied() -> Trace:
    return Trace(drawn(in_copies()), IDS)


def test_parts_of_a_stream_in_copies_add_up(copied: Trace) -> None:
    found = copied.why(words=2, alternatives=2)
    assert abs(found.residual) <= 1e-12
    goal, at = found.target, len(IDS) - 1
    for layer in range(3):
        for kind, site in (("feed_forward", "mlp.out"), ("layer_embedding", "ple.out"), ("laurel", "laurel.out")):
            gone = tap(f"blocks.{layer}.{site}", lambda x, where: torch.zeros_like(x), positions=at)
            number = float(Trace(copied.transformer, IDS, tap=gone)["final.normed"][-1].double() @ goal.way.vector)
            total = float(found.parts.total[found.parts.of(kind, layer)])
            assert abs(goal.value - number - goal.way.offset - total) <= 1e-9, (kind, layer)
    cells = sum(copied.cell(1, head, at, key).effect for head in range(4) for key in range(at + 1))
    heads = found.parts.of("head", 1)
    assert abs(cells - float(found.parts.claimed[heads].sum())) <= 1e-9
    neurons = copied.neurons(k=3)
    claimed = sum(float(found.parts.claimed[found.parts.of("feed_forward", layer)].sum()) for layer in range(3))
    assert abs(neurons.all - claimed) <= 1e-9


def test_a_stream_in_copies_is_patched_read_and_edited(copied: Trace) -> None:
    check(drawn(in_copies()))
    assert copied["blocks.1.resid_pre"].shape == (9, 48)
    assert copied["blocks.1.resid_active"].shape == (9, 16)
    read = copied.lens(k=1)
    assert read.places == ["embed", *(f"blocks.{i}.resid_post" for i in range(3))]
    off = Trace(copied.transformer, IDS, tap=ablate(layer=1, head=2))
    assert abs(off.why(words=0).residual) <= 1e-12


def test_what_a_head_wrote_is_found_in_a_later_query(copied: Trace) -> None:
    """Carried by hand through copies that are mixed, and changed in shares, by numbers of the run; the norm's divisor
    and weight, the projection and the query's norm as run."""
    at, blocks, half = 8, copied.transformer.blocks, 0.5**0.5

    def routed(block: Any, x: torch.Tensor) -> torch.Tensor:
        n = x / (x.square().mean() + copied.config.norm.eps).sqrt() * block.copies.norm.weight
        return torch.tanh(block.copies.router.weight @ n / 16)

    def mixed(layer: int) -> torch.Tensor:
        first = copied[f"blocks.{layer}.resid_pre"][at, :16]
        return (blocks[layer].copies.predict.weight @ routed(blocks[layer], first)).view(3, 3) + torch.eye(3)

    def shares(layer: int) -> torch.Tensor:
        active = copied[f"blocks.{layer}.resid_mid"][at] + copied[f"blocks.{layer}.mlp.out"][at]
        return blocks[layer].copies.correct.weight @ routed(blocks[layer], active) + 1

    written = copied.head_outputs(0, 1, at)
    copies = shares(0)[:, None] * written
    predicted = mixed(1) @ copies
    copies = predicted + shares(1)[:, None] * (half * predicted[0] - predicted[0])
    x = (mixed(2) @ copies)[0]
    block, read = blocks[2], copied["blocks.2.resid_active"][at]
    x = x / (read.square().mean() + block.ln1.eps).sqrt() * block.ln1.weight
    rows = slice(3 * 8, 4 * 8)
    q = block.attn.q.weight[rows] @ x
    run = block.attn.q.weight[rows] @ copied["blocks.2.ln1.normed"][at]
    q = q / (run.square().mean() + copied.config.norm.eps).sqrt() * block.attn.q_norm.weight
    angles = at * 10_000.0 ** (-torch.arange(4, dtype=torch.float32) / 4)
    cos, sin = angles.cos().double(), angles.sin().double()
    q = torch.cat([q[:4] * cos - q[4:] * sin, q[4:] * cos + q[:4] * sin])
    found = copied.reasons(2, 3, at, 4)
    key = copied["blocks.0.attn.rot_k"][4, 1]
    share = float(found.pairs[found.queries.index(Part("head", 0, 1))].sum())
    assert share == pytest.approx(float(q @ key), abs=1e-10)
    assert {"laurel", "layer_embedding"} <= {part.kind for part in found.keys + found.queries}
    assert all(part.name in found.sentence() or part.to_dict()["name"] for part in found.queries)
