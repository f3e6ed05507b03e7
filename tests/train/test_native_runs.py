"""Whole runs whose steps the native step takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.kernels import train_abi
from glassformer.kernels.compile import find_compiler
from glassformer.train import checkpoint, journal, native, train
from glassformer.train.loop import Run
from glassformer.train.plan import plan
from glassformer.train.recipe import Recipe

Make = Callable[..., Recipe]
Place = Callable[[], Path]


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if find_compiler() is None and not os.environ.get("CI"):
        pytest.skip("there is no C++ compiler here")


@pytest.fixture
def made(small: Make) -> Make:
    return lambda **settings: small(**{"native": "on", **settings})


def losses(directory: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "step"}


def start_of(directory: Path) -> dict[str, Any]:
    return next(e for e in journal.read(directory / "journal.jsonl") if e["event"] == "start")


def notes(directory: Path) -> list[str]:
    return [e["text"] for e in journal.read(directory / "journal.jsonl") if e["event"] == "note"]


@pytest.mark.parametrize("design", ["qwen3", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_as_torchs_does(made: Make, out: Place, design: str, precision: str) -> None:
    recipe = made(steps=30, batch=8, design=design, precision=precision, eval_every=10, length_stages=[[0.5, 8]])
    ours = train(recipe, out=out(), quiet=True)
    theirs = train(recipe, out=out(), quiet=True, native="off")
    assert start_of(ours.path)["engine"].startswith("native, ")
    assert start_of(theirs.path)["engine"] == "torch"
    a, b = losses(ours.path), losses(theirs.path)
    tolerance = 2e-3 if precision == "fp32" else 0.1
    assert a == pytest.approx(b, abs=tolerance)
    assert ours.loss == pytest.approx(theirs.loss, abs=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_run_continues_to_the_bit(
    made: Make, out: Place, monkeypatch: pytest.MonkeyPatch, precision: str, threads: int
) -> None:
    recipe = made(steps=12, precision=precision, length_stages=[[0.6, 8]], micro_batch=3, eval_every=3, threads=threads)
    straight = train(recipe, out=out(), quiet=True)
    place = out()
    with monkeypatch.context() as patched:
        plain = Run._one_step

        def one_step(self: Run) -> tuple[float, float, int]:
            if self.step == 5:
                raise KeyboardInterrupt
            result = plain(self)
            if self.step == 5:
                self.save()
            return result

        patched.setattr(Run, "_one_step", one_step)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=place, quiet=True)
    result = train(out=place, resume=True, quiet=True, native="auto")  # which stays with what it began with
    assert start_of(result.path)["engine"].startswith("native, ")
    assert losses(place) == losses(straight.path)
    assert result.loss == straight.loss
    a, b = (checkpoint.newest(path / "checkpoints", print).tensors() for path in (place, straight.path))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_may_change_its_engine_and_says_so(made: Make, out: Place) -> None:
    place = train(made(steps=4), out=out(), quiet=True).path
    train(out=place, resume=True, quiet=True, native="off", steps=6)
    assert any("engine native, float32 → torch" in note for note in notes(place))


def test_who_is_trained_natively(made: Make) -> None:
    def decide(device: str = "cpu", processes: int = 1, before: str | None = None, **changes: Any) -> tuple[bool, str]:
        small = {"layers": 3, "width": 64, "heads": 2, "context": 200, "steps": 1000}
        recipe = Recipe().with_settings({**small, **changes})
        return native.decide(recipe, recipe.config(65), device=device, processes=processes, before=before)

    assert decide() == (True, "the design is plain and small")
    assert decide(native="on", steps=3) == (True, "native is on")
    assert decide(design="gpt2")[0]
    assert decide(before="native, float32", steps=3) == (True, "the run began so")
    assert decide(before="torch") == (False, "the run began so")
    for changes, reason in {
        ("native", "off"): "native is off",
        ("design", "relu2"): "the native step does not train the activation relu2",
        ("steps", 20): "a run of 20 steps is too short to compile for",
        ("fused", False): "fused is off",
        ("compile", "on"): "compile is on",
        ("context", 4096): "rows of 4096 tokens are longer than the native step is made for",
        ("layers", 1200): "at 64 M parameters torch's own products are as quick",
    }.items():
        assert decide(**dict([changes])) == (False, reason)
    assert decide(device="cuda")[1] == "the native step is for processors, and this run is on cuda"
    assert decide(processes=2)[1] == "the native step is for one process, and 2 share this run"
    with pytest.raises(UsageError, match="native=on cannot be had: the native step does not train the activation"):
        decide(native="on", design="relu2")
    with pytest.raises(UsageError, match="native is one of off, on, auto"):
        Recipe().with_settings({"native": "yes"})


def test_the_plan_says_what_takes_the_steps(made: Make, out: Place) -> None:
    found = plan(made(), None, out(), False, {})
    assert found.engine == "the native step (float32), for native is on"
    assert "steps by    the native step" in found.text()
    assert plan(made(native="off"), None, out(), False, {}).engine == "torch, for native is off"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "no-such-compiler")
    train_abi.LIBRARY.forget()
    yield
    monkeypatch.undo()
    train_abi.LIBRARY.forget()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_torch_trains_and_a_note_says_why(made: Make, out: Place) -> None:
    missing = "The native training step is not available because CXX names 'no-such-compiler', which is not there"
    result = train(made(native="auto", steps=100, layers=1), out=out(), quiet=True)
    assert start_of(result.path)["engine"] == "torch"
    (note,) = notes(result.path)
    assert note.startswith(missing)
    with pytest.raises(UsageError, match="native=on cannot be had. The native training step is not available"):
        train(made(), out=out(), quiet=True)
    assert plan(made(native="auto", steps=100), None, out(), False, {}).engine.startswith(f"torch: {missing}")


def test_compiling_begins_before_torch_is_imported() -> None:
    program = (
        "import sys, threading; from glassformer.train import native\n"
        "native.LIBRARY.get = lambda *extra: print(*extra)\n"
        "native.begin_for('shakespeare-char', ['precision=bf16']); native.begin_for(None, ['native=off'])\n"
        "native.begin_for('no such recipe', []); native.begin_for(None, ['nonsense'])\n"
        "[t.join() for t in threading.enumerate() if t.name == 'glassformer-compile']\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*train_abi.flags(True), "False"]
