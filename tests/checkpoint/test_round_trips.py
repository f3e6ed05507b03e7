"""Tables read both ways: whatever a family expresses comes back equal, and nothing is lost silently."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.checkpoint import open_checkpoint, read_config, tensor_shapes, write_native
from glassformer.checkpoint.design_table import Table
from glassformer.checkpoint.families import FAMILIES, for_config
from glassformer.checkpoint.families.family import canonical
from glassformer.checkpoint.gguf_writer import gguf_settings
from glassformer.checkpoint.keys import native_shapes
from glassformer.errors import UnsupportedError
from glassformer.model import Transformer
from glassformer.model.config import Attention, Config, FeedForward, Norm, RopeScaling, Rotary, uniform
from tests.strategies import configs
from tests.tiny import VARIANTS

EPS = st.sampled_from([1e-5, 1e-6, 1e-2])


@st.composite
def scalings(draw: st.DrawFn) -> RopeScaling | None:
    kind = draw(st.sampled_from([None, "linear", "llama3", "yarn"]))
    factor = draw(st.floats(1.5, 64))
    if kind is None:
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    low, high = draw(st.floats(0.5, 3)), draw(st.floats(3.5, 40))
    more = {"attention_factor": draw(st.floats(0.5, 2))} if kind == "yarn" else {}
    return RopeScaling(kind, factor=factor, original_context=draw(st.integers(1, 99)), low=low, high=high, **more)


@st.composite
def expressible(draw: st.DrawFn, family: str) -> Config:
    """Any design that a family's Hugging Face layout expresses."""
    kv, groups, d_head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8]))
    heads, layers = kv * groups, draw(st.integers(1, 3))
    flag, theta = st.booleans(), draw(st.sampled_from([100.0, 10_000.0, 1_000_000.0]))
    activation: Any = draw(st.sampled_from(["gelu", "gelu_tanh", "silu", "relu", "relu2"]))
    free = {"d_model": draw(st.integers(1, 20)), "vocab_size": draw(st.integers(1, 30))}
    common = {"n_layers": layers, "context": draw(st.integers(1, 500)), "tied": draw(flag)}
    d_ff = draw(st.integers(1, 20))
    some = draw(st.lists(st.sampled_from([None, 5]), min_size=layers, max_size=layers))
    windows = tuple(some) if any(some) else ()
    if family in ("gpt2", "gpt_neox"):
        bias = family == "gpt2" or draw(flag)
        share = draw(st.sampled_from([1.0, 0.5])) if d_head == 8 else 1.0
        rotary = None if family == "gpt2" else Rotary(theta, share, draw(scalings()))
        return uniform(
            **{**free, "d_model": heads * d_head},
            **common,
            mixer=Attention(heads, heads, d_head, bias=bias, out_bias=bias, rotary=rotary),
            feed_forward=FeedForward(d_ff, activation, gated=False, bias=True),
            norm=Norm("layer", eps=draw(EPS)),
            learned_positions=rotary is None,
            parallel=rotary is not None and draw(flag),
        )
    if family.startswith("gemma"):
        bias, scaling = draw(flag), draw(scalings())
        cap = st.sampled_from([None, 5.0])
        local = draw(st.sampled_from([50.0, 777.0])) if family == "gemma3_text" and windows else None
        return uniform(
            **free,
            **common,
            mixer=Attention(
                heads,
                kv,
                d_head,
                bias=bias,
                out_bias=bias,
                qk_norm="head" if family == "gemma3_text" else None,
                scale=draw(st.sampled_from([None, 7**-0.5, 256**-0.5])),
                softcap=draw(cap) if family == "gemma2" else None,
                rotary=Rotary(theta, scaling=scaling),
            ),
            windows=windows,
            local_rotary=None if local is None else Rotary(local),
            feed_forward=FeedForward(d_ff, activation),
            norm=Norm(eps=draw(EPS), one_plus=True),
            norms="both",
            embedding_scale=free["d_model"] ** 0.5,
            logit_softcap=draw(cap),
        )
    bias = family == "qwen2" or (family != "mistral" and draw(flag))
    every = {"llama": (), "mistral": draw(st.sampled_from([(), (9,) * layers]))}
    return uniform(
        **free,
        **common,
        mixer=Attention(
            heads,
            kv,
            d_head,
            bias=bias,
            out_bias=bias and family != "qwen2",
            qk_norm="head" if family == "qwen3" else None,
            rotary=Rotary(theta, scaling=draw(scalings())),
        ),
        windows=every.get(family, windows),
        feed_forward=FeedForward(d_ff, activation, bias=family == "llama" and draw(flag)),
        norm=Norm(eps=draw(EPS)),
    )


def numbered(config: Config) -> dict[str, np.ndarray]:
    """Every parameter with values of its own, so that any swap shows."""
    tensors, start = {}, 0
    for key, shape in native_shapes(config).items():
        size = int(np.prod(shape))
        tensors[key] = np.arange(start, start + size, dtype=np.float64).reshape(shape)
        start += size
    return tensors


def check_table(table: Table) -> None:
    ours = numbered(table.config)
    assert table.unplaced() == []
    theirs = {name: table.theirs(name, ours.__getitem__) for name in table.places}
    assert {name: x.shape for name, x in theirs.items()} == {name: p.shape for name, p in table.places.items()}
    for key, values in ours.items():
        assert np.array_equal(table.ours(key, theirs.__getitem__), values), key


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in VARIANTS])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_family_expresses_comes_back(family: str, data: st.DataObject) -> None:
    config = data.draw(expressible(family))
    written = json.loads(json.dumps(FAMILIES[family].to_hf(config)))
    assert FAMILIES[family].from_hf(written, "config.json") == canonical(config)
    check_table(FAMILIES[family].table(config))


@given(config=configs())
@settings(max_examples=30, deadline=None)
def test_any_design_is_expressed_whole_or_refused_by_name(config: Config) -> None:
    with contextlib.suppress(UnsupportedError):
        check_table(for_config(config).table(config))
    for family in (family for family in FAMILIES.values() if family.gguf is not None):
        with contextlib.suppress(UnsupportedError):
            check_table(gguf_settings(family, config)[0])


@given(config=configs())
@settings(max_examples=40, deadline=None)
def test_the_native_layout_holds_every_design(config: Config) -> None:
    transformer = Transformer(config)
    tensors = {name: parameter.detach() for name, parameter in transformer.named_parameters()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == native_shapes(config)
    with TemporaryDirectory() as folder:
        write_native(folder, config, tensors, metadata={"step": 7})
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config == config == read_config(folder)
        assert (checkpoint.format, checkpoint.family, checkpoint.metadata) == ("native", "native", {"step": 7})
        assert tensor_shapes(folder) == native_shapes(config)
        assert list(checkpoint.tensors) == list(native_shapes(config))
        for key, tensor in tensors.items():
            assert torch.equal(checkpoint.tensors[key], tensor), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_native_tensors_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    config = uniform(8, 4, 1, 8, Attention(1, 1, 4), FeedForward(4))
    tensors = {key: torch.randn(shape).to(dtype) for key, shape in native_shapes(config).items()}
    write_native(tmp_path, config, tensors)
    for key, tensor in open_checkpoint(tmp_path).tensors.items():
        assert tensor.dtype is dtype
        assert torch.equal(tensor, tensors[key])


def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    """The values come from the file as it is when they are looked at, so nothing was copied before."""
    config = uniform(8, 4, 1, 8, Attention(1, 1, 4), FeedForward(4))
    write_native(tmp_path, config, {key: torch.ones(shape) for key, shape in native_shapes(config).items()})
    file = tmp_path / "model.safetensors"
    tensor = open_checkpoint(tmp_path).tensors["embed.weight"]
    with file.open("r+b") as f:
        f.seek(file.stat().st_size - 4 * sum(int(np.prod(s)) for s in native_shapes(config).values()))
        f.write(np.full(8 * 4, 3.0, dtype=np.float32).tobytes())
    assert torch.equal(tensor, torch.full((8, 4), 3.0))
