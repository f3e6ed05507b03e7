"""Views through fitted lenses and dictionaries: named at the start, read, tried by edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glassformer.cli.common import named_dictionaries, named_lenses
from glassformer.errors import CheckpointError, UsageError
from glassformer.interp.dictionary import dictionaries
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


def test_a_graph_is_laid_over_by_a_dictionary_of_a_name(model: Any, tmp_path: Path) -> None:
    wide = model.config.d_model
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (9, wide), "W_dec": (9, wide), "b_enc": (9,), "b_dec": (wide,)}
    save_file(
        {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}, tmp_path / "layer_1.safetensors"
    )
    named = named_dictionaries([f"mine={tmp_path}", str(tmp_path / "layer_1.safetensors")])
    assert list(named) == ["mine", "layer_1"]
    session = Session(model, dictionaries=named)
    told = session.view("prediction", {"text": TEXT, "nodes": 400, "coverage": 1, "measure": False, "lay": ["mine"]})
    own = model.trace(TEXT).graph(most=400, coverage=1, measure=False, lay=dictionaries(tmp_path))
    assert {node["kind"] for node in told["nodes"] if node["layer"] == 1} > {"feature", "error"}
    assert [node["name"] for node in told["nodes"]] == [node["name"] for node in own.nodes]
    with pytest.raises(UsageError, match="no dictionary 'mime'; there are mine, layer_1. Did you mean mine"):
        session.view("prediction", {"text": TEXT, "lay": ["mime"]})
    with pytest.raises(UsageError, match="There is nothing at"):
        named_dictionaries([str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="Dictionaries have names of their own"):
        named_dictionaries([str(tmp_path), str(tmp_path)])
