"""The command line of training."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glassformer.cli.app import main
from glassformer.train.loop import Run
from glassformer.train.recipe import Recipe, names

SHORT = ["--set", "steps=4", "--set", "layers=1", "--set", "width=16", "--set", "heads=2", "--set", "context=16"]
SHORT += ["--set", "tokenizer=byte", "--set", "batch=2", "--set", "sample_every=0", "--set", "precision=fp32"]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["train", *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_a_text_file_becomes_a_model(corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    assert call("--data", str(corpus_file), "--out", str(place), *SHORT) == 0
    said = capsys.readouterr()
    assert "4 steps in" in said.out
    assert "bits a byte" in said.out
    assert "step 4/4  loss" in said.err
    assert call("--data", str(corpus_file), "--out", str(place), *SHORT) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_characters_and_bpe_and_json(corpus_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tokenizer in ("char", "bpe:300"):
        place = tmp_path / tokenizer.replace(":", "-")
        extra = ["--set", f"tokenizer={tokenizer}", "--json"]
        assert call("--data", str(corpus_file), "--out", str(place), *SHORT, *extra) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["step"] == 4
        assert not math.isnan(data["loss"])
    assert call("--data", str(corpus_file), "--out", str(tmp_path / "x"), *SHORT, "--set", "tokenizer=bpe:few") == 2


def test_a_dry_run_says_what_it_costs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    assert call("--dry-run", "--out", str(place), *SHORT, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["tokens"] == 4 * 2 * 16
    assert plan["parameters"] > 0
    assert plan["seconds"] > 0
    assert not place.exists()
    assert call("--dry-run", "--out", str(place), *SHORT) == 0
    assert "\nexports to       hf and gguf\n" in capsys.readouterr().out
    assert (
        call(
            "--dry-run",
            "--out",
            str(place),
            "--set",
            "width=65536",
            "--set",
            "heads=512",
            "--set",
            "layers=512",
            "--set",
            "batch=1",
        )
        == 0
    )
    assert "GB may be used" in capsys.readouterr().out


def test_a_dry_run_tells_what_the_recipe_states(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("shakespeare-char", "--dry-run", "--data", "mine.txt") == 0
    said = capsys.readouterr().out
    for words in ("expected loss    1.785 to 1.809 nats", "expected time ", "expected memory ", "on  "):
        assert f"\n{words}" in said
    assert "without your changes" not in said
    assert call("shakespeare-char", "--dry-run", "--set", "steps=300") == 0
    assert "\nexpected         what follows is stated of the recipe without your changes\n" in capsys.readouterr().out
    assert call("shakespeare-char", "--dry-run", "--set", "steps=300", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["changed"] is True
    assert plan["expect"]["loss"].startswith("1.785")


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--recipes") == 0
    said = capsys.readouterr().out
    assert "cpu-minutes: " in said
    assert said.count("    expected loss: ") == said.count("    expected memory: ") == len(names())
    assert call("--recipes", "--json") == 0
    assert "gpt2-124m" in {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_an_interrupt_leaves_with_130_and_says_how_to_go_on(
    small: Callable[..., Recipe],
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Run._one_step

    def one_step(self: Run) -> tuple[float, float, int]:
        result = plain(self)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    place = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_one_step", one_step)
        assert call("--data", str(corpus_file), "--out", str(place), *SHORT) == 130
    said = capsys.readouterr().err
    assert "Stopped at step 2 with a checkpoint" in said
    assert f"--resume --out {place}" in said
    assert call("--resume", "--out", str(place)) == 0


def test_a_wrong_setting_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--set", "stepz=4") == 2
    said = capsys.readouterr().err
    assert said.startswith("glassformer: No recipe setting is called 'stepz'. Did you mean steps")
    assert said.count("\n") == 1


def test_training_is_not_loaded_to_print_help() -> None:
    program = "import sys; import glassformer.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_probes_follow_prompts_and_heads(corpus_file: Path, tmp_path: Path) -> None:
    from glassformer.train import journal

    place = tmp_path / "run"
    more = ("--set", "probe_every=2", "--set", "film=0")
    assert call("--data", str(corpus_file), "--out", str(place), *SHORT, *more) == 0
    probes = [e for e in journal.read(place / "journal.jsonl") if e["event"] == "probe"]
    assert [e["step"] for e in probes] == [2, 4]
    assert sum(p for _, p in probes[0]["next"]["Once upon a time"]) <= 1
    attention = probes[0]["attention"]["Once upon a time"]
    assert "".join(attention["tokens"]) == "Once upon a time"
    assert len(attention["last"]) == 1  # layer
    assert len(attention["last"][0]) == 2  # heads
    assert all(sum(row) == pytest.approx(1, abs=1e-3) and len(row) == 16 for row in attention["last"][0])
    assert set(probes[0]["heads"]) == {"previous", "itself", "first", "induction"}
    assert len(probes[0]["heads"]["induction"]) == 1
    assert len(probes[0]["heads"]["induction"][0]) == 2
    assert all(0 <= share <= 1 for kind in probes[0]["heads"].values() for layer in kind for share in layer)


def test_only_the_first_process_says_how_it_ended(
    corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    for number, extra in enumerate(([], ["--json"])):
        assert call("--data", str(corpus_file), "--out", str(tmp_path / str(number)), *SHORT, *extra) == 0
    assert capsys.readouterr().out == ""
