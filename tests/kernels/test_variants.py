"""The libraries of a wheel: built with the package, chosen by what the processor has, needing no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from glassformer.kernels import variants
from glassformer.system.folders import cache_directory

ROOT = Path(__file__).parents[2]
LOAD = """
from pathlib import Path
from glassformer.kernels import compile, infer_abi, ops_abi, train_abi
infer = infer_abi.library()
assert infer_abi.compiled()
print(infer_abi.instructions(infer))
print(train_abi.LIBRARY.get().gf_arithmetic().decode())
print(train_abi.LIBRARY.get(*train_abi.flags(True)).gf_arithmetic().decode())
print(ops_abi.LIBRARY.unavailable())
print(Path(compile.__file__).parent)
print(Path(infer._name).parent.name)
"""


def here() -> variants.Variant:
    """The variant for this processor."""
    return next(v for v in variants.VARIANTS[variants.architecture()] if v.needs <= variants.features())


def wheel(folder: Path, **env: str) -> tuple[Path, str]:
    """A wheel of this checkout, and what building it said."""
    program = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | env,
        check=True,
    )
    return folder / done.stdout.split()[-1], done.stderr


def run(site: Path, program: str, cache: Path, **env: str) -> list[str]:
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=cache.parent,
        env=os.environ | {"PYTHONPATH": str(site), "GLASSFORMER_CACHE": str(cache)} | env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_installed_wheel_needs_no_compiler_and_is_of_the_same_kernels(tmp_path: Path) -> None:
    path, _ = wheel(tmp_path, GLASSFORMER_VARIANTS=here().name)
    assert path.name.startswith("glassformer-")
    assert "-py3-none-linux" in path.name
    assert path.name.endswith(f"_{variants.architecture()}.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "site")
    told = run(tmp_path / "site", LOAD, tmp_path / "cache", CXX="/nonexistent")
    at_first_use = run(ROOT / "src", LOAD, cache_directory())
    assert told[:4] == at_first_use[:4]  # the same instructions as compiled here, for this very processor
    assert told[4:] == [str(tmp_path / "site/glassformer/kernels"), "built"]
    assert not (tmp_path / "cache").exists()  # nothing was compiled


def test_without_a_compiler_the_wheel_is_pure_and_that_is_said(tmp_path: Path) -> None:
    path, said = wheel(tmp_path, CXX="/nonexistent")
    assert path.name.endswith("-py3-none-any.whl")
    assert "There is no C++ compiler (c++, g++, clang++); the wheel is built without compiled libraries." in said
    with zipfile.ZipFile(path) as file:
        assert not [name for name in file.namelist() if name.endswith(".so")]
        assert "glassformer/kernels/csrc/infer.cpp" in file.namelist()  # so it can compile at first use


V3 = "avx avx2 bmi1 bmi2 f16c fma movbe"
V4 = "avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a wheel has it, with a file for every variant of x86-64."""
    monkeypatch.setattr(variants, "architecture", lambda: "x86_64")
    for variant in variants.VARIANTS["x86_64"]:
        (tmp_path / variants.file_name("infer", variant)).touch()
    manifest = {"sources": variants.sources_digest(), "platform": variants.platform_name()}
    (tmp_path / variants.MANIFEST).write_text(json.dumps(manifest))
    return tmp_path


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (f"{V3} sse4_2", "v3"),
        (f"{V3} {V4}", "v3"),  # without VNNI
        (f"{V3} {V4} avx512_vnni", "v4"),
        (f"{V3} {V4} avx512_vnni avx512_bf16", "v4-bf16"),
        ("avx", None),
    ],
)  # fmt: skip
def test_the_best_that_the_processor_can_run_is_chosen(
    packed: Path, monkeypatch: pytest.MonkeyPatch, there: str, chosen: str | None
) -> None:
    monkeypatch.setattr(variants, "features", lambda: frozenset(there.split()))
    found = variants.built("infer", packed)
    assert (found and found.name) == (chosen and f"infer.x86-64-{chosen}.so")


def test_libraries_of_other_sources_or_another_system_are_passed_over(packed: Path, monkeypatch) -> None:
    monkeypatch.setattr(variants, "features", lambda: variants.VARIANTS["x86_64"][-1].needs)
    assert variants.built("infer", packed) is not None
    assert variants.built("train", packed) is None  # not in this folder
    for key in ("sources", "platform"):
        manifest = json.loads((packed / variants.MANIFEST).read_text())
        (packed / variants.MANIFEST).write_text(json.dumps(manifest | {key: "other"}))
        assert variants.built("infer", packed) is None
        (packed / variants.MANIFEST).write_text(json.dumps(manifest))
    (packed / variants.MANIFEST).write_text("half a manif")
    assert variants.built("infer", packed) is None


@pytest.mark.slow
def test_every_variant_compiles(tmp_path: Path) -> None:
    """For processors that are not here: that the compiler takes the code is all that can be said."""
    amx = next(v for v in variants.VARIANTS["x86_64"] if v.name.endswith("amx"))
    if variants.architecture() != "x86_64":
        pytest.skip("these are x86-64's variants")
    assert variants.build(tmp_path / "built", frozenset({amx.name})) == []
    names = {path.name for path in (tmp_path / "built").iterdir()}
    assert names == {variants.MANIFEST, *(variants.file_name(driver, amx) for driver in variants.DRIVERS)}
