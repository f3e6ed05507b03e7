"""Why a head looks there: pairs of parts sum to the score, and a part's share is what taking it out shows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings

from glassformer.errors import ShapeError, UnsupportedError, UsageError
from glassformer.interp import edits
from glassformer.interp.reasons import Part, Reasons
from glassformer.interp.taps import Compose
from glassformer.interp.trace import Trace
from glassformer.model import Attention, Config, FeedForward, LatentAttention, Rotary, StateSpace, Transformer, uniform
from glassformer.model.choices import softmax_of
from glassformer.model.config import Layer
from tests.interp.helpers import Letters, model
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks

IDS = [3, 17, 5, 22, 9, 30, 17, 5]


def ids_of(config: Config, length: int) -> list[int]:
    return torch.randint(0, config.vocab_size, (length,), generator=torch.Generator().manual_seed(2)).tolist()


@given(stacks())
@settings(max_examples=25, phases=PHASES)
def test_pairs_sum_to_the_score_of_every_attention(config: Config) -> None:
    """Against the score that the forward itself formed, in float64, at a seen, an own and a hidden position."""
    layers = [i for i, layer in enumerate(config.layers) if softmax_of(layer.mixer) is not None]
    assume(layers)
    run = Trace(drawn(config), ids_of(config, 9))
    for layer, (query, key) in itertools.product(layers, ((8, 6), (5, 5), (2, 7))):
        head = run.config.attention(layer).n_heads - 1
        found = run.reasons(layer, head, query, key)
        step = found.steps[0]
        size = 1 + float(found.pairs.abs().sum())
        assert abs(found.sum - step.product) <= 1e-12 * size
        assert abs(float(found.by_word.sum()) - step.product) <= 1e-12 * size
        score = float(run.scores(layer, head, query)[key])
        assert step.visible == (score != float("-inf"))
        if step.visible:
            assert abs(step.capped + step.bias - score) <= 1e-12 * max(1, abs(score))
        else:
            assert step.weight == 0


def brute_force(run: Trace, layer: int, head: int, query: int, key: int) -> dict[tuple[str, str], float]:
    """The pairs of a rotary attention with an rms norm, from the weights and the textbook's formulas alone."""
    t, d = run.transformer, run.config.attention(layer).d_head
    block = t.blocks[layer]

    def pieces(position: int) -> dict[str, torch.Tensor]:
        found = {"embedding": run["embed"][position]}
        for i in range(layer):
            attn, mlp = t.blocks[i].attn, t.blocks[i].mlp
            for h in range(attn.heads):
                z = run[f"blocks.{i}.attn.z"][position, h]
                found[f"head {i}.{h}"] = attn.o.weight[:, h * d : (h + 1) * d] @ z
            found[f"attention bias {i}"] = attn.o.bias
            found[f"feed-forward {i}"] = mlp.down.weight @ run[f"blocks.{i}.mlp.post"][position]
            found[f"feed-forward bias {i}"] = mlp.down.bias
        return found

    def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
        half = d // 2
        angles = position * 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        cos, sin = angles.cos().double(), angles.sin().double()
        a, b = x[:half], x[half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    def side(which: str, position: int, h: int) -> dict[str, torch.Tensor]:
        stream = run[f"blocks.{layer}.resid_pre"][position]
        divisor = (stream.square().mean() + block.ln1.eps).sqrt()
        matrix = getattr(block.attn, which)
        rows = slice(h * d, (h + 1) * d)
        out = {n: matrix.weight[rows] @ (block.ln1.weight * x / divisor) for n, x in pieces(position).items()}
        out["bias of the projection and its norm"] = matrix.bias[rows]
        return {n: rotated(x, position) for n, x in out.items()}

    q, k = side("q", query, head), side("k", key, head // 2)
    return {(a, b): float(x @ y) / d**0.5 for a, x in q.items() for b, y in k.items()}


def test_every_pair_is_the_one_that_the_weights_give() -> None:
    run = Trace(model(n_layers=3).double(), IDS)
    found = run.reasons(2, 1, 6, 3)
    expected = brute_force(run, 2, 1, 6, 3)
    assert {(a.name, b.name) for a in found.queries for b in found.keys} == set(expected)
    for (i, a), (j, b) in itertools.product(enumerate(found.queries), enumerate(found.keys)):
        assert float(found.pairs[i, j]) == pytest.approx(expected[a.name, b.name], abs=1e-11)
    largest = found.ranked(1)[0]
    assert abs(largest["share"]) == pytest.approx(max(abs(x) for x in expected.values()))
    assert found.residual <= 1e-12


def test_float32_closes_within_a_hundred_thousandth() -> None:
    run = Trace(model(n_layers=3, softcap=2.0), IDS)
    for layer, head in itertools.product(range(3), range(4)):
        assert run.reasons(layer, head, 7, 2).residual <= 1e-5


def taken_out(run: Trace, part: Part, position: int) -> float:
    """A score of layer 2 whose layer keeps the divisors of the run while one part is left out of its stream."""
    x = run["blocks.2.resid_pre"].clone()
    x[position] -= run.head_outputs(part.layer, part.number, position)
    scale = run["blocks.2.ln1.scale"]
    frozen = edits.replace("blocks.2.ln1.scale", scale[None])
    other = Trace(run.transformer, run.ids, tap=Compose(edits.replace("blocks.2.resid_pre", x[None]), frozen))
    return float(other.scores(2, 1, 6)[3])


def test_a_head_s_share_is_what_the_score_loses_without_it() -> None:
    """By the model's own forward, the part taken out of what the layer reads and its norm held."""
    run = Trace(model(n_layers=3).double(), IDS)
    found = run.reasons(2, 1, 6, 3)
    whole = float(run.scores(2, 1, 6)[3])
    for which, position in (("query", 6), ("key", 3)):
        for part, share in found.side(which):
            if part.kind == "head":
                assert whole - taken_out(run, part, position) == pytest.approx(share, abs=1e-10)


def latent(q_rank: int | None) -> Transformer:
    mixer = LatentAttention(2, 2, 8, rotary=Rotary(100.0, 0.5), kv_rank=5, q_rank=q_rank, bias=True)
    return drawn(uniform(40, 16, 2, 64, mixer, FeedForward(24)))


@pytest.mark.parametrize("q_rank", [None, 6])
def test_latent_attention_tells_its_rotated_share(q_rank: int | None) -> None:
    run = Trace(latent(q_rank), IDS)
    found = run.reasons(1, 1, 7, 2)
    q, k = run["blocks.1.attn.rot_q"][7, 1], run["blocks.1.attn.rot_k"][2, 1]
    assert found.rotated == pytest.approx(float(q[:4] @ k[:4]) * found.scale, abs=1e-12)
    assert found.sum - found.rotated == pytest.approx(float(q[4:] @ k[4:]) * found.scale, abs=1e-12)


def test_shared_keys_are_explained_at_the_layer_that_made_them() -> None:
    first = uniform(40, 16, 2, 64, Attention(4, 2, 8), FeedForward(24)).layers
    reader = Layer(Attention(4, 2, 8, keys_from=1), FeedForward(24))
    run = Trace(drawn(Config(40, 16, 64, (*first, reader))), IDS)
    found = run.reasons(2, 3, 7, 2)
    assert abs(found.value - found.sum) <= 1e-12 * float(found.pairs.abs().sum())
    assert {part.layer for part in found.queries} == {-1, 0, 1}
    assert {part.layer for part in found.keys} == {-1, 0}


def test_words_are_those_that_heads_read() -> None:
    """One earlier layer, whose heads alone read other words: a word's share is what they read there."""
    transformer = model(n_layers=2).double()
    run = Trace(transformer, [7, 8, 30, 33, 35], vocabulary=Letters(40))
    found = run.reasons(1, 2, 4, 3)
    assert [w.text for w in found.words] == ["hi", "e", "h", "j"]
    heads = {part: share for part, share in found.side("key") if part.kind == "head"}
    by_key = found.by_word.sum(0)
    own = next(i for i, w in enumerate(found.words) if 3 in w.positions)
    elsewhere = float(by_key[:own].sum())
    total = 0.0
    way = run.forward.attention(1)
    scale = run["blocks.1.ln1.scale"][3]
    q = run["blocks.1.attn.rot_q"][4, 2]
    for part in heads:
        for source in range(3):
            x = run.contributions(0, part.number, 3)[source] * transformer.blocks[1].ln1.weight / scale
            k = (way.k.weight @ x).view(2, 8)[1]
            turned = run.forward.rotated(1, k[None, None, None], slice(3, 4), "k")[0, 0, 0]
            total += float(q @ turned) * way.scale
    assert elsewhere == pytest.approx(total, abs=1e-10)


def test_against_another_key_the_difference_is_explained() -> None:
    run = Trace(model(n_layers=2).double(), IDS)
    one, other = run.reasons(1, 0, 7, 2), run.reasons(1, 0, 7, 5)
    found = run.reasons(1, 0, 7, 2, against=5)
    assert found.value == pytest.approx(one.value - other.value, abs=1e-12)
    torch.testing.assert_close(found.pairs, one.pairs - other.pairs, rtol=0, atol=1e-12)
    assert found.residual <= 1e-12
    assert "above that of" in found.sentence()


def test_sinks_and_hidden_keys_are_said() -> None:
    config = uniform(40, 16, 2, 64, Attention(4, 2, 8, sink=True, window=3), FeedForward(24))
    transformer = drawn(config)
    run = Trace(transformer, IDS)
    found = run.reasons(1, 3, 7, 1)
    assert found.sink is not None
    assert found.sink["score"] == float(transformer.blocks[1].attn.sink[3])
    assert found.sink["weight"] == pytest.approx(float(run["blocks.1.attn.sink"][7, 3]))
    assert "may not see" in found.sentence()
    assert found.to_dict()["steps"][0]["score"] is None
    seen = run.reasons(1, 3, 7)
    assert seen.key == int(run.pattern(1, 3, 7).argmax())


@pytest.mark.parametrize(
    "tap",
    [
        edits.steer(torch.arange(16.0), layer=0),
        edits.ablate(layer=0, head=2),
        edits.tap("blocks.1.resid_pre", lambda x, where: x * 1.5),
        edits.tap("blocks.1.ln1.normed", lambda x, where: x + 1),
        edits.tap("blocks.1.attn.q", lambda x, where: x * 2),
        edits.tap("blocks.1.attn.rot_k", lambda x, where: x - 1),
        edits.tap("blocks.1.attn.scores", lambda x, where: x + 0.25),
    ],
)
def test_an_edited_model_is_explained_with_its_edit(tap: object) -> None:
    run = Trace(model(n_layers=2).double(), IDS, tap=tap)
    found = run.reasons(1, 1, 7, 4)
    assert found.residual <= 1e-12
    step = found.steps[0]
    assert step.capped + step.bias + step.edit == pytest.approx(float(run.scores(1, 1, 7)[4]), abs=1e-12)
    if "blocks.1.attn.scores" in getattr(tap, "sites", ()):
        assert step.edit == pytest.approx(0.25)


def test_what_cannot_be_explained_is_refused_in_a_sentence() -> None:
    run = Trace(drawn(uniform(40, 16, 2, 64, StateSpace(4, 8, 6), None)), IDS)
    with pytest.raises(UnsupportedError, match="no queries and keys"):
        run.reasons(1, 0, 3, 1)
    run = Trace(model().double(), IDS)
    with pytest.raises(ShapeError, match="no position 99"):
        run.reasons(1, 0, 3, 99)
    with pytest.raises(UsageError, match="Both keys are position 2"):
        run.reasons(1, 0, 3, 2, against=2)
    with pytest.raises(UsageError, match="query side and a key side"):
        run.reasons(1, 0, 3, 2).side("value")
    with pytest.raises(UsageError, match=r"trace\.row"):
        Trace(model(), [IDS, IDS]).reasons(0, 0, 1, 0)


def test_as_data() -> None:
    found: Reasons = Trace(model().double(), IDS).reasons(1, 0, 7, 2)
    data = found.to_dict(5)
    assert len(data["pairs"]) == len(data["sides"]["query"]) == 5
    assert data["composition"][0].keys() == {"layer", "head", "query", "key"}
    assert data["words"][-1] == {"word": "biases"}
    assert len(data["by_word"]) == len(data["words"])
    assert data["sum"] == pytest.approx(data["value"])
