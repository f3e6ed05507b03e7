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


def test_kept_directions_are_compared_and_steer(session: Session, model: Any):
    """A sum of words is that of their rows, a tenth of the stream long; examples give the same as alone."""
    kept = [
        {"name": "words", "words": "mole - bank"},
        {"name": "texts", **ASK},
        {"name": "back", "words": "bank - mole"},
    ]
    found = session.view("directions", {"text": "the mole is", "directions": kept, "layer": 1})
    words, texts, back = found["directions"]
    table = model.transformer.embed.weight.detach().double()
    rows = [table[model.tokenizer.encode(f" {w}", bos=False)].mean(0) for w in ("mole", "bank")]
    vector = torch.tensor(words["vector"], dtype=torch.float64)
    assert torch.cosine_similarity(vector, rows[0] - rows[1], dim=0) == pytest.approx(1)
    stream = model.trace("the mole is")["blocks.1.resid_post"].double().norm(dim=-1).mean()
    assert float(vector.norm() / stream) == pytest.approx(0.1, abs=1e-4)
    assert words["share"] == pytest.approx(0.1)
    alone = session.view("direction", ASK)
    assert texts["vector"] == pytest.approx(alone["vector"], rel=1e-4, abs=1e-6)
    assert texts["raises"] == alone["raises"][:5]
    one, other = vector / vector.norm(), torch.tensor(alone["vector"], dtype=torch.float64)
    assert found["cosines"][0][1] == pytest.approx(float(one @ other / other.norm()), abs=1e-5)
    assert found["cosines"][0][2] == pytest.approx(-1)
    assert back["lowers"] == words["raises"]
    edit = {"kind": "steer", "layer": words["layer"], "vector": words["vector"], "strength": 3.0}
    assert session.view("next", {"text": "the mole is", "edits": [edit]})["logits"]


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({"words": "mole - mole"}, "cancel out"),
        ({"positive": ["a"]}, "texts on both sides"),
        ({"words": "+"}, "without a word"),
    ],
)
def test_what_is_no_direction_is_told(session: Session, kept: dict[str, Any], said: str):
    from glassformer.errors import GlassformerError

    with pytest.raises(GlassformerError, match=said):
        session.view("directions", {"text": "the mole", "directions": [{"name": "one", **kept}]})
