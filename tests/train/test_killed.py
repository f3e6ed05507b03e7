"""A run killed with SIGKILL amid whatever it does goes on to the bit; benchmarks/kill.py does it many times."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL and forkserver")
def test_killed_five_times_at_different_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its children import it by name
    kill = importlib.import_module("kill")
    data = tmp_path / "text.txt"
    data.write_text("".join(f"{i % 7} cats sat on {i % 11} mats by {i % 13} doors.\n" for i in range(500)))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    kinds = json.loads(kill.attempt(tmp_path / "a" / "run", data, 0))
    moments = len(kinds)
    assert moments > 50
    assert len(set(kinds)) == 6
    # while it starts, in its middle, while it resumes, in the middle again, near the end
    killed = kill.trial(tmp_path / "b", data, [4, moments // 2, 6, moments // 3, 40])
    assert sum(killed.values()) == 5
    assert kill.losses(tmp_path / "b" / "run") == kill.losses(tmp_path / "a" / "run")
    assert kill.strays(tmp_path / "b" / "run") == []
