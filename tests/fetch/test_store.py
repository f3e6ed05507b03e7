"""The cache: its cap, what goes first, and what never goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glassformer.errors import SourceError, UsageError
from glassformer.fetch import store
from glassformer.system.folders import cache_directory


@pytest.fixture(autouse=True)
def _cache(cache: Path):
    yield
    for entry in list(store._held):
        store.forget_use(entry)


def copy(name: str, weight: int, age: float) -> Path:
    """A dequantised copy of ``weight`` bytes, last used ``age`` seconds ago."""
    folder = store.dequantised_directory() / name
    folder.mkdir()
    (folder / "tensors.safetensors").write_bytes(b"x" * weight)
    when = time.time() - age
    for path in (folder / "tensors.safetensors", folder):
        os.utime(path, (when, when))
    return folder


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("", 20 * 10**9),
        ("1000", 1000),
        ("5GB", 5 * 10**9),
        ("1.5 kb", 1500),
        ("2MiB", 2 * 2**20),
        ("0", 0),
        ("3t", 3e12),
    ],
)
def test_the_limit(monkeypatch, text: str, limit: int) -> None:
    monkeypatch.setenv("GLASSFORMER_CACHE_LIMIT", text)
    assert store.cache_limit() == limit


@pytest.mark.parametrize("text", ["much", "-5", "5 gigs", "1e9"])
def test_a_limit_that_is_no_size(monkeypatch, text: str) -> None:
    monkeypatch.setenv("GLASSFORMER_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match=f'GLASSFORMER_CACHE_LIMIT is "{text}", which is not a size: write a number'):
        store.cache_limit()


def test_where_it_is(monkeypatch, tmp_path: Path) -> None:
    assert store.models_directory() == tmp_path / "cache" / "models"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GLASSFORMER_CACHE")
    assert cache_directory().name == "glassformer"
    assert cache_directory().is_relative_to(tmp_path)
    monkeypatch.setenv("GLASSFORMER_CACHE", "~/here")
    assert cache_directory() == tmp_path / "here"


def test_least_recently_used_goes_first() -> None:
    old, middle, new = copy("old", 100, 300), copy("middle", 100, 200), copy("new", 100, 100)
    assert store.enforce_limit(300) == []
    assert store.enforce_limit(150) == [old, middle]
    assert not old.exists()
    assert not middle.exists()
    assert new.exists()


def test_a_use_makes_it_the_latest() -> None:
    old, new = copy("old", 100, 300), copy("new", 100, 100)
    store.note_use(old / "tensors.safetensors")
    store.forget_use(old)
    assert store.enforce_limit(150) == [new]
    assert old.exists()


def test_what_this_process_uses_stays() -> None:
    old = copy("old", 100, 300)
    store.note_use(old)
    assert store.enforce_limit(0) == []
    store.forget_use(old)
    assert store.enforce_limit(0) == [old]
    assert list(store.dequantised_directory().iterdir()) == []


def test_what_another_process_uses_stays_until_it_ends() -> None:
    old = copy("old", 100, 300)
    code = (
        "import sys; from glassformer.fetch import store; store.note_use(sys.argv[1]);"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        assert store.enforce_limit(0) == []
        (item,) = store.items()
        assert not store.delete(item)
        assert old.exists()
        process.stdin.close()
        process.wait()
    assert store.enforce_limit(0) == [old]


def test_files_are_copies_too() -> None:
    file = store.dequantised_directory() / "x.safetensors"
    file.write_bytes(b"x" * 10)
    assert store.enforce_limit(5) == [file]


def test_unfinished_writes_are_left_for_a_day() -> None:
    folder = store.dequantised_directory()
    fresh, stale, hidden = folder / "a.partial", folder / "b.partial", folder / ".c.tmp"
    for path in (fresh, stale, hidden):
        path.write_bytes(b"x" * 100)
    for path in (stale, hidden):
        os.utime(path, (0, 0))
    assert store.enforce_limit(10) == []
    assert [path.exists() for path in (fresh, stale, hidden)] == [True, False, False]


def test_a_use_outside_of_the_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store.note_use(tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_use_is_no_error_when_the_cache_cannot_be_written(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "file"))
    store.note_use(tmp_path / "file" / "dequantised" / "x")
    with pytest.raises(SourceError, match="set GLASSFORMER_CACHE to a folder that can be written"):
        store.dequantised_directory()


def test_notes_are_kept_by_name() -> None:
    store.write_note("org/name@main", {"path": "x"})
    assert store.read_note("org/name@main") == {"path": "x", "name": "org/name@main"}
    assert store.read_note("org--name--main") is None
    assert store.read_note("other") is None


def test_listing() -> None:
    assert store.items() == []
    copy("old", 100, 300)
    home = store.home("tiny")
    (home / "tiny.gguf").write_bytes(b"GGUF" * 5)
    store.write_note("tiny", {"kind": "model", "path": str(home / "tiny.gguf")})
    (store.home("broken") / "x.partial").write_bytes(b"123")
    listed = {item.name: item for item in store.items()}
    assert list(listed)[-1] == "old"
    assert {name: item.kind for name, item in listed.items()} == {
        "tiny": "model",
        "broken": "model",
        "old": "dequantised",
    }
    assert listed["broken"].bytes == 3
    assert listed["old"].bytes == 100
    assert time.time() - listed["old"].last_use == pytest.approx(300, abs=60)
    assert store.delete(listed["broken"])
    assert {item.name for item in store.items()} == {"tiny", "old"}


def test_what_a_removal_leaves_that_was_killed_goes_with_the_next() -> None:
    folder = store.models_directory()
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "weights").write_bytes(b"x" * 100)
    code = (
        "import os, signal, sys; from pathlib import Path; from glassformer.system import files;"
        "files.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL); from glassformer.fetch import store;"
        "store.delete(next(item for item in store.items() if item.name == 'one'))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    (item,) = store.items()  # nobody sees a folder with half of its files
    assert len([entry for entry in folder.iterdir() if entry.is_dir()]) == 2
    assert store.delete(item)
    assert not [entry for entry in folder.iterdir() if entry.is_dir()]
