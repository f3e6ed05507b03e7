"""`glassformer eval` gives what transformers gives on the same windows, in every unit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.cli import running
from tests.tiny import tiny_directory

TEXT = "The American shrew mole is a small mole.\nOne mole of carbon dioxide; take a biopsy of the møle. " * 8


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    return running.run(capsys, "eval", *args)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_directory(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def _reference(model: Path, text: str, context: int, stride: int) -> tuple[float, int, int]:
    """Nats, tokens and bytes by transformers, windows written out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    nats, end, done = 0.0, 0, 0
    while done < len(ids) - 1:
        end = min(len(ids) - 1, context if done == 0 else done + stride)
        window = ids[max(0, end - context) : end]
        with torch.no_grad():
            scores = torch.log_softmax(theirs(window[None]).logits[0].double(), -1)
        targets = ids[max(0, end - context) + 1 : end + 1]
        new = end - done
        nats -= float(scores.gather(1, targets[:, None])[-new:].sum())
        done = end
    first = len(tokenizer.decode([int(ids[0])]).encode())
    return nats, len(ids) - 1, len(text.encode()) - first


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (32, 32), (48, 7)])
def test_it_agrees_with_transformers(model: Path, text: Path, capsys, context: int, stride: int) -> None:
    code, out, err = run(capsys, model, "--data", text, "--context", context, "--stride", stride, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    nats, tokens, size = _reference(model, TEXT, context, stride)
    assert found["tokens"] == tokens, "the end-of-text token after the document is not of the text"
    assert found["bytes"] == size
    assert found["nats"] == pytest.approx(nats, rel=1e-5)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert (found["context"], found["stride"], found["precision"]) == (context, stride, "float32")


def test_json_fields_and_defaults(model: Path, text: Path, capsys) -> None:
    found = json.loads(run(capsys, model, "--data", text, "--json", "--batch", 4)[1])
    assert list(found) == [
        "model", "precision", "loss", "perplexity", "bits_per_byte", "nats", "tokens", "bytes", "context", "stride",
        "documents", "data_hash", "problems",
    ]  # fmt: skip
    assert (found["context"], found["stride"]) == (64, 32), "the model's own context and half of it"


def test_for_people(model: Path, text: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.txt").write_text("")
    code, out, err = run(capsys, model, "-d", text, "-d", tmp_path / "empty.txt")
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()[1:4]] == ["loss", "perplexity", "bits per byte"]
    assert err == f"1 empty, left out: {tmp_path / 'empty.txt'}.\n"


def test_the_tail_is_what_training_holds_out(model: Path, text: Path, tmp_path: Path, capsys) -> None:
    from glassformer.data.corpus import build_corpus
    from glassformer.tokenizer.tokenizer import Tokenizer

    corpus = build_corpus([str(text)], Tokenizer.from_directory(model), fraction=0.25)
    found = json.loads(run(capsys, model, "-d", text, "--tail", "0.25", "--json")[1])
    assert found["tokens"] == len(corpus.held_out) - 2  # the first, and the end of text


def test_conversations_count_answers_only(model: Path, tmp_path: Path, capsys) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (model / "chat_template.jinja").write_text(template)
    chat = [{"role": "user", "content": "What is a mole?"}, {"role": "assistant", "content": "A small mammal."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    found = json.loads(run(capsys, model, "-d", tmp_path / "chat.jsonl", "--json")[1])
    assert found["bytes"] == len("A small mammal.\n")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "glassformer eval needs a text to measure on; name it with --data FILE (- reads a pipe)."),
        (["-d", "nowhere.txt"], 1, "There is no file or folder 'nowhere.txt'."),
        (["-d", "TEXT", "--stride", "65"], 2, "The stride must be 1 to the context of 64; got 65."),
        (["-d", "TEXT", "--context", "65"], 2, "The context must be 1 to 64 tokens, which this model reads; got 65."),
        (["-d", "TEXT", "--tail", "1"], 2, "--tail is a fraction between 0 and 1; got 1."),
        (["-d", "TEXT", "--batch", "0"], 2, "--batch must be at least 1; got 0."),
        (["-d", "ONE"], 1, "Of this data no token counts: nothing comes after the first."),
    ],
)
def test_what_cannot_be_meant(
    model: Path, text: Path, tmp_path: Path, capsys, args: list[str], code: int, message: str
) -> None:
    (tmp_path / "letter.txt").write_text("a")
    names = {"TEXT": str(text), "ONE": str(tmp_path / "letter.txt")}
    found = run(capsys, model, *(names.get(a, a) for a in args))
    assert (found[0], found[1], found[2]) == (code, "", f"glassformer: {message}\n")


def _nats(capsys, model: Path, data: Path, *more: object) -> tuple[float, int]:
    found = json.loads(run(capsys, model, "--data", data, "--json", *more)[1])
    return found["nats"], found["tokens"]


def test_the_same_text_twice_costs_twice_and_says_nothing_of_its_neighbour(model: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "once.jsonl").write_text(json.dumps({"text": TEXT[:150]}) + "\n")
    (tmp_path / "twice.jsonl").write_text((json.dumps({"text": TEXT[:150]}) + "\n") * 2)
    nats, tokens = _nats(capsys, model, tmp_path / "once.jsonl")
    twice, more = _nats(capsys, model, tmp_path / "twice.jsonl")
    assert more == 2 * tokens
    assert twice == pytest.approx(2 * nats, rel=1e-5)


def test_conversations_are_scored_one_by_one(model: Path, tmp_path: Path, capsys) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chats = [
        [{"role": "user", "content": f"What is a mole {i}?"}, {"role": "assistant", "content": "A mammal. " * (i + 1)}]
        for i in range(5)
    ]
    alone = []
    for number, chat in enumerate(chats):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
        alone.append(_nats(capsys, model, tmp_path / f"{number}.jsonl"))
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    for batch in (1, 3, None):
        more = () if batch is None else ("--batch", batch)
        nats, tokens = _nats(capsys, model, tmp_path / "all.jsonl", *more)
        assert tokens == sum(n for _, n in alone)
        assert nats == pytest.approx(sum(nats for nats, _ in alone), rel=1e-5)


def test_a_mistyped_name_is_told_before_the_model_is_opened(tmp_path: Path, capsys) -> None:
    code, _, err = run(capsys, tmp_path / "no model at all", "--data", tmp_path / "nowhere.txt")
    assert (code, err) == (1, f"glassformer: There is no file or folder '{tmp_path / 'nowhere.txt'}'.\n")
