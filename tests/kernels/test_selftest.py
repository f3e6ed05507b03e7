"""Every fast kernel beside the naive loop that it stands for, under the sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_kernels_are_what_the_naive_loops_are(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "sanitize"], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as the naive loops have it" in done.stdout
