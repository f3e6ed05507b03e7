"""A direction as a view: the Python API's, and what steering by it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.views import Session

ASK = {"positive": ["the mole", "a small mole"], "negative": ["the bank", "a bank of"], "layer": 1}


def test_it_is_that_of_the_python_api_and_steers(session: Session, model: Any):
    import glassformer as gf

    told = session.view("direction", ASK)
    want = model.direction("direction", ASK["positive"], ASK["negative"], 1)
    assert told["vector"] == pytest.approx(want.vector.tolist(), abs=1e-6)
    assert told["accuracy"] == want.facts["accuracy"]
    assert len(told["raises"]) == len(told["lowers"]) == 8
    edit = {"kind": "steer", "layer": 1, "vector": told["vector"], "strength": 2.0}
    steered = session.view("next", {"text": "the mole is", "edits": [edit]})
    logits = model.edited(gf.steer(want, strength=2.0)).logits("the mole is")[-1]
    chance = torch.softmax(logits.double(), -1)
    assert steered["tokens"][0]["probability"] == pytest.approx(float(chance.max()), abs=1e-5)


def test_what_does_not_differ_has_none(session: Session):
    with pytest.raises(UsageError, match="do not differ"):
        session.view("direction", {**ASK, "negative": ASK["positive"]})
