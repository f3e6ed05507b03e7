"""Directions from examples: the vector, its control, its file, and steering by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glassformer
from glassformer.errors import CheckpointError, SiteError, UsageError
from glassformer.generate.native_model import NativeModel
from glassformer.generate.sampling import logprobs
from glassformer.interp import directions, edits
from glassformer.interp.direction import Direction
from glassformer.interp.directions import RIDGE, direction
from glassformer.interp.moved import moved
from glassformer.interp.taps import Compose
from glassformer.interp.trace import Trace
from glassformer.model import Transformer, uniform
from glassformer.model.cache import Cache
from glassformer.model.config import FeedForward, GatedDelta, GatedLinearRecurrence, SelectiveStateSpace, StateSpace
from tests.interp.helpers import model
from tests.model.test_stacks import drawn
from tests.tiny import tiny_directory

TEXTS = [" mole is small", "The shrew", "One mole of", " a biopsy of the mole", "American", "the small shrew"]


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    return model(n_layers=3).double()


def runs(transformer: Transformer, starts: list[int], count: int = 8) -> list[Trace]:
    """Traces of random texts that begin with one of some tokens."""
    g = torch.Generator().manual_seed(starts[0])
    rows = torch.randint(0, 40, (count, 7), generator=g).tolist()
    return [Trace(transformer, [starts[i % len(starts)], *row]) for i, row in enumerate(rows)]


def test_the_difference_of_means_is_that(transformer: Transformer) -> None:
    one, other = runs(transformer, [3]), runs(transformer, [9])
    means = [torch.stack([t["blocks.1.resid_post"][-1] for t in side]).mean(0) for side in (one, other)]
    found = direction("three", iter(one), iter(other), 1)
    torch.testing.assert_close(found.vector, means[0] - means[1], rtol=1e-9, atol=1e-10)
    whole = direction("three", one, other, -2, position="mean")
    means = [torch.stack([t["blocks.1.resid_post"][1:].mean(0) for t in side]).mean(0) for side in (one, other)]
    torch.testing.assert_close(whole.vector, means[0] - means[1], rtol=1e-9, atol=1e-10)
    assert (whole.layer, whole.position) == (1, "mean")


def test_a_probe_is_the_minimum_of_its_loss(transformer: Transformer) -> None:
    """In all dimensions of the stream, by autograd: no dimension lowers the loss any more."""
    one, other = runs(transformer, [3], 9), runs(transformer, [9], 5)
    x = torch.stack([t["blocks.1.resid_post"][-1] for t in [*one, *other]])
    y = torch.arange(14) < 9
    found = direction("three", one, other, 1, method="probe")
    z, basis = directions._span(x)
    w, bias = directions._logistic(z, y)
    normal = (w @ basis).requires_grad_()
    assert float(torch.cosine_similarity(normal.detach(), found.vector, dim=0)) == pytest.approx(1)
    size = z.square().mean().sqrt()
    logits = (x - x.mean(0)) @ normal + bias
    share = torch.where(y, 0.5 / 9, 0.5 / 5)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double(), reduction="none")
    loss = (share * each).sum() + RIDGE / 2 * (normal * size).square().sum()
    loss.backward()
    assert float(normal.grad.abs().max()) < 1e-8
    gap = x[y].mean(0) - x[~y].mean(0)
    assert float(found.vector @ found.vector) == pytest.approx(float(gap @ found.vector))


@pytest.mark.parametrize("method", ["mean", "probe"])
def test_a_plain_difference_is_found_and_noise_is_not(method: str) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) < 30
    noise = torch.randn(60, 200, generator=g, dtype=torch.float64)
    plain = noise.clone()
    plain[y, 5] += 12.0
    z, _ = directions._span(plain)
    told = directions._facts(z, y, method, 10, 0)
    assert told["accuracy"] > 0.95
    assert told["shuffled"] == pytest.approx(0.5, abs=0.1)
    assert told["selectivity"] == told["accuracy"] - told["shuffled"]
    z, _ = directions._span(noise)
    accuracies = [directions._held_out(z, y, method, torch.Generator().manual_seed(s)) for s in range(8)]
    assert np.mean(accuracies) < 0.7, "held-out examples leak into the direction"


def test_separation_is_cohen_s_d() -> None:
    along, y = torch.tensor([1.0, 3.0, 8.0, 10.0, 12.0]).double(), torch.tensor([True, True, False, False, False])
    pooled = np.sqrt((np.var([1, 3], ddof=1) * 1 + np.var([8, 10, 12], ddof=1) * 2) / 3)
    assert directions._separation(along, y) == pytest.approx((2 - 10) / pooled)


def test_a_direction_on_disk(transformer: Transformer, tmp_path: Path) -> None:
    found = direction("three", runs(transformer, [3]), runs(transformer, [9]), 1)
    assert found.save(tmp_path / "three.v1") == tmp_path / "three.v1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["three.v1.json", "three.v1.safetensors"]
    for name in ("three.v1", "three.v1.safetensors", "three.v1.json"):
        read = Direction.load(tmp_path / name, transformer)
        assert torch.equal(read.vector, found.vector)
        assert (read.name, read.layer, read.facts) == (found.name, found.layer, found.facts)
    with pytest.raises(CheckpointError, match="other weights"):
        Direction.load(tmp_path / "three.v1", model(n_layers=3, seed=1).double())
    with pytest.raises(CheckpointError, match="other weights or in another precision"):
        Direction.load(tmp_path / "three.v1", model(n_layers=3))
    with pytest.raises(CheckpointError, match=r"four.json is no readable direction \(No such file or directory\)\.$"):
        Direction.load(tmp_path / "four", transformer)
    other = direction("four", runs(transformer, [3]), runs(transformer, [8]), 1)
    other.save(tmp_path / "other")
    (tmp_path / "other.safetensors").replace(tmp_path / "three.v1.safetensors")
    with pytest.raises(CheckpointError, match="not the file that its"):
        Direction.load(tmp_path / "three.v1", transformer)
    told = json.loads((tmp_path / "three.v1.json").read_text("utf-8"))
    (tmp_path / "three.v1.json").write_text(json.dumps(told | {"layer": 2}), "utf-8")
    with pytest.raises(CheckpointError, match="does not match the checksum"):
        Direction.load(tmp_path / "three.v1", transformer)
    (tmp_path / "three.v1.json").write_text(json.dumps(told | {"format": "glassformer.trace/1"}), "utf-8")
    with pytest.raises(CheckpointError, match="not of the format"):
        Direction.load(tmp_path / "three.v1", transformer)
    with pytest.raises(CheckpointError, match="cannot be written"):
        found.save(tmp_path / "other.json" / "three")


def test_steering_adds_it_where_it_was_found(transformer: Transformer) -> None:
    found = direction("three", runs(transformer, [3]), runs(transformer, [9]), 1)
    ids = [3, 17, 5, 22]
    plain = Trace(transformer, ids)
    changed = Trace(transformer, ids, tap=edits.steer(found, strength=-2.0))
    expected = plain["blocks.1.resid_post"] - 2 * found.vector
    torch.testing.assert_close(changed["blocks.1.resid_post"], expected, rtol=1e-12, atol=1e-12)
    elsewhere = Trace(transformer, ids, tap=edits.steer(found, layer=0, positions=2))
    moved_by = elsewhere["blocks.0.resid_post"] - plain["blocks.0.resid_post"]
    torch.testing.assert_close(moved_by[2], found.vector, rtol=1e-9, atol=1e-9)
    assert float(moved_by[:2].abs().max()) == 0
    with pytest.raises(UsageError, match="whose design is another"):
        edits.steer(found).bind(model(n_layers=2).config)
    with pytest.raises(UsageError, match="finite number"):
        edits.steer(found, strength=float("nan"))


@pytest.mark.parametrize(
    "mixer",
    [
        None,
        StateSpace(4, 8, 6, n_groups=2, norm_groups=2),
        SelectiveStateSpace(6, 3, 2),
        GatedDelta(4, 2, 3, 4),
        GatedLinearRecurrence(6, 2),
    ],
    ids=lambda mixer: type(mixer).__name__,
)
def test_steering_with_a_cache_is_steering_without(mixer: Any) -> None:
    """In float64, token by token, in pieces and at once: every logit is the same float32, bit by bit; by attention and
    by every recurrence."""
    transformer = model(n_layers=3).double()
    if mixer is not None:
        transformer = drawn(uniform(40, 16, 3, 64, mixer, FeedForward(24)))
    found = direction("three", runs(transformer, [3]), runs(transformer, [9]), 1)
    ids = torch.randint(0, 40, (1, 24), generator=torch.Generator().manual_seed(1))
    whole = transformer(ids, tap=Compose(edits.steer(found, strength=1.5)).bind(transformer.config))
    assert not torch.equal(whole.float(), transformer(ids).float())
    for cuts in ([1] * 24, [7, 1, 1, 15], [20, 4]):
        cache, parts, at = Cache(transformer.config, 1, 32, torch.float64), [], 0
        tap = Compose(edits.steer(found, strength=1.5)).bind(transformer.config)
        for cut in cuts:
            parts.append(transformer(ids[:, at : at + cut], cache, tap=tap))
            at += cut
        assert torch.equal(torch.cat(parts, 1).float(), whole.float())


def test_what_else_moved_is_the_divergence() -> None:
    g = torch.Generator().manual_seed(0)
    before, after = torch.randn(5, 30, generator=g), torch.randn(5, 30, generator=g)
    found = moved(before, after, str, 3)
    expected = torch.nn.functional.kl_div(
        after.double().log_softmax(-1), before.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(found.kl, expected)
    change = (after.double().softmax(-1) - before.double().softmax(-1)).mean(0)
    assert [t["id"] for t in found.raised] == change.topk(3).indices.tolist()
    assert [t["id"] for t in found.lowered] == (-change).topk(3).indices.tolist()
    assert found.top_changed == float((before.argmax(-1) != after.argmax(-1)).double().mean())
    still = moved(before, before, str, 3)
    assert (float(still.kl.max()), still.top_changed, still.raised, still.lowered) == (0.0, 0.0, [], [])


def test_a_model_finds_saves_and_is_steered(tmp_path: Path) -> None:
    """From texts to a continuation; the cached generation is what whole forwards say."""
    opened = glassformer.load(tiny_directory(tmp_path / "tiny"))
    found = opened.direction("mole", TEXTS[:3], TEXTS[3:], layer=1, shuffles=3)
    assert found.to_dict()["positive"] == 3
    found.save(tmp_path / "mole")
    steered = opened.edited(glassformer.steer(opened.load_direction(tmp_path / "mole"), strength=3.0))
    ids = opened.encode("The mole")
    said = [t.id for t in steered.generate(ids, max_tokens=12, temperature=0, ignore_eos=True)]
    greedy = list(ids)
    for _ in range(len(said)):
        greedy.append(int(steered.logits(greedy)[-1].argmax()))
    assert said == greedy[len(ids) :]
    assert said != [t.id for t in opened.generate(ids, max_tokens=12, temperature=0, ignore_eos=True)]
    assert steered.moved().kl.mean() > 0
    assert float(opened.edited(glassformer.steer(found, strength=0.0)).moved("The mole").kl.max()) == 0
    with pytest.raises(UsageError, match="not edited"):
        opened.moved()


@pytest.mark.parametrize(
    ("positive", "negative", "options", "says"),
    [
        ([3], [3], {"method": "dsa"}, "found by mean, probe or das; 'dsa' is none"),
        ([3], [3], {"position": "first"}, "last token or in the mean"),
        ([3], [], {}, "at least one positive and one negative"),
        ([], [], {}, "at least one positive and one negative"),
    ],
)
def test_what_is_no_direction_is_refused(
    transformer: Transformer, positive: list[int], negative: list[int], options: dict[str, str], says: str
) -> None:
    sides = [[Trace(transformer, [i, 4, 5]) for i in side] for side in (positive, negative)]
    with pytest.raises(UsageError, match=says):
        direction("x", *sides, 1, **options)


def test_examples_that_do_not_differ_are_refused(transformer: Transformer) -> None:
    same = [Trace(transformer, [4, 5])]
    with pytest.raises(UsageError, match="do not differ in layer 1"):
        direction("x", same, same, 1)
    with pytest.raises(UsageError, match="two examples of each"):
        direction("x", same, [Trace(transformer, [4, 6])], 1, method="probe")
    with pytest.raises(UsageError, match="needs a name"):
        direction(" ", same, same, 1)
    with pytest.raises(SiteError, match="layer"):
        direction("x", same, same, 9)
    one = direction("x", same, [Trace(transformer, [4, 6])], 1)
    assert one.facts["accuracy"] is None


def test_steering_natively_is_steering_and_the_same_with_and_without_a_cache(tmp_path: Path) -> None:
    """Every logit to the bit: at once, in pieces, token by token, and generated by the engine."""
    opened = glassformer.load(tiny_directory(tmp_path / "tiny"))
    vectors = torch.randn(2, opened.config.d_model, generator=torch.Generator().manual_seed(0))
    steered = opened.edited(
        glassformer.steer(vectors[0], layer=0, strength=1.5), glassformer.steer(vectors[1], layer=-1)
    )
    added = steered.bound_tap().added
    assert sorted(added) == [0, opened.config.n_layers - 1]
    base = NativeModel.from_transformer(opened.transformer)
    ids = torch.randint(0, 40, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    plain = base.forward(ids, [0] * 60, range(60))
    whole = base.steered(added).forward(ids, [0] * 60, range(60))
    expected = steered.logits(ids)
    assert float((whole - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    assert float((whole - plain).abs().max()) > 1e-2
    for cuts in ([1] * 60, [33, 1, 1, 25]):
        runner, parts, at = base.steered(added), [], 0
        for cut in cuts:
            parts.append(runner.forward(ids[at : at + cut], [0] * cut, range(at, at + cut)))
            at += cut
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(base.forward(ids, [0] * 60, range(60)), plain), "the model itself is as it was"
    said = list(steered.generate(ids[:9], max_tokens=12, temperature=0, ignore_eos=True))
    again = base.steered(added).forward(ids[:9] + [t.id for t in said], [0] * 21, range(21))
    assert [t.logprob for t in said] == [logprobs(x, t.id)[0].logprob for x, t in zip(again[8:], said, strict=False)]
    for tap in (glassformer.steer(vectors[0], layer=0, positions=2), glassformer.ablate(layer=0, head=0)):
        assert opened.edited(glassformer.steer(vectors[1], layer=1), tap).bound_tap().added is None


@pytest.mark.smollm2
def test_smollm2_is_steered_the_same_with_and_without_a_cache(smollm2) -> None:
    """Natively, in two layers, each logit is the same to the bit however the text is cut, and the definition's to
    rounding."""
    ids = smollm2.encode("The capital of France is Paris")
    vectors = torch.randn(2, smollm2.config.d_model, generator=torch.Generator().manual_seed(0)) / 10
    tap = smollm2.edited(
        glassformer.steer(vectors[0], layer=0, strength=1.5), glassformer.steer(vectors[1], layer=-1)
    ).bound_tap()
    base = NativeModel.from_transformer(smollm2.transformer)
    whole = base.steered(tap.added).forward(ids, [0] * len(ids), range(len(ids)))
    expected = smollm2.transformer(torch.tensor([ids]), tap=tap)[0]
    assert float((whole - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    for cuts in ([1] * 6, [4, 2]):
        runner, parts, at = base.steered(tap.added), [], 0
        for cut in cuts:
            parts.append(runner.forward(ids[at : at + cut], [0] * cut, range(at, at + cut)))
            at += cut
        assert torch.equal(torch.cat(parts), whole)
