"""Every derived place equals what passed there in the forward, on any design, with and without padding.

Drawn designs are computed in float64, for some of them enlarge float32's rounding beyond a bound that would tell much.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import MemoryLimitError, ShapeError, SiteError, TextError
from glassformer.interp import edits, memory
from glassformer.interp.taps import Record, compose
from glassformer.interp.trace import Trace
from glassformer.model.sites import names
from glassformer.model.transformer import Transformer
from tests.interp.helpers import close, model, randomised
from tests.strategies import configs

ROUNDING = 1e-12
"""Of float64, over the largest value; what was seen in 150 drawn designs is 3e-15."""


def seen(transformer: Transformer, ids, mask=None, tap=None, only="") -> dict[str, torch.Tensor]:
    """Every site (whose name holds `only`) as it passed in a forward."""
    record = Record(*(name for name in names(transformer.config) if only in name))
    taps = [record] if tap is None else [tap, record]
    with torch.no_grad():
        transformer(ids, mask=mask, tap=compose(*taps, config=transformer.config))
    return {name: record[name] for name in record}


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(0, 2**16))
def test_every_site_of_any_design(config, seed):
    transformer = randomised(Transformer(config), seed).double()
    ids = torch.randint(0, config.vocab_size, (1, 11), generator=torch.Generator().manual_seed(seed))
    t = Trace(transformer, ids[0].tolist())
    for name, x in seen(transformer, ids).items():
        close(t.tensor(name), x, name, ROUNDING)
        axis = 2 if name.endswith(("scores", "pattern")) else 1
        close(t.at(name, [7, 2]), x.index_select(axis, torch.tensor([7, 2]))[0], name, ROUNDING)
        close(t.at(name, -1), x.select(axis, 10)[0], name, ROUNDING)
        for q, k in ((slice(7, 9), slice(0, 5)), (slice(3, 8), slice(2, 11))) if axis == 2 else ():
            _, layer, part = name.split(".", 2)  # a tile below the diagonal, and one across it
            close(t.forward.grid(int(layer), part, None, q, k), x[:, :, q, k], name, ROUNDING)


@settings(max_examples=12, deadline=None)
@given(configs(), st.integers(0, 2**16))
def test_a_padded_batch(config, seed):
    transformer = randomised(Transformer(config), seed).double()
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, config.vocab_size, (n,), generator=g).tolist() for n in (9, 4, 7)]
    t = Trace(transformer, rows)
    for i, row in enumerate(rows):
        alone = Trace(transformer, row)
        one = t.row(i)
        for name in names(config):
            close(one.tensor(name), alone.tensor(name), name, ROUNDING)
    assert t["embed"].shape[:2] == (3, 9)


def test_the_stream_is_the_forward_s_bit_by_bit():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        transformer = model().to(dtype)
        ids = torch.arange(12)[None]
        t, passed = Trace(transformer, ids[0].tolist()), seen(transformer, ids, only="resid")
        for name, x in passed.items():
            assert torch.equal(t.tensor(name), x), (name, dtype)


def test_tiles_rows_and_heads_are_slices_of_the_whole():
    transformer = model(windows=(None, 3), softcap=4.0)
    t = Trace(transformer, list(range(20)))
    for layer in range(2):
        for of in (t.pattern, t.scores):
            whole = of(layer)
            close(of(layer, 2, 5), whole[2, 5])
            close(of(layer, queries=slice(3, 9), keys=slice(2, 7)), whole[:, 3:9, 2:7])
            close(of(layer, -1), whole[3])
        assert torch.allclose(t.pattern(layer).sum(-1), torch.ones(4, 20))


def test_long_texts_are_derived_in_tiles():
    transformer = model(context=700)
    t = Trace(transformer, [i % 40 for i in range(600)])
    close(t.pattern(1), seen(transformer, torch.tensor([t.ids]))["blocks.1.attn.pattern"][0])


def test_shapes_and_aliases():
    t = Trace(model(), [1, 2, 3])
    assert t["blocks.1.attn.pattern"].shape == (4, 3, 3)
    assert torch.equal(t["blocks.-1.attn.hook_pattern"], t["blocks.1.attn.pattern"])
    assert t["logits"].shape == (3, 40)
    assert t.logits().shape == (40,)
    assert len(t) == 3
    assert t.tokens == ["<1>", "<2>", "<3>"]
    assert "3 tokens" in repr(t)
    assert Trace(model(), [[1, 2], [3]])["embed"].shape == (2, 2, 16)


def test_heads_add_up_to_what_attention_adds():
    for post in (False, True):
        transformer = model(post=post)
        t = Trace(transformer, list(range(9)))
        heads = t.head_outputs(1)
        bias = transformer.blocks[1].attn.o.bias
        if not post:
            close(heads.sum(0) + bias, t["blocks.1.attn.out"])
        close(t.head_outputs(1, 2, 4), heads[2, 4])
        parts = t.contributions(1, 2, 6)
        close(parts.sum(0), heads[2, 6])
        weighted = t.weighted(1)
        close(weighted[2, 6], parts.norm(dim=-1))
        close(t.weighted(1, 2, 6, slice(1, 4)), weighted[2, 6, 1:4])


def test_a_trace_under_a_tap_is_of_the_changed_model():
    transformer = model()
    ids = torch.tensor([list(range(10))])
    for tap in (
        edits.knockout(keys=2, queries=slice(4, None)),
        edits.ablate(layer=0, head=1),
        edits.ablate(layer=1, keys=[0, 3]),
        edits.steer(torch.ones(16), layer=0, positions=3),
        edits.replace("final.scale", 2.0),
        edits.replace("blocks.1.ln2.scale", 2.0),
        edits.tap("blocks.0.attn.rot_q", lambda x, where: x * 2),
        edits.replace("logits", 1.0, positions=2),
    ):
        t = Trace(transformer, ids[0].tolist(), tap=tap)
        for name, x in seen(transformer, ids, tap=tap).items():
            close(t.tensor(name), x, name)


def test_an_edited_row_of_a_batch():
    transformer = model()
    t = Trace(transformer, [[1, 2, 3, 4], [5, 6, 7]], tap=edits.knockout(keys=1, rows=1))
    alone = Trace(transformer, [5, 6, 7], tap=edits.knockout(keys=1))
    close(t.row(1).pattern(1), alone.pattern(1))
    close(t.row(0).pattern(1), Trace(transformer, [1, 2, 3, 4]).pattern(1))


def test_gradients_agree_with_differences():
    transformer = model(post=True, logit_softcap=5.0).double()
    t = Trace(transformer, [3, 1, 4, 1, 5])
    for name in names(transformer.config):
        if name.endswith("scores"):
            continue
        grad = t.gradient(name, 7, against=9, position=3)
        assert grad.shape == t[name].shape

        def number(step, name=name, grad=grad):
            change = edits.tap(name, lambda x, where: x + step * grad)
            moved = Trace(transformer, t.ids, tap=change)
            return float(moved.at("logits.precap", 3)[7] - moved.at("logits.precap", 3)[9])

        if name == "logits":
            continue  # after the number's own place
        slope = (number(1e-6) - number(-1e-6)) / 2e-6
        assert slope == pytest.approx(float(grad.square().sum()), rel=1e-4, abs=1e-7), name


def test_gradients_of_a_function_and_of_batches():
    transformer = model()
    t = Trace(transformer, [[1, 2, 3], [4, 5]])
    both = t.gradients(["embed", "blocks.1.attn.z"], lambda logits: logits[:, -1, 3].sum())
    one = t.row(1).gradient("blocks.1.attn.z", lambda logits: logits[:, -1, 3].sum())
    close(both["blocks.1.attn.z"][1, 1:], one)
    assert float(both["embed"].abs().sum()) > 0
    with pytest.raises(ShapeError, match="one number"):
        t.gradient("embed", lambda logits: logits)


def test_what_is_asked_wrongly_is_said():
    t = Trace(model(), [1, 2, 3])
    with pytest.raises(SiteError, match=r"no site 'blocks.0.attn.patern'.*Did you mean blocks.0.attn.pattern"):
        t["blocks.0.attn.patern"]
    with pytest.raises(SiteError, match="2 layers"):
        t.pattern(2)
    with pytest.raises(SiteError, match="no head 9: layer 0 has 4 heads, 0 to 3"):
        t.pattern(0, 9)
    with pytest.raises(ShapeError, match="3 tokens, positions 0 to 2; there is no position 7"):
        t.pattern(0, 0, 7)
    with pytest.raises(TextError, match="at least one token"):
        Trace(model(), [])
    with pytest.raises(TextError, match="Token id 40 is not in this model's vocabulary of 40"):
        Trace(model(), [40])
    with pytest.raises(SiteError, match=r"position 9, and the text ended at position 2"):
        Trace(model(), [1, 2, 3], tap=edits.ablate(layer=0, positions=9))


def test_what_would_not_fit_is_refused_with_the_arithmetic(monkeypatch):
    transformer = model(context=4096)
    t = Trace(transformer, [i % 40 for i in range(2100)])
    monkeypatch.setattr(memory, "available", lambda device="cpu": 50_000_000)
    with pytest.raises(
        MemoryLimitError, match=r"4 × 2,100 × 2,100 numbers × 4 bytes = 70.6 MB and 50.0 MB are free; ask for one head"
    ):
        t["blocks.0.attn.pattern"]
    assert t.pattern(0, 1, 2000).shape == (2100,)
    assert not t.cost("blocks.0.attn.pattern").fits
    monkeypatch.setattr(memory, "available", lambda device="cpu": 1000)
    with pytest.raises(MemoryLimitError, match="A trace would take .* tokens × 2 layers"):
        Trace(model(context=200_000, n_layers=2), [1] * 150_000)


def test_estimates_grow_with_length_not_its_square():
    config = model().config
    small, large = memory.estimate(config, 1000), memory.estimate(config, 8000)
    assert large.bytes == pytest.approx(8 * small.bytes, rel=0.01)
    assert memory.available() is None or memory.available() > 0


def test_saved_and_loaded(tmp_path):
    transformer = model()
    for ids, tap in (([1, 2, 3], None), ([[1, 2, 3], [4]], None), ([1, 2, 3], edits.knockout(keys=1))):
        t = Trace(transformer, ids, tap=tap)
        t.save(tmp_path / "t")
        back = Trace.load(tmp_path / "t", transformer)
        assert back.ids == t.ids
        for name in names(transformer.config):
            close(back[name], t[name], name)
    from glassformer.errors import CheckpointError

    with pytest.raises(CheckpointError, match="other weights"):
        Trace.load(tmp_path / "t", randomised(model(), 9))
    (t := Trace(transformer, [1, 2, 3])).save(tmp_path / "t")
    other = Trace(transformer, [3, 2, 1])
    other.save(tmp_path / "other")
    (tmp_path / "other" / "trace.safetensors").replace(tmp_path / "t" / "trace.safetensors")
    with pytest.raises(CheckpointError, match="not the file that"):  # of a save that was killed half-way
        Trace.load(tmp_path / "t", transformer)
    told = (tmp_path / "other" / "trace.json").read_text()
    (tmp_path / "t" / "trace.json").write_text(told.replace('"batched": false', '"batched": true'))
    with pytest.raises(CheckpointError, match="does not match the checksum"):
        Trace.load(tmp_path / "t", transformer)
    (tmp_path / "t" / "trace.json").write_text("{")
    with pytest.raises(CheckpointError, match="no readable trace"):
        Trace.load(tmp_path / "t", transformer)
