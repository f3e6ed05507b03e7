"""Fitted lenses: what a tuned and a Jacobian map are, by first principles; their file; which of them is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from glassformer.errors import CheckpointError, UsageError
from glassformer.interp import edits, fitting
from glassformer.interp.agreement import STEP, agreement
from glassformer.interp.fitting import fit, gathered, streams
from glassformer.interp.readout import KINDS, Readout, divergence
from glassformer.interp.trace import Trace
from glassformer.model import Config, Transformer
from tests.interp.helpers import model
from tests.interp.test_sharing import in_copies
from tests.model.test_stacks import PHASES, drawn
from tests.strategies import stacks


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    return model(n_layers=3).double()


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 40, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_jacobian_map_is_the_mean_summed_derivative(transformer: Transformer) -> None:
    """Against autograd's whole Jacobian of the rest of the model, position by position."""
    text = ids(36)
    found = fit(transformer, text, "jacobian", window=12, rows=5)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor(text).view(3, 12)[order[1:]]
    first = fitting._first(12)
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for one in windows:
        run = Trace(transformer, one.tolist())

        def rest(x: torch.Tensor, run=run) -> torch.Tensor:
            return transformer.stream(x[None], run.forward.positions, layers=range(2, 3))[0]

        whole = torch.autograd.functional.jacobian(rest, run["blocks.1.resid_post"])  # (target, d, source, d)
        expected += whole[first:, :, first:].sum(0).mean(1) / len(windows)
    torch.testing.assert_close(found.matrices[1], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.matrices[2], torch.eye(16, dtype=torch.float64))
    assert float(found.biases.abs().max()) == 0


def made_one(transformer: Transformer, wide: torch.Tensor, held: bool = False) -> torch.Tensor:
    """Three copies as the end of the model makes them one, by hand; `held`: nothing goes back through lengths."""
    first, *others = wide.chunk(3, -1)
    parts = [first]
    for copy, matrix in zip(others, transformer.gather, strict=True):
        y = copy @ matrix.weight.T
        longer = first.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
        parts.append(y * (longer.detach() if held else longer))
    return sum(parts) / 3


def test_a_jacobian_map_of_copies_is_by_all_of_them() -> None:
    transformer = drawn(in_copies())
    text = ids(36)
    found = fit(transformer, text, "jacobian", window=12, rows=5)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor(text).view(3, 12)[order[1:]]
    first = fitting._first(12)
    expected = torch.zeros(16, 48, dtype=torch.float64)
    for one in windows:
        run = Trace(transformer, one.tolist())

        def rest(x: torch.Tensor, run=run, one=one) -> torch.Tensor:
            inputs, shared = transformer.inputs(one[None]), dict(run.forward.shared(2))
            rows = transformer.stream(x[None], run.forward.positions, layers=range(2, 3), shared=shared, inputs=inputs)
            return made_one(transformer, rows[0])

        whole = torch.autograd.functional.jacobian(rest, run["blocks.1.resid_post"])  # (target, d, source, 3 d)
        expected += whole[first:, :, first:].sum(0).mean(1) / len(windows)
    torch.testing.assert_close(found.matrices[1], expected, rtol=1e-9, atol=1e-10)
    run = Trace(transformer, ids(9))
    lens = run.lens(k=3, through=found)
    logits = transformer.unembed_hidden(transformer.normed(run["blocks.1.resid_post"] @ expected.T))
    assert lens.ids[1].tolist() == logits.topk(3).indices.tolist()
    assert lens.ids[2].tolist() == run["logits"].topk(3).indices.tolist()


def test_a_relevance_map_is_the_model_with_its_gates_held(transformer: Transformer) -> None:
    """By hand: norms' divisors and attention weights as they ran, an activation as what it multiplied its input by."""
    text = ids(36)
    found = fit(transformer, text, "relevance", window=12, rows=5)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor(text).view(3, 12)[order[1:]]
    first, block = fitting._first(12), transformer.blocks[2]
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for one in windows:
        run = Trace(transformer, one.tolist())
        sites = ("ln1.scale", "ln2.scale", "attn.pattern", "mlp.pre", "mlp.pre_linear", "mlp.post")
        site = {name: run[f"blocks.2.{name}"] for name in sites}

        def centred(x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(-1, keepdim=True) if block.ln1.centred else x

        def rest(x: torch.Tensor, site=site) -> torch.Tensor:
            values = (centred(x) / site["ln1.scale"] * block.ln1.gain) @ block.attn.v.weight.T
            heads = values.view(12, 2, 8).repeat_interleave(2, 1)
            z = torch.einsum("hqk,khd->qhd", site["attn.pattern"], heads).flatten(1)
            x = x + z @ block.attn.o.weight.T
            read = centred(x) / site["ln2.scale"] * block.ln2.gain
            halves = (
                read @ block.mlp.gate.weight.T / site["mlp.pre"] + read @ block.mlp.up.weight.T / site["mlp.pre_linear"]
            )
            return x + (halves / 2 * site["mlp.post"]) @ block.mlp.down.weight.T

        whole = torch.autograd.functional.jacobian(rest, run["blocks.1.resid_post"])
        expected += whole[first:, :, first:].sum(0).mean(1) / len(windows)
    torch.testing.assert_close(found.matrices[1], expected, rtol=1e-9, atol=1e-10)
    steep = fit(transformer, text, "jacobian", window=12).matrices[1]
    assert float((steep - expected).abs().max()) > 1e-3


def test_divergences_are_those_of_the_distributions(transformer: Transformer) -> None:
    text = ids(60)
    found = fit(transformer, text, "tuned", window=12, steps=3)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    held = torch.tensor(text).view(5, 12)[order[:1]][0].tolist()
    run, first = Trace(transformer, held), fitting._first(12)
    for layer in range(3):
        lens = run.lens(k=40, layers=[layer], halves=False)
        row = lens.places.index(f"blocks.{layer}.resid_post")
        p = run["logits"].softmax(-1)
        q = torch.zeros_like(p).scatter(-1, lens.ids[row], lens.probabilities[row])
        kl = (p * (p / q).log()).sum(-1)[first:].mean()
        assert found.facts["plain"][layer] == pytest.approx(float(kl), rel=1e-4, abs=1e-6)
    assert found.facts["kl"][-1] == pytest.approx(0, abs=1e-6)
    assert set(found.facts["kept"]) <= {"plain", "linear", "tuned"}


def test_a_tuned_lens_undoes_what_later_layers_do_to_every_stream() -> None:
    """A last layer that adds a constant vector: the plain lens is wrong, the tuned one is right."""
    transformer = model(n_layers=2).double()
    with torch.no_grad():
        block = transformer.blocks[1]
        block.attn.o.weight.zero_()
        block.mlp.down.weight.zero_()
        block.attn.o.bias.copy_(torch.linspace(-9, 9, 16))
    found = fit(transformer, ids(900), "tuned", window=12, steps=0)
    assert found.facts["plain"][0] > 0.5
    assert found.facts["kl"][0] < 0.05 * found.facts["plain"][0]
    trained = fit(transformer, ids(900), "tuned", window=12, steps=40)
    assert trained.facts["kl"][0] <= found.facts["kl"][0] * 1.05


def test_the_regression_is_the_weighted_ridge(transformer: Transformer) -> None:
    g = torch.Generator().manual_seed(0)
    x, last = torch.randn(50, 4, generator=g).double(), torch.randn(50, 4, generator=g).double()
    matrix, bias = fitting._regression(x, last)
    weight = 1 / last.square().mean(-1)
    weight = weight / weight.sum()
    centred = x - (weight[:, None] * x).sum(0)
    ridge = 0.01 * float((weight[:, None] * centred.square()).sum(0).mean()) + 1e-12
    m, b = matrix.clone().requires_grad_(), bias.clone().requires_grad_()
    missing = x @ (m - torch.eye(4).double()).T + b - (last - x)
    loss = (weight * missing.square().sum(-1)).sum() + ridge * (m - torch.eye(4).double()).square().sum()
    loss.backward()
    assert float(m.grad.abs().max()) < 1e-10
    assert float(b.grad.abs().max()) < 1e-10


def test_the_trace_reads_through_it(transformer: Transformer) -> None:
    found = fit(transformer, ids(60), "jacobian", window=12)
    run = Trace(transformer, ids(9))
    lens = run.lens(k=3, through=found)
    assert lens.places == [f"blocks.{i}.resid_post" for i in range(3)]
    y = run["blocks.0.resid_post"] @ found.matrices[0].T
    logits = transformer.unembed_hidden(transformer.normed(y))
    assert lens.ids[0].tolist() == logits.topk(3).indices.tolist()
    torch.testing.assert_close(lens.probabilities[0], logits.softmax(-1).topk(3).values)


@given(stacks())
@settings(max_examples=8, phases=PHASES)
def test_every_design_can_be_fitted(config: Config) -> None:
    transformer = drawn(config)
    text = torch.randint(0, config.vocab_size, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    for kind in KINDS:
        found = fit(transformer, text, kind, window=6, steps=1)
        assert len(found.facts["kl"]) == config.n_layers
        assert found.facts["kl"][-1] == pytest.approx(0, abs=1e-5)


def test_a_stream_in_copies_is_read_as_one() -> None:
    """A tuned map reads the copies' mean as the end of the model makes it; claims are of edits of all copies."""
    transformer = drawn(in_copies())
    found = fit(transformer, ids(60), "tuned", window=12, steps=1)
    run = Trace(transformer, ids(9))
    copies = run["blocks.0.resid_post"].unflatten(-1, (3, 16))
    first, mine = copies[:, 0], [copies[:, 0]]
    for j in (1, 2):
        y = copies[:, j] @ transformer.gather[j - 1].weight.T
        mine.append(y * (first.square().mean(-1, keepdim=True) / y.square().mean(-1, keepdim=True)).sqrt())
    logits = transformer.unembed_hidden(
        transformer.normed(torch.stack(mine).mean(0) @ found.matrices[0].T + found.biases[0])
    )
    assert run.lens(k=3, through=found).ids[0].tolist() == logits.topk(3).indices.tolist()
    told = agreement(run, 1, {"plain": None, "tuned": found}, samples=4, seed=1)
    g = torch.Generator().manual_seed(1)
    at = int(torch.randint(1, 9, (1,), generator=g))
    token = int(run.logits(at).topk(10).indices[torch.randint(10, (1,), generator=g)])
    random, h = torch.randn(48, generator=g, dtype=torch.float64), run["blocks.1.resid_post"][at]
    moved = h + random / random.norm() * STEP * h.norm()
    after = Trace(transformer, run.ids, tap=edits.replace("blocks.1.resid_post", moved, positions=at)).logits(at)
    change = after - after.mean() - run.logits(at) + run.logits(at).mean()
    assert float(told.measured[0, 2]) == pytest.approx(float(change[token]), abs=1e-9)


def test_a_readout_on_disk(transformer: Transformer, tmp_path: Path) -> None:
    found = fit(transformer, ids(60), "tuned", window=12, steps=1, model="small")
    found.save(tmp_path / "lens.safetensors")
    read = Readout.load(tmp_path / "lens.safetensors", transformer)
    assert torch.equal(read.matrices, found.matrices)
    assert torch.equal(read.biases, found.biases)
    assert read.to_dict() == found.to_dict()
    with pytest.raises(CheckpointError, match="of small with other weights"):
        Readout.load(tmp_path / "lens.safetensors", model(n_layers=3, seed=4).double())
    copied = drawn(in_copies())
    fit(copied, ids(36), "jacobian", window=12).save(tmp_path / "copies.safetensors")
    assert Readout.load(tmp_path / "copies.safetensors", copied).matrices.shape == (3, 16, 48)
    raw = bytearray((tmp_path / "lens.safetensors").read_bytes())
    raw[-3] ^= 1
    (tmp_path / "altered").write_bytes(raw)
    with pytest.raises(CheckpointError, match="does not match the checksum"):
        Readout.load(tmp_path / "altered", transformer)
    (tmp_path / "broken").write_bytes((tmp_path / "lens.safetensors").read_bytes()[:200])
    for name in ("broken", "missing"):
        with pytest.raises(CheckpointError, match="no readable readout"):
            Readout.load(tmp_path / name, transformer)


def test_measured_effects_are_those_of_edits_and_claims_of_the_lens(transformer: Transformer) -> None:
    """Every edit of the comparison made again as a tap on a whole forward."""
    run = Trace(transformer, ids(10))
    lenses = {"plain": None, "jacobian": fit(transformer, ids(60), "jacobian", window=12)}
    found = agreement(run, 0, lenses, samples=5, seed=3)
    g = torch.Generator().manual_seed(3)
    for sample in range(5):
        at = int(torch.randint(1, 10, (1,), generator=g))
        best = run.logits(at).topk(10).indices
        token = int(best[torch.randint(10, (1,), generator=g)])
        random = torch.randn(16, generator=g, dtype=torch.float64)
        h = run["blocks.0.resid_post"][at]
        vector = random / random.norm() * STEP * h.norm()
        after = Trace(transformer, run.ids, tap=edits.steer(vector, layer=0, positions=at)).logits(at)
        change = after - after.mean() - run.logits(at) + run.logits(at).mean()
        assert float(found.measured[sample, 2]) == pytest.approx(float(change[token]), abs=1e-9)

        def claim(x: torch.Tensor) -> torch.Tensor:
            logits = transformer.unembed_hidden(transformer.normed(x @ lenses["jacobian"].matrices[0].T))
            return logits - logits.mean()

        claimed = float((claim(h + vector) - claim(h))[token])
        assert float(found.claimed[1, sample, 2]) == pytest.approx(claimed, abs=1e-9)
    rows = found.rows()
    both = torch.stack([found.claimed[1].flatten(), found.measured.flatten()])
    assert rows[1]["correlation"] == pytest.approx(float(torch.corrcoef(both)[0, 1]))
    assert [row["lens"] for row in rows] == ["plain", "jacobian"]


def test_a_right_lens_agrees_wholly() -> None:
    """Where the last layer only adds a constant, the tuned lens says what every edit does."""
    transformer = model(n_layers=2).double()
    with torch.no_grad():
        block = transformer.blocks[1]
        block.attn.o.weight.zero_()
        block.mlp.down.weight.zero_()
        block.attn.o.bias.copy_(torch.linspace(-9, 9, 16))
    exact = Readout(
        "tuned",
        torch.eye(16).double().repeat(2, 1, 1),
        torch.stack([block.attn.o.bias + block.mlp.down.bias, torch.zeros(16).double()]),
        "",
        "",
        {},
    )
    rows = agreement(Trace(transformer, ids(12)), 0, {"plain": None, "exact": exact}).rows()
    assert rows[1]["correlation"] == pytest.approx(1)
    assert rows[1]["share"] == pytest.approx(1)
    assert rows[0]["correlation"] < 0.99


def test_what_cannot_be_fitted_or_compared_is_refused(transformer: Transformer) -> None:
    with pytest.raises(UsageError, match="tuned, jacobian or relevance; 'tune' is none"):
        fit(transformer, ids(60), "tune")
    with pytest.raises(UsageError, match="three windows of 12 tokens; the text has 30 tokens"):
        fit(transformer, ids(30), window=12)
    run = Trace(transformer, ids(6))
    with pytest.raises(UsageError, match="earlier layer"):
        agreement(run, -1, {"plain": None})
    with pytest.raises(UsageError, match="takes a lens"):
        agreement(run, 0, {})
    with pytest.raises(UsageError, match="without edits"):
        agreement(Trace(transformer, ids(6), tap=edits.ablate(layer=0)), 0, {"plain": None})


def test_streams_are_those_of_the_trace(transformer: Transformer) -> None:
    windows = torch.tensor(ids(24)).view(2, 12)
    found = streams(transformer, windows)
    first = fitting._first(12)
    assert gathered(transformer, found).equal(found)  # there are no copies
    for row, one in enumerate(windows):
        x = Trace(transformer, one.tolist())["blocks.1.resid_post"][first:]
        torch.testing.assert_close(found[1].view(2, 12 - first, -1)[row], x)
    zero = torch.zeros(3, 5)
    assert float(divergence(zero, zero).max()) == 0
