"""The view `corpus`: what the survey of files gives, in pieces that go on from each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glassformer.errors import SiteError, TextError, UsageError
from glassformer.interp.corpus import Part, Survey
from glassformer.views import Session

TEXTS = [
    "The American shrew mole is a small mole",
    "a biopsy of the mole",
    "The shrew is small",
    "One mole of the shrew",
]


def test_pieces_go_on_to_what_all_at_once_gives(session: Session) -> None:
    model = session.model()
    own = Survey(model.transformer, model.tokenizer, Part("head", 1, 2), top=3)
    lead = model.encode("", None)
    for text in TEXTS:
        own.read([*lead, *model.encode(text, False)])
    ask = {"kind": "head", "layer": -1 if model.config.n_layers == 2 else 1, "index": 2, "top": 3}
    whole = session.view("corpus", {**ask, "texts": TEXTS})
    assert {k: v for k, v in whole.items() if k != "state"} == json.loads(json.dumps(own.to_dict()))
    state = None
    for text in TEXTS:
        found = session.view("corpus", {**ask, "texts": [text], "state": state})
        state = json.loads(json.dumps(found["state"]))
    assert found == whole
    with pytest.raises(UsageError, match="state: it is none"):
        session.view("corpus", {**ask, "texts": TEXTS, "state": {"random": 3}})


def test_a_direction_is_followed_and_checks_come_between_passages(session: Session) -> None:
    model, calls = session.model(), []
    vector = [1.0] + [0.0] * (model.config.d_model - 1)
    ask = {"kind": "direction", "layer": 0, "vector": vector, "texts": TEXTS[:2], "top": 1}
    found = session.view("corpus", ask, lambda: calls.append(0))
    strengths = [float(x) for text in TEXTS[:2] for x in model.trace(text)["blocks.0.resid_post"][:, 0]]
    assert found["positions"] == len(strengths) - 2, "the last token of each has no next one"
    assert abs(found["passages"][0]["strength"]) == pytest.approx(max(map(abs, strengths)), rel=1e-5)
    assert len(calls) >= 1 + 2


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"index": 99}, SiteError, "There is no head 99"),
        ({"kind": "direction"}, UsageError, "given as its vector"),
        ({"kind": "direction", "vector": [1.0]}, UsageError, "numbers that are not all 0"),
        ({"matching": "zebra"}, TextError, "no passage with 'zebra' in it"),
        ({"texts": []}, TextError, "no passage of two tokens or more"),
    ],
)
def test_what_cannot_be_surveyed_is_refused(session: Session, given: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        session.view("corpus", {"kind": "head", "layer": 0, "texts": TEXTS, **given})
