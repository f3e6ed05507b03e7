"""`Model.generate` and `Model.chat`: what streams out is what the model says, chosen as asked."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

import glassformer
from glassformer.errors import TextError, TokenizerError, UsageError
from glassformer.generate.drafting import NgramLookup
from glassformer.lm import Model
from tests.tiny import CONTEXT, VOCAB, tiny_directory

TEXT = "The American shrew mole"
NO_END = {0: -100.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return glassformer.load(tiny_directory(tmp_path_factory.mktemp("generate") / "tiny"))


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("edited", [False, True])
def test_greedy_is_the_chain_of_the_likeliest(model, edited):
    if edited:
        model = model.edited(glassformer.ablate(layer=1, head=2))
    ids = model.encode(TEXT)
    for piece in model.generate(TEXT, max_tokens=12, temperature=0, logit_bias=NO_END, alternatives=3):
        want = model.next(ids)
        best = next(t for t in want.top(2) if t.id != 0)
        assert piece.id == best.id
        assert piece.probability == pytest.approx(best.probability, rel=1e-3)
        assert piece.logprob == pytest.approx(math.log(piece.probability))
        assert [a.id for a in piece.alternatives] == [t.id for t in want.top(3)]
        assert piece.id not in [a.id for a in piece.rejected]
        assert piece.precision == "float32"
        ids.append(piece.id)
    assert len(ids) == len(model.encode(TEXT)) + 12
    assert piece.finish == "length"
    assert piece.index == 11


def test_edits_change_what_is_said_and_nothing_else(model):
    asked = {"max_tokens": 12, "temperature": 0, "logit_bias": NO_END}
    before = text_of(model.generate(TEXT, **asked))
    edited = model.edited(glassformer.ablate(layer=0, part="attention"), glassformer.ablate(layer=1, part="attention"))
    assert text_of(edited.generate(TEXT, **asked)) != before
    assert text_of(model.generate(TEXT, **asked)) == before
    assert {p.precision for p in edited.generate(TEXT, precision="int8", **asked)} == {"float32"}


def test_pieces_are_plain_data(model):
    [piece] = model.generate(TEXT, max_tokens=1, seed=1, alternatives=2)
    told = json.loads(json.dumps(piece.to_dict()))
    assert list(told) == [
        "index", "id", "token", "text", "probability", "logprob", "alternatives", "finish", "precision",
    ]  # fmt: skip
    assert [list(a) for a in told["alternatives"]] == [["id", "token", "probability"]] * 2


def test_text_and_ids_are_the_same_prompt(model):
    asked = {"max_tokens": 8, "seed": 3}
    assert list(model.generate(TEXT, **asked)) == list(model.generate(model.encode(TEXT), **asked))


def test_seeds_reproduce(model):
    def said(seed: int | None) -> list[int]:
        return [p.id for p in model.generate(TEXT, max_tokens=25, seed=seed, logit_bias=NO_END)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert said(None) != said(None)


def test_tokens_are_drawn_from_the_distribution_asked_for(model):
    drawn = 600
    found = Counter(
        next(iter(model.generate(TEXT, max_tokens=1, temperature=0.7, top_k=5, seed=seed))).id for seed in range(drawn)
    )
    p = model.next(TEXT).temperature(0.7).probabilities
    top = p.topk(5)
    want = dict(zip(top.indices.tolist(), (top.values / top.values.sum()).tolist(), strict=True))
    assert set(found) <= set(want)
    statistic = sum((found[i] - drawn * q) ** 2 / (drawn * q) for i, q in want.items())
    assert statistic < 18.5  # 4 degrees of freedom, one in a thousand; the seeds are fixed


def test_a_stop_string_may_begin_in_the_middle_of_a_token(model):
    asked = {"max_tokens": 40, "temperature": 0, "logit_bias": NO_END}
    pieces = list(model.generate(TEXT, **asked))
    whole = text_of(pieces)
    for start in range(3, 12):
        stop = whole[start : start + 4]
        told = list(model.generate(TEXT, stop=["never said", stop], **asked))
        assert text_of(told) == whole[: whole.index(stop)]
        assert told[-1].finish == "stop"
        assert text_of(model.generate(TEXT, stop=stop, **asked)) == text_of(told)


def test_a_stop_token_ends_the_answer(model):
    asked = {"max_tokens": 40, "temperature": 0, "logit_bias": NO_END}
    pieces = list(model.generate(TEXT, **asked))
    last = pieces[5].id
    at = [p.id for p in pieces].index(last)
    told = list(model.generate(TEXT, stop=[last], **asked))
    assert [p.id for p in told] == [p.id for p in pieces[: at + 1]]
    assert (told[-1].finish, told[-1].text) == ("stop", "")
    ended = list(model.generate(TEXT, max_tokens=5, temperature=0, logit_bias={0: 100}))
    assert [(p.id, p.text, p.finish) for p in ended] == [(0, "", "stop")]


def test_a_character_is_never_split(model):
    tokenizer = model.tokenizer
    bytes_ = [i for i in range(VOCAB) if len(tokenizer.token_bytes(i)) == 1 and tokenizer.token_bytes(i)[0] >= 0x80]
    bias = dict.fromkeys(bytes_, 30.0) | NO_END
    seen = []
    for seed in range(12):
        pieces = list(model.generate(TEXT, max_tokens=30, seed=seed, temperature=3.0, logit_bias=bias))
        ids = [p.id for p in pieces]
        assert text_of(pieces) == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
        seen += [p.text for p in pieces]
    assert any("\ufffd" not in text and text and ord(text[0]) > 127 for text in seen)


def test_leaving_the_loop_ends_the_computation(model):
    pieces = model.generate(TEXT, max_tokens=40, logit_bias=NO_END)
    next(pieces)
    pieces.close()
    engine = model.engines.get("exact", 1)
    assert list(model.generate("mole", max_tokens=2))  # its turn comes after the cancelled one's
    assert engine.active == 0
    assert engine.waiting == 0


def test_all_that_fits(model):
    pieces = list(model.generate(TEXT, max_tokens=None, logit_bias=NO_END))
    assert len(pieces) == CONTEXT - len(model.encode(TEXT))
    assert pieces[-1].finish == "length"


def test_guessing_ahead_changes_nothing_greedy(model):
    asked = {"max_tokens": 40, "temperature": 0, "logit_bias": NO_END}
    plain = [p.id for p in model.generate(TEXT, **asked)]
    assert [p.id for p in model.generate(TEXT, drafter=NgramLookup(2, 1), **asked)] == plain


def test_other_precisions_say_so(model):
    for precision in ("int8", "bfloat16"):
        engine = model.engines.get(precision, 10)
        assert engine.wait(120)
        want = precision if engine.note is None else "float32"  # without a compiler the eager path answers
        assert {p.precision for p in model.generate(TEXT, max_tokens=3, precision=precision)} == {want}


def test_weights_that_are_not_float32_answer_as_they_are(tmp_path: Path):
    model = glassformer.load(tiny_directory(tmp_path / "tiny"), dtype="bfloat16")
    [piece] = model.generate(TEXT, max_tokens=1, temperature=0)
    assert piece.precision == "bfloat16"
    assert piece.id == model.next(TEXT).top(1)[0].id


def test_chat_needs_a_template_and_follows_it(model, monkeypatch):
    messages = [{"role": "user", "content": "mole"}]
    with pytest.raises(TokenizerError, match="no chat template"):
        model.chat(messages)
    monkeypatch.setattr(model.tokenizer, "chat_template", "{% for m in messages %}{{ m.content }}: {% endfor %}")
    want = list(model.generate(model.encode("mole: ", bos=False), max_tokens=4, seed=1))
    assert list(model.chat(messages, max_tokens=4, seed=1)) == want


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1.0}, UsageError, "temperature must be at least 0; got -1.0."),
        ({"top_p": -0.5}, UsageError, "top_p must be between 0 and 1"),
        ({"top_k": -2}, UsageError, "top_k must be a whole number of at least 0"),
        ({"max_tokens": 0}, UsageError, "max_tokens must be at least 1; got 0."),
        ({"stop": [""]}, UsageError, "A stop string must have 1 to"),
        ({"stop": ["a"] * 17}, UsageError, "At most 16 stop strings"),
        ({"logit_bias": {VOCAB: 1.0}}, UsageError, f"names token {VOCAB}; this vocabulary has {VOCAB}"),
        ({"precision": "best"}, UsageError, "Precision 'best' is unknown; choose exact, fast"),
        ({"alternatives": -1}, UsageError, "logprobs must be between 0 and 1000"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(model, options, error, message):
    with pytest.raises(error, match=message):
        model.generate(TEXT, **options)  # not only when the first piece is asked for


def test_a_prompt_that_is_too_long_says_both_numbers(model):
    with pytest.raises(TextError, match=f"{CONTEXT + 1} tokens long and tiny reads at most {CONTEXT}"):
        model.generate([5] * (CONTEXT + 1))
    with pytest.raises(TextError, match=f"{CONTEXT} tokens long and this model reads at most {CONTEXT}, with at least"):
        model.generate([5] * CONTEXT)
    with pytest.raises(TextError, match="The text is empty"):
        model.generate("")


@pytest.mark.smollm2
def test_smollm2_goes_on_as_it_should(smollm2):
    pieces = list(smollm2.generate("The capital of France is", max_tokens=2, temperature=0, alternatives=3))
    assert text_of(pieces) == " Paris."
    assert pieces[0].probability == pytest.approx(0.7725, abs=5e-4)
    assert [a.token for a in pieces[0].rejected] == [" the", " London"]
    fast = list(smollm2.generate("The capital of France is", max_tokens=2, temperature=0, precision="fast"))
    assert text_of(fast) == " Paris."
