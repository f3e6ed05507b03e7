"""The native forward pass against the transformer in torch: designs, slots, precisions."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from glassformer.checkpoint import raw_blocks, read_config
from glassformer.errors import CheckpointError, MemoryLimitError, ShapeError
from glassformer.generate.native_layers import refusal
from glassformer.generate.native_model import NativeModel
from glassformer.generate.packed import Packed
from glassformer.generate.quantize import Weight, weight
from glassformer.kernels import infer_abi
from glassformer.model import Attention, Config, Experts, FeedForward, Layer, Norm, Rotary, Transformer, uniform
from glassformer.model.cache import Cache, cache_bytes
from tests.generate.native import (
    PRECISIONS,
    lib_names,
    lib_of,
    narrows,
    rescales,
)
from tests.strategies import configs, native_stacks


def random_transformer(config: Config, seed: int = 0) -> Transformer:
    """Every parameter random, so that one that is dropped or swapped shows."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4) if p.ndim > 1 else p.normal_(0.5, 0.3)
    return model.requires_grad_(False)


def reference(model: Transformer, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids]))[0]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", lib_names())
@given(config=st.one_of(configs(), native_stacks()), seed=st.integers(0, 99), threads=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_every_design_equals_the_transformer(name, config, seed, threads):
    assume(refusal(config) is None)
    model = random_transformer(config, seed)
    fast = NativeModel.from_transformer(model, threads=threads, lib=lib_of(name))
    ids = torch.randint(config.vocab_size, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    single = reference(model, ids)
    expected = reference(model.double(), ids).float()
    # A few random designs are badly conditioned: torch's own float32 is then as far from the truth.
    own = float((single - expected).abs().max() / expected.abs().max())
    close(fast.forward(ids, [0] * 40, range(40)), expected, max(1e-5, 4 * own))


@given(config=native_stacks(), seed=st.integers(0, 99), precision=st.sampled_from(PRECISIONS))
@settings(max_examples=40, deadline=None)
def test_any_design_decodes_what_it_prefills_alone_and_beside_others_to_the_bit(config, seed, precision):
    model = random_transformer(config, seed)
    fast = NativeModel.from_transformer(model, precision, slots=3, cache_bits=32, lib=lib_of("best"))
    ids = torch.randint(config.vocab_size, (24,), generator=torch.Generator().manual_seed(seed)).tolist()
    whole = fast.forward(ids, [0] * 24, range(24))
    fast.prefill(ids[:20], 1)
    fast.prefill(ids[:3], 2)
    for step in range(4):
        at = [20 + step, 3 + step]
        assert torch.equal(fast.decode([ids[i] for i in at], [1, 2], at), whole[at])
    fast.copy_prefix(0, 1, 9)
    assert torch.equal(fast.forward(ids[9:], [1] * 15, range(9, 24)), whole[9:])


def wide(heads: int = 6) -> Config:
    return uniform(
        vocab_size=100,
        d_model=64,
        n_layers=2,
        context=1300,  # several spans of the attention kernel
        mixer=Attention(n_heads=heads, n_kv_heads=2, d_head=16, rotary=Rotary(1000.0)),
        windows=(None, 50),
        feed_forward=FeedForward(d_ff=96),
        norm=Norm("rms"),
        tied=True,
    )


WIDE = wide()


def mixed(active: int = 4) -> Config:
    """Layers that differ in what they see and are made of: a window and sinks beside ALiBi and another layer's keys,
    a part of each head turned, gates, a dense part beside experts, biases."""
    heads = {"n_heads": 4, "n_kv_heads": 2, "d_head": 16}
    sinks = Attention(**heads, bias=True, out_bias=True, rotary=Rotary(1000.0, 0.5), window=50, sink=True, softcap=9.0)
    slopes = Attention(**heads, rotary=None, alibi=(0.5, 0.1, 0.02, 0.0), gate="element", qk_norm="whole")
    shares = Attention(**heads, rotary=Rotary(1000.0), d_value=16, chunk=300, keys_from=1, qk_norm="head")
    dense = FeedForward(96, "gelu_tanh", bias=True)
    routed = Experts(4, active, 32, bias=True, clamp=3.0, linear_shift=1.0, router_bias=True)
    chosen = Experts(4, active, 64, scores="sigmoid", correction=True, shared=FeedForward(32), shared_gate=True)
    layers = (Layer(sinks, routed), Layer(slopes, chosen, "both"), Layer(shares, dense, parallel=True))
    return Config(100, 64, 1300, layers, tied=True, logit_softcap=30.0)


DESIGNS = {"alike": WIDE, "mixed": mixed()}


def rounded(name: str, precision: str) -> str:
    """4 bits spare the embedding."""
    return "int8" if precision == "int4" and name == "embed.weight" else precision


def as_stored(name: str, p: Tensor, precision: str) -> Tensor:
    """A parameter as a model in a precision holds it, in float32."""
    if p.ndim == 1 or name.endswith(("router.weight", "shared_gate.weight", ".bias")):
        return p
    return weight(p.flatten(0, -2), rounded(name, precision)).to_float().view(p.shape)


@pytest.mark.parametrize("name", lib_names())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("bits", "design"), [(32, "alike"), (16, "alike"), (16, "mixed"), (8, "mixed")])
def test_a_token_does_not_depend_on_what_shares_its_step(name, precision, bits, design):
    """Bit for bit: prefill in one piece, in pieces, token by token, and in a batch at other positions."""
    model = random_transformer(DESIGNS[design])
    fast = NativeModel.from_transformer(model, precision, slots=9, cache_bits=bits, lib=lib_of(name))
    ids = torch.randint(100, (1200,)).tolist()
    whole = fast.forward(ids, [0] * 1200, range(1200))
    # The same weights in float32 in torch: the rest is activations in 8 bits, and the cache's rounding.
    same = Transformer.empty(model.config).load({k: as_stored(k, p, precision) for k, p in model.named_parameters()})
    expected = reference(same, ids)
    limit = 0.05 if precision in ("float32", "bfloat16") else 0.12
    if precision == "float32" and bits == 32:
        close(whole, expected)
    else:
        assert (whole - expected).norm() <= limit * expected.norm()
    pieces = [fast.forward(ids[a:b], [1] * (b - a), range(a, b)) for a, b in ((0, 1), (1, 4), (4, 37), (37, 1200))]
    # Long prompts are rounded to bfloat16 where a model is not exact and the processor multiplies bfloat16 quickly: in
    # products with bfloat16 weights, and in attention to a bfloat16 cache; their blocks have one scale an output where
    # there are no tiles (docs/decisions/0010).
    quick = narrows(lib_of(name), weight(torch.zeros(32, 64), "bfloat16"))
    rounds = quick and (precision == "bfloat16" or (precision != "float32" and bits == 16))
    rounds = rounds or (precision in ("int8", "int4") and rescales(lib_of(name), weight(torch.zeros(32, 64), "int8")))

    def same_as_whole(got: Tensor, right: Tensor) -> bool:
        return bool((got - right).norm() <= limit * right.norm()) if rounds else torch.equal(got, right)

    assert same_as_whole(torch.cat(pieces), whole)
    starts = [0, 3, 64, 5, 31, 510, 700, 1150]
    for slot, start in enumerate(starts, 1):
        fast.prefill(ids[:start] or ids[:1], slot)
    for step in range(4):
        at = [start + step for start in starts]
        got = fast.decode([ids[i] for i in at], range(1, 9), at)
        assert same_as_whole(got, whole[at])


@pytest.mark.parametrize("name", lib_names())
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", [wide(6), wide(4), mixed(2)], ids=["6 heads", "4 heads", "mixed"])
def test_short_sequences_in_one_step_get_what_each_gets_alone_to_the_bit(name, precision, config):
    """Two cached heads; with six heads their outputs share a block of 32, with four each has its own."""
    model = random_transformer(config)
    ids = torch.randint(100, (200,)).tolist()
    starts = [1, 3, 64, 5, 31, 100, 33, 150, 17, 80]
    together, alone = (
        NativeModel.from_transformer(model, precision, slots=len(starts), cache_bits=16, lib=lib_of(name))
        for _ in range(2)
    )
    for slot, start in enumerate(starts):
        assert torch.equal(together.prefill(ids[:start], slot), alone.prefill(ids[:start], slot))
    for step in range(3):
        at = [start + step for start in starts]
        got = together.decode([ids[i] for i in at], range(len(at)), at)
        each = [alone.decode([ids[i]], [slot], [i]) for slot, i in enumerate(at)]
        assert torch.equal(got, torch.cat(each))


@pytest.mark.parametrize("name", lib_names())
def test_a_model_of_bfloat16_numbers_is_answered_in_float32_from_half_the_bytes(name):
    model = random_transformer(WIDE)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())
    wide = {k: Weight("F32", *p.shape, p.detach()) if p.ndim == 2 else p for k, p in model.named_parameters()}
    narrow = NativeModel.from_transformer(model, slots=3, lib=lib_of(name))
    plain = NativeModel(WIDE, wide, slots=3, lib=lib_of(name))
    assert (narrow.precision, narrow.cache_bits, narrow.notes) == ("float32", 32, {})
    assert narrow.weight_bytes * 2 == plain.weight_bytes
    ids = torch.randint(100, (600,)).tolist()
    expected = plain.forward(ids, [0] * 600, range(600))
    assert torch.equal(narrow.forward(ids, [0] * 600, range(600)), expected)
    close(expected, reference(model, ids))
    for each in (narrow, plain):
        each.prefill(ids[:50], 1)
        each.prefill(ids[:7], 2)
    for step in range(3):
        at = [600 + step, 50 + step, 7 + step]
        tokens = [ids[step], ids[at[1]], ids[at[2]]]
        assert torch.equal(narrow.decode(tokens, range(3), at), plain.decode(tokens, range(3), at))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_whole_passes_with_and_without_tiles_are_equal_to_the_bit(precision):
    model = random_transformer(WIDE)
    ids = torch.randint(100, (700,)).tolist()
    with_, without = (
        NativeModel.from_transformer(model, precision, threads=2, lib=lib_of(name)).forward(ids, [0] * 700, range(700))
        for name in ("best", "no tiles")
    )
    assert torch.equal(with_, without)


def test_weights_may_come_and_go_in_any_order():
    """Small matrices share pages; a shelf that is emptied is given back while another is being filled."""
    lib, generator = infer_abi.library(), torch.Generator().manual_seed(0)
    held: list[tuple[Packed, Tensor]] = []
    for step in range(300):
        if held and torch.rand(1, generator=generator) < 0.45:
            held.pop(int(torch.randint(len(held), (1,), generator=generator)))
        rows = int(torch.randint(1, 3000, (1,), generator=generator))
        tensor = torch.full((rows, 256), float(step))
        held.append((Packed(lib, weight(tensor, "float32"), 1), tensor))
    row = torch.empty(256)
    for packed, tensor in held:
        for i in (0, len(tensor) - 1):
            lib.gf_unpack(ctypes.byref(packed.matrix), i, row.data_ptr())
            assert torch.equal(row, tensor[i])


def test_slots_are_apart_and_prefixes_can_be_copied():
    model = random_transformer(WIDE)
    fast = NativeModel.from_transformer(model, slots=3)
    a, b = torch.randint(100, (2, 60)).tolist()
    fast.prefill(a, 0)
    fast.prefill(b, 1)
    close(
        fast.decode([5, 6], [0, 1], [60, 60]),
        torch.stack([reference(model, [*a, 5])[-1], reference(model, [*b, 6])[-1]]),
    )
    fast.copy_prefix(0, 2, 33)
    close(fast.prefill(b[33:], 2, 33), reference(model, a[:33] + b[33:])[-1])
    # A position given again is overwritten, and what lies behind is not seen.
    close(fast.forward(b[:10], [0] * 10, range(10), [9])[0], reference(model, b[:10])[-1])


def test_what_does_not_fit_is_refused():
    fast = NativeModel.from_transformer(random_transformer(WIDE), slots=2, capacity=50)
    with pytest.raises(ShapeError, match="Position 50 does not fit: this engine holds 50 tokens a sequence."):
        fast.decode([1], [0], [50])
    with pytest.raises(ShapeError, match="ids must be below 100 and slots below 2"):
        fast.decode([100], [0], [0])
    with pytest.raises(ShapeError, match="ids must be below 100 and slots below 2"):
        fast.decode([1], [2], [0])
    with pytest.raises(ShapeError, match="2 tokens, 1 slots and 1 positions do not match"):
        fast.decode([1, 2], [0], [0])
    with pytest.raises(ShapeError, match="name them in rising order"):
        fast.forward([1, 2], [0, 0], [0, 1], [1, 0])
    with pytest.raises(ShapeError, match="Cannot copy 5 tokens from slot 0 to 2 of 2 slots"):
        fast.copy_prefix(0, 2, 5)
    weights = dict(random_transformer(WIDE).named_parameters())
    del weights["blocks.1.mlp.up.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 'blocks.1.mlp.up.weight'"):
        NativeModel(WIDE, weights)


def test_no_memory_for_a_pass_is_said(monkeypatch):
    fast = NativeModel.from_transformer(random_transformer(WIDE), lib=lib_of("best"))
    monkeypatch.setattr(fast, "_lib", SimpleNamespace(gf_forward=lambda *given: 4))
    with pytest.raises(MemoryLimitError, match="no memory for this model's buffers"):
        fast.prefill([1, 2, 3])


def without_choices(config):
    """The design without experts: where two are as likely (a cap makes many so), rounding chooses."""

    def dense(feed):
        return FeedForward(12) if isinstance(feed, Experts) else feed

    layers = (dataclasses.replace(layer, feed_forward=dense(layer.feed_forward)) for layer in config.layers)
    return dataclasses.replace(config, layers=tuple(layers))


@settings(max_examples=30)
@given(native_stacks().map(without_choices), st.sampled_from(lib_names()))
def test_keys_and_values_in_8_bits_are_the_definitions(config, name):
    """Numbers of the cache that are rounded the other way, one step of 127, are all that may differ from torch's."""
    assume(refusal(config, config.context) is None)
    model = random_transformer(config)
    ids = torch.randint(config.vocab_size, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    fast = NativeModel.from_transformer(model, cache_bits=8, lib=lib_of(name))
    cache = Cache(config, 1, len(ids), bits=8)
    whole = fast.forward(ids, [0] * len(ids), range(len(ids)))
    with torch.inference_mode():
        expected = torch.cat([model(torch.tensor([part]), cache)[0] for part in (ids[:7], ids[7:8], ids[8:])])
    assert (whole - expected).abs().max() <= 0.02 * expected.abs().max()


def test_keys_and_values_in_8_bits_are_nearly_the_exact_ones():
    """Of a plain model; drawn ones may make any difference larger."""
    model = random_transformer(WIDE)
    ids = torch.randint(WIDE.vocab_size, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        rounded = model(torch.tensor([ids]), Cache(WIDE, 1, len(ids), bits=8))[0]
    exact = reference(model, ids)
    assert 0 < (rounded - exact).norm() <= 0.05 * exact.norm()


def test_a_cache_in_8_bits_takes_about_half_of_one_in_16():
    config = uniform(100, 64, 2, 256, Attention(4, 2, 64), FeedForward(96))
    held = {bits: cache_bytes(config, bits) for bits in (8, 16, 32)}
    assert held == {32: 2 * 2 * 128 * 4, 16: 2 * 2 * 128 * 2, 8: 2 * 2 * (128 + 8)}
    for bits, bytes in held.items():
        cache = Cache(config, 1, 256, bits=bits)
        assert sum(x.numel() * x.element_size() for x in cache._by_slot()) == 256 * bytes


def test_bytes_read_count_weights_and_cache():
    model = random_transformer(WIDE)
    fast = NativeModel.from_transformer(model, capacity=64)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2) * 4
    assert fast.bytes_per_token(9) == matrices + 2 * 10 * 2 * 2 * 16 * 4


def test_experts_are_read_from_the_files_own_blocks(tmp_path, monkeypatch):
    """A mapped GGUF of experts in 4 bits: no matrix of theirs is copied, one row is what many rows are."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from sizes import write

    path = tmp_path / "random.gguf"
    write(path, "tiny")
    config, raw = read_config(path), raw_blocks(path)
    model = Transformer.empty(config).load({key: torch.from_numpy(raw[key].values()) for key in raw})
    ids = torch.randint(512, (60,)).tolist()
    exact = NativeModel.from_gguf(path, exact=True)
    close(exact.forward(ids, [0] * 60, range(60)), reference(model, ids))
    fast = NativeModel.from_gguf(path, slots=2)
    assert fast.notes == {}
    whole = fast.forward(ids, [0] * 60, range(60))
    assert (whole - reference(model, ids)).norm(dim=-1).median() <= 0.1 * reference(model, ids).norm(dim=-1).median()
    one = torch.cat([fast.decode([token], [1], [i]) for i, token in enumerate(ids)])
    assert torch.equal(one, whole)
    if (maps := Path("/proc/self/maps")).exists():
        lines = [line.split() for line in maps.read_text().splitlines() if line.endswith(str(path))]
        places = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
        held = [x for x in fast._keep if isinstance(x, Tensor) and x.dtype == torch.uint8]
        assert len(held) == 3 * config.n_layers
        assert all(any(low <= x.data_ptr() < high for low, high in places) for x in held)


def test_what_is_not_expressed_is_said_once_with_what_is_slower():
    config = uniform(100, 64, 1, 64, Attention(4, 2, 16, out_norm=Norm()), FeedForward(96))
    with pytest.raises(ShapeError, match="does not compute norms of the heads' outputs; .* through torch in float32"):
        NativeModel.from_transformer(random_transformer(config))


@pytest.mark.smollm2
def test_smollm2_exactly_and_in_its_files_own_blocks(smollm2):
    ids = smollm2.encode("The capital of France is")
    expected = reference(smollm2.transformer, ids)
    exact = NativeModel.from_transformer(smollm2.transformer, capacity=64)
    close(exact.forward(ids, [0] * len(ids), range(len(ids))), expected)
    del exact
    blocks = NativeModel.from_gguf(smollm2.source, exact=True, capacity=64)
    assert (blocks.precision, blocks.notes) == ("float32", {})
    close(blocks.forward(ids, [0] * len(ids), range(len(ids))), expected)
    del blocks
    own = NativeModel.from_gguf(smollm2.source, capacity=64)
    assert own.precision == "Q4_1+Q8_0"
    assert own.notes == {}  # every matrix as the file stores it
    assert own.weight_bytes < 100e6
    p = torch.softmax(own.prefill(ids), 0)
    assert smollm2.decode([int(p.argmax())]) == " Paris"
    assert float(p.max()) == pytest.approx(0.7725, abs=0.05)
