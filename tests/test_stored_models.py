"""A GGUF file is answered from as it lies: nothing is dequantised before something asks to look inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import glassformer as gf
from glassformer.checkpoint import open_checkpoint, write_gguf
from glassformer.checkpoint.stored_tensor import StoredTensor
from glassformer.model import Attention, Config, Experts, Norm, Rotary, Transformer, uniform
from glassformer.predict.score import score
from tests.tiny import tiny_tokenizer

TEXT = "The American shrew mole is a small mammal"


def mixture() -> Config:
    """An OLMoE whose rows are whole blocks of 32."""
    return uniform(
        320,
        64,
        2,
        64,
        Attention(2, 2, 32, rotary=Rotary(1e4), qk_norm="whole", clip_after=True),
        Experts(6, 2, 64, renormalise=False),
        norm=Norm("rms", 1e-5),
        tied=False,
    )


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mixture of experts in 4 bits, and an empty cache."""
    monkeypatch.setattr("glassformer.fetch.store.dequantised_directory", lambda: tmp_path / "cache")
    torch.manual_seed(0)
    config = mixture()
    tensors = {name: 3 * p.detach() if p.ndim > 1 else p.detach() for name, p in Transformer(config).named_parameters()}
    return write_gguf(tmp_path / "m.gguf", config, tensors, tokenizer(tmp_path), family="olmoe", dtype="q4_0")


def tokenizer(tmp_path: Path):
    from glassformer.tokenizer.tokenizer import Tokenizer

    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return Tokenizer.from_directory(tmp_path / "tokenizer")


def copies(file: Path) -> list[Path]:
    return [path for path in (file.parent / "cache").rglob("*") if path.is_file() and path.stat().st_size]


def definition(file: Path) -> gf.Model:
    """The same file through torch alone."""
    model = gf.load(file, device="cpu")
    assert model.transformer.embed.weight.dtype == torch.float32
    return model


def test_answers_come_from_the_files_blocks(file: Path) -> None:
    lazy = gf.load(file, device="cpu")
    assert "float32" in repr(lazy)
    found = lazy.next(TEXT)
    words = found.words(3)
    logits, answer = lazy.logits(TEXT), [t.id for t in lazy.generate(TEXT, max_tokens=8, temperature=0)]
    fast = [t.precision for t in lazy.generate(TEXT, max_tokens=2, precision="fast", temperature=0)]
    ids = lazy.ids(TEXT)
    loss = score(lazy.scorer(16), ids, 16, 4)
    assert lazy.bytes == file.stat().st_size
    assert not lazy._transformer.made
    assert copies(file) == []
    assert fast[0].startswith("Q4_0")

    whole = definition(file)
    expected = whole.next(TEXT)
    assert torch.allclose(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-7)
    assert [w.word for w in words] == [w.word for w in expected.words(3)]
    assert torch.allclose(logits, whole.logits(TEXT), rtol=1e-3, atol=1e-4)
    assert answer == [t.id for t in whole.generate(TEXT, max_tokens=8, temperature=0)]
    assert loss.loss == pytest.approx(score(whole.transformer, ids, 16, 4).loss, rel=1e-5)
    assert [copy.suffix for copy in copies(file)] == [".safetensors"]
    assert gf.load(file, device="cpu").transformer is not None  # the copy is found: nothing is deferred
    assert isinstance(gf.load(file, device="cpu")._transformer, Transformer)


def test_a_reader_goes_on_from_what_it_holds(file: Path) -> None:
    lazy, whole = gf.load(file, device="cpu"), definition(file)
    first, second = lazy.next(TEXT), lazy.next(TEXT[:20])
    for found in (first, second, first):  # its text is read again where another took its place
        theirs = whole.next(found.text)
        paths = [[5], [6, 7], *([i] for i in range(9))]
        assert torch.allclose(found.continuations(paths), theirs.continuations(paths), rtol=1e-3, atol=1e-4)
    reader = lazy.reader(60)
    ids = lazy.ids(TEXT)
    assert torch.allclose(torch.cat(list(reader.pieces(ids, 4))), lazy.logits(TEXT), rtol=1e-4, atol=1e-5)


def test_what_looks_inside_is_dequantised_then(file: Path) -> None:
    model = gf.load(file, device="cpu")
    assert model.trace(TEXT).why(3).residual < 1e-5
    assert model._transformer.made
    assert model.next(TEXT).precision == "float32"


def test_what_does_not_fit_into_the_cache_is_dequantised_by_operations(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = definition(file)
    expected = whole.logits(TEXT)
    for copy in copies(file):
        copy.unlink()
    monkeypatch.setenv("GLASSFORMER_CACHE_LIMIT", "1kB")
    model = gf.load(file, device="cpu")
    with pytest.warns(UserWarning, match="dequantised anew wherever they are read"):
        assert model.transformer is model.transformer
    weight = model.transformer.blocks[0].mlp.experts.up.weight
    assert isinstance(weight, StoredTensor)
    read: list[object] = []
    inner = weight._rows
    weight._rows = lambda which: read.append(which) or inner(which)
    assert torch.allclose(model.logits(TEXT[:5]), whole.logits(TEXT[:5]), rtol=1e-4, atol=1e-5)
    assert read
    assert None not in read  # only the experts that were chosen
    assert torch.allclose(model.logits(TEXT), expected, rtol=1e-4, atol=1e-5)
    assert model.trace(TEXT).why(3).residual < 1e-5
    found = model.patch([(TEXT, "The small shrew mole is a American mammal")])
    assert found is not None
    assert copies(file) == []


def test_opening_reads_no_tensor(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise AssertionError("a tensor was dequantised")

    monkeypatch.setattr("glassformer.checkpoint.gguf_copy._make", none)
    checkpoint = open_checkpoint(file)
    assert not checkpoint.at_hand
    assert set(checkpoint.tensors) == set(dict(Transformer.empty(mixture()).named_parameters()))
    assert json.dumps(checkpoint.metadata)
