"""Every fast kernel beside the naive loop that it stands for, under the sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from glassformer.kernels import variants

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_kernels_are_what_the_naive_loops_are(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "sanitize"], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as the naive loops have it" in done.stdout


@pytest.mark.parametrize("name", ["x86-64-v4-amx", "x86-64-v3"])
def test_kernels_of_other_processors_compile_without_a_warning(name: str) -> None:
    """What this machine may not be able to run is at least read by the compiler."""
    compiler = variants.find_compiler()
    if compiler is None or variants.architecture() != "x86_64":
        pytest.skip("needs a compiler for x86-64")
    variant = next(one for one in variants.VARIANTS["x86_64"] if one.name == name)
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only"]
    command = [*compiler, "-std=c++17", *variant.flags, *warnings, str(variants.CSRC / "selftest.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
