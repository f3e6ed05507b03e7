"""Views through fitted lenses: named at the start, read, tried by edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glassformer.cli.common import named_lenses
from glassformer.errors import CheckpointError, UsageError
from glassformer.views import Session

TEXT = "The American shrew mole is a small"


@pytest.fixture
def lensed(model: Any, tmp_path: Path) -> Session:
    """A session with one fitted lens, and one that is none."""
    model.readout(" ".join([TEXT] * 20), "jacobian", window=16, tokens=96).save(tmp_path / "mine")
    (tmp_path / "broken").write_bytes(b"no lens")
    return Session(model, lenses=named_lenses([f"mine={tmp_path / 'mine'}", str(tmp_path / "broken")]))


def test_the_lens_view_reads_through_it(lensed: Session) -> None:
    model = lensed.model()
    fitted = model.load_readout(lensed.lenses["mine"])
    found = lensed.view("lens", {"text": TEXT, "through": "mine", "top": 2})
    mine = model.trace(TEXT).lens(2, through=fitted)
    assert [row["place"] for row in found["rows"]] == mine.places
    assert [t["id"] for t in found["rows"][0]["cells"][-1]["top"]] == mine.ids[0, -1].tolist()
    told = lensed.view("lens_edit", {"text": TEXT, "through": "mine", "layer": 0, "token": " mole", "swap": " shrew"})
    edit = model.trace(TEXT).lens_edit(0, " mole", " shrew", through=fitted).to_dict()
    for row, own in zip(told["tokens"], edit["tokens"], strict=True):
        assert (row["id"], row["claimed"], row["measured"]) == (own["id"], own["claimed"], own["measured"])
    assert (told["lens"], told["swap"]) == ("jacobian", True)
    rows = lensed.view("lens_agreement", {"text": TEXT, "through": "mine", "samples": 2})["rows"]
    assert [row["lens"] for row in rows] == ["plain", "mine"] * (model.config.n_layers - 1)
    plain = lensed.view("lens_agreement", {"text": TEXT, "layer": 0, "samples": 2})["rows"]
    assert [(row["lens"], row["layer"]) for row in plain] == [("plain", 0)]


def test_a_lens_that_is_not_there_is_refused(lensed: Session, session: Session, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no fitted lens 'mime'; there are mine, broken. Did you mean mine"):
        lensed.view("lens", {"text": TEXT, "through": "mime"})
    with pytest.raises(UsageError, match="no fitted lens 'mine'; none was named"):
        session.view("lens", {"text": TEXT, "through": "mine"})
    with pytest.raises(CheckpointError, match="no readable readout"):
        lensed.view("lens", {"text": TEXT, "through": "broken"})
    with pytest.raises(UsageError, match="There is no file"):
        named_lenses([str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="names of their own"):
        named_lenses([str(tmp_path / "mine"), f"mine={tmp_path / 'broken'}"])
