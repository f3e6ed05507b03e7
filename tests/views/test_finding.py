"""Parts found by what they do, and one number over many texts: each equal to what the trace says."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import UnsupportedError, UsageError
from glassformer.views import Session

TEXT = "The American shrew mole is a small"


def test_heads_that_read_a_word(session: Session, model: Any):
    found = session.view("find", {"text": TEXT, "what": "heads_reading", "position": 4, "key": 2, "top": 3})
    trace = model.trace(TEXT)
    every = {(layer, h): float(trace.pattern(layer, h, 4).flatten()[2]) for layer in range(3) for h in range(4)}
    assert [row["value"] for row in found["rows"]] == pytest.approx(sorted(every.values(), reverse=True)[:3], abs=1e-6)
    assert all(every[row["layer"], row["head"]] == pytest.approx(row["value"], abs=1e-6) for row in found["rows"])
    assert found["count"] == 12


def test_heads_that_add_to_a_token_are_the_sums_of_why(session: Session, model: Any):
    found = session.view("find", {"text": TEXT, "what": "heads_adding", "top": 12})
    parts = [p for p in model.trace(TEXT).why(words=0, parts=0).ranked_parts() if p["kind"] == "head"]
    for row in found["rows"]:
        mine = [p["claimed"] for p in parts if (p["layer"], p["head"]) == (row["layer"], row["head"])]
        assert row["value"] == pytest.approx(sum(mine), abs=1e-6)


def test_neurons_whose_column_points_to_a_token(session: Session, model: Any):
    found = session.view("find", {"text": TEXT, "what": "neurons_writing", "top": 4})
    trace, row = model.trace(TEXT), found["rows"][0]
    column = trace.forward.block(row["layer"]).mlp.columns[:, row["index"]].double()
    w = trace.transformer.unembedding.double()
    token = int(trace.logits(-1).argmax())
    reading = (w[token] - w.mean(0)) * trace.transformer.final.gain.double()
    assert row["value"] == pytest.approx(float(torch.cosine_similarity(column, reading, dim=0)), abs=1e-5)
    assert abs(found["rows"][0]["value"]) >= abs(found["rows"][3]["value"])


def test_tokens_by_letters_and_what_is_not_there(session: Session, model: Any):
    found = session.view("find", {"what": "tokens", "letters": "MOL", "top": 5})
    assert found["rows"]
    assert all("mol" in model.tokenizer.token_text(row["id"]).lower() for row in found["rows"])
    with pytest.raises(UsageError, match="letters"):
        session.view("find", {"what": "tokens"})
    with pytest.raises(UnsupportedError, match="experts"):
        session.view("find", {"text": TEXT, "what": "experts"})


def test_experts_by_their_mean_weight(session: Session, model: Any):
    from glassformer.model import Attention, Config, Experts, Layer, Transformer

    torch.manual_seed(0)
    layer = Layer(Attention(2, 2, 8), Experts(4, 2, 6))
    transformer = Transformer(Config(model.config.vocab_size, 16, 64, (layer, layer)))
    moe = copy.copy(model)
    moe._transformer = transformer
    trace = moe.trace(TEXT)
    found = Session(moe).view("find", {"text": TEXT, "what": "experts", "top": 100})
    weights = trace.tensor("blocks.0.mlp.weights")[0].double().mean(0)
    mine = {row["expert"]: row["value"] for row in found["rows"] if row["layer"] == 0}
    assert [mine[i] for i in range(4)] == pytest.approx(weights.tolist(), abs=1e-9)
    # one layer's, in the shape of a head's pattern; what is switched off is gone
    ask = {"text": TEXT, "layer": 1, "position": 2}
    shown = Session(moe).view("experts", ask)
    json.dumps(shown, allow_nan=False)
    tile, own = shown["tile"], trace.tensor("blocks.1.mlp.weights")[0]
    grid = np.frombuffer(base64.b64decode(tile["base64"]), tile["dtype"]).reshape(tile["shape"])
    assert np.allclose(grid, own, atol=1e-6)
    assert (shown["q1"], shown["k1"]) == grid.shape
    assert [row["layer"] for row in shown["layers"]] == [0, 1]
    assert shown["layers"][0]["weights"] == pytest.approx(weights.tolist(), abs=1e-9)
    assert sum(one["weight"] for one in shown["experts"]) == pytest.approx(float(own[2].sum()), abs=1e-6)
    first = shown["experts"][0]
    less = Session(moe).view("experts", {**ask, "token": first["raises"][0], "edits": [first["edit"]]})
    assert first["expert"] not in [one["expert"] for one in less["experts"] if one["weight"]]


@pytest.mark.parametrize("metric", ["probability", "logit_difference", "rank", "entropy", "surprise"])
def test_one_number_over_texts(session: Session, model: Any, metric: str):
    import glassformer as gf

    ask = {"texts": [TEXT, "the mole is"], "metric": metric, "token": " a", "against": " the"}
    edit = {"kind": "ablate_head", "layer": 1, "head": 2}
    found = session.view("texts", {**ask, "edits": [edit]})
    changed = model.edited(gf.ablate(layer=1, head=2))
    for row in found["rows"]:
        for name, one in (("plain", model), ("changed", changed)):
            logits, ids = one.logits(row["text"]).double(), one.ids(row["text"])
            chances = torch.softmax(logits[-1], -1)
            a, b = (model.tokenizer.id_of(t) for t in (" a", " the"))
            loss = -torch.log_softmax(logits[:-1], -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean()
            want = {
                "probability": float(chances[a]),
                "logit_difference": float(logits[-1, a] - logits[-1, b]),
                "rank": float((logits[-1] > logits[-1, a]).sum() + 1),
                "entropy": float(-(chances * chances.log()).sum()),
                "surprise": float(loss),
            }[metric]
            assert row[name] == pytest.approx(want, abs=1e-4)
        assert row["difference"] == pytest.approx(row["changed"] - row["plain"])
    assert found["mean"]["plain"] == pytest.approx(sum(row["plain"] for row in found["rows"]) / 2)
    assert session.view("texts", ask)["mean"]["changed"] is None


def test_a_difference_needs_two_tokens(session: Session):
    with pytest.raises(UsageError, match="two tokens"):
        session.view("texts", {"texts": [TEXT], "metric": "logit_difference"})
