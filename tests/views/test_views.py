"""Views by name: their numbers are the model's, and what is asked wrongly is said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassformer.errors import GlassformerError, SourceError, TextError, UsageError
from glassformer.views import Cancelled, Session
from glassformer.views.registry import VIEWS
from glassformer.views.session import MODELS_OPEN, plain
from tests.views.helpers import TEXT, numbers

ASKS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "next": {"top": 5},
    "words": {"limit": 3},
    "effects": {"edits": [{"kind": "ablate_head", "layer": 1, "head": 2}]},
    "thumbnails": {"size": 4},
    "attention": {"layer": 1, "head": 2},
    "cell": {"layer": 1, "head": 2, "query": 3, "key": 1},
    "reasons": {"layer": 1, "head": 2},
    "lens": {"top": 2},
    "journey": {},
    "prediction": {"nodes": 7},
    "why": {},
    "neurons": {"top": 4},
}


@pytest.mark.parametrize("name", ASKS)
def test_views_are_plain_data(session: Session, name: str):
    found = session.view(name, {"text": TEXT, **ASKS[name]})
    json.dumps(found, allow_nan=False)
    assert found


def test_views_without_a_text(session: Session):
    for name, ask in (
        ("vocab", {"ids": [1, 2, 10**6]}),
        ("heads", {}),
        ("size", {}),
        ("size", {"name": "gpt3"}),
        ("patch", {"clean": "One mole of", "corrupted": "One shrew of", "what": "heads"}),
        ("models", {}),
        ("runs", {}),
        ("tasks", {}),
        ("meaning", {"word": "mole", "texts": ["The mole", "One mole of"]}),
    ):
        json.dumps(session.view(name, ask), allow_nan=False)


def test_next_is_the_model_s_distribution(session: Session, model: Any):
    found = session.view("next", {"text": TEXT})
    logits = model.logits(TEXT)[-1].float()
    assert np.allclose(numbers(found["logits"]), logits.numpy(), atol=1e-4)
    assert found["tokens"][0]["probability"] == pytest.approx(float(logits.double().softmax(-1).max()), abs=1e-6)


def test_attention_tiles_are_the_pattern(session: Session, model: Any):
    pattern = model.trace(TEXT).pattern(1, 2).numpy()
    whole = session.view("attention", {"text": TEXT, "layer": 1, "head": 2})
    assert np.allclose(numbers(whole["tile"]), pattern, atol=1e-5)
    assert whole["row_sum_error"] < 1e-5
    part = session.view("attention", {"text": TEXT, "layer": 1, "head": 2, "q0": 2, "q1": 5, "k0": 1, "k1": 3})
    assert np.allclose(numbers(part["tile"]), pattern[2:5, 1:3], atol=1e-5)
    coarse = session.view("attention", {"text": TEXT, "layer": 1, "head": 2, "stride": 2})
    assert numbers(coarse["tile"])[0, 0] == pytest.approx(pattern[:2, :2].max(), abs=1e-5)


def test_edits_change_what_is_asked_under_them_and_nothing_else(session: Session, model: Any):
    from glassformer.interp.edits import ablate

    edit = {"kind": "ablate_mlp", "layer": 1}
    edited = session.view("next", {"text": TEXT, "edits": [edit]})
    wanted = model.edited(ablate(layer=1, part="feed_forward")).logits(TEXT)[-1].float().numpy()
    assert np.allclose(numbers(edited["logits"]), wanted, atol=1e-4)
    plain = session.view("next", {"text": TEXT})
    assert np.allclose(numbers(plain["logits"]), model.logits(TEXT)[-1].float().numpy(), atol=1e-4)
    effects = session.view("effects", {"text": TEXT, "edits": [edit]})
    assert effects["before"]["tokens"][0]["id"] == plain["tokens"][0]["id"]
    assert effects["after"]["tokens"][0]["id"] == edited["tokens"][0]["id"]
    assert effects["kl"] > 0


def test_a_cell_s_picture_is_the_cell(session: Session, model: Any):
    found = session.view("cell", {"text": TEXT, "layer": 1, "head": 2, "query": 4, "key": 2})
    trace = model.trace(TEXT)
    norms = found["norms"]
    assert norms["q"] * norms["k"] * found["cosine"] == pytest.approx(found["dot"], rel=1e-4)
    assert sum(found["products"]) == pytest.approx(found["dot"], rel=1e-5)
    assert sum(found["row"]["weights"]) + found["row"]["rest"] == pytest.approx(1, abs=1e-5)
    assert found["row"]["weights"] == pytest.approx(trace.pattern(1, 2, 4).flatten()[:5].tolist(), abs=1e-5)
    assert found["row"]["later"] == len(model.ids(TEXT)) - 5
    # The query is the thinned column's whole times the head's projection.
    column = trace.at("blocks.1.ln1.normed", 4)
    assert found["columns"]["query"] == pytest.approx(column[found["columns"]["dims"]].tolist(), abs=1e-5)
    before = trace.at("blocks.1.resid_pre", 4)
    write = trace.cell(1, 2, 4, 2).write
    assert found["stream"]["after"] == pytest.approx(float((before + write).norm()), rel=1e-5)
    dims, columns = found["columns"]["dims"], found["stream"]["columns"]
    assert columns["before"] == pytest.approx(before[dims].tolist(), abs=1e-5)
    assert columns["after"] == pytest.approx((before + write)[dims].tolist(), abs=1e-5)


def test_the_matrices_of_a_cell_lead_from_its_columns_to_its_query_and_key(session: Session, model: Any):
    ask = {"text": TEXT, "layer": 1, "head": 2, "query": 4, "key": 2}
    maps, cell = session.view("maps", ask), session.view("cell", ask)
    assert maps["query"]["value"] == pytest.approx(cell["rot_q"], abs=1e-4)
    assert maps["key"]["value"] == pytest.approx(cell["rot_k"], abs=1e-4)
    trace = model.trace(TEXT)
    for side, position in (("query", 4), ("key", 2)):
        assert maps[side]["apart"] < 1e-4
        stream = trace.at("blocks.1.resid_pre", position)
        assert maps[side]["stream"] == pytest.approx(stream[maps["dims"]].tolist(), abs=1e-6)
        if len(maps["dims"]) == maps["width"]:  # nothing is thinned out here
            again = numbers(maps[side]["matrix"]) @ np.array(maps[side]["stream"])
            assert again == pytest.approx(maps[side]["value"], abs=1e-3)


def test_a_waterfall_ends_at_the_number_explained(session: Session):
    found = session.view("why", {"text": TEXT})
    assert sum(step["claimed"] for step in found["layers"]) == pytest.approx(found["value"], abs=1e-3)
    assert len(found["parts"]) <= 200


def test_patching_brings_the_answer_back(session: Session, model: Any):
    clean, corrupted = "One mole of", "One shrew of"
    found = session.view("patch", {"clean": clean, "corrupted": corrupted})
    # Before the first layer only the word differs.
    assert sorted(found["restored"][0]) == pytest.approx([0.0] * (len(found["columns"]) - 1) + [1.0], abs=1e-4)
    best = model.next(clean).top(1)[0]
    part = "\ufffd" in best.token  # of a character: spelled as its bytes
    first = f"‹{model.tokenizer.token_bytes(best.id).hex()}›" if part else best.token
    assert found["pairs"][0]["answer"] == first  # also where both texts go on with the same token


def test_comparing_with_itself_finds_no_difference(session: Session):
    side = {"text": TEXT}
    assert session.view("compare", {"a": side, "b": side})["kl"] == pytest.approx(0, abs=1e-9)
    assert session.view("compare", {"a": side, "b": side, "what": "lens"})["count"] == 0
    heads = session.view("compare", {"a": side, "b": side, "what": "attention", "layer": 0, "head": 0})["heads"]
    assert all(head["mean"] == 0 for head in heads)


@pytest.mark.parametrize(
    ("name", "ask", "message"),
    [
        ("nexxt", {}, "There is no view 'nexxt'"),
        ("next", {"text": ""}, "The text is empty"),
        ("next", {"text": TEXT, "position": 99}, "position 99"),
        ("next", {"text": 3}, "text:"),
        ("next", {"text": "a", "colour": 1}, "colour"),
        ("attention", {"text": TEXT, "layer": 9}, "layer 9"),
        ("attention", {"text": TEXT, "layer": 0, "q0": 50, "q1": 60}, "The tile is empty"),
        ("effects", {"text": TEXT, "edits": [{"kind": "explode"}]}, "edits"),
        ("next", {"text": TEXT, "model": "another"}, "'another' is not open here"),
        ("run", {"name": "../../etc"}, "There is no training run called"),
        ("run_step", {"text": " "}, "The sentence is empty"),
        ("compare", {"a": {"text": TEXT}, "b": {"text": "The"}, "what": "lens"}, "tokens long"),
        ("patch", {"clean": TEXT, "corrupted": "The"}, "tokens long"),
        ("patch", {"clean": TEXT, "corrupted": TEXT}, "The two prompts are the same"),
        ("patch", {"clean": TEXT, "corrupted": TEXT, "what": "soul"}, "what:"),
    ],
)
def test_what_is_asked_wrongly_is_said(session: Session, name: str, ask: dict[str, Any], message: str):
    with pytest.raises(GlassformerError) as error:
        session.view(name, ask)
    assert message in str(error.value)


def test_a_view_stops_when_nobody_wants_it(session: Session):
    def gone() -> None:
        raise Cancelled

    for name in ("thumbnails", "why", "lens"):
        with pytest.raises(Cancelled):
            session.view(name, {"text": TEXT}, gone)


def test_models_come_and_go(model: Any):
    opened: list[str] = []

    def load(name: str) -> Any:
        opened.append(name)
        return model

    session = Session(model, open_model=load)
    for name in ("a", "b", "c", "d", "a"):
        session.view("tokens", {"text": "mole", "model": name})
    assert opened == ["a", "b", "c", "d", "a"]
    assert len(session.opened) <= MODELS_OPEN
    assert session.current in session.opened
    with pytest.raises(SourceError):
        Session(model).model("a")


def test_recent_traces_are_kept(session: Session):
    from glassformer.views.asks import Ask, parsed

    ask = parsed(Ask, {"text": TEXT})
    assert session.trace(ask) is session.trace(ask)


def test_a_text_typed_on_computes_only_what_is_new(model: Any, monkeypatch: pytest.MonkeyPatch):
    """What was read of the text stays; the numbers are those of the whole text; an edited model is read anew."""
    session, read = Session(model), []
    hidden = type(model.transformer).hidden

    def counted(self: Any, tokens: Any, *args: Any, **named: Any) -> Any:
        read.append(tokens.shape[1])
        return hidden(self, tokens, *args, **named)

    monkeypatch.setattr(type(model.transformer), "hidden", counted)
    first, longer = model.ids(TEXT), model.ids(TEXT + " the mole")
    session.view("next", {"text": TEXT})
    grown = session.view("next", {"text": TEXT + " the mole"})
    assert first == longer[: len(first)]
    assert read == [len(first), len(longer) - len(first)]
    whole = Session(model).view("next", {"text": TEXT + " the mole"})
    assert [t["id"] for t in grown["tokens"][:5]] == [t["id"] for t in whole["tokens"][:5]]
    for a, b in zip(grown["tokens"][:20], whole["tokens"][:20], strict=True):
        assert a["logit"] == pytest.approx(b["logit"], abs=1e-4)
    edit = {"kind": "ablate_head", "layer": 0, "head": 0}
    session.view("next", {"text": TEXT + " the mole", "edits": [edit]})
    assert read[-1] == len(longer)


def test_one_step_learns_the_sentence(session: Session, model: Any):
    before = model.transformer.embed.weight.clone()
    found = session.view("run_step", {"text": TEXT})
    assert found["loss_after"] < found["loss"]
    assert torch.equal(before, model.transformer.embed.weight)
    assert {"before", "now"} <= set(found["tokens"][0])


def test_writing_on_gives_each_step_with_its_alternatives(session: Session, model: Any):
    from glassformer.serve.page_api import GenerateAsk
    from glassformer.views.writing import pieces

    ask = GenerateAsk(text=TEXT, max_tokens=5, temperature=0, alternatives=3)
    found = list(pieces(session, ask, lambda: None))
    assert 1 <= len(found) <= 5
    assert [s["id"] for s in found] == [p.id for p in model.generate(TEXT, max_tokens=5, temperature=0)]
    for step in found:
        assert step["alternatives"][0]["id"] == step["id"]  # greedy
        assert step["probability"] == pytest.approx(step["alternatives"][0]["probability"])
    edited = GenerateAsk(text=TEXT, max_tokens=5, temperature=0, edits=[{"kind": "ablate_mlp", "layer": 0}])
    assert [s["id"] for s in pieces(session, edited, lambda: None)] != [s["id"] for s in found]
    with pytest.raises(TextError):
        list(pieces(session, GenerateAsk(text="a mole " * 500), lambda: None))


def test_writing_on_stops_when_nobody_reads(session: Session):
    from glassformer.serve.page_api import GenerateAsk
    from glassformer.views.writing import pieces

    seen = 0

    def check() -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        list(pieces(session, GenerateAsk(text=TEXT, max_tokens=20), check))
    assert list(pieces(session, GenerateAsk(text=TEXT, max_tokens=2), lambda: None))


def test_what_json_cannot_hold():
    assert plain({"a": [float("nan"), 1.0, float("-inf")], "b": (2,)}) == {"a": [None, 1.0, None], "b": [2]}


def test_every_view_is_in_the_table():
    assert set(ASKS) <= set(VIEWS)
    for view in VIEWS.values():
        assert view.ask.model_config["extra"] == "forbid"
        assert view.about.endswith("."), view.name
        for name, field in view.ask.model_fields.items():
            assert (field.description or "").endswith("."), f"{view.name}: {name}"
        assert set(view.trims) <= set(view.ask.model_fields)
        json.dumps(view.schema())


def test_a_view_is_declared_once(session: Session):
    """Declared in one place, it is answered by name, checked, described and kept by a report."""
    from pydantic import Field

    from glassformer.views import registry, report
    from glassformer.views.asks import Ask

    class LengthAsk(Ask):
        times: int = Field(default=1, ge=1, le=9, description="Times the length is taken.")

    @registry.view(
        "length", LengthAsk, report=lambda plan: plan.kept("length", times=2), python="len(model.ids({text!r}))"
    )
    def length(session: Session, ask: Any, check: Any) -> dict[str, Any]:
        """Length of the text in tokens."""
        return {"length": ask.times * len(session.ids(ask))}

    try:
        found = session.view("length", {"text": TEXT, "times": 3})
        assert found["length"] == 3 * len(session.model().ids(TEXT))
        with pytest.raises(UsageError, match="times"):
            session.view("length", {"text": TEXT, "times": 10})
        assert VIEWS["length"].schema()["properties"]["times"]["maximum"] == 9
        held = report.collect(session, TEXT, rooms=["size"])
        assert held["answers"]["length"] == [[{"edits": [], "times": 2}, {"length": found["length"] // 3 * 2}]]
        assert held["keys"]["length"] == {"edits": [], "times": 1}
        with pytest.raises(ValueError, match="two views"):
            registry.view("length", LengthAsk)(length)
    finally:
        del VIEWS["length"]


def test_a_view_in_a_notebook_needs_rooms_that_are_there(model: Any):
    from glassformer.notebook import of_trace, view

    with pytest.raises(UsageError, match="has the rooms"):
        view(model, TEXT, rooms=["cellar"])
    with pytest.raises(UsageError, match="one text"):
        of_trace(model.trace([TEXT, "The mole"]), "attention")
    still = model.trace(TEXT).attention(live=False)
    assert still._repr_html_().startswith("<iframe")
    assert "&lt;script&gt;" in still._repr_html_()


def test_views_of_one_text_at_once_share_one_trace(model: Any, monkeypatch: pytest.MonkeyPatch):
    import threading
    import time

    made: list[int] = []
    real = type(model).trace

    def slow(self: Any, *args: Any, **more: Any) -> Any:
        made.append(1)
        time.sleep(0.05)
        return real(self, *args, **more)

    monkeypatch.setattr(type(model), "trace", slow)
    session = Session(model)
    threads = [threading.Thread(target=session.view, args=("next", {"text": "the mole"})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert not session._making


def test_what_heads_do_is_kept_on_disk(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from glassformer.interp import heads

    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path))
    first = Session(model).view("heads", {})
    scored = heads.head_scores
    monkeypatch.setattr(heads, "head_scores", lambda *_, **__: pytest.fail("it was scored again"))
    assert Session(model).view("heads", {}) == first
    (held,) = (tmp_path / "heads").iterdir()
    whole = held.read_text("utf-8")
    digit = next(i for i in range(len(whole) - 1, 0, -1) if whole[i] in "12345" and whole[i - 1] == ".")
    for damaged in (whole[:-9], whole[:digit] + "9" + whole[digit + 1 :], "{}", '{"format": "glassformer.heads/1"}'):
        held.write_text(damaged, "utf-8")
        with pytest.raises(pytest.fail.Exception, match="scored again"):
            Session(model).view("heads", {})
    weight = model.transformer.blocks[0].attn.q.weight
    monkeypatch.setattr(heads, "head_scores", scored)
    with torch.no_grad():
        weight.neg_()
    try:
        assert Session(model).view("heads", {})["scores"] != first["scores"]  # of other weights nothing was kept
    finally:
        with torch.no_grad():
            weight.neg_()


def test_parts_of_characters_are_spelled_as_their_bytes(session: Session, model: Any):
    part = next(i for i in model.tokenizer.token_ids if "\ufffd" in model.tokenizer.token_text(i))
    trace = model.trace("the mole")
    assert trace.token_text(part) == f"‹{model.tokenizer.token_bytes(part).hex(' ')}›"
    told = session.view("neurons", {"text": "the mole", "top": 20})["neurons"]
    assert "\ufffd" not in json.dumps(told, ensure_ascii=False)
