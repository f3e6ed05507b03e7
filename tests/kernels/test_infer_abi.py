"""Getting the native library: compiled once, by whoever comes first, and missed politely."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glassformer.kernels import infer_abi
from glassformer.kernels.compile import find_compiler

CODE = "from glassformer.kernels import infer_abi; print(native.instructions(native.library()))"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and no memory of an earlier answer."""
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(infer_abi.LIBRARY, "_loaded", {})
    monkeypatch.setattr(infer_abi.LIBRARY, "_failed", {})
    return tmp_path


def test_two_processes_may_compile_at_once(fresh):
    running = [subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate(timeout=300)[0] for process in running}
    assert len(said) == 1
    assert [process.returncode for process in running] == [0, 0]
    assert len(list((fresh / "native").iterdir())) == 1  # one library, nothing half-done


def test_without_a_compiler_it_says_so(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    assert infer_abi.unavailable() == (
        "The fast engine is not available because no C++ compiler (c++, g++, clang++) was found; text is generated"
        " through torch in float32 instead, several times slower. Install g++ or clang++ (Debian: apt install g++) to"
        " get it."
    )
    with pytest.raises(infer_abi.NativeUnavailableError, match="no C\\+\\+ compiler"):
        infer_abi.library()


def test_a_named_compiler_that_is_not_there(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "because CXX names '/nowhere/c++', which is not there" in str(infer_abi.unavailable())


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    bad = fresh / "c++"
    bad.write_text("#!/bin/sh\necho 'forward.cpp:1: error: no such luck' >&2\nexit 1\n")
    bad.chmod(0o755)
    monkeypatch.setenv("CXX", str(bad))
    assert "could not compile it (forward.cpp:1: error: no such luck)" in str(infer_abi.unavailable())
    assert list((fresh / "native").iterdir()) == []


def test_a_damaged_library_is_thrown_away(fresh):
    compiler = find_compiler()
    assert compiler is not None
    place = infer_abi.LIBRARY.place(compiler)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not a library")
    assert "cannot be loaded" in str(infer_abi.unavailable())
    assert not place.exists()


def test_a_cache_that_cannot_be_written_is_done_without(fresh):
    (fresh / "native").write_text("a file where the folder should be: not even root can write into it")
    assert infer_abi.unavailable() is None
    assert (fresh / "native").is_file()
