"""`glassformer next` and `glassformer neighbours` as a person and a program meet them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import glassformer
from tests.cli.running import answer, run
from tests.tiny import CONTEXT

TEXT = "The American shrew mole"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_json_is_the_public_format(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    found = answer(capsys, "next", TEXT, "--model", model, "--top", 7, "--expansions", 40)
    assert list(found) == ["model", "precision", "text", "ids", "tokens", "words", "coverage", "finish"]
    assert (found["precision"], found["text"]) == ("float32", TEXT)
    assert len(found["tokens"]) == len(found["words"]) == 7
    assert [list(token) for token in found["tokens"]] == [["id", "token", "bytes", "probability", "logprob"]] * 7
    assert [list(word) for word in found["words"]] == [["word", "probability", "upper"]] * 7
    assert 0 <= found["coverage"] <= 1
    for word in found["words"]:
        assert 0 <= word["probability"] <= word["upper"] <= 1


def test_the_numbers_are_the_model_s(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    found = answer(capsys, "next", TEXT, "--model", model, "--no-words", "-k", 5)
    opened = glassformer.load(model)
    assert found["ids"] == opened.encode(TEXT)
    want = torch.log_softmax(opened.logits(TEXT)[-1].double(), -1)
    for token in found["tokens"]:
        assert token["logprob"] == pytest.approx(float(want[token["id"]]), abs=1e-5)
        assert bytes(token["bytes"]) == opened.tokenizer.token_bytes(token["id"])
    assert (found["words"], found["coverage"], found["finish"]) == ([], 0.0, [])


def test_words_agree_with_paths_computed_one_by_one(model: Path) -> None:
    """Continuations in batches over the prompt's cache give what whole forwards give."""
    opened = glassformer.load(model)
    found = opened.next(TEXT)
    ids = found.ids
    paths = [[5], [7, 8], [9], [300, 2, 17]]
    assert found.continuations is not None
    got = torch.log_softmax(found.continuations(paths).double(), -1)
    want = torch.stack([torch.log_softmax(opened.logits([*ids, *path])[-1].double(), -1) for path in paths])
    assert float((got - want).abs().max()) < 1e-4
    words = found.words(20, max_expansions=60)
    assert sum(word.probability for word in words) <= 1 + 1e-9
    assert words.expansions <= 60


def test_temperature(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    plain = answer(capsys, "next", TEXT, "-m", model, "--no-words", "-k", 3)
    cold = answer(capsys, "next", TEXT, "-m", model, "--no-words", "-k", 3, "--temperature", 0.5)
    assert [t["id"] for t in plain["tokens"]] == [t["id"] for t in cold["tokens"]]
    difference = [t["logprob"] - plain["tokens"][0]["logprob"] for t in plain["tokens"]]
    assert [t["logprob"] - cold["tokens"][0]["logprob"] for t in cold["tokens"]] == pytest.approx(
        [2 * d for d in difference], abs=1e-4
    )


def test_bos(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    plain = answer(capsys, "next", TEXT, "-m", model, "--no-words")
    with_bos = answer(capsys, "next", TEXT, "-m", model, "--no-words", "--bos")
    assert with_bos["ids"] == [0, *plain["ids"]]


def test_for_people(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, err = run(capsys, "next", "The capital of Fr", "-m", model, "-k", 4, "--expansions", 20)
    assert (code, err) == (0, "")
    assert out.startswith("The capital of Fr\n")
    assert "float32, " in out
    for part in (
        "next token",
        "next word",
        "at least",
        "at most",
        "the last word becomes",
        "of the probability explored",
    ):
        assert part in out
    assert "█" in out
    assert "%" in out


def test_text_from_standard_input(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{TEXT}\n".encode())))
    assert answer(capsys, "next", "-", "-m", model, "--no-words")["text"] == TEXT


def test_a_trailing_space_is_warned_about(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, err = run(capsys, "next", "The mole is ", "-m", model, "--no-words", "--json")
    assert code == 0
    json.loads(out)
    assert err == (
        "glassformer: note: The text ends in a space, and this model's tokens carry their space in front (' the'), so "
        "it hardly ever saw a word follow one; leave the space away.\n"
    )


def test_a_doubled_bos_is_warned_about_once(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, _, err = run(capsys, "next", "<|end|>The", "-m", model, "--bos", "--no-words")
    assert code == 0
    assert err.startswith("glassformer: note: The text begins with '<|end|>' and the tokenizer adds another one; ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([""], 1, "The text is empty; give at least one word."),
        ([TEXT, "--top", "0"], 2, "--top is 1 or more; 0 is not."),
        ([TEXT, "--temperature", "0"], 2, "--temperature is a number above 0; 0.0 is not."),
        ([TEXT, "--temperature", "nan"], 2, "--temperature is a number above 0; nan is not."),
        ([TEXT, "--coverage", "1.5"], 2, "--coverage is above 0 and at most 1; 1.5 is not."),
        ([TEXT, "--expansions", "-1"], 2, "--expansions is 0 or more; -1 is not."),
    ],
)
def test_what_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], model: Path, args: list[str], code: int, message: str
) -> None:
    assert run(capsys, "next", *args, "-m", model) == (code, "", f"glassformer: {message}\n")


def test_a_text_longer_than_the_context(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, err = run(capsys, "next", "x" * 100, "-m", model)
    assert (code, out) == (1, "")
    assert f"The text is 100 tokens long and tiny reads at most {CONTEXT}; shorten it." in err


def test_a_text_that_fills_the_context(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    """There is a next token and no room to go on: words stay unexplored, and nothing fails."""
    found = answer(capsys, "next", "x" * CONTEXT, "-m", model)
    assert found["tokens"]
    assert found["coverage"] < 1


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "next", TEXT, "--model", "smolm2")
    assert (code, out) == (1, "")
    assert "There is no model called smolm2" in err
    assert err.count("\n") == 1


# Neighbours


def test_neighbours_as_json(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    found = answer(capsys, "neighbours", "mole - carbon", "-m", model, "-k", 3)
    assert list(found) == ["model", "tied", "embedding", "unembedding"]
    for name in ("embedding", "unembedding"):
        assert list(found[name]) == ["terms", "neighbours", "given", "notes"]
        assert len(found[name]["neighbours"]) == 3
    opened = glassformer.load(model)
    weight = opened.transformer.unembedding.detach()
    first = found["unembedding"]["neighbours"][0]
    query = sum(
        term["sign"] * torch.nn.functional.normalize(weight[term["ids"]].mean(0), dim=0)
        for term in found["unembedding"]["terms"]
    )
    assert first["similarity"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(weight[first["id"]], query, dim=0)), abs=1e-5
    )


def test_neighbours_for_people(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, err = run(capsys, "neighbours", "biopsyzzz", "-m", model, "--matrix", "embedding", "-k", 2)
    assert code == 0
    assert out.splitlines()[0].split() == ["embedding", "cosine", "id"]
    assert len(out.splitlines()) == 3
    assert "glassformer: note: 'biopsyzzz' is " in err
    assert "the mean of their vectors stands for it" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 1, "There is no word; give at least one, as in: king - man + woman"),
        (["x", "--top", "0"], 2, "--top is 1 or more; 0 is not."),
        (["x", "--matrix", "q"], 2, "--matrix is one of embedding, unembedding, both; 'q' is not."),
        (["mole - mole"], 1, "The words cancel out: nothing is left to look near."),
    ],
)
def test_neighbours_that_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], model: Path, args: list[str], code: int, message: str
) -> None:
    assert run(capsys, "neighbours", *args, "-m", model) == (code, "", f"glassformer: {message}\n")


# SmolLM2


@pytest.mark.smollm2
def test_smollm2_says_paris(smollm2: Any) -> None:
    found = smollm2.next("The capital of France is")
    assert found.probability(" Paris") == pytest.approx(0.77254, abs=2e-4)
    words = found.words(5, max_expansions=96)
    paris = words[0]
    assert paris.word == "Paris"
    # Nearly all of " Paris" ends there; other spellings and other white space add to it.
    assert 0.76 < paris.probability <= 0.78
    assert words.coverage > 0.85
    assert words.finish[0].word == "is"
    assert words.starts[0] > 0.99


@pytest.mark.smollm2
def test_smollm2_finishes_words(smollm2: Any) -> None:
    words = smollm2.next("I can").words(10, max_expansions=64)
    assert "can't" in {way.word for way in words.finish}


@pytest.mark.smollm2
def test_smollm2_s_queen(smollm2: Any) -> None:
    assert smollm2.neighbours("king - man + woman").found[0].token == " queen"
