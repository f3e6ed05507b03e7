"""Vocabularies from text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from glassformer.errors import DataError, TokenizerError, UsageError
from glassformer.tokenizer.tokenizer import Tokenizer
from glassformer.tokenizer.train import byte_tokenizer, char_tokenizer, train_bpe
from tests.tokenizer.reference import CORPUS, TEXTS

BPE = train_bpe([CORPUS], 400)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_every_text_comes_back(text: str) -> None:
    for ours in (BPE, byte_tokenizer()):
        assert ours.decode(ours.encode(text)) == text


def test_byte_ids_are_bytes() -> None:
    ours = byte_tokenizer()
    text = "é日\x00\xff\n"
    assert ours.encode(text) == list(text.encode())
    assert [ours.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert ours.encode("<|endoftext|>") == [256] == [ours.eos_id]
    assert ours.vocab_size == 257
    assert byte_tokenizer(end_of_text=None).vocab_size == 256


def test_characters_are_numbered_in_order() -> None:
    ours = char_tokenizer(["ba", "", "cab é"])
    assert [ours.token_text(i) for i in range(ours.vocab_size)] == [" ", "a", "b", "c", "é"]
    assert ours.encode("abé") == [1, 2, 4]
    assert ours.decode([1, 0, 0, 2]) == "a  b"
    assert ours.eos_id is None
    assert char_tokenizer("ab", end_of_text="<end>").eos_id == 2


def test_an_unknown_character_is_refused_by_name() -> None:
    ours = char_tokenizer("abc")
    with pytest.raises(TokenizerError) as caught:
        ours.encode("a?b!日")
    assert str(caught.value) == "This tokenizer knows 3 characters and the text holds others: '?', '!', '日'."


def test_bpe_has_its_bytes_its_end_and_its_merges() -> None:
    assert BPE.eos_id == 0
    assert BPE.stop_ids == {0}
    assert BPE.vocab_size == 400
    assert {BPE.token_bytes(i) for i in range(BPE.vocab_size)} >= {bytes([b]) for b in range(256)}
    assert len(BPE.encode(CORPUS)) < len(CORPUS.encode()) / 2


def test_fewer_tokens_come_out_of_little_text() -> None:
    assert train_bpe(["ab ab ab"], 10_000).vocab_size < 300


def test_texts_are_read_once_and_told() -> None:
    told: list[int] = []
    ours = train_bpe(iter(["one two ", "", "two three"]), 300, progress=told.append)
    assert told == [8, 17]
    assert ours.decode(ours.encode("two")) == "two"


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_transformers_reads_them(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = {"bpe": BPE, "byte": byte_tokenizer(), "char": char_tokenizer(CORPUS)}[kind]
    ours.save(tmp_path)
    text = CORPUS[:300]
    for reference in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert reference(text)["input_ids"] == ours.encode(text)
        assert reference.decode(ours.encode(text)) == text
        assert reference.eos_token_id == ours.eos_id
    again = Tokenizer.from_directory(tmp_path)
    assert again.encode(text) == ours.encode(text)
    assert again.decode(ours.encode(text)) == text


@pytest.mark.parametrize("make", [lambda texts: train_bpe(texts, 300), char_tokenizer])
def test_no_text(make) -> None:
    with pytest.raises(DataError, match="There is no text to make a vocabulary from"):
        make(["", ""])


def test_options_out_of_range() -> None:
    with pytest.raises(UsageError, match="A byte-level vocabulary has 257 tokens or more; 100 are too few"):
        train_bpe([CORPUS], 100)
    with pytest.raises(UsageError, match="Pre-tokenizer 'gtp' is unknown; known are gpt-2, "):
        train_bpe([CORPUS], 300, pre="gtp")
