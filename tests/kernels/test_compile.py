"""Getting a native library: compiled once, whole or not at all, whoever comes or is killed; missed politely."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glassformer.kernels import infer_abi, ops_abi, train_abi, variants
from glassformer.kernels.compile import Library, NativeUnavailableError, find_compiler

COMMAND = """
import sys
from glassformer.kernels.compile import Library
print(Library("infer", {"gf_answer": (__import__("ctypes").c_int, [])}, subject="It", instead="no").get().gf_answer())
"""


def library(**options) -> Library:
    return Library("infer", {"gf_answer": (ctypes.c_int, [])}, subject="It", instead="others do it", **options)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(variants, "BUILT", tmp_path / "nothing is built")
    return tmp_path


@pytest.fixture(scope="session")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that a compiler could have made, quickly."""
    folder = tmp_path_factory.mktemp("answer")
    compiler = find_compiler()
    assert compiler is not None, "there is no C++ compiler to test with"
    code = 'extern "C" int gf_answer() { return 42; }  extern "C" int gf_sizes(int* out, int) { *out = 8; return 0; }'
    (folder / "answer.cpp").write_text(code)
    subprocess.run([*compiler, "-shared", "-fPIC", "answer.cpp", "-o", "answer.so"], cwd=folder, check=True)
    return folder / "answer.so"


@pytest.fixture
def slow(fresh: Path, answer: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes half a second and says when it begins; returns where it says so."""
    said = fresh / "calls"
    script = fresh / "slow-c++"
    script.write_text(f"""#!/bin/sh
[ "$1" = --version ] && exit 0
echo "$$" >> {said}
while [ "$1" != -o ]; do shift; done
head -c 1000 {answer} > "$2"  # half of it
touch "$TMPDIR/scratch.s"
sleep "${{SLOWNESS:-0.5}}"
cp {answer} "$2"
""")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return said


def begin(**env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
        start_new_session=True,
    )


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.02)


def left(fresh: Path) -> list[str]:
    """What lies in the cache beside locks, which stay."""
    return sorted(path.suffix for path in (fresh / "cache/native").iterdir() if path.suffix != ".lock")


def test_several_processes_at_once_compile_once(fresh: Path, slow: Path) -> None:
    running = [begin() for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["42\n"] * 3
    assert len(slow.read_text().split()) == 1
    assert left(fresh) == [".so"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_compiling_outlives_the_command_that_began_it(fresh: Path, slow: Path, how: signal.Signals) -> None:
    process = begin()
    wait_for(slow)
    os.killpg(process.pid, how)  # as a terminal does it: the whole group
    process.communicate(timeout=60)
    assert begin().communicate(timeout=60)[0] == "42\n"
    assert len(slow.read_text().split()) == 1  # the second waited for the first one's result
    assert left(fresh) == [".so"]


def test_what_a_killed_compilation_leaves_is_swept_and_never_loaded(fresh: Path, slow: Path) -> None:
    process = begin(SLOWNESS="30")
    wait_for(slow)
    compiler = int(slow.read_text())
    os.killpg(os.getpgid(compiler), signal.SIGKILL)  # the worker and its compiler
    process.communicate(timeout=60)
    assert left(fresh) == [".tmp"]
    old = fresh / "cache/native/.compiling-abc.so"  # as earlier versions named it
    old.touch()
    os.utime(old, (0, 0))
    assert begin().communicate(timeout=60)[0] == "42\n"
    assert left(fresh) == [".so"]


def test_a_compiler_that_fails_is_quoted(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = fresh / "c++"
    bad.write_text("#!/bin/sh\necho 'infer.cpp:1: error: no such luck' >&2\nexit 1\n")
    bad.chmod(0o755)
    monkeypatch.setenv("CXX", str(bad))
    ours = library()
    assert "could not compile it (infer.cpp:1: error: no such luck); others do it." in str(ours.unavailable())
    assert left(fresh) == []


def test_a_damaged_library_is_compiled_again(fresh: Path, slow: Path) -> None:
    ours, compiler = library(), find_compiler()
    assert compiler is not None
    place = ours.place(compiler)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not a library")
    assert ours.get().gf_answer() == 42


def test_structures_of_other_sizes_are_refused(fresh: Path, slow: Path) -> None:
    class Pair(ctypes.Structure):
        _fields_ = [("one", ctypes.c_int32), ("other", ctypes.c_int32)]

    with pytest.raises(NativeUnavailableError, match=r"its structures have \[\] bytes, where \[8\] are handed over"):
        library(structures=[Pair]).get()


@pytest.mark.parametrize("real", [infer_abi.LIBRARY, ops_abi.LIBRARY, train_abi.LIBRARY], ids=lambda lib: lib.driver)
def test_every_structure_is_compared(real: Library) -> None:
    lib, sizes = real.get(), (ctypes.c_int32 * 64)()
    assert lib.gf_sizes(sizes, 64) == len(real.structures) > 0
    assert real.structures[0] is not None
    assert list(sizes[: len(real.structures)]) == [ctypes.sizeof(s) for s in real.structures]


def test_a_cache_that_cannot_be_written_is_done_without(fresh: Path, slow: Path) -> None:
    (fresh / "cache").write_text("a file where the folder should be: not even root can write into it")
    assert library().get().gf_answer() == 42
    assert (fresh / "cache").is_file()


def test_without_a_compiler_it_says_so(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    ours = library()
    assert ours.compiled()  # asking takes no time
    assert ours.unavailable() == (
        "It is not available because no C++ compiler (c++, g++, clang++) was found; others do it."
        " Install g++ or clang++ (Debian: apt install g++) to get it."
    )
    with pytest.raises(NativeUnavailableError, match="no C\\+\\+ compiler"):
        ours.get()


def test_a_named_compiler_that_is_not_there(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "because CXX names '/nowhere/c++', which is not there" in str(library().unavailable())
