"""Training from the page: a start that fails says one sentence and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from glassformer.errors import TrainError, UsageError
from glassformer.serve import training
from glassformer.serve.training import Training


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "RECIPE", "smal-text")
    jobs = Training(tmp_path / "runs")
    with pytest.raises(TrainError, match=r"No recipe is called 'smal-text'.*small-text"):
        jobs.start("the cat sat on the mat " * 40, 10, lambda: None)
    assert jobs.running is None
    assert list((tmp_path / "runs").iterdir()) == []
    jobs.close()


@pytest.mark.parametrize(("text", "said"), [(" \n", "Paste a text"), ("too short", "9 bytes is too short")])
def test_what_cannot_be_learnt_is_refused_at_once(tmp_path: Path, text: str, said: str):
    with pytest.raises(UsageError, match=said):
        Training(tmp_path).start(text, 10, lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_names_are_free(tmp_path: Path):
    (tmp_path / "page-1").mkdir()
    (tmp_path / "page-2.txt").touch()
    assert Training(tmp_path)._free() == "page-3"
    assert Training(tmp_path)._free() == "page-4", "another server has taken the third and not yet begun"
