"""The processor's kernels against float64, against torch, and against themselves on other threads."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.kernels import ops_abi
from glassformer.kernels.ops import ACTIVATIONS, gated, rotate
from glassformer.system.hardware import processor_flags

needs_tiles = pytest.mark.skipif(
    "amx_bf16" not in processor_flags(), reason="this processor has no tiles (AMX); torch's products are used"
)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_is_enough(monkeypatch):
    monkeypatch.setattr(ops_abi, "_ROW_NUMBERS", 1)
    monkeypatch.setattr(ops_abi, "_ATTENTION_QUERIES", 1)


def apart(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x.double() - reference).abs().max() / reference.abs().max())


def test_it_is_there_where_it_can_be():
    there = ops_abi.available()
    assert there["library"]
    assert there["tiles"] == ("amx_bf16" in processor_flags())


@needs_tiles
@given(
    rows=st.integers(128, 300),
    depth=st.integers(1, 200),
    outputs=st.integers(1, 1100),
    bias=st.booleans(),
    spread=st.sampled_from([1e-20, 1.0, 1e15]),
)
@settings(max_examples=60, deadline=None)
def test_products_are_as_exact_as_float32(rows, depth, outputs, bias, spread):
    g = torch.Generator().manual_seed(rows * depth + outputs)
    x, w = torch.randn(rows, depth, generator=g) * spread, torch.randn(outputs, depth, generator=g)
    b = torch.randn(outputs, generator=g) * spread if bias else None
    x[:, 0] *= 1000  # an outlier must not cost the others their digits
    y = ops_abi.linear(x, w, b)
    reference = x.double() @ w.double().T + (0 if b is None else b.double())
    sizes = x.abs().double() @ w.abs().double().T + (0 if b is None else b.double().abs())  # what roundings scale with
    assert y is not None
    # As roundings of 2^-24 in a sum of six times `depth` numbers add up; below 1e-36 the tiles round to zero.
    assert bool(((y - reference).abs() <= 2**-23 * (6 * depth) ** 0.5 * sizes + 1e-36).all())


@needs_tiles
def test_small_numbers_keep_their_digits_beside_large_ones():
    x = torch.zeros(128, 64)
    x[:, 0], x[:, 1] = 1e30, 1.2345678
    w = torch.zeros(2, 64)
    w[0, 0], w[1, 1] = 1.0, 1.0
    assert ops_abi.linear(x, w, None)[0].tolist() == [pytest.approx(1e30), pytest.approx(1.2345678, rel=1e-7)]


@needs_tiles
def test_operands_may_lie_anyhow():
    x, w, b = torch.randn(64, 256).T, torch.randn(33, 64), torch.randn(66)[::2]
    assert apart(ops_abi.linear(x, w, b), x.double() @ w.double().T + b.double()) < 1e-6
    assert ops_abi.linear(x, w.T.contiguous().T, b) is None  # a weight read across is torch's to read
    assert ops_abi.linear(x, w, b.double()) is None


@needs_tiles
def test_a_row_does_not_depend_on_its_company_nor_on_the_threads():
    x, w = torch.randn(700, 96), torch.randn(200, 96)
    whole = ops_abi.linear(x, w, None)
    assert torch.equal(whole[100:300], ops_abi.linear(x[100:300], w, None))
    q, k, v = (torch.randn(1, 4, 150, 32) for _ in range(3))
    z = ops_abi.attention(q, k, v, start=0, window=None, scale=0.2)
    torch.set_num_threads(1)
    assert torch.equal(whole, ops_abi.linear(x, w, None))
    assert torch.equal(z, ops_abi.attention(q, k, v, start=0, window=None, scale=0.2))


@needs_tiles
def test_torchs_own_products_on_tiles_are_right_in_between():
    """Both set the tiles up; neither may take the other's set-up for its own."""
    x, w = torch.randn(256, 128), torch.randn(96, 128)
    bf16 = F.linear(x.bfloat16(), w.bfloat16())
    for _ in range(3):
        ours = ops_abi.linear(x, w, None)
        assert torch.equal(F.linear(x.bfloat16(), w.bfloat16()), bf16)
        assert apart(ours, x.double() @ w.double().T) < 1e-6


@needs_tiles
@given(
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    queries=st.integers(1, 80),
    start=st.sampled_from([0, 5, 64]),
    spare=st.sampled_from([0, 7]),
    d_head=st.sampled_from([8, 16, 40, 64, 96]),
    window=st.sampled_from([None, 1, 9, 33, 500]),
    bf16=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_attention_is_the_textbooks(batch, groups, kv_heads, queries, start, spare, d_head, window, bf16):
    g = torch.Generator().manual_seed(queries * d_head + start)
    keys, dtype = start + queries + spare, torch.bfloat16 if bf16 else torch.float32
    q = (torch.randn(batch, queries, groups * kv_heads, d_head, generator=g) * 2).to(dtype).transpose(1, 2)
    k = torch.randn(batch, keys, kv_heads, d_head, generator=g).to(dtype).transpose(1, 2)
    v = torch.randn(batch, kv_heads, keys, d_head, generator=g).to(dtype)
    i, j = torch.arange(start, start + queries)[:, None], torch.arange(keys)[None]
    seen = (j <= i) & (j > i - window if window else True)
    wide_k, wide_v = (x.double().repeat_interleave(groups, 1) for x in (k, v))
    grid = (q.double() @ wide_k.mT * 0.17).masked_fill(~seen, -torch.inf)
    z = ops_abi.attention(q, k, v, start=start, window=window, scale=0.17)
    assert z is not None
    assert apart(z, grid.softmax(-1) @ wide_v) < (1e-2 if bf16 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 17, 64, 577])
def test_rows(dtype, d):
    loose = 8e-3 if dtype == torch.bfloat16 else 5e-7
    x, weight = (torch.randn(3, 5, d) * 3).to(dtype), torch.randn(d).to(dtype)
    normed = F.rms_norm(x.double(), (d,), weight.double() + 1, 1e-5)
    assert apart(ops_abi.rms_norm(x, weight, 1.0, 1e-5), normed) < loose
    up = torch.randn(3, 5, d).to(dtype)
    wide, wide_up = x.double(), up.double()
    for name, act in (
        ("silu", F.silu),
        ("gelu_tanh", lambda t: F.gelu(t, approximate="tanh")),
        ("relu", F.relu),
        ("relu2", lambda t: F.relu(t).square()),
    ):
        assert apart(ops_abi.gated(name, x, up), act(wide) * wide_up) < loose
        assert apart(ops_abi.gated(name, x), act(wide)) < loose
    assert ops_abi.gated("gelu", x) is None  # torch's erf is its own


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_slopes_of_a_gate(activation, up):
    given = [(torch.randn(3, 5, 37) * 3).bfloat16().requires_grad_() for _ in range(1 + up)]
    upstream = torch.randn(3, 5, 37).bfloat16()
    y = gated(activation, *given)
    wide = [x.detach().double().requires_grad_() for x in given]
    truth = ACTIVATIONS[activation](wide[0])
    truth = truth * wide[1] if up else truth
    assert y.grad_fn is not None
    assert "Gated" in y.grad_fn.name()
    assert apart(y.detach(), truth.detach()) < 8e-3
    for ours, exact in zip(
        torch.autograd.grad(y, given, upstream), torch.autograd.grad(truth, wide, upstream.double()), strict=True
    ):
        assert apart(ours, exact) < 8e-3


def test_a_gate_is_differentiated_twice():
    x = torch.randn(40, 7).bfloat16().requires_grad_()
    (slope,) = torch.autograd.grad(gated("silu", x).float().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(slope.float().sum(), x)
    wide = x.detach().double()
    open_ = wide.sigmoid()
    assert apart(twice, open_ * (1 - open_) * (2 + wide * (1 - 2 * open_))) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 15, 16, 50, 4099])
def test_cross_entropy_leaves_its_gradient(dtype, vocab):
    logits = (torch.randn(7, vocab) * 4 - 300).to(dtype)
    targets = torch.randint(0, vocab, (7,))
    targets[3] = -100
    wide = logits.double().requires_grad_()
    truth = F.cross_entropy(wide, targets, reduction="none")
    truth.sum().backward()
    loss = ops_abi.cross_entropy_(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss.double(), truth, atol=1e-4, rtol=1e-6)
    assert torch.allclose(logits.double(), wide.grad, atol=4e-3 if dtype == torch.bfloat16 else 4e-5, rtol=4e-3)
    assert not logits[3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 20), (33, 33), (3, 4200)])
def test_causal_softmax_and_its_gradient(dtype, queries, keys):
    loose = 8e-3 if dtype == torch.bfloat16 else 1e-6
    scores, upstream = (torch.randn(2, queries, keys) * 9).to(dtype), torch.randn(2, queries, keys).to(dtype)
    wide = scores.double().requires_grad_()
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    truth = (wide * 0.3).masked_fill(hidden, -torch.inf).softmax(-1)
    assert ops_abi.causal_softmax_(scores, 0.3)
    assert apart(scores, truth.detach()) < loose
    assert not scores[:, hidden].any()
    (slopes,) = torch.autograd.grad(truth, wide, upstream.double())
    assert ops_abi.softmax_gradient_(scores, upstream, 0.3)
    assert float((upstream.double() - slopes).abs().max()) < 4 * loose


@pytest.mark.parametrize("temperature", [0.02, 0.7, 5.0])
@pytest.mark.parametrize("vocab", [1, 6, 64, 255, 4099, 50_257])
def test_choices_among_logits(vocab, temperature):
    logits = torch.randn(vocab) * 4
    logits[::7] = logits[vocab // 2]  # equals
    logits[5::11] = -torch.inf
    wide = (logits.double() - logits.max()) / temperature
    found = ops_abi.weight_sum(logits, temperature)
    assert found == pytest.approx(float(wide.exp().sum()), rel=1e-6)
    reached = wide.softmax(0).cumsum(0)
    for share in (0.0, 1e-7, 0.2, 0.5, 0.9, 0.99999, 1.0):
        i = ops_abi.draw(logits, temperature, share)
        assert logits[i] > -torch.inf
        assert float(reached[i - 1] if i else 0) - 2e-6 <= share <= float(reached[i]) + 2e-6
    order = logits.sort(descending=True, stable=True).indices
    for count in {1, min(16, vocab), vocab}:
        assert torch.equal(ops_abi.largest(logits, count), order[:count])


def test_what_is_no_number_is_chosen_among_by_torch():
    logits = torch.randn(300)
    logits[7] = torch.nan
    assert ops_abi.largest(logits, 300) is None
    many = torch.randn(4099)
    many[::3] = torch.nan
    assert torch.equal(ops_abi.largest(many, 16), many.nan_to_num(-torch.inf).topk(16).indices)
    assert ops_abi.weight_sum(logits.double(), 1.0) is None
    assert ops_abi.draw(torch.randn(300), 1e-40, 0.5) is None
    assert ops_abi.largest(torch.randn(300)[::2], 5) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d_head", "pairs"), [(8, 4), (64, 32), (80, 10), (6, 2)])
def test_rotation(dtype, d_head, pairs):
    x = torch.randn(2, 7, 3, d_head).to(dtype)
    angles = torch.randn(2, 7, 1, pairs)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    turned = ops_abi.rotate(x, cos, sin)
    reference = rotate(x.double(), cos.double(), sin.double())
    assert apart(turned, reference) < (8e-3 if dtype == torch.bfloat16 else 5e-7)
    assert torch.equal(turned[..., 2 * pairs :], x[..., 2 * pairs :])


def test_who_asks_for_a_gradient_or_maps_gets_torch():
    x, w = torch.randn(256, 64), torch.randn(32, 64, requires_grad=True)
    assert ops_abi.linear(x, w, None) is None
    with torch.no_grad():
        assert (ops_abi.linear(x, w, None) is not None) == ops_abi.available()["tiles"]
    assert ops_abi.linear(x.double(), w.detach().double(), None) is None
    assert ops_abi.rms_norm(x.requires_grad_(), w.detach()[0], 0.0, 1e-5) is None
    seen = []

    def mapped(row):
        seen.append(ops_abi.gated("silu", row))
        return row

    torch.func.vmap(mapped)(torch.randn(4, 300))
    assert seen == [None]


def test_without_a_compiler_torch_does_it(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    ops_abi.forget()
    try:
        assert ops_abi.available() == {"library": False, "tiles": False}
        assert ops_abi.linear(torch.randn(256, 64), torch.randn(32, 64), None) is None
        assert "texts are read through torch instead" in str(ops_abi.LIBRARY.unavailable())
    finally:
        monkeypatch.undo()
        ops_abi.forget()


def test_the_portable_build_gives_the_same_rows():
    lib = ops_abi.LIBRARY.get("-DGLASSFORMER_PORTABLE")
    assert lib.gk_tiles() == 0
    x, weight, out = torch.randn(9, 50), torch.randn(50), torch.empty(9, 50)
    lib.gk_rms_norm(x.data_ptr(), 9, 50, weight.data_ptr(), 0.0, 1e-5, out.data_ptr(), 0, 1)
    assert apart(out, F.rms_norm(x.double(), (50,), weight.double(), 1e-5)) < 5e-7
    scores = torch.randn(4, 9, 50)
    truth = (scores.double() * 0.3).masked_fill(torch.ones(9, 50, dtype=torch.bool).triu(42), -torch.inf).softmax(-1)
    lib.gk_causal_softmax(scores.data_ptr(), 36, 9, 50, 0.3, 0, 1)
    assert apart(scores, truth) < 1e-6
    assert lib.gk_attention(ctypes.byref(ops_abi._Attention()), None, None, None, None, 1) == 1  # refused, not done
