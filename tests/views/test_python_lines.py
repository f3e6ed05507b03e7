"""The lines of Python beside a picture give its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glassformer.views import Session
from tests.views.helpers import TEXT, numbers


def entropy(lens: dict[str, Any]) -> float:
    return float(lens["rows"][1]["cells"][2]["entropy"])


COPIED: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "next": ({"position": 3}, lambda answer: answer, lambda found: torch.tensor(numbers(found["logits"]))),
    "attention": ({"layer": 1, "head": 2}, lambda a: a, lambda found: torch.tensor(numbers(found["tile"]))),
    "cell": ({"layer": 1, "head": 2, "query": 4, "key": 2}, lambda a: a.dot, lambda found: found["dot"]),
    "lens": ({"top": 2}, lambda a: entropy(a.to_dict()), lambda found: entropy(found)),
    "why": ({}, lambda a: a.value, lambda found: found["value"]),
    "neurons": ({"top": 2}, lambda a: a.to_dict()["all"], lambda found: found["all"]),
    "words": ({"limit": 2}, lambda a: a["words"][0]["probability"], lambda found: found["words"][0]["probability"]),
    "thumbnails": ({"size": 4}, lambda a: a["length"], lambda found: found["length"]),
    "effects": ({}, lambda a: a["kl"], lambda found: found["kl"]),
    "stage": ({}, lambda a: a, lambda found: found["next"][0]["probability"]),
    "surprise": ({}, lambda a: a, lambda found: found["losses"]),
    "without": ({"position": 3}, lambda a: a, lambda found: found["rows"][0]["after"]),
    "carry": (
        {"layer": 1, "head": 2, "query": 3},
        lambda a: a.norm(dim=-1)[:4],
        lambda found: torch.tensor(numbers(found["writes"]["norm"])),
    ),
}  # fmt: skip


EDITED: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "off": [{"kind": "ablate_head", "layer": 1, "head": 2}],
    "dial": [{"kind": "scale", "part": "head", "layer": 0, "unit": 1, "by": 0.5}],
}


@pytest.mark.parametrize("edits", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("name", COPIED)
def test_copied_lines_give_the_numbers(session: Session, model: Any, monkeypatch: Any, name: str, edits: list[Any]):
    import glassformer

    asked, of_lines, of_view = COPIED[name]
    ask = {"text": TEXT, "edits": edits, **asked}
    code = session.view("python", {"name": name, "arguments": ask})["lines"]
    monkeypatch.setattr(glassformer, "load", lambda source: model, raising=False)
    scope: dict[str, Any] = {}
    exec(code, scope)  # noqa: S102 - the lines are what is tested
    answer, wanted = scope["answer"], of_view(session.view(name, ask))
    if isinstance(answer, dict) and name not in ("thumbnails", "effects", "words"):
        answer = of_view(answer)
    else:
        answer = of_lines(answer)
    assert torch.allclose(torch.as_tensor(answer).float(), torch.as_tensor(wanted).float(), atol=1e-4)
