"""The faster encoder gives the tokenizer's own ids on every text, or is not used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from glassformer.data.corpus import PROBE
from glassformer.data.readers import cut_everywhere
from glassformer.tokenizer.encode import Encoder
from glassformer.tokenizer.tiktoken_encoder import NO_SPECIAL, _grouped, tiktoken_encoder
from glassformer.tokenizer.tokenizer import Tokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
TEXTS = [
    Path(json.__file__).read_text(),
    Path(tokenizers.__file__).read_text(),
    "Ünï códe 12345 日本語 \n\n\t  x'll don't\r\n",
]


def _train(split: object, texts: list[str] = TEXTS, size: int = 900) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


@pytest.fixture(scope="module", params=list(SPLITS))
def pair(request: pytest.FixtureRequest) -> tuple[Encoder, Encoder]:
    """The tokenizers library's own encoder, and tiktoken's."""
    tokenizer = Tokenizer(_train(SPLITS[request.param]), eos_id=0)
    assert tiktoken_encoder(tokenizer, np.dtype("<u2")) is not None
    slow, fast = Encoder(tokenizer, fast=False), Encoder(tokenizer)
    assert fast.quick
    assert not slow.quick
    return slow, fast


def _equal(pair: tuple[Encoder, Encoder], text: str) -> None:
    slow, fast = (encoder.encode([text])[0] for encoder in pair)
    assert np.array_equal(slow, fast), text


MIX = st.lists(st.sampled_from([*"ab1 \n\t\r'!_", "  ", "'s", "é", "二", "٣", "½", "\u00a0", "\u2028", "def", "self"]))


@settings(max_examples=400, deadline=None)
@given(parts=MIX, text=st.text(max_size=30))
def test_the_same_ids_on_every_text(pair: tuple[Encoder, Encoder], parts: list[str], text: str) -> None:
    _equal(pair, "".join(parts))
    _equal(pair, text)


@settings(max_examples=300, deadline=None)
@given(parts=MIX)
def test_cuts_between_pieces_leave_no_trace(pair: tuple[Encoder, Encoder], parts: list[str]) -> None:
    pieces = cut_everywhere("".join(parts))
    assert "".join(pieces) == "".join(parts)
    if pieces:
        assert all(encoder.joins(pieces) for encoder in pair), pieces


def test_cuts_between_pieces_leave_no_trace_in_real_text(pair: tuple[Encoder, Encoder]) -> None:
    for text in [*TEXTS, PROBE]:
        assert len(cut_everywhere(text)) > 3
        assert all(encoder.joins(cut_everywhere(text)) for encoder in pair)


def test_the_same_ids_on_real_text(pair: tuple[Encoder, Encoder]) -> None:
    for text in TEXTS:
        _equal(pair, text)
    _equal(pair, "<|endoftext|> stays text")
    _equal(pair, f"and {NO_SPECIAL} too {NO_SPECIAL}")


def test_characters_are_classed_the_same(pair: tuple[Encoder, Encoder]) -> None:
    """Letters, digits, spaces and the rest of Unicode are told apart by two libraries."""
    points = [*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x20000, 7), *range(0x20000, 0x110000, 4001)]
    for start in range(0, len(points), 2000):
        _equal(pair, "".join(f"a{chr(p)}1 {chr(p)}{chr(p)}!{chr(p)} \n" for p in points[start : start + 2000]))


@pytest.mark.parametrize("run", [" " * 1_200_000, "\n\t" * 600_000])
def test_a_run_of_spaces_longer_than_tiktoken_bears(pair: tuple[Encoder, Encoder], run: str) -> None:
    for text in (f"a{run}b", f"a{run}1", run):
        slow, fast = (encoder.encode([text])[0] for encoder in pair)
        assert np.array_equal(slow, fast)


def test_flags_keep_their_reach() -> None:
    """An expression whose flags hold to its end is not put into a group."""
    assert _grouped(r"\w+|\S|\s+(?!\S)|\s+") == r"(?:\w+|\S)|\s+(?!\S)|\s+"
    for pattern in (r"(?i)\w+|\S|\s+(?!\S)|\s+", r"\w+|\S|(?i-u)x|\s+(?!\S)|\s+", r"\w+|\S|\s+", r"\w+\|\s+(?!\S)|\s+"):
        assert _grouped(pattern) == pattern


def _edited(change: object) -> Tokenizer:
    source = json.loads(_train(SPLITS["gpt2"], size=400).to_str())
    change(source)  # type: ignore[operator]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(source)), eos_id=0)


def _unreachable(source: dict) -> None:
    """The last merge's token is made of parts that lower ranks never leave standing."""
    vocab, merges = source["model"]["vocab"], source["model"]["merges"]
    vocab |= {"bc": 400, "ab": 401, "abc": 402}
    merges += [["b", "c"], ["a", "b"], ["ab", "c"]]


@pytest.mark.parametrize(
    "change",
    [
        _unreachable,
        lambda s: s["model"]["vocab"].update({"zzzzzz": 400}),
        lambda s: s["model"].update(dropout=0.1),
        lambda s: s.update(normalizer={"type": "NFC"}),
        lambda s: s["pre_tokenizer"].update(add_prefix_space=True),
        lambda s: s["added_tokens"][0].update(special=False),
        lambda s: s.update(pre_tokenizer=None),
    ],
    ids=["unreachable", "no merge", "dropout", "normalizer", "prefix space", "added words", "no words"],
)
def test_no_twin_where_it_might_differ(change: object) -> None:
    assert tiktoken_encoder(_edited(lambda source: None), np.dtype("<u2")) is not None
    assert tiktoken_encoder(_edited(change), np.dtype("<u2")) is None


def test_without_tiktoken_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(_train(SPLITS["gpt2"], size=400), eos_id=0)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert tiktoken_encoder(tokenizer, np.dtype("<u2")) is None
    assert Encoder(tokenizer).encode(["a text"])[0].tolist() == tokenizer.encode("a text")


def test_normalised_and_unknown_words_go_the_slow_way() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Lowercase()
    backend.decoder = decoders.Fuse()
    tokenizer = Tokenizer(backend)
    assert Encoder(tokenizer).encode(["Hello there world"])[0].tolist() == [1, 0, 2]


def test_bytes_and_characters_are_looked_up() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: n + 1 for n, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    tokenizer = Tokenizer(backend)
    encoder = Encoder(tokenizer)
    assert encoder.light
    text = "Any text: ünï 二 \U0001f600\n"
    assert encoder.encode([text])[0].tolist() == tokenizer.encode(text)
