"""Tokenizers from GGUF metadata: against sentencepiece, against what they were written from, and SmolLM2's own."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
from hypothesis import example, given, settings

from glassformer.errors import TokenizerError
from glassformer.tokenizer.gguf_vocab import BYTE, CONTROL, NORMAL, UNKNOWN, USER, merges_by_score
from glassformer.tokenizer.pretokenizers import ALIASES, PRE
from glassformer.tokenizer.tokenizer import Tokenizer
from glassformer.tokenizer.train import byte_tokenizer, char_tokenizer, train_bpe
from tests.tokenizer.reference import CORPUS, TEXTS
from tests.tokenizer.test_tokenizer import pair


@functools.cache
def sentencepiece(prefix: bool) -> tuple[Any, dict[str, Any]]:
    """A SentencePiece model trained here, and its metadata as GGUF files hold it."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<eot>"],
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = range(model.get_piece_size())
    kinds = [
        UNKNOWN if model.is_unknown(i)
        else CONTROL if model.is_control(i)
        else BYTE if model.is_byte(i)
        else USER if model.id_to_piece(i) == "<eot>"
        else NORMAL
        for i in ids
    ]  # fmt: skip
    return model, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
@example(text=CORPUS)
@example(text="  two spaces  ")
@example(text=" ")
def test_sentencepiece_gives_the_same_ids(prefix: bool, text: str) -> None:
    model, _ = sentencepiece(prefix)
    ours = _built(prefix)
    for literal in ("<s>", "</s>", "<unk>", "<eot>", "▁"):
        # Control tokens are matched in a text as llama.cpp does, and sentencepiece does not; after <eot> llama.cpp puts
        # a space and sentencepiece does not; and sentencepiece cannot tell ▁ from a space.
        text = text.replace(literal, "")
    assert ours.encode(text, bos=False) == model.encode(text)
    assert ours.decode(model.encode(text)) == model.decode(model.encode(text))


@functools.cache
def _built(prefix: bool) -> Tokenizer:
    return Tokenizer.from_gguf(sentencepiece(prefix)[1])


def test_sentencepiece_s_pieces_and_flags() -> None:
    model, fields = sentencepiece(True)
    ours = _built(True)
    assert ours.adds_bos  # a llama-kind file that says nothing means yes
    assert ours.encode("The") == [model.bos_id(), *model.encode("The")]
    assert not Tokenizer.from_gguf(fields | {"tokenizer.ggml.add_bos_token": False}).adds_bos
    assert ours.token_bytes(model.piece_to_id("<0xE6>")) == b"\xe6"
    spaced = next(token for token in fields["tokenizer.ggml.tokens"] if token.startswith("▁") and len(token) > 2)
    assert ours.token_bytes(model.piece_to_id(spaced)) == f" {spaced[1:]}".encode()
    assert model.piece_to_id("<eot>") in ours.encode("a<eot>b", bos=False)
    assert ours.special_ids == {model.unk_id(), model.bos_id(), model.eos_id()}
    assert ours.stop_ids == {model.eos_id()}
    assert ours.gguf_fields() == fields


def test_sentencepiece_streams_its_spaces() -> None:
    """A continuation keeps its first space; the beginning of a text has none."""
    model, _ = sentencepiece(True)
    ids = model.encode("The fox 日本")
    ours = _built(True)
    for start, space in ((True, ""), (False, " ")):
        stream = ours.stream(start=start)
        assert "".join([*(stream.push(i) for i in ids), stream.finish()]) == f"{space}The fox 日本"


def test_merges_follow_scores() -> None:
    scores = {"a": 0.0, "b": 0.0, "c": 0.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    assert merges_by_score(scores) == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


# There and back


@functools.cache
def trained(kind: str) -> Tokenizer:
    name, _, pre = kind.partition(" ")
    if name == "char":
        return char_tokenizer(CORPUS)
    return byte_tokenizer() if name == "byte" else train_bpe([CORPUS], 380, pre=pre)


@pytest.mark.parametrize("kind", ["char", "byte", *(f"bpe {pre}" for pre in PRE)])
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
@example(text=CORPUS)
def test_trained_tokenizers_survive_gguf(kind: str, text: str) -> None:
    ours = trained(kind)
    again = _again(kind)
    if kind == "char":
        text = "".join(c for c in text if c in set(CORPUS))
    if kind == "byte":
        text = text.replace("▁", "")  # which GGUF's llama kind cannot tell from a space
    if kind == "bpe qwen2":
        import unicodedata

        text = unicodedata.normalize("NFC", text)  # which that name stands for
    assert again.encode(text) == ours.encode(text)
    assert again.decode(ours.encode(text)) == text


@functools.cache
def _again(kind: str) -> Tokenizer:
    return Tokenizer.from_gguf(trained(kind).gguf_fields())


@pytest.mark.parametrize("kind", ["GPT2", "Qwen2", "Llama", "Llama, no prefix", "Gemma"])
def test_other_people_s_tokenizers_survive_gguf(kind: str) -> None:
    ours, _ = pair(kind)
    again = Tokenizer.from_gguf(ours.gguf_fields())
    for text in (CORPUS, "a  b\n\n", "日本 x", "12345"):
        assert again.encode(text, bos=False) == ours.encode(text, bos=False)
    assert (again.bos_id, again.eos_id, again.adds_bos) == (ours.bos_id, ours.eos_id, ours.adds_bos)
    assert again.special_ids == ours.special_ids


def test_a_cut_that_gguf_has_no_name_for() -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(trained("bpe gpt-2").backend.to_str())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Split("x", "isolated"), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(TokenizerError, match="GGUF has no name for how this tokenizer cuts text before merging"):
        Tokenizer(backend).gguf_fields()


def test_a_normaliser_that_gguf_cannot_hold() -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(trained("bpe gpt-2").backend.to_str())
    backend.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(TokenizerError, match=r"GGUF cannot hold this tokenizer's normaliser \(Lowercase\)"):
        Tokenizer(backend).gguf_fields()


# Files that are not what they should be


def fields(**changes: Any) -> dict[str, Any]:
    found = dict(trained("bpe gpt-2").gguf_fields())
    for key, value in changes.items():
        name = f"tokenizer.ggml.{key}"
        if value is None:
            del found[name]
        else:
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "The GGUF file holds no tokenizer (tokenizer.ggml.model is missing)."),
        (
            {"model": "bert"},
            "The GGUF file's tokenizer is of kind 'bert'; 'gpt2' (byte-level BPE) and 'llama' (SentencePiece-style "
            "BPE) are supported.",
        ),
        ({"tokens": None}, "The GGUF file's tokenizer has no tokens (tokenizer.ggml.tokens is missing or empty)."),
        ({"tokens": [1, 2]}, "The GGUF file's tokenizer.ggml.tokens holds int values."),
        ({"merges": None}, "The GGUF file's byte-level tokenizer has no merges (tokenizer.ggml.merges)."),
        ({"merges": ["a zz"]}, "The GGUF file's merge 'a zz' names a token that its vocabulary lacks."),
        ({"merges": ["a"]}, "The GGUF file's merge 'a' names a token that its vocabulary lacks."),
        ({"token_type": [1]}, "The GGUF file's tokenizer has 380 tokens and 1 entries in token_type."),
        ({"bos_token_id": 380}, "The GGUF file names bos token 380, and its vocabulary ends at 379."),
        (
            {"model": "llama"},
            "The GGUF file's SentencePiece-style tokenizer has no scores (tokenizer.ggml.scores).",
        ),
    ],
)
def test_broken_metadata(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_gguf(fields(**changes))
    assert str(caught.value) == message


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_gguf(fields(pre="qwen22"))
    assert str(caught.value).startswith("The GGUF file's pre-tokenizer 'qwen22' is not known")
    assert "Did you mean qwen2" in str(caught.value)


@pytest.mark.parametrize("name", [*PRE, *ALIASES])
def test_every_known_name_builds(name: str) -> None:
    ours = Tokenizer.from_gguf(fields(pre=name))
    assert ours.decode(ours.encode(CORPUS)).startswith("The quick")


# SmolLM2: ids as llama.cpp gives them


SMOLLM2 = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "½ ² Ⅷ ٣": [16738, 216, 19133, 216, 173, 223, 117, 216, 164, 113],
    "héllo 12345": [88, 2756, 31394, 216, 33, 34, 35, 36, 37],
    "<|im_start|>user\n": [1, 4093, 198],
}


@pytest.mark.smollm2
def test_smollm2_s_ids(smollm2: Any) -> None:
    for text, ids in SMOLLM2.items():
        assert smollm2.tokenizer.encode(text) == ids
        assert smollm2.tokenizer.decode(ids) == text
    assert smollm2.tokenizer.stop_ids == {0, 2}
    assert not smollm2.tokenizer.adds_bos


@pytest.mark.smollm2
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_smollm2_goes_there_and_back(smollm2: Any, text: str) -> None:
    import warnings

    ours = smollm2.tokenizer
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ids = ours.encode(text)
    if not said:  # its vocabulary lacks a few bytes, and says so
        assert ours.decode(ids) == text
        assert b"".join(map(ours.token_bytes, ids)) == text.encode()
