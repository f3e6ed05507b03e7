"""One part over texts: passages and tenths against a plain reading, memory that does not grow, and going on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from glassformer.errors import CheckpointError, SiteError, TextError, UsageError
from glassformer.interp import corpus
from glassformer.interp.corpus import Part, Survey, pieces, survey
from glassformer.interp.direction import Direction
from glassformer.interp.edits import ablate
from glassformer.interp.fingerprint import design, fingerprint
from glassformer.interp.trace import Trace
from glassformer.system import locks
from tests.interp.helpers import Letters, model

V = Letters(40)


def encode(text: str) -> list[int]:
    return [ord(c) % 26 for c in text if c.isalpha()]


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    lines = [" ".join("abcdefghij"[i % 7 :] for _ in range(2)) for i in range(16)]
    (tmp_path / "one.txt").write_text("\n".join(lines[:10]) + "\n", "utf-8")
    (tmp_path / "two.txt").write_bytes("\ufeff".encode() + "\n".join(lines[10:]).encode())
    return [tmp_path / "one.txt", tmp_path / "two.txt"]


def test_pieces_go_on_from_anywhere(texts):
    whole = list(pieces(texts, encode, 16))
    assert sum(len(ids) for ids, _ in whole) == sum(len(encode(t.read_text("utf-8-sig"))) for t in texts)
    assert max(len(ids) for ids, _ in whole) <= 16
    for number, (_, after) in enumerate(whole):
        assert [ids for ids, _ in pieces(texts, encode, 16, after)] == [ids for ids, _ in whole[number + 1 :]]
    small = list(pieces(texts, encode, 5))
    assert [i for ids, _ in small for i in ids] == [i for ids, _ in whole for i in ids]
    assert [ids for ids, _ in pieces(texts, encode, 5, small[3][1])] == [ids for ids, _ in small[4:]]


def test_a_line_without_end_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 16)
    (tmp_path / "long.txt").write_text("äbcdé" * 50, "utf-8")
    whole = list(pieces([tmp_path / "long.txt"], lambda text: [ord(c) for c in text], 8))
    assert "".join(chr(i) for ids, _ in whole for i in ids) == "äbcdé" * 50


@pytest.mark.parametrize("part", [Part("head", 1, 2), Part("neuron", 0, 5)], ids=str)
def test_what_is_found_is_what_a_plain_reading_finds(texts, part):
    t = model()
    found = survey(Survey(t, V, part, top=4), texts, encode, longest=16)
    data = found.to_dict()
    strengths, losses, without = [], [], []
    named = {"head": part.index} if part.kind == "head" else {"neuron": part.index}
    edit = ablate(layer=part.layer, **named).bind(t.config)
    for ids, _ in pieces(texts, encode, 16):
        traced = Trace(t, ids)
        if part.kind == "head":
            strengths.append(traced.head_outputs(part.layer, part.index).norm(dim=-1))
        else:
            strengths.append(traced.tensor(f"blocks.{part.layer}.mlp.post")[0, :, part.index])
        target = torch.tensor(ids[1:])
        for kept, tap in ((losses, None), (without, edit)):
            logits = t(torch.tensor([ids]), tap=tap)[0, :-1].double()
            kept.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    best = torch.cat([s.abs() for s in strengths]).topk(4).values
    assert [abs(p["strength"]) for p in data["passages"]] == pytest.approx(best.tolist(), abs=1e-5)
    drawn = torch.cat([s[:-1] for s in strengths])
    assert data["positions"] == len(drawn) == data["drawn"]
    order = drawn.argsort()
    top = order[len(order) * 9 // 10 :]
    last = data["deciles"][-1]
    assert last["loss"] == pytest.approx(float(torch.cat(losses)[top].mean()), abs=1e-4)
    assert last["loss_without"] == pytest.approx(float(torch.cat(without)[top].mean()), abs=1e-4)
    assert sum(one["share"] for one in last["tokens"]) <= 1 + 1e-9


def test_a_survey_goes_on_to_the_same_result_in_constant_memory(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "KEPT", 60)
    t, part, file = model(), Part("head", 0, 1), tmp_path / "state.json"
    whole = survey(Survey(t, V, part), texts, encode, longest=16).to_dict()
    assert whole["drawn"] == 60 < whole["positions"]

    class Stop(Exception):
        pass

    def stop(done, total, what):
        if done > total // 2:
            raise Stop

    with pytest.raises(Stop):
        survey(Survey(t, V, part), texts, encode, longest=16, keep=file, every=1, progress=stop)
    begun = Survey(t, V, part)
    begun.load(file, texts)
    assert 0 < begun.texts < whole["texts"]
    again = survey(Survey(t, V, part), texts, encode, longest=16, keep=file).to_dict()
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(whole))
    for other, said in ((Survey(t, V, Part("head", 0, 2)), "another part"), (Survey(model(seed=3), V, part), "model")):
        with pytest.raises(CheckpointError, match=said):
            other.load(file, texts)
    with pytest.raises(CheckpointError, match="another texts"):
        Survey(t, V, part).load(file, texts[:1])
    with pytest.raises(CheckpointError, match="other passages of these texts"):
        survey(Survey(t, V, part), texts, encode, longest=16, matching="a", keep=file)
    with locks.locked(file), pytest.raises(UsageError, match="Another process is reading texts into"):
        survey(Survey(t, V, part), texts, encode, longest=16, keep=file)
    kept, first = file.read_text(), texts[0].read_bytes()
    texts[0].write_bytes(first.replace(b"a", b"b", 1))  # as long as before
    with pytest.raises(CheckpointError, match="another texts"):
        Survey(t, V, part).load(file, texts)
    texts[0].write_bytes(first)
    file.write_text(kept.replace('"begin": [', '"begin": [1,', 1))
    with pytest.raises(CheckpointError, match="does not match the checksum"):
        Survey(t, V, part).load(file, texts)
    file.write_text("{}")
    with pytest.raises(CheckpointError, match="not of the format"):
        Survey(t, V, part).load(file, texts)


def test_a_direction_is_followed(texts):
    t = model()
    vector = torch.linspace(-1, 1, 16)
    one = Direction("d", 1, vector, "mean", "last", "", fingerprint(t), design(t.config), {})
    data = survey(Survey(t, V, Part("direction", 1, direction=one)), texts, encode, longest=16).to_dict()
    assert data["name"] == "d"
    assert data["deciles"][0]["from"] < data["deciles"][-1]["to"]


def test_what_cannot_be_is_said(texts, tmp_path):
    t = model()
    with pytest.raises(TextError, match="no passage with 'zebra' in it"):
        survey(Survey(t, V, Part("head", 0, 1)), texts, encode, longest=16, matching="zebra")
    with pytest.raises(SiteError, match="no head 9 in layer 0: it has 4"):
        Survey(t, V, Part("head", 0, 9))
    with pytest.raises(SiteError, match="no expert 0 in layer 1: it has 0"):
        Survey(t, V, Part("expert", 1, 0))
    with pytest.raises(UsageError, match="1 passage or more"):
        Survey(t, V, Part("head", 0, 1), top=0)
    (tmp_path / "bad.txt").write_bytes(b"ab\xff\n")
    with pytest.raises(TextError, match=r"not UTF-8 text \(its byte 2"):
        survey(Survey(t, V, Part("head", 0, 1)), [tmp_path / "bad.txt"], encode)
