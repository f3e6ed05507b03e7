"""What a SOURCE means: paths before the catalogue before the hub, and one sentence when it means nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import GlassformerError, SourceError, UnsafeFileError, UsageError
from glassformer.fetch import catalogue, sources
from glassformer.fetch.sources import resolve


@pytest.fixture(autouse=True)
def _here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSFORMER_OFFLINE", "1")


def model(path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).write_bytes(b"{}")
    return path


def test_a_model_directory(tmp_path: Path) -> None:
    model(tmp_path / "mine")
    for text in ("mine", "./mine", "mine/", str(tmp_path / "mine"), "mine/../mine"):
        found = resolve(text)
        assert (found.name, found.path, found.kind) == ("mine", tmp_path / "mine", "hf")


def test_a_path_object_and_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path / "mine").kind == "hf"
    assert resolve("~/mine").path == tmp_path / "mine"


def test_a_gguf_file_and_a_directory_that_holds_one(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "m" / "README.md").write_text("words")
    assert resolve("m/a.gguf").kind == "gguf"
    assert resolve("m").path == tmp_path / "m" / "a.gguf"
    (tmp_path / "no_suffix").write_bytes(b"GGUF....")
    assert resolve("no_suffix").kind == "gguf"


def test_a_directory_of_several_gguf_files_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); give the path of one\."):
        resolve(".")


def test_a_path_comes_before_the_catalogue_and_the_hub(tmp_path: Path) -> None:
    assert "gpt2" in catalogue.CATALOGUE
    model(tmp_path / "gpt2")
    model(tmp_path / "org" / "name")
    assert resolve("gpt2").path == tmp_path / "gpt2"
    assert resolve("org/name").path == tmp_path / "org" / "name"
    with pytest.raises(SourceError, match="org/name could not be fetched"):
        resolve("hf:org/name")


def test_a_directory_that_hides_a_name_of_the_catalogue_says_so(tmp_path: Path) -> None:
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(SourceError, match=r"it is empty.*To mean the catalogue's gpt2, run this in another directory"):
        resolve("gpt2")


def test_no_model_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("words")
    with pytest.raises(SourceError) as caught:
        resolve("d")
    assert str(caught.value) == (
        f"{tmp_path / 'd'} is a directory but no model: it holds notes.txt. A model directory holds config.json,"
        " *.safetensors and tokenizer.json (Hugging Face layout), or one .gguf file; a training run is a directory that"
        " glassformer train wrote."
    )
    with pytest.raises(SourceError, match=r"notes\.txt is a file but no model: it is not GGUF\. A model directory"):
        resolve("d/notes.txt")


def test_a_native_directory(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "glassformer.json").write_text("{}")
    assert resolve("n").kind == "native"
    with pytest.raises(SourceError, match="is not a training run"):
        resolve("run:n")


def test_weights_alone_name_their_directory(tmp_path: Path) -> None:
    model(tmp_path / "mine")
    with pytest.raises(SourceError, match=r"holds weights only; give the directory that holds it, .*mine\."):
        resolve("mine/model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "x.PKL"])
def test_pickled_files_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_text("{}")
    (tmp_path / "p" / name).write_bytes(b"PK")
    for text in ("p", f"p/{name}"):
        with pytest.raises(UnsafeFileError, match=r"is a pickled PyTorch file.*convert it to safetensors.*safe_serial"):
            resolve(text)


def test_runs(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    (run / "journal.jsonl").write_text("")
    with pytest.raises(SourceError, match="has saved no model yet; go on with it: glassformer train --resume --out"):
        resolve("run:first")
    (run / "glassformer.json").write_text("{}")
    assert resolve("run:first").kind == "run"
    assert resolve("run:first").path == run
    assert resolve("runs/first").path == resolve(f"run:{run}").path == run
    with pytest.raises(
        SourceError, match=r"There is no training run called fist. Did you mean first\? There are first"
    ):
        resolve("run:fist")
    with pytest.raises(SourceError, match="There is no training run called "):
        resolve("run:")
    (tmp_path / "runs" / "other").mkdir()
    with pytest.raises(SourceError, match="is not a training run"):
        resolve("run:other")


def test_no_runs_at_all() -> None:
    with pytest.raises(SourceError, match="There are no runs under"):
        resolve("run:x")


def test_none_means_the_variable_then_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="smollm2 could not be fetched"):
        resolve(None)
    model(tmp_path / "mine")
    monkeypatch.setenv("GLASSFORMER_MODEL", "mine")
    assert resolve().name == "mine"


def test_an_unknown_name_lists_the_catalogue_and_near_matches() -> None:
    with pytest.raises(SourceError) as caught:
        resolve("smolm2")
    text = str(caught.value)
    assert text.startswith("There is no model called smolm2. Did you mean smollm2,")
    assert all(name in text for name in catalogue.CATALOGUE)
    assert text.endswith("a model on the hub is named org/name, one on this machine by its path.")


@pytest.mark.parametrize("text", ["./nope", "/nope/nope", "~/nope", "..\\nope"])
def test_a_path_with_nothing_at_it(text: str) -> None:
    with pytest.raises(SourceError, match=r"^There is nothing at .*give the path of a model that exists"):
        resolve(text)


@pytest.mark.parametrize("text", ["a/b/c", "nope.gguf", "a/b/c.gguf/d", "model.bin"])
def test_neither_a_path_nor_a_name(text: str) -> None:
    with pytest.raises(SourceError, match="There is nothing at .*and it is not a name on the hub"):
        resolve(text)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_name(text: str) -> None:
    with pytest.raises(SourceError, match="The name of the model is empty"):
        resolve(text)


def test_hf_needs_a_name_of_the_hub() -> None:
    for text in ("hf:", "hf:gpt2", "hf:a/b/c"):
        with pytest.raises(SourceError, match="is not a name on the hub: write hf:org/name"):
            resolve(text)


def test_a_file_name_of_the_hub_cannot_leave_its_repository() -> None:
    with pytest.raises(SourceError, match="is not the name of a file"):
        resolve("org/name/../../x.gguf")


def test_revisions(tmp_path: Path) -> None:
    model(tmp_path / "mine")
    with pytest.raises(UsageError, match="is on this machine and has no revisions"):
        resolve("mine", revision="main")
    with pytest.raises(UsageError, match="smollm2 of the catalogue is one file known by its SHA-256"):
        resolve("smollm2", revision="main")
    with pytest.raises(UsageError, match="names the revision v1, and revision says v2; give one of the two"):
        resolve("org/name@v1", revision="v2")


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_model_or_an_error_of_ours(text: str) -> None:
    """Nothing that can be typed gives a traceback."""
    with contextlib.suppress(GlassformerError):
        sources.resolve(text, offline=True)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """A model on this machine is resolved without torch and without the hub's client."""
    model(tmp_path / "mine")
    code = (
        "import sys; from glassformer.fetch.sources import resolve; resolve('mine');"
        "print([m for m in ('torch', 'huggingface_hub', 'httpx2', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
