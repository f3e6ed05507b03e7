"""Data: documents become tokens, whatever their length, and conversations are learned where they answer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from glassformer.data import corpus as corpus_module
from glassformer.data import parallel, readers
from glassformer.data.readers import read
from glassformer.data.sources import Findings, expand
from glassformer.errors import DataError, TokenizerError
from glassformer.tokenizer.encode import NO_ANSWER
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.data.corpora import SENTENCES, a_cache, a_tokenizer, bpe, whole

__all__ = ["a_cache", "a_tokenizer"]  # fixtures


# Tokens


def test_special_literals_in_data_are_text(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("x<|endoftext|>y")
    corpus = whole(tmp_path / "a.txt", tokenizer)
    ids = corpus.train.slice(0, len(corpus.train)).tolist()
    assert ids.count(tokenizer.eos_id) == 1
    assert ids[-1] == tokenizer.eos_id
    assert ids[:-1] == tokenizer.encode("x<|endoftext|>y", False, specials=False)


def test_a_begin_of_text_token_goes_before_each_document(tmp_path: Path, cache: Path) -> None:
    backend = bpe(["<s>"])
    begins = Tokenizer(backend, bos_id=0, adds_bos=True)
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n')
    corpus = whole(tmp_path / "a.jsonl", begins)
    expected = [*begins.encode("one"), *begins.encode("two")]
    assert corpus.train.slice(0, len(corpus.train)).tolist() == expected
    assert corpus.train.documents.tolist() == [0, len(begins.encode("one")), len(expected)]


def test_long_documents_are_cut_without_a_trace(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(SENTENCES) + "\n\n  indented\n\n" + "".join(SENTENCES) + "é" * 50
    (tmp_path / "long.txt").write_text(text)
    expected = [*tokenizer.encode(text, False), tokenizer.eos_id]
    monkeypatch.setattr(corpus_module, "PIECE", 512)
    monkeypatch.setattr(parallel, "BATCH", 2048)
    pieces = list(read(expand(tmp_path / "long.txt", Findings()), Findings(), piece=512))
    assert len(pieces) > 20, "in pieces"
    assert "".join(piece.text for piece in pieces) == text
    assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    asked: list[int] = []
    monkeypatch.setattr(corpus_module, "read", lambda *args, **more: asked.append(more["piece"]) or read(*args, **more))
    corpus = whole(tmp_path / "long.txt", tokenizer)
    assert asked == [512]
    assert corpus.train.slice(0, len(corpus.train)).tolist() == expected
    assert corpus.train.documents.tolist() == [0, len(expected)]


def test_a_tokenizer_that_marks_where_a_text_begins_gets_documentswhole(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "\n": 4}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    marks = Tokenizer(backend)
    text = "a b\n" * 300
    (tmp_path / "a.txt").write_text(text)
    monkeypatch.setattr(corpus_module, "PIECE", 64)
    corpus = whole(tmp_path / "a.txt", marks)
    assert corpus.train.slice(0, len(corpus.train)).tolist() == marks.encode(text)
    assert not corpus.findings.problems
    monkeypatch.setattr(corpus_module, "LONGEST", 64)
    cut = whole(tmp_path / "a.txt", marks, cache_dir=tmp_path / "other")
    assert cut.findings.count("longer than 16 million characters") == 1


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab \n\t\u3000é", max_size=400), piece=st.integers(1, 30), data=st.data())
def test_pieces_join_to_the_document(text: str, piece: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    findings = Findings()
    pieces = list(readers._pieces(((chunk, 0) for chunk in chunks), "x", findings, piece))
    assert "".join(p.text for p in pieces) == text
    assert findings.count("empty") == (not text)
    joints = set(itertools.accumulate(len(part) for part in readers.cut_everywhere(text)))
    assert set(itertools.accumulate(len(p.text) for p in pieces)) <= joints


def test_workers_give_the_same_bytes(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "BATCH", 1000)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES))
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    spec = [tmp_path / "a.jsonl", tmp_path / "chat.jsonl"]
    alone = whole(spec, tokenizer, workers=0, cache_dir=tmp_path / "0")
    together = whole(spec, tokenizer, workers=2, cache_dir=tmp_path / "2")
    assert together.hash == alone.hash
    for file in sorted(alone.directory.glob("*.bin")):
        assert (together.directory / file.name).read_bytes() == file.read_bytes()


def test_a_workers_error_arrives_as_it_was(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = Tokenizer(bpe(["<|endoftext|>"]), eos_id=0)
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    with pytest.raises(TokenizerError, match="has no chat template"):
        whole(tmp_path / "chat.jsonl", plain, workers=1, cache_dir=tmp_path / "c")
    pool = parallel._Pool(str(tmp_path / "no tokenizer here"), 1, np.dtype("<u2"))
    try:
        with pytest.raises(DataError, match="A tokenising process ended early"):
            list(pool.run([[readers.Piece("x", "text")]]))
    finally:
        pool.close()


# Conversations

CHAT = [
    {"role": "user", "content": "Is the sea asleep?"},
    {"role": "assistant", "content": "It said no."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "It slept."},
]


def test_conversations_ask_for_loss_on_answers_only(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    rows = [{"messages": CHAT}, {"text": "plain"}, {"messages": CHAT[:1]}, {"messages": "no"}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    corpus = whole(tmp_path / "chat.jsonl", tokenizer)
    train = corpus.train
    edges = train.documents
    ids, mask = train.slice(0, int(edges[1])), train.mask_slice(0, int(edges[1]))
    assert tokenizer.decode(ids.tolist()).removesuffix("<|endoftext|>") == tokenizer.render_chat(CHAT, False)
    learned = tokenizer.decode(ids[mask].tolist())
    assert learned == "It said no.<|im_end|>\nIt slept.<|im_end|>\n<|endoftext|>", (
        "the end that its files name is learned"
    )
    assert train.masked
    assert train.mask_slice(int(edges[1]), int(edges[2] - edges[1])).all(), "plain text asks for loss everywhere"
    assert corpus.findings.documents == 2
    assert corpus.findings.problems[f"{NO_ANSWER}, left out"]["names"] == [f"{tmp_path / 'chat.jsonl'}:3"]
    assert corpus.findings.count("conversations without roles") == 1


def test_text_before_a_conversation_is_learnedwhole(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    rows = [*SENTENCES[:50], {"messages": CHAT}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    corpus = whole(tmp_path / "mixed.jsonl", tokenizer)
    start = int(corpus.train.documents[-2])
    assert corpus.train.mask_slice(0, start).all()
    assert not corpus.train.mask_slice(start, len(corpus.train) - start).all()
