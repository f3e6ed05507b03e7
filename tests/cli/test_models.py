"""`glassformer models`: the list, and deletion that asks first."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from glassformer.fetch import catalogue, store
from tests.cli import running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLASSFORMER_OFFLINE", "1")
    monkeypatch.delenv("GLASSFORMER_CACHE_LIMIT", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


@pytest.fixture
def filled(cache: Path) -> Path:
    """A cache with one model and two dequantised copies."""
    home = store.home("mine")
    (home / "mine.gguf").write_bytes(b"GGUF" * 250)
    store.write_note("mine", {"kind": "model", "path": str(home / "mine.gguf"), "origin": "the hub (org/mine)"})
    for name in ("copy-a", "copy-b"):
        (store.dequantised_directory() / name).write_bytes(b"x" * 2000)
    return cache


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    return running.run(capsys, "models", *args)


def test_an_empty_cache(capsys, cache: Path) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert all(name in out for name in catalogue.CATALOGUE)
    assert "smollm2 (default)" in out
    assert f"The cache {cache} is empty." in out.replace("\n", "")


def test_the_list(capsys, filled: Path) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert "On this machine" in out
    assert re.search(r"copy-a +dequantised +2\.0 kB", out)
    assert re.search(r"mine +model +1\.\d kB", out)
    assert "dequantised copies take 4.0 kB of at most 20.0 GB." in out


def test_the_list_for_programs(capsys, filled: Path) -> None:
    code, out, err = run(capsys, "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert set(data) == {"cache", "models", "catalogue"}
    assert set(data["cache"]) == {"path", "bytes", "dequantised_bytes", "dequantised_limit"}
    assert data["cache"]["dequantised_bytes"] == 4000
    for item in data["models"]:
        assert set(item) == {"name", "kind", "bytes", "path", "last_use", "origin", "sha256", "revision"}
    assert {item["name"]: item["kind"] for item in data["models"]} == {
        "mine": "model",
        "copy-a": "dequantised",
        "copy-b": "dequantised",
    }
    for entry in data["catalogue"]:
        assert set(entry) == {
            "name", "summary", "licence", "default", "repository", "sha256", "bytes", "fetched",
        }  # fmt: skip
    assert [entry["name"] for entry in data["catalogue"] if entry["default"]] == ["smollm2"]


def test_delete_asks_for_a_yes(capsys, filled: Path) -> None:
    code, out, err = run(capsys, "delete", "mine")
    assert (code, out) == (2, "")
    said = r"glassformer: Deleting mine \(1\.\d kB\) needs a yes, and nobody is at the terminal: add --yes\.\n"
    assert re.fullmatch(said, err)
    assert {item.name for item in store.items()} == {"mine", "copy-a", "copy-b"}


@pytest.mark.parametrize(("answer", "left"), [("y\n", {"copy-a", "copy-b"}), ("n\n", {"mine", "copy-a", "copy-b"})])
def test_the_answer_counts(capsys, monkeypatch, filled: Path, answer: str, left: set[str]) -> None:
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, err = run(capsys, "delete", "mine")
    assert out == ""
    assert re.match(r"Delete mine \(1\.\d kB\)\? \[y/N\] ", err)
    assert code == (0 if answer == "y\n" else 1)
    assert {item.name for item in store.items()} == left


def test_delete_a_model_and_all_copies(capsys, filled: Path) -> None:
    code, _, err = run(capsys, "delete", "mine", "--yes")
    assert code == 0
    assert err.startswith("Deleted mine (")
    assert run(capsys, "delete", "--all-dequantised", "--yes")[0] == 0
    assert store.items() == []
    assert run(capsys, "delete", "--all-dequantised", "--yes")[::2] == (0, "There are no dequantised copies.\n")


def test_deleting_a_model_deletes_its_dequantised_copies(capsys, filled: Path) -> None:
    (store.dequantised_directory() / "mine-0123-float32.safetensors").write_bytes(b"x" * 5000)
    code, _, err = run(capsys, "delete", "mine", "--yes")
    assert code == 0
    assert err.startswith("Deleted mine, mine-0123-float32.safetensors (6.")
    assert {item.name for item in store.items()} == {"copy-a", "copy-b"}


def test_delete_what_is_not_there(capsys, filled: Path) -> None:
    code, _, err = run(capsys, "delete", "mime", "--yes")
    assert code == 1
    assert "There is no mime in the cache" in err
    assert "Did you mean mine?" in err


@pytest.mark.parametrize("arguments", [["delete"], ["delete", "x", "--all-dequantised"], ["--json", "fetch", "x"]])
def test_usage(capsys, arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("glassformer: ")
    assert len(err.splitlines()) == 1


def test_fetch_prints_where_it_lies(capsys, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert run(capsys, "fetch", str(tmp_path / "x.gguf"))[:2] == (0, f"{tmp_path / 'x.gguf'}\n")
    code, out, err = run(capsys, "fetch", "smollm2")
    assert (code, out) == (1, "")
    assert err.startswith("glassformer: smollm2 could not be fetched. Tried the cache ")
