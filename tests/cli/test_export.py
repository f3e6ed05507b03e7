"""`glassformer export`: transformers loads both layouts, and answers as we do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import glassformer
from tests.cli import running
from tests.tiny import gap, tiny_directory, tiny_tokens


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    return running.run(capsys, "export", *args)


def _logits(path: Path, **options: object) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    place = path.parent if options else path
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options)
        found: torch.Tensor = model(tiny_tokens()).logits
    return found


def _ours(path: Path) -> torch.Tensor:
    model = glassformer.load(path, device="cpu", dtype="float32")
    with torch.inference_mode():
        return model.transformer(tiny_tokens())


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """A checkpoint in the native layout of the default recipes' shape."""
    from glassformer.checkpoint import open_checkpoint, write_native
    from glassformer.tokenizer.tokenizer import Tokenizer

    source = tiny_directory(tmp_path / "source", "qwen3")
    opened = open_checkpoint(source)
    write_native(tmp_path / "run", opened.config, opened.tensors, tokenizer=Tokenizer.from_directory(source))
    return tmp_path / "run"


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_transformers_loads_the_folder(native: Path, tmp_path: Path, capsys, dtype: str) -> None:
    out = tmp_path / "exported"
    code, said, err = run(capsys, native, "--to", "hf", "--dtype", dtype, "--out", out, "--json")
    assert (code, err) == (0, "")
    told = json.loads(said)
    assert set(told) == {"path", "format", "family", "dtype", "bytes"}
    assert told["family"] == "qwen3"
    assert told["bytes"] == sum(p.stat().st_size for p in out.iterdir())
    theirs = _logits(out)
    assert gap(_ours(out), theirs) < 1e-5, "the exported folder, read by both"
    assert gap(_ours(native), theirs) < {"f32": 1e-5, "f16": 5e-3, "bf16": 5e-2}[dtype]
    from transformers import AutoTokenizer

    text = "The American shrew mole"
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == glassformer.load(native).encode(text)


# transformers reads no head dimension from a qwen3 GGUF: it takes 128.
@pytest.mark.parametrize(("family", "more"), [("llama", {}), ("qwen3", {"head_dim": 128})], ids=["llama", "qwen3"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_transformers_reads_the_gguf(tmp_path: Path, capsys, family: str, more: dict[str, int], dtype: str) -> None:
    source = tiny_directory(tmp_path / "source", family, **more)
    out = tmp_path / "model.gguf"
    code, said, err = run(capsys, source, "--to", "gguf", "--dtype", dtype, "-o", out)
    assert (code, err) == (0, "")
    assert said.startswith(f"{out}: {family} in float")
    theirs = _logits(out, gguf_file=out.name)
    assert gap(_ours(source), theirs) < {"f32": 1e-5, "f16": 5e-3}[dtype]
    assert gap(_ours(out), theirs) < 1e-5


def test_a_gguf_goes_back_to_a_folder(tmp_path: Path, capsys) -> None:
    source = tiny_directory(tmp_path / "source")
    assert run(capsys, source, "--to", "gguf", "--dtype", "f32", tmp_path / "a.gguf")[0] == 0
    assert run(capsys, tmp_path / "a.gguf", "--to", "hf", tmp_path / "back")[0] == 0
    assert gap(_ours(source), _logits(tmp_path / "back")) < 1e-6


def test_the_place_is_an_option_and_as_before_an_argument(native: Path, tmp_path: Path, capsys) -> None:
    assert run(capsys, native, tmp_path / "one", "--to", "hf")[0] == 0
    assert run(capsys, native, "--to", "hf", "-o", tmp_path / "other")[0] == 0
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "other" / "config.json").read_bytes()
    code, out, err = run(capsys, native, "a", "--to", "hf", "--out", "b")
    assert (code, out) == (2, "")
    assert err == "glassformer: The place is given twice, as a and as --out b; leave one of them out.\n"


def test_nothing_is_overwritten(native: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there.gguf").write_text("mine")
    for to, name in (("hf", "there"), ("gguf", "there.gguf")):
        code, out, err = run(capsys, native, "--to", to, tmp_path / name)
        assert (code, out) == (2, "")
        assert err == (
            f"glassformer: {tmp_path / name} exists and is not overwritten; name another place, or remove it first.\n"
        )
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_a_failure_leaves_nothing(native: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from glassformer.tokenizer.tokenizer import Tokenizer

    def full(self: object, directory: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    before = sorted(tmp_path.iterdir())
    code, _, err = run(capsys, native, "--to", "hf", tmp_path / "exported")
    assert code == 1
    what = "cannot be written (No space left on device); make room there or name another place."
    assert err == f"glassformer: {tmp_path / 'exported'} {what}\n"
    assert sorted(tmp_path.iterdir()) == before


def test_the_default_names(native: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "run", "--to", "hf")[0] == 0
    assert run(capsys, "run", "--to", "gguf")[0] == 0
    assert (tmp_path / "run-hf" / "config.json").exists()
    assert (tmp_path / "run-f16.gguf").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--to", "onnx"], "--to is hf or gguf; got 'onnx'."),
        (["--to", "ggfu"], "--to is hf or gguf; got 'ggfu'. Did you mean gguf?"),
        (["--to", "hf", "--dtype", "f8"], "--dtype is one of f32, f16, bf16, q8_0, q4_0, q4_k, q6_k; got 'f8'."),
        (
            ["--to", "hf", "--dtype", "q4_k"],
            "A folder is written in f32, f16 or bf16; got q4_k. Choose one of them, or --to gguf.",
        ),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, capsys, args: list[str], message: str) -> None:
    code, out, err = run(capsys, tmp_path, *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"glassformer: {message}")
