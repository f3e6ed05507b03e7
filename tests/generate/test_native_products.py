"""Products of the native engine against torch: every format, width and number of rows, and what packing keeps."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import UsageError
from glassformer.generate.packed import Packed
from glassformer.generate.quantize import BLOCK, Weight, dequantise, quantise, stored, weight
from glassformer.kernels import infer_abi
from tests.generate.native import (
    PRECISIONS,
    PROMPT,
    as_quantised,
    halves_apart,
    lib_names,
    lib_of,
    libraries,
    multiply,
    narrows,
    rescales,
)


def test_the_paths_under_test_are_the_ones_meant():
    names = {name: infer_abi.instructions(lib) for name, lib in libraries().items()}
    assert names["portable"] == "portable"
    assert names.get("avx2", "AVX2") == "AVX2"
    assert names.get("no tiles", "AVX-512 VNNI") == "AVX-512 VNNI"


@pytest.mark.parametrize("name", lib_names())
@given(
    precision=st.sampled_from([*PRECISIONS, "Q4_0"]),
    rows=st.integers(1, 80),
    blocks=st.integers(1, 5),
    count=st.integers(1, 19) | st.integers(60, 70),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_products_equal_torch(name, precision, rows, blocks, count, seed):
    torch.manual_seed(seed)
    tensor, x = torch.randn(rows, BLOCK * blocks), torch.randn(count, BLOCK * blocks)
    x *= 10.0 ** torch.randint(-3, 4, (count, 1))
    bias = torch.randn(rows)
    w = (
        Weight("Q4_0", rows, BLOCK * blocks, quantise(tensor, "Q4_0"))
        if precision == "Q4_0"
        else weight(tensor, precision)
    )
    once_more = rescales(lib_of(name), w, count)
    seen = x if w.format in ("F32", "BF16") else as_quantised(x)
    if narrows(lib_of(name), w, count):
        assert w.format == "BF16"
        seen = x.bfloat16().float()
    expected = (seen.double() @ w.to_float().double().T + bias).float()
    got = multiply(lib_of(name), w, x, bias)
    size = (seen.abs().double() @ w.to_float().abs().double().T).float() + 1
    slack = size * (3e-6 if w.format in ("F32", "BF16") else 1e-4)
    if w.format not in ("F32", "BF16"):  # a quant that falls within rounding of a half may go either way
        slack += halves_apart(x) @ w.to_float().abs().T
    if once_more:  # each weight moves by half a step at most, and 127 steps reach what 8 or 4 bits can hold
        step = w.to_float().abs().amax(1) * 1.02 / 127
        slack += seen.abs().sum(1, keepdim=True) * step * 0.501
    assert ((got - expected).abs() <= slack).all()


@pytest.mark.parametrize("name", lib_names())
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_exact_products_of_blocks_are_those_of_their_float32_numbers_to_the_bit(name, kind):
    for count in (1, 3, 8, 11, 30):
        w = Weight(kind, 50, 96, quantise(torch.randn(50, 96), kind))
        x = torch.randn(count, 96)
        expected = multiply(lib_of(name), Weight("F32", 50, 96, w.to_float()), x)
        assert torch.equal(multiply(lib_of(name), w, x, exact=True), expected)


@pytest.mark.parametrize("name", lib_names())
@pytest.mark.parametrize("cols", [1, 2, 7, 33, 96, 130])
def test_bfloat16_numbers_give_what_they_give_as_float32_to_the_bit(name, cols):
    tensor = torch.randn(70, cols).bfloat16().float()
    narrow, wide = weight(tensor, "float32"), Weight("F32", 70, cols, tensor)
    assert narrow.format == "BF16"
    for count in (1, 2, 3, 5, 8, 11, 30, 64):
        x, bias = torch.randn(count, cols) * 10.0 ** torch.randint(-3, 4, (count, 1)), torch.randn(70)
        found = multiply(lib_of(name), narrow, x, bias, exact=True)
        assert torch.equal(found, multiply(lib_of(name), wide, x, bias, exact=True))


def test_many_rows_of_bfloat16_do_not_depend_on_each_other():
    w, x = weight(torch.randn(70, 130), "bfloat16"), torch.randn(200, 130)
    if not narrows(lib_of("best"), w):
        pytest.skip("this processor has no dot products of bfloat16")
    whole = multiply(lib_of("best"), w, x)
    for first, last in ((0, 64), (3, 90), (33, 200)):
        assert torch.equal(multiply(lib_of("best"), w, x[first:last]), whole[first:last])


def test_float32_is_kept_as_bfloat16_only_where_nothing_is_lost():
    tensor = torch.randn(300, 64).bfloat16().float()
    tensor[0, :4] = torch.tensor([-0.0, torch.inf, 1e-40, 3e38]).bfloat16().float()
    for given_ in (tensor, tensor.double(), tensor.bfloat16(), tensor.T.contiguous().T):
        kept = weight(given_, "float32")
        assert (kept.format, kept.note) == ("BF16", "")
        assert torch.equal(kept.to_float().view(torch.int32), tensor.view(torch.int32))
    for at in ((0, 0), (299, 63)):  # one number that has more digits, wherever it is
        other = tensor.clone()
        other[at] = 1 + 2**-20
        kept = weight(other, "float32")
        assert kept.format == "F32"
        assert torch.equal(kept.to_float(), other)


@given(
    kind=st.sampled_from(["Q8_0", "Q4_0", "Q4_1"]),
    rows=st.integers(1, 80),
    blocks=st.integers(1, 5),
    count=st.integers(1, 70),
    exact=st.booleans(),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_many_rows_get_what_each_gets_alone_to_the_bit(kind, rows, blocks, count, exact, seed):
    """With tiles, without them, and one at a time; a long prompt's, in another prompt."""
    torch.manual_seed(seed)
    w = Weight(kind, rows, BLOCK * blocks, quantise(torch.randn(rows, BLOCK * blocks), kind))
    x, bias = torch.randn(count, BLOCK * blocks) * 10.0 ** torch.randint(-3, 4, (count, 1)), torch.randn(rows)
    x[torch.rand(count) < 0.1] = 0
    for name in ("best", "no tiles"):
        lib = lib_of(name)
        others = PROMPT if not exact and rescales(lib, w, count) else 1
        alone = torch.cat([multiply(lib, w, row.repeat(others, 1), bias, exact)[:1] for row in x])
        assert torch.equal(multiply(lib, w, x, bias, exact), alone)


@pytest.mark.parametrize("name", lib_names())
@pytest.mark.parametrize("cols", [1, 2, 7, 33, 65])
def test_float_products_take_any_width(name, cols):
    tensor, x = torch.randn(5, cols), torch.randn(3, cols)
    for precision in ("float32", "bfloat16", "int8"):  # int8 keeps such rows in bfloat16
        w = weight(tensor, precision)
        assert w.format == ("F32" if precision == "float32" else "BF16")
        torch.testing.assert_close(multiply(lib_of(name), w, x), x @ w.to_float().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", lib_names())
def test_extreme_quants_do_not_overflow(name):
    """Every quant at its largest: sums that a narrower accumulator would wrap."""
    for kind, value in (("Q8_0", 127.0), ("Q8_0", -127.0), ("Q4_0", -8.0), ("Q4_1", 15.0)):
        tensor = torch.full((16, 64), value)
        tensor[:, 0] = 0 if kind == "Q4_1" else value
        w = Weight(kind, 16, 64, quantise(tensor, kind))
        for sign in (1.0, -1.0):
            x = torch.full((2, 64), 127.0 * sign)
            torch.testing.assert_close(multiply(lib_of(name), w, x), x @ w.to_float().T, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("name", lib_names())
def test_packing_loses_nothing(name, kind):
    w = Weight(kind, 40, 96, quantise(torch.randn(40, 96) * 3, kind))
    packed, row = Packed(lib_of(name), w), torch.empty(96)
    for i in range(40):
        lib_of(name).gf_unpack(ctypes.byref(packed.matrix), i, row.data_ptr())
        assert torch.equal(row, w.to_float()[i])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_block_formats_are_ggufs(kind):
    import gguf

    x = torch.randn(8, 128)
    x[0] = 0
    mine = quantise(x, kind)
    type_ = gguf.GGMLQuantizationType[kind]
    assert torch.equal(torch.from_numpy(gguf.quants.dequantize(mine.numpy(), type_)), dequantise(mine, kind))
    theirs = torch.from_numpy(gguf.quants.quantize(x.numpy(), type_))
    assert (mine == theirs).float().mean() > 0.98  # both round to nearest; ties and reciprocals differ
    assert (dequantise(mine, kind) - x).norm() <= 1.01 * (dequantise(theirs, kind) - x).norm()


def test_other_gguf_formats_are_stored_again_and_say_so():
    import gguf
    import numpy as np

    class Raw:
        kind, shape = "Q5_0", (4, 64)
        data = gguf.quants.quantize(
            np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q5_0
        )

        def values(self):
            return gguf.quants.dequantize(self.data, gguf.GGMLQuantizationType.Q5_0)

    w = stored(Raw())
    assert w.format == "Q8_0"
    assert w.note == "Q5_0 in the file, stored again as Q8_0"
    torch.testing.assert_close(w.to_float(), torch.from_numpy(Raw().values()), rtol=0, atol=0.02)


def test_float32_of_a_gguf_takes_bfloat16_where_that_is_the_same_and_exactness_was_asked():
    class Raw:
        kind, shape = "F32", (4, 64)
        numbers = torch.randn(4, 64).bfloat16().float()
        data = numbers.numpy().view("uint8")

        def values(self):
            return self.numbers.numpy()

    for exact, format_ in ((True, "BF16"), (False, "F32")):
        w = stored(Raw(), exact)
        assert (w.format, w.note) == (format_, "")
        assert torch.equal(w.to_float(), Raw.numbers)


def test_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="Precision 'int3' is unknown; choose float32, bfloat16, int8, int4."):
        weight(torch.zeros(2, 32), "int3")
