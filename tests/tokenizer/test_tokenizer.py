"""Tokenizers against the reference libraries, on awkward text."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings

from glassformer.errors import TextError, TokenizerError
from glassformer.tokenizer.tokenizer import TextWarning, Tokenizer
from tests.tokenizer.reference import CORPUS, KINDS, TEXTS, save


@functools.cache
def pair(kind: str) -> tuple[Tokenizer, Any]:
    """Ours and transformers' own, read from the same directory."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        save(kind, Path(directory))
        return Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_special_tokens(kind: str) -> None:
    ours, reference = pair(kind)
    assert (ours.bos_id, ours.eos_id) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.vocab_size == len(reference)
    assert set(reference.all_special_ids) <= set(ours.special_ids)
    assert ours.eos_id in ours.stop_ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text=CORPUS)
@example(text=" leading and trailing ")
@example(text="<s>twice</s>")
def test_the_same_ids(kind: str, text: str) -> None:
    ours, reference = pair(kind)
    want = reference(text)["input_ids"]
    if "eos" in kind:
        assert want.pop() == ours.eos_id  # a prompt is not over
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        assert ours.encode(text) == want
    assert ours.encode(text, bos=False) == reference(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
@example(text=CORPUS)
@example(text=" leading")
def test_the_same_text(kind: str, text: str) -> None:
    ours, reference = pair(kind)
    ids = ours.encode(text, bos=False)
    assert ours.decode(ids) == reference.decode(ids, clean_up_tokenization_spaces=False)
    assert ours.decode(ids, specials=False) == reference.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
@example(text="👩‍👩‍👧 日本 é")
def test_streams_never_split_a_character(kind: str, text: str) -> None:
    """Pieces joined are the text at once, and no piece shows half a character that becomes whole later."""
    ours, _ = pair(kind)
    ids = ours.encode(text, bos=False)
    stream = ours.stream(start=True)
    pieces = [stream.push(id) for id in ids]
    assert "".join(pieces) + stream.finish() == ours.decode(ids)
    for end in range(len(ids) + 1):
        shown = "".join(pieces[:end])
        assert ours.decode(ids).startswith(shown)
    if "\ufffd" not in ours.decode(ids):
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_bytes_are_exact(kind: str, text: str) -> None:
    """The bytes of a text's tokens are the text's, less what the tokenizer normalised before it cut."""
    ours, _ = pair(kind)
    ids = ours.encode(text, bos=False)
    joined = b"".join(ours.token_bytes(id) for id in ids)
    whole = ours.decode(ids)
    assert joined.decode("utf-8", "replace") in (whole, f" {whole}")  # SentencePiece's own space in front
    if kind in ("GPT2", "GPT2, bos"):
        assert joined == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_again(kind: str, tmp_path: Path) -> None:
    """What we write, we and transformers read as the same tokenizer."""
    from transformers import AutoTokenizer

    ours, _ = pair(kind)
    ours.save(tmp_path)
    again, reference = Tokenizer.from_directory(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in (CORPUS, " a  b", "<s>x</s>", "日本\x00"):
        ids = ours.encode(text, bos=False)
        assert again.encode(text, bos=False) == reference(text, add_special_tokens=False)["input_ids"] == ids
    assert again.adds_bos == ours.adds_bos
    assert again.encode("fox") == ours.encode("fox") == reference("fox")["input_ids"][: len(ours.encode("fox"))]
    assert (again.bos_id, again.eos_id, again.stop_ids) == (ours.bos_id, ours.eos_id, ours.stop_ids)
    assert reference.eos_token_id == ours.eos_id


def gpt2() -> Tokenizer:
    return pair("GPT2, bos")[0]


def test_a_doubled_bos_is_warned_about() -> None:
    with pytest.warns(
        TextWarning, match=r"begins with '<\|endoftext\|>' and the tokenizer adds another one; use --no-bos"
    ):
        ids = gpt2().encode("<|endoftext|>The")
    assert ids[:2] == [gpt2().bos_id] * 2
    assert gpt2().encode("<|endoftext|>The", bos=False)[1] != gpt2().bos_id


def test_bos_is_as_asked() -> None:
    plain = pair("GPT2")[0]
    assert not plain.adds_bos
    assert plain.encode("The", bos=True) == [plain.bos_id, *plain.encode("The")]
    assert gpt2().encode("The") == plain.encode("The", bos=True)


def test_special_literals_can_be_read_as_text() -> None:
    ours = gpt2()
    assert ours.encode("<|endoftext|>", bos=False) == [ours.eos_id]
    plain = ours.encode("<|endoftext|>", bos=False, specials=False)
    assert ours.eos_id not in plain
    assert ours.decode(plain) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, TextError, "A text is a string; this is a NoneType."),
        ("a\ud800", TextError, "The text holds half a surrogate pair at character 1, which no encoding can carry."),
    ],
)
def test_what_is_no_text_is_refused(text: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        gpt2().encode(text)
    assert str(caught.value) == message


def test_ids_beyond_the_vocabulary_stand_for_nothing() -> None:
    """Models round their vocabulary up."""
    ours = gpt2()
    assert ours.token_bytes(ours.vocab_size) == b""
    assert ours.token_text(10**6) == ""
    with pytest.raises(TokenizerError, match="A token id is 0 or more; -1 is not"):
        ours.token_bytes(-1)


def test_one_token_by_its_text() -> None:
    ours = pair("Llama")[0]
    id = ours.id_of(" fox")
    assert id is not None
    assert ours.token_bytes(id) == b" fox"
    assert ours.id_of("no such token") is None
    letter = ours.id_of("x")  # there is a byte token for it as well
    assert letter is not None
    assert ours.backend.id_to_token(letter) == "x"


def test_a_token_that_is_half_a_character() -> None:
    ours = gpt2()
    ids = ours.encode("👩", bos=False)
    assert b"".join(map(ours.token_bytes, ids)) == "👩".encode()
    assert "\ufffd" in ours.token_text(ids[0])


# Directories that are not what they should be


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json; load its tokenizer with transformers once"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json \(there is tokenizer\.model\)"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "\x00"])
def test_a_broken_tokenizer_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match="is not a tokenizer that the tokenizers library reads"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_broken_json_beside_it(tmp_path: Path, name: str) -> None:
    gpt2().save(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(TokenizerError, match="is not readable JSON"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / name).write_text("[]")
    with pytest.raises(TokenizerError, match="should hold a JSON object; it holds a list"):
        Tokenizer.from_directory(tmp_path)


def test_files_that_disagree(tmp_path: Path) -> None:
    gpt2().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"3": {"content": "fox", "special": true}}}'
    )
    with pytest.raises(TokenizerError, match="disagree: the added token 'fox' has id"):
        Tokenizer.from_directory(tmp_path)


def test_a_decoder_that_is_not_exact_is_refused(tmp_path: Path) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        TokenizerError, match=r"The tokenizer's decoder \(WordPiece\) is not one whose exact bytes are known"
    ):
        Tokenizer.from_directory(tmp_path)


def test_stop_ids_come_from_the_generation_config_too(tmp_path: Path) -> None:
    gpt2().save(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert {7, 9, gpt2().eos_id} <= Tokenizer.from_directory(tmp_path).stop_ids


def test_bytes_that_no_token_spells_are_warned_about(tmp_path: Path) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    ours = Tokenizer(backend)
    assert ours.encode("ab") == [0, 1]
    with pytest.warns(TextWarning, match="has no token for some bytes of 'é', and drops them"):
        assert ours.encode("aéb") == [0, 1]
