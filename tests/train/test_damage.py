"""A run whose files are damaged goes on from what is whole: rows of the table in docs/training.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glassformer.train import checkpoint, train
from tests.train.states import (  # noqa: F401  (fixtures)
    Make,
    Place,
    always_small,
    call,
    damage,
    dying_runs,
    losses,
    notes,
    printed,
    recipe_file,
    straight_losses,
)


def test_all_checkpoints_damaged(
    small: Make, out: Place, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = train(small(save_every=4), out=out(), quiet=True).path
    for step in (4, 8):
        damage(place / "checkpoints" / checkpoint.folder_name(step) / "state.safetensors")
    assert call("--resume", "--out", str(place)) == 1
    said = capsys.readouterr().err
    assert said.count("does not match the checksum") == 2
    assert call(*printed(said)) == 0
    assert losses(place) == straight


def test_an_altered_state_is_not_believed(small: Make, out: Place, dying: Any, straight: dict[int, float]) -> None:
    place = out()
    with dying(7):
        train(small(save_every=3), out=place, quiet=True)
    state = place / "checkpoints" / "step-000006" / "state.json"
    held = json.loads(state.read_text())
    held["cursor"]["taken"] += 1
    state.write_text(json.dumps(held))
    assert call("--resume", "--out", str(place)) == 0
    assert "state.json does not match the checksum it was saved with. Going back" in notes(place)
    assert losses(place) == straight


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"layers": "many"}}', None])
def test_a_broken_recipe_is_had_from_the_checkpoint_or_the_journal(
    small: Make, out: Place, dying: Any, straight: dict[int, float], content: str | None
) -> None:
    for save_every in (2, 0):
        place = out()
        with dying(5):
            train(small(save_every=save_every), out=place, quiet=True)
        (place / "recipe.json").unlink()
        if content is not None:
            (place / "recipe.json").write_text(content)
        assert call("--resume", "--out", str(place)) == 0
        assert losses(place) == straight


def test_nothing_says_which_recipe_it_was(
    small: Make, out: Place, tmp_path: Path, dying: Any, straight: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    place = out()
    with dying(2):
        train(small(), out=place, quiet=True)
    (place / "recipe.json").write_text("")
    (place / "journal.jsonl").write_text("")
    assert call("--resume", "--out", str(place)) == 2
    command = printed(capsys.readouterr().err)
    assert command == ["RECIPE", "--resume", "--out", str(place)]
    command[0] = "cpu-minutes"
    assert call(*command, *recipe_file(small(), tmp_path)) == 0
    assert losses(place) == straight


def test_the_tokenizer_of_the_run_is_broken(small: Make, out: Place, dying: Any, straight: dict[int, float]) -> None:
    place = out()
    with dying(5):
        train(small(save_every=2, tokenizer="char"), out=place, quiet=True)
    kept = (place / "tokenizer.json").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_text("")
    train(out=place, resume=True, quiet=True)
    assert (place / "tokenizer.json").read_bytes() == kept
    assert losses(place) == losses(train(small(tokenizer="char"), out=out(), quiet=True).path)


def test_a_checkpoint_of_the_first_format_resumes(
    small: Make, out: Place, dying: Any, straight: dict[int, float]
) -> None:
    place = out()
    with dying(5):
        train(small(save_every=4), out=place, quiet=True)
    folder = place / "checkpoints" / "step-000004"
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]
    for name in [name for name in state["files"] if not name.endswith(".safetensors")]:
        (folder / name).unlink()
        del state["files"][name]
    (folder / "state.json").write_text(json.dumps({**state, "format": 1}))
    assert call("--resume", "--out", str(place)) == 0
    assert losses(place) == straight


@pytest.mark.parametrize("line", ["", "{", "3", '{"event": "step"}', '{"event": "step", "step": 3, "lo\n\x00\xff'])
def test_a_broken_line_in_the_middle_of_the_journal_costs_only_itself(
    small: Make, out: Place, dying: Any, straight: dict[int, float], line: str
) -> None:
    place = out()
    with dying(7):
        train(small(save_every=6), out=place, quiet=True)
    file = place / "journal.jsonl"
    lines = file.read_bytes().splitlines()
    at = next(i for i, text in enumerate(lines) if b'"step", "step": 3' in text)
    file.write_bytes(b"\n".join([*lines[:at], line.encode("latin-1"), *lines[at:]]) + b"\n" + lines[-1][:20])
    assert call("--resume", "--out", str(place)) == 0
    assert losses(place) == straight
    assert all(isinstance(json.loads(text), dict) for text in file.read_text().splitlines())
