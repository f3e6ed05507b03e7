"""The cloud is a projection of the embedding table, and sums of words are counted honestly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import UsageError
from glassformer.views import Session, vectors
from tests.views.test_views import TEXT, numbers


def test_the_principal_axes_are_those_of_the_singular_values(session: Session, model: Any):
    found = session.view("cloud", {"text": TEXT})
    table = model.transformer.embed.weight.detach().double()
    x = table[found["ids"]]
    assert len(x) == found["count"] == len(found["tokens"])
    values = torch.linalg.svdvals(x - x.mean(0)).pow(2)
    assert found["shares"] == pytest.approx((values[:3] / values.sum()).tolist(), rel=1e-6)
    placed = numbers(found["points"])
    assert placed.shape == (found["count"], 3)
    assert np.allclose(np.linalg.norm(placed, axis=0) ** 2, values[:3].numpy(), rtol=1e-4)
    assert [t["id"] for t in found["lit"]] == model.ids(TEXT)


def test_a_plane_goes_through_its_three_words(session: Session, model: Any):
    words = ["mole", "small", "carbon"]
    found = session.view("cloud", {"plane": words, "words": ["American"]})
    at = {one["word"]: np.array(one["at"]) for one in found["words"]}
    table = model.transformer.embed.weight.detach().double()
    row = {w: table[model.tokenizer.encode(f" {w}", bos=False)].mean(0) for w in words}
    for a in words:
        for b in words:  # distances in the plane are true ones
            apart = float((row[a] - row[b]).norm())
            assert float(np.linalg.norm(at[a] - at[b])) == pytest.approx(apart, abs=1e-6)
    assert at["mole"] == pytest.approx([0, 0], abs=1e-9)
    with pytest.raises(UsageError, match="three words; got 2"):
        session.view("cloud", {"plane": ["mole", "small"]})
    with pytest.raises(UsageError, match="on one line"):
        session.view("cloud", {"plane": ["mole", "mole", "small"]})


def test_the_rate_counts_what_is_nearest(session: Session, model: Any, monkeypatch: pytest.MonkeyPatch):
    tokenizer = model.tokenizer
    single = [
        t[1:] for i in range(tokenizer.vocab_size) if (t := tokenizer.token_text(i)).startswith(" ") and t[1:].isalpha()
    ]
    pairs = ((single[0], single[1]), (single[2], single[3]))
    monkeypatch.setattr(vectors, "RELATIONS", {"made up": pairs, "unknown": (("xq", "zzqq"), ("qqz", "zq"))})
    found = session.view("sums", {})
    table = torch.nn.functional.normalize(model.transformer.embed.weight.detach().double(), dim=1)
    ids = [[tokenizer.id_of(f" {w}") for w in pair] for pair in pairs]
    right = 0
    for (a, b), (c, d) in ((ids[0], ids[1]), (ids[1], ids[0])):
        near = table @ (table[b] - table[a] + table[c])
        near[[a, b, c]] = -torch.inf
        right += int(near.argmax()) == d
    assert (found["asked"], found["right"]) == (2, right)
    assert found["relations"][1]["asked"] == 0
    by_name = session.view("sum", {"words": f"{single[0]} + {single[1]}"})
    assert by_name["neighbours"][0]["similarity"] <= 1


def test_meanings_move_in_one_plane(session: Session, model: Any):
    texts = ["The mole", "One mole of", "A small mole"]
    found = session.view("meaning", {"word": "mole", "texts": texts})
    places = found["places"]
    at = [(model.trace(text), t["position"]) for text, t in zip(texts, found["texts"], strict=True)]
    last = torch.stack([torch.nn.functional.normalize(t.at(places[-1], p).double(), dim=0) for t, p in at])
    # Three points lie in one plane, so at the last place every distance is the true one.
    assert found["shown"][-1] == pytest.approx(1, abs=1e-9)
    dots = torch.tensor(found["dots"][-1])
    assert torch.allclose(torch.cdist(dots.double(), dots.double()), torch.cdist(last, last), atol=1e-6)
    assert all(0 <= share <= 1 + 1e-9 for share in found["shown"])
    dots = torch.tensor(found["dots"], dtype=torch.float64)
    for i, ((trace, p), steps) in enumerate(zip(at, found["steps"], strict=True)):
        assert any(one["part"] == "head" for one in steps)
        for one in steps:
            assert one["moved"] == pytest.approx(float((dots[one["place"], i] - dots[one["place"] - 1, i]).norm()))
            if one["part"] == "head":
                step = trace.at(places[one["place"]], p) - trace.at(places[one["place"] - 1], p)
                along = trace.contributions(one["layer"], one["head"], p) @ (step / step.norm())
                assert one["along"] == pytest.approx(float(along.sum()), abs=1e-5)
                assert one["word"] == trace.tokens[int(along.argmax())]
        hidden = model.transformer.normed(trace.at(places[-1], p)[None, None])
        nearest = int(model.transformer.unembed_hidden(hidden)[0, 0].argmax())
        assert found["nearest"][-1][i] == trace.token_text(nearest)
