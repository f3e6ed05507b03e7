"""The benchmarks' own arithmetic: a wrong table would be a wrong claim."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(HERE.glob("*.py"))


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("benchmark_common", HERE / "common.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_runs_alternate(common, monkeypatch):
    monkeypatch.setattr(common.time, "sleep", lambda _: None)
    seen = []
    times = common.alternate(
        2, warmup=1, ours=lambda: seen.append("ours") or 1.0, theirs=lambda: seen.append("theirs") or 2.0
    )
    assert seen == ["ours", "theirs"] * 3
    assert times == {"ours": [1.0, 1.0], "theirs": [2.0, 2.0]}


def test_verdicts(common):
    assert common.verdict(1.5, least=1.5) == "≥ 1.5: met"
    assert common.verdict(1.49, least=1.5) == "≥ 1.5: NOT met"
    assert common.verdict(0.3, most=0.3) == "≤ 0.3: met"
    assert common.verdict(0.31, most=0.3) == "≤ 0.3: NOT met"


def test_tables_are_markdown(common):
    assert common.table(("a", "long"), [("xyz", 1)]).splitlines() == [
        "| a   | long |",
        "| --- | ---- |",
        "| xyz | 1    |",
    ]
    assert common.spread([3.0, 1.0, 2.0]) == "2 (1–3)"


def test_a_saved_section_replaces_the_old_one(common, monkeypatch, tmp_path, capsys):
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\nWords.\n", "utf-8")
    monkeypatch.setattr(common, "PAGE", page)
    options = argparse.Namespace(save=True, threads=2)
    common.report("one", "One", "first", options)
    common.report("two", "Two", "other", options)
    common.report("one", "One", "second", options)
    text = page.read_text("utf-8")
    assert text.startswith("# Benchmarks\n\nWords.\n\n<!-- one -->\n## One\n\nsecond")
    assert "first" not in text
    assert text.count("<!-- one -->") == text.count("<!-- /two -->") == 1


def test_a_worker_answers_by_message(common, tmp_path):
    script = tmp_path / "echo.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nfrom common import serve\n"
        "def twice(x):\n    print('noise')\n    return {'y': 2 * x}\nserve(twice)\n"
    )
    with common.Worker(sys.executable, script) as worker:
        assert worker.ask(x=4) == {"y": 8}
        assert worker.ask(x="a") == {"y": "aa"}


def test_a_worker_that_dies_is_an_error(common, tmp_path):
    script = tmp_path / "dead.py"
    script.write_text("raise SystemExit(3)\n")
    with common.Worker(sys.executable, script) as worker, pytest.raises(RuntimeError, match="left with code 3"):
        worker.ask(x=1)


def test_a_worker_that_does_not_leave_is_ended(common, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text("import sys, time\nprint(sys.stdin.readline(), end='', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setattr(common, "LEAVES", 0.2)
    with common.Worker(sys.executable, script) as worker:
        assert worker.ask(said=1) == {"said": 1}
    assert worker.process.returncode == -9


def test_missing_peers_are_said(common, capsys):
    with pytest.raises(SystemExit) as leave:
        common.need_peers(argparse.Namespace(peers="/nowhere/python"), "transformers")
    assert leave.value.code == common.SKIPPED
    assert "run make peers" in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_every_script_says_what_it_measures(script):
    tree = ast.parse(script.read_text("utf-8"))
    assert ast.get_docstring(tree)
    compile(tree, str(script), "exec")


@pytest.mark.slow
def test_what_is_prepared_for_a_gpu_runs_in_a_tiny_form(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu.py"), "--tiny", "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["rows"]
    rows = {row[0]: row[1:] for section in found.values() for row in section}
    assert rows["resumed at half, deterministic"][0] == "equal to the bit"
    assert float(rows["FSDP2 on one rank"][0]) < 1e-5
    assert rows["step at tiny: nanoGPT"][0] == "skipped"
    assert (tmp_path / "gpu.md").read_text("utf-8").count("|\n") == len(rows) + 2
