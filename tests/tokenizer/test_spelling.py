"""Tokens that hold parts of characters are shown as the characters they belong to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glassformer.tokenizer.spelling import is_whole, spelled, spelled_after


def test_bytes_of_one_character_are_that_character():
    mole = "鼹".encode()  # e9 bc b9
    assert spelled([b"a ", mole[:1], mole[1:2], mole[2:]]) == ["a ", "鼹¹⁄₃", "鼹²⁄₃", "鼹³⁄₃"]
    assert spelled([mole[:2], mole[2:] + b"s"]) == ["鼹¹⁄₂", "鼹²⁄₂s"]
    smile = "😀".encode()
    assert spelled([b"x" + smile[:2], smile[2:]]) == ["x😀¹⁄₂", "😀²⁄₂"]
    assert spelled(["שלום".encode(), b" ok"]) == ["שלום", " ok"]


def test_bytes_that_are_no_character_are_spelled_out():
    assert spelled([b"\xe9", b"\xbc"]) == ["‹e9›", "‹bc›"]
    assert spelled([b"\xff\xfe"]) == ["‹ff fe›"]
    assert spelled([b"\xe9a"]) == ["‹e9›a"]
    assert spelled([]) == []


def test_a_token_that_goes_on_with_a_character():
    mole = "鼹".encode()
    assert spelled_after([b"a", mole[:2]], mole[2:]) == "鼹³⁄₃"
    assert spelled_after([b"a"], mole[2:]) == "‹b9›"
    assert spelled_after([], b" word") == " word"
    assert is_whole(mole)
    assert not is_whole(mole[:2])


@given(st.text(), st.lists(st.integers(1, 5)))
def test_every_token_names_only_characters_of_its_text(text: str, sizes: list[int]):
    data, pieces = text.encode("utf-8", "surrogatepass"), []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    pieces.append(data)
    found = spelled(pieces)
    assert len(found) == len(pieces)
    for piece, shown in zip(pieces, found, strict=True):
        if is_whole(piece) and all(b < 0x80 for b in piece):
            assert shown == piece.decode()
        assert "\ufffd" not in shown or "\ufffd" in text


@given(st.lists(st.binary(max_size=6), max_size=6))
def test_any_bytes_are_spelled(pieces: list[bytes]):
    found = spelled(pieces)
    assert [bool(one) for one in found] == [bool(piece) for piece in pieces]
