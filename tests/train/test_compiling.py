"""Compiled blocks compute what plain ones do; where nothing is compiled a sentence says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.model import Transformer
from glassformer.train import compiling, journal, peak, train
from glassformer.train.recipe import Recipe

Make = Callable[..., Recipe]
Place = Callable[[], Path]
CPU = torch.device("cpu")


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in journal.read(directory / "journal.jsonl") if e["event"] == kind]


def losses(directory: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in events(directory, "step")}


def notes(directory: Path) -> list[str]:
    return [e["text"] for e in events(directory, "note")]


PROGRAM = """
import json, sys, torch
from glassformer.train import train
from glassformer.train.recipe import Recipe

recipe = Recipe.from_dict(json.loads(sys.stdin.read()))
train(recipe, out=sys.argv[1], quiet=True)
counters = torch._dynamo.utils.counters
print(json.dumps([counters["stats"].get("unique_graphs", 0), dict(counters["graph_break"])]))
"""


def alone(recipe: Recipe, place: Path) -> list[Any]:
    """Train in a process of its own, without the checks of shapes that tests add to every function: how many graphs
    were compiled, and where they broke."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place)],
        input=json.dumps(recipe.to_dict()),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def test_a_compiled_run_equals_a_plain_one(small: Make, out: Place) -> None:
    # nothing is held out, because looking at it is compiled too; ten layers share what is compiled
    recipe = small(steps=5, layers=10, held_out=0, muon_lr=0.005)
    plain, compiled = out(), out()
    train(recipe, out=plain, quiet=True)
    graphs, breaks = alone(recipe.with_settings({"compile": "on"}), compiled)
    assert graphs == 2, "the blocks and the trial"
    assert breaks == {}
    assert notes(compiled) == []
    assert [events(place, "start")[0]["compiled"] for place in (plain, compiled)] == [False, True]
    assert events(compiled, "start")[0]["engine_reason"] == "compile is on"
    expected, found = losses(plain), losses(compiled)
    assert list(found) == list(range(1, 6))
    assert all(found[step] == pytest.approx(expected[step], abs=1e-5) for step in expected)
    assert found[5] < found[1]


def chosen(recipe: Recipe, **more: Any) -> tuple[object, list[str]]:
    """What is chosen on a processor, and what is said."""
    said: list[str] = []
    transformer = Transformer.empty(recipe.config(256))
    return compiling.choose(recipe, transformer, CPU, said.append, **more), said


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything about compiling but the compiling."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.usefixtures("stubbed")
def test_why_a_run_is_not_compiled(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(small(compile="off")) == (None, [])
    on = small(compile="on")
    run_block, said = chosen(on)
    assert compiling.is_compiled(run_block)
    assert said == []
    assert chosen(on.with_settings({"recompute": True})) == (
        None,
        ["Not compiled: recompute=true runs blocks twice, which is not compiled."],
    )
    assert chosen(on.with_settings({"dropout": 0.1})) == (None, ["Not compiled: dropout is not compiled."])
    assert chosen(on, sharded=True) == (None, ["Not compiled: sharded blocks are not compiled."])
    with monkeypatch.context() as patched:
        patched.setenv("CXX", "no-such-compiler")
        assert chosen(on) == (None, ["Not compiled: there is no C++ compiler on this machine."])


@pytest.mark.usefixtures("stubbed")
def test_auto_compiles_what_pays_and_keeps_to_it(small: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = small(compile="auto")
    assert chosen(auto) == (None, ["Not compiled: the run is too short for compiling to pay."])
    monkeypatch.setattr(peak, "peak_flops", lambda device, dtype: (1.0, "a slow machine"))
    assert compiling.is_compiled(chosen(auto)[0])
    # a resumed run goes on as it began, however quick the machine is found to be this time
    assert chosen(auto, before=False) == (None, [])
    monkeypatch.undo()
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert compiling.is_compiled(chosen(auto, before=True)[0])


def test_a_compiler_that_fails_is_found_out_before_training(
    small: Make, out: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: Any, **options: Any) -> Any:
        def call(*args: Any) -> None:
            raise RuntimeError("\nC++ compile error\n\nCommand: …")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    result = train(small(steps=2), out=out(), quiet=True, compile="on")
    assert notes(result.path) == ["Not compiled: torch.compile does not work on this machine (C++ compile error)."]
    assert events(result.path, "start")[0]["compiled"] is False


def test_triton_is_asked_for_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compiling._no_compiler(torch.device("cuda")) == "Triton is not installed"


def test_the_native_step_and_compiling_exclude_each_other(small: Make, out: Place) -> None:
    with pytest.raises(UsageError, match=r"native=on cannot be had: compile is on\. Set native=auto\."):
        train(small(native="on"), out=out(), quiet=True, compile="on")


@pytest.mark.usefixtures("stubbed")
def test_a_resumed_run_names_a_changed_choice(small: Make, out: Place, killed: Callable[..., Any]) -> None:
    place = out()
    with killed(2):
        train(small(steps=4), out=place, quiet=True)
    train(out=place, resume=True, quiet=True, compile="on")
    (note,) = notes(place)
    assert note.startswith("Resumed, but not bit for bit, for this differs: compiled False → True; compile off → on")
