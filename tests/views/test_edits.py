"""What a row of an account says is what its edit does, and dials turn what they name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from glassformer.errors import UsageError
from glassformer.interp.logit_target import target
from glassformer.views import Session

TEXT = "The American shrew mole is a small"


def test_the_number_on_a_row_is_what_its_edit_takes_away(session: Session, model: Any):
    from glassformer.views.asks import Ask, parsed

    found = session.view("why", {"text": TEXT})
    trace = model.trace(TEXT)
    goal = target(trace, None, None, -1)
    rows = [part for part in found["parts"] if part["edit"]]
    assert {row["kind"] for row in rows} == {"head", "feed_forward"}
    for row in [*rows[:5], *[r for r in rows if r["kind"] == "feed_forward"][:2]]:
        edited = session.trace(parsed(Ask, {"text": TEXT, "edits": [row["edit"]]}))
        changed = target(edited, goal.way.token, None, -1).value
        assert goal.value - changed == pytest.approx(row["total"], abs=2e-3)
    for word in [w for w in found["words"] if w["knocked_out"] is not None][:3]:
        edited = session.trace(parsed(Ask, {"text": TEXT, "edits": [word["edit"]]}))
        changed = target(edited, goal.way.token, None, -1).value
        assert goal.value - changed == pytest.approx(word["knocked_out"], abs=2e-3)


def test_the_number_on_a_neuron_is_what_its_edit_takes_away(session: Session, model: Any):
    from glassformer.views.asks import Ask, parsed

    found = session.view("neurons", {"text": TEXT, "top": 3})
    before = target(model.trace(TEXT), None, None, -1)
    for neuron in found["neurons"]:
        edited = session.trace(parsed(Ask, {"text": TEXT, "edits": [neuron["edit"]]}))
        after = target(edited, before.way.token, None, -1).value
        assert before.value - after == pytest.approx(neuron["total"], abs=1e-4)


@pytest.mark.parametrize(
    "part",
    [{"part": "head", "unit": 1}, {"part": "attention"}, {"part": "feed_forward"}, {"part": "neuron", "unit": 5}],
)
def test_a_dial_turns_what_it_names(session: Session, model: Any, part: dict[str, Any]):
    def logits(edits: list[Any]) -> torch.Tensor:
        from glassformer.views.asks import Ask, parsed

        return session.trace(parsed(Ask, {"text": TEXT, "edits": edits})).logits(-1)

    dial = {"kind": "scale", "layer": 1, **part}
    plain = model.trace(TEXT).logits(-1)
    assert torch.allclose(logits([{**dial, "by": 1}]), plain, atol=1e-5)
    off = {
        "head": {"kind": "ablate_head", "layer": 1, "head": 1},
        "attention": {"kind": "ablate_attn", "layer": 1},
        "feed_forward": {"kind": "ablate_mlp", "layer": 1},
        "neuron": {"kind": "ablate_neuron", "layer": 1, "neuron": 5},
    }[part["part"]]
    assert torch.allclose(logits([{**dial, "by": 0}]), logits([off]), atol=1e-5)
    assert not torch.allclose(logits([{**dial, "by": 2}]), plain, atol=1e-6)


def test_a_layer_s_dial_turns_all_that_it_adds(model: Any):
    from glassformer.model import Attention, Config, FeedForward, Layer, Transformer
    from glassformer.model.choices import SelectiveStateSpace
    from glassformer.views.asks import Ask, parsed

    torch.manual_seed(0)
    seeing, feed = Attention(2, 2, 8), FeedForward(24)
    layers = (Layer(seeing, feed), Layer(SelectiveStateSpace(32, 4, 2), None), Layer(seeing, feed, parallel=True))
    several = copy.copy(model)
    several._transformer = t = Transformer(Config(model.config.vocab_size, 16, 64, layers))
    with torch.no_grad():  # so that each part is seen
        for p in t.parameters():
            p.mul_(8 if p.dim() > 1 else 1)
    session, plain = Session(several), several.trace(TEXT)

    def traced(*edits: Any) -> Any:
        return session.trace(parsed(Ask, {"text": TEXT, "edits": [{"kind": "scale", **edit} for edit in edits]}))

    for layer in range(3):
        off = traced({"part": "layer", "layer": layer, "by": 0})
        came, left = off.tensor(f"blocks.{layer}.resid_pre"), off.tensor(f"blocks.{layer}.resid_post")
        assert torch.allclose(left, came, atol=1e-6)
        assert not torch.allclose(plain.tensor(f"blocks.{layer}.resid_post"), came, atol=1e-4)
    halves = traced(*({"part": part, "layer": 0, "by": 0.5} for part in ("attention", "feed_forward")))
    assert torch.allclose(traced({"part": "layer", "layer": 0, "by": 0.5}).logits(-1), halves.logits(-1), atol=1e-6)
    one = traced({"part": "layer", "layer": 0, "by": 0, "position": 2})
    moved = (one.tensor("blocks.0.resid_post") - plain.tensor("blocks.0.resid_post")).abs().amax(-1)[0]
    assert (moved > 1e-6).tolist() == [i == 2 for i in range(plain.length)]


def test_an_expert_s_dial_turns_its_weight(model: Any):
    from glassformer.interp.decompose import expert_parts
    from glassformer.model import Attention, Config, Experts, Layer, Transformer
    from glassformer.views.asks import Ask, parsed

    torch.manual_seed(0)
    layer = Layer(Attention(2, 2, 8), Experts(4, 2, 6))
    moe = copy.copy(model)
    moe._transformer = Transformer(Config(model.config.vocab_size, 16, 64, (layer, layer)))
    session, plain = Session(moe), moe.trace(TEXT)

    def logits(**edit: Any) -> torch.Tensor:
        return session.trace(
            parsed(Ask, {"text": TEXT, "edits": [{"layer": 1, "position": plain.length - 1, **edit}]})
        ).logits(-1)

    weights = plain.tensor("blocks.1.mlp.weights")[0, -1]
    expert = int(weights.argmax())
    dial: dict[str, Any] = {"kind": "scale", "part": "expert", "unit": expert}
    assert torch.allclose(logits(**dial, by=1), plain.logits(-1), atol=1e-5)
    assert torch.allclose(logits(**dial, by=0), logits(kind="ablate_expert", expert=expert), atol=1e-6)
    # The last layer's experts are added to the stream as it ends: half of one is half of what it adds.
    part = expert_parts(plain, 1, plain.length - 1)[expert]
    end = (plain.forward.last()[0, -1].double() - 0.5 * part.double()).float()
    t = moe.transformer
    assert torch.allclose(logits(**dial, by=0.5), t.unembed_hidden(t.normed(end[None, None]))[0, 0], atol=1e-4)


def test_a_word_s_dial_turns_what_is_read_from_it(session: Session, model: Any):
    from glassformer.interp.edits import ablate
    from glassformer.views.asks import Ask, parsed

    dial = {"kind": "scale", "part": "word", "source": [2], "by": 0}
    turned = session.trace(parsed(Ask, {"text": TEXT, "edits": [dial]}))
    n = len(model.ids(TEXT))
    others = [i for i in range(n) if i != 2]
    silent = [ablate(layer=layer, keys=[2], positions=others) for layer in range(model.config.n_layers)]
    assert torch.allclose(turned.logits(-1), model.edited(*silent).trace(TEXT).logits(-1), atol=1e-5)
    with pytest.raises(UsageError, match="positions"):
        session.view("next", {"text": TEXT, "edits": [{**dial, "source": []}]})
    with pytest.raises(UsageError, match="give its layer"):
        session.view("next", {"text": TEXT, "edits": [{"kind": "scale", "part": "head", "layer": 0, "by": 1}]})


def test_an_empty_text_still_names_the_model(session: Session, model: Any):
    found = session.view("tokens", {"text": ""})
    assert (found["model"], found["tokens"], found["layers"]) == (model.name, [], model.config.n_layers)


def test_bytes_of_one_character_are_shown_as_it(session: Session):
    for text in ("鼹鼠", "😀", "שלום"):
        found = session.view("tokens", {"text": text})
        assert all("\ufffd" not in token["text"] and "‹" not in token["text"] for token in found["tokens"])
        seen = "".join(token["text"] for token in found["tokens"])
        assert all(character in seen for character in text)
    for token in session.view("next", {"text": "鼹", "top": 200})["tokens"]:
        assert "\ufffd" not in token["token"]
    for row in session.view("lens", {"text": "鼹鼠"})["rows"]:
        assert all("\ufffd" not in one["token"] for cell in row["cells"] for one in cell["top"])


def test_the_plain_sentences_say_what_was_measured(session: Session):
    found = session.view("why", {"text": TEXT})
    said = " ".join(found["plain"])
    assert len(found["plain"]) == 2
    assert f"{found['probability']:.1%}" in said
    words = [w for w in found["words"] if w["knocked_out"] is not None and max(w["positions"]) < found["position"]]
    most = max(words, key=lambda w: abs(w["knocked_out"]))
    assert f"“{most['word'].strip()}”" in said
    assert f"by {abs(most['knocked_out']):.2f}" in said
    quick = session.view("why", {"text": TEXT, "words": False, "parts": 0})
    heads = [p for p in quick["parts"] if p["kind"] == "head" and p["source"] not in (0, quick["position"])]
    assert f"head {heads[0]['head']} of layer {heads[0]['layer']}" in " ".join(quick["plain"])


def test_two_texts_are_compared_at_the_chosen_token(session: Session, model: Any):
    sides = {"a": {"text": TEXT}, "b": {"text": TEXT.replace("shrew", "carbon")}}
    found = session.view("compare", {**sides, "position": 3})
    wanted = model.trace(TEXT).logits(3).softmax(-1)
    assert found["a"]["next"][0]["probability"] == pytest.approx(float(wanted.max()), rel=1e-4)
    assert found["kl"] != session.view("compare", sides)["kl"]
