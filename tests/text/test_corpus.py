"""Data: every kind of file becomes checked shards, nothing is lost without a word, nothing is made twice."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import decoders, models, pre_tokenizers, trainers

from glassformer.errors import DataError, TokenizerError
from glassformer.text import corpus as corpus_module
from glassformer.text import inputs, parallel, readers, shards
from glassformer.text.corpus import build_corpus, corpora_dir, text_iterator
from glassformer.text.inputs import Report, expand
from glassformer.text.readers import read
from glassformer.text.shards import BLOCK, Shards, StreamWriter
from glassformer.text.tokenizer import Tokenizer

SENTENCES = [f"The {n} lamps were lit, and the sea said: {n * 7} times no.\nThen it slept.\n" for n in range(400)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _bpe(specials: list[str]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return backend


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-level BPE with an end-of-text token and a chat template."""
    return Tokenizer(_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), eos_id=0, chat_template=TEMPLATE)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _texts(corpus: corpus_module.Corpus, tokenizer: Tokenizer) -> list[str]:
    """The documents of the training part as text, without the end-of-text ids."""
    train = corpus.train
    edges = train.documents
    return [
        tokenizer.decode(train.slice(int(a), int(b - a)).tolist()).removesuffix("<|endoftext|>")
        for a, b in itertools.pairwise(edges)
    ]


def _whole(spec: object, tokenizer: Tokenizer, **options: object) -> corpus_module.Corpus:
    return build_corpus(spec, tokenizer, fraction=0.0, **options)  # type: ignore[arg-type]


# What can be named


def test_a_folder_becomes_documents_in_name_order(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    data = tmp_path / "data"
    (data / "b").mkdir(parents=True)
    (data / "b" / "two.md").write_text("two 二\r\n")
    (data / "a.txt").write_text("one")
    (data / "z.py").write_text("three\n")
    (data / ".hidden").write_text("never")
    corpus = _whole(data, tokenizer)
    assert _texts(corpus, tokenizer) == ["one", "two 二\r\n", "three\n"]
    assert corpus.train.slice(0, len(corpus.train))[-1] == tokenizer.eos_id
    assert corpus.report.documents == corpus.report.files == 3
    assert corpus.report.bytes == corpus.train.text_bytes == len("onetwo 二\r\nthree\n".encode())
    assert corpus.bytes_per_token == pytest.approx(corpus.train.text_bytes / len(corpus.train))
    assert len(corpus.held_out) == 0
    assert corpus.directory.parent == cache / "corpora"


def test_every_kind_of_file_holds_the_same_documents(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    documents = ["first line\nand more", "second, ünïcode", "third"]
    lines = "".join(json.dumps({"text": d}) + "\n" for d in documents).encode()
    files = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "content.jsonl": "".join(json.dumps({"content": d}) + "\n\n" for d in documents).encode(),
        "strings.ndjson": "".join(json.dumps(d) + "\n" for d in documents).encode(),
    }
    parquet.write_table(pa.table({"text": documents, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"body": documents, "id": [1, 2, 3]}), tmp_path / "only.parquet")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    hashes = set()
    for name in [*files, "a.parquet", "only.parquet"]:
        corpus = _whole(tmp_path / name, tokenizer)
        assert _texts(corpus, tokenizer) == documents, name
        assert not corpus.report.problems
        hashes.add(corpus.hash)
    assert len(hashes) == 1


def test_compressed_text_globs_and_lists(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "two.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"two") + b"")
    (tmp_path / "three.txt").write_text("three")
    assert _texts(_whole(str(tmp_path / "*.txt*"), tokenizer), tokenizer) == ["one", "three", "two"]
    both = [tmp_path / "two.txt.zst", str(tmp_path / "three.txt")]
    assert _texts(_whole(both, tokenizer), tokenizer) == ["two", "three"]
    assert list(text_iterator(both)) == ["two", "three"]


def test_standard_input(cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    spooled = expand("-", Report())
    assert expand("-", Report()) == spooled, "a pipe is read once and can be used again"
    assert list(text_iterator("-")) == ["from a pipe"]
    assert _texts(_whole("-", tokenizer), tokenizer) == ["from a pipe"]
    assert isinstance(spooled[0], inputs.FileSource)
    inputs._remove(str(spooled[0].path))
    inputs._remove(str(spooled[0].path))


def test_the_standard_library_is_there_and_in_order() -> None:
    sources = expand(None, Report())
    names = [source.name for source in sources]
    assert names == sorted(names)
    assert "json/decoder.py" in names
    assert not any(name.startswith(("test/", "site-packages/")) for name in names)


def test_a_hub_set_is_streamed_through_datasets(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def load_dataset(path: str, **options: object) -> list[dict[str, str]]:
        asked.update(options, path=path)
        return [{"story": "once"}, {"story": "twice"}, {"other": "never"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    version = ["one"]
    monkeypatch.setattr(corpus_module, "hub_version", lambda source: version[0])
    corpus = _whole("hf:some/stories@abc?split=test&text=story&config=en", tokenizer)
    assert asked == {"path": "some/stories", "name": "en", "split": "test", "revision": "abc", "streaming": True}
    assert _texts(corpus, tokenizer) == ["once", "twice"]
    assert corpus.report.sentences() == ["1 without a text in story, left out: hf:some/stories:3."]
    asked.clear()
    _whole("hf:some/stories@abc?split=test&text=story&config=en", tokenizer)
    assert not asked, "the same version is not streamed again"
    version[0] = "two"
    _whole("hf:some/stories@abc?split=test&text=story&config=en", tokenizer)
    assert asked
    with pytest.raises(DataError, match="has the option 'splt'; known are config, split, text. Did you mean split"):
        expand("hf:some/stories?splt=test", Report())


def test_a_local_set_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "once"}')
    source = readers.HubSource(str(tmp_path))
    before = readers.hub_version(source)
    assert before == readers.hub_version(source)
    (tmp_path / "train.jsonl").write_text('{"text": "twice"}')
    assert before != readers.hub_version(source)


@pytest.mark.parametrize(
    ("module", "spec"), [("datasets", "hf:a/b"), ("pyarrow", "a.parquet"), ("zstandard", "a.txt.zst")]
)
def test_a_missing_library_is_one_sentence(
    module: str, spec: str, tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"x")
    (tmp_path / "a.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(corpus_module, "hub_version", lambda source: None)
    with pytest.raises(DataError, match=r"install its? ?.*with: pip install 'glassformer\[data\]'"):
        _whole(spec if spec.startswith("hf:") else tmp_path / spec, tokenizer)


def test_what_is_not_there_is_said(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "shakespeare.txt").write_text("To be")
    with pytest.raises(DataError, match=r"no file or folder .*shakespear.txt.* Did you mean shakespeare.txt\?"):
        _whole(tmp_path / "shakespear.txt", tokenizer)
    with pytest.raises(DataError, match="No file matches"):
        _whole(str(tmp_path / "*.csv"), tokenizer)
    with pytest.raises(DataError, match="The list of data is empty"):
        _whole([], tokenizer)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        _whole(tmp_path / "none", tokenizer)
    with pytest.raises(DataError, match=r"held-out fraction must be in \[0, 1\); got 1"):
        build_corpus(tmp_path / "shakespeare.txt", tokenizer, fraction=1)
    parquet.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "two.parquet")
    with pytest.raises(DataError, match="columns a, b; say which holds the text with text_field"):
        _whole(tmp_path / "two.parquet", tokenizer)
    assert _texts(_whole(tmp_path / "two.parquet", tokenizer, text_field="b"), tokenizer) == ["y"]
    with pytest.raises(DataError, match="no column 'c'; it has a, b"):
        _whole(tmp_path / "two.parquet", tokenizer, text_field="c")


# What cannot be read as it stands


def test_nothing_is_dropped_in_silence(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "good.txt").write_text("good")
    (data / "bom.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (data / "empty.txt").write_text("")
    (data / "latin.txt").write_bytes("na\u00efve caf\u00e9".encode("latin-1"))
    (data / "picture.png").write_bytes(b"\x89PNG\r\n\0\0")
    (data / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-3000])
    (data / "dangling.txt").symlink_to(data / "nowhere.txt")
    (data / "rows.jsonl").write_bytes(b'{"text": "row"}\nnot json\n{"text": ""}\n{"text": 5}\n{"text": "caf\xe9"}\n')
    corpus = _whole(data, tokenizer)
    documents = _texts(corpus, tokenizer)
    assert {"good", "marked", "na\ufffdve caf\ufffd", "row", "caf\ufffd"} <= set(documents)
    problems = {problem: entry["names"] for problem, entry in corpus.report.problems.items()}
    assert problems == {
        "broken off or damaged; what was read before is kept": ["cut.txt.gz"],
        "gone before they could be read": ["dangling.txt"],
        "empty, left out": ["empty.txt", "rows.jsonl:3"],
        "not valid UTF-8, faulty bytes replaced": ["latin.txt", "rows.jsonl:5"],
        "not text, left out": ["picture.png"],
        "lines that are not JSON, left out": ["rows.jsonl:2"],
        "without a text in text or content, left out": ["rows.jsonl:4"],
    }
    assert corpus.report.count("empty") == 2
    strict = _whole(data, tokenizer, invalid="skip")
    assert strict.report.problems["not valid UTF-8, left out"]["names"] == ["latin.txt", "rows.jsonl:5"]
    assert not any("\ufffd" in text for text in _texts(strict, tokenizer))
    again = _whole(data, tokenizer)
    assert again.report.to_dict() == corpus.report.to_dict(), "the report is kept with the shards"


def test_nothing_at_all_is_an_error_that_says_why(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"nothing to learn from in this data. 1 empty, left out: .*empty.txt\."):
        _whole(tmp_path / "empty.txt", tokenizer)
    assert not any(corpora_dir().glob(".building*")), "nothing is left behind"


def test_a_file_that_vanishes_or_changes_while_reading(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b", "c"):
        (data / name).write_text(name * 5)
    fingerprints = corpus_module._fingerprints

    def then_touched(*args: object) -> object:
        found = fingerprints(*args)  # type: ignore[arg-type]
        (data / "b").unlink()
        (data / "c").write_text("changed!")
        return found

    monkeypatch.setattr(corpus_module, "_fingerprints", then_touched)
    corpus = _whole(data, tokenizer)
    assert _texts(corpus, tokenizer) == ["aaaaa", "changed!"]
    assert corpus.report.problems["gone before they could be read"]["names"] == ["b"]
    assert corpus.report.problems["changed while they were read"]["names"] == ["c"]
    monkeypatch.setattr(corpus_module, "_fingerprints", fingerprints)
    (data / "b").write_text("bbbbb")
    (data / "c").write_text("ccccc")
    assert _texts(_whole(data, tokenizer), tokenizer) == ["aaaaa", "bbbbb", "ccccc"], "not found under that hash"


def test_a_character_the_vocabulary_lacks_is_named_with_its_file(tmp_path: Path, cache: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: n for n, c in enumerate("abc\n")}, merges=[]))
    backend.decoder = decoders.Fuse()
    letters = Tokenizer(backend)
    (tmp_path / "good.txt").write_text("abc\ncab")
    corpus = _whole(tmp_path / "good.txt", letters)
    assert corpus.train.slice(0, 7).tolist() == [0, 1, 2, 3, 2, 0, 1]
    (tmp_path / "bad.txt").write_text("abcé")
    with pytest.raises(TokenizerError, match=r"bad.txt: This tokenizer knows 4 characters .*'é'"):
        _whole([tmp_path / "good.txt", tmp_path / "bad.txt"], letters)


# Tokens


def test_special_literals_in_data_are_text(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("x<|endoftext|>y")
    corpus = _whole(tmp_path / "a.txt", tokenizer)
    ids = corpus.train.slice(0, len(corpus.train)).tolist()
    assert ids.count(tokenizer.eos_id) == 1
    assert ids[-1] == tokenizer.eos_id
    assert ids[:-1] == tokenizer.encode("x<|endoftext|>y", False, specials=False)


def test_a_begin_of_text_token_goes_before_each_document(tmp_path: Path, cache: Path) -> None:
    backend = _bpe(["<s>"])
    begins = Tokenizer(backend, bos_id=0, adds_bos=True)
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n')
    corpus = _whole(tmp_path / "a.jsonl", begins)
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
    pieces = list(read(expand(tmp_path / "long.txt", Report()), Report(), piece=512))
    assert len(pieces) > 20, "in pieces"
    assert "".join(piece.text for piece in pieces) == text
    assert [p.first for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [p.last for p in pieces] == [False] * (len(pieces) - 1) + [True]
    asked: list[int] = []
    monkeypatch.setattr(corpus_module, "read", lambda *args, **more: asked.append(more["piece"]) or read(*args, **more))
    corpus = _whole(tmp_path / "long.txt", tokenizer)
    assert asked == [512]
    assert corpus.train.slice(0, len(corpus.train)).tolist() == expected
    assert corpus.train.documents.tolist() == [0, len(expected)]


def test_a_tokenizer_that_marks_where_a_text_begins_gets_documents_whole(
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
    corpus = _whole(tmp_path / "a.txt", marks)
    assert corpus.train.slice(0, len(corpus.train)).tolist() == marks.encode(text)
    assert not corpus.report.problems
    monkeypatch.setattr(corpus_module, "LONGEST", 64)
    cut = _whole(tmp_path / "a.txt", marks, cache_dir=tmp_path / "other")
    assert cut.report.count("longer than 16 million characters") == 1


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab \n\t\u3000é", max_size=400), piece=st.integers(1, 30), data=st.data())
def test_pieces_join_to_the_document(text: str, piece: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    report = Report()
    pieces = list(readers._pieces(((chunk, 0) for chunk in chunks), "x", report, piece))
    assert "".join(p.text for p in pieces) == text
    assert report.count("empty") == (not text)
    joints = set(itertools.accumulate(len(part) for part in readers.cut_everywhere(text)))
    assert set(itertools.accumulate(len(p.text) for p in pieces)) <= joints


def test_workers_give_the_same_bytes(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "BATCH", 1000)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES))
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    spec = [tmp_path / "a.jsonl", tmp_path / "chat.jsonl"]
    alone = _whole(spec, tokenizer, workers=0, cache_dir=tmp_path / "0")
    together = _whole(spec, tokenizer, workers=2, cache_dir=tmp_path / "2")
    assert together.hash == alone.hash
    for file in sorted(alone.directory.glob("*.bin")):
        assert (together.directory / file.name).read_bytes() == file.read_bytes()


def test_a_workers_error_arrives_as_it_was(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = Tokenizer(_bpe(["<|endoftext|>"]), eos_id=0)
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    with pytest.raises(TokenizerError, match="has no chat template"):
        _whole(tmp_path / "chat.jsonl", plain, workers=1, cache_dir=tmp_path / "c")
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
    corpus = _whole(tmp_path / "chat.jsonl", tokenizer)
    train = corpus.train
    edges = train.documents
    ids, mask = train.slice(0, int(edges[1])), train.mask_slice(0, int(edges[1]))
    assert tokenizer.decode(ids.tolist()).removesuffix("<|endoftext|>") == tokenizer.render_chat(CHAT, False)
    learned = tokenizer.decode(ids[mask].tolist())
    assert learned == "It said no.<|im_end|>\nIt slept.<|im_end|>\n"
    assert train.masked
    assert train.mask_slice(int(edges[1]), int(edges[2] - edges[1])).all(), "plain text asks for loss everywhere"
    assert corpus.report.documents == 2
    assert corpus.report.problems[corpus_module.UNANSWERED]["names"] == [f"{tmp_path / 'chat.jsonl'}:3"]
    assert corpus.report.count("conversations without roles") == 1


def test_text_before_a_conversation_is_learned_whole(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    rows = [*SENTENCES[:50], {"messages": CHAT}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    corpus = _whole(tmp_path / "mixed.jsonl", tokenizer)
    start = int(corpus.train.documents[-2])
    assert corpus.train.mask_slice(0, start).all()
    assert not corpus.train.mask_slice(start, len(corpus.train) - start).all()


# Holding out


def test_the_tail_is_held_out(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES))
    corpus = build_corpus(tmp_path / "a.jsonl", tokenizer, fraction=0.1)
    whole = _whole(tmp_path / "a.jsonl", tokenizer)
    n = len(whole.train)
    assert len(corpus.train) == int(n * 0.9)
    joined = np.concatenate([corpus.train.slice(0, len(corpus.train)), corpus.held_out.slice(0, len(corpus.held_out))])
    assert np.array_equal(joined, whole.train.slice(0, n))
    assert corpus.train.text_bytes + corpus.held_out.text_bytes == whole.train.text_bytes
    held = corpus.held_out
    exact = sum(len(tokenizer.token_bytes(i)) for i in held.slice(0, len(held)).tolist() if i != tokenizer.eos_id)
    assert held.text_bytes == exact
    inside = {int(x) for x in whole.train.documents if x > len(corpus.train)}
    assert {int(x) + len(corpus.train) for x in held.documents[1:]} == inside
    assert held.documents[0] == 0


def test_documents_are_held_out_whole_and_copies_together(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES + SENTENCES))
    corpus = build_corpus(tmp_path / "a.jsonl", tokenizer, held_out="document", fraction=0.2)
    train = set(_texts(corpus, tokenizer))
    held = set(SENTENCES) - train
    assert 0.1 < len(held) / len(SENTENCES) < 0.3
    assert len(corpus.train.documents) + len(corpus.held_out.documents) - 2 == 2 * len(SENTENCES)
    text = tokenizer.decode(corpus.held_out.slice(0, len(corpus.held_out)).tolist()).replace("<|endoftext|>", "")
    assert text == "".join(s for s in SENTENCES + SENTENCES if s in held)
    (tmp_path / "one.txt").write_text("alone")
    with pytest.raises(DataError, match="0.1 of 1 documents leaves one part empty; hold out by tail"):
        build_corpus(tmp_path / "one.txt", tokenizer, held_out="document")


# Shards


@settings(max_examples=40, deadline=None)
@given(data=st.data(), parts=st.lists(st.integers(0, 900_000), min_size=1, max_size=4))
def test_any_slice_is_what_was_written(data: st.DataObject, parts: list[int], tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(sum(parts))
    writer = StreamWriter(folder, "x", np.dtype("<u2"), file_bytes=BLOCK)
    ids, mask, starts = [], [], []
    for number, n in enumerate(parts):
        starts.append(writer.tokens)
        writer.open_document()
        ids.append(rng.integers(0, 60_000, n).astype(np.uint16))
        masked = number > 0 and n % 2 == 0
        mask.append(rng.random(n) < 0.5 if masked else np.ones(n, dtype=bool))
        writer.append(ids[-1], mask[-1] if masked else None)
    entry = json.loads(json.dumps(writer.close()))
    whole, told = np.concatenate(ids), np.concatenate(mask)
    low = data.draw(st.integers(0, len(whole)))
    high = data.draw(st.integers(low, len(whole)))
    view = Shards(folder, entry, low, high, 0)
    assert len(view) == high - low
    start = data.draw(st.integers(0, len(view)))
    n = data.draw(st.integers(0, len(view) - start))
    assert np.array_equal(view.slice(start, n), whole[low + start : low + start + n])
    assert np.array_equal(view.mask_slice(start, n), told[low + start : low + start + n])
    if high > low:
        expected = sorted({0, high - low} | {s - low for s in starts if low < s < high})
        assert sorted(set(view.documents.tolist())) == expected
    with pytest.raises(IndexError):
        view.slice(0, len(view) + 1)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    from glassformer.text.encoding import token_dtype

    assert token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")
    writer = StreamWriter(tmp_path, "x", np.dtype("<u4"))
    writer.append(np.array([70_000, 1], dtype=np.uint32))
    assert Shards(tmp_path, writer.close(), 0, 2, 0).slice(0, 2).tolist() == [70_000, 1]


def test_a_damaged_shard_is_found_before_it_is_used(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    corpus = _whole(tmp_path / "a.txt", tokenizer)
    shard = corpus.directory / "all-00000.bin"
    data = bytearray(shard.read_bytes())
    data[11] ^= 1
    shard.write_bytes(data)
    opened = _whole(tmp_path / "a.txt", tokenizer)
    with pytest.raises(DataError, match=r"all-00000.bin is damaged in its block at byte 0; delete its folder"):
        opened.train.slice(100, 5)
    with pytest.raises(DataError, match="is damaged"):
        opened.verify()


@pytest.mark.parametrize("harm", ["short", "missing", "index", "no index", "lying index"])
def test_unsound_shards_in_the_cache_are_made_anew(
    harm: str, tmp_path: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    before = _whole(tmp_path / "a.txt", tokenizer)
    shard, index = before.directory / "all-00000.bin", before.directory / "index.json"
    if harm == "short":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif harm == "missing":
        shard.unlink()
    elif harm == "index":
        index.write_text(index.read_text()[:-20])
    elif harm == "no index":
        index.unlink()
    else:
        told = json.loads(index.read_text())
        told["parts"]["train"]["stop"] += 1
        index.write_text(json.dumps(told))
    after = _whole(tmp_path / "a.txt", tokenizer)
    assert after.hash == before.hash
    assert after.report.count("damaged shards in the cache, made anew") == 1
    after.verify()


def test_the_second_run_reads_no_token(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    first = _whole(tmp_path / "a.txt", tokenizer)

    def never(*args: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(parallel, "encode_pieces", never)
    second = _whole(tmp_path / "a.txt", tokenizer)
    assert (second.hash, second.directory) == (first.hash, first.directory)
    monkeypatch.undo()
    monkeypatch.setenv("GLASSFORMER_CACHE", str(cache))
    assert build_corpus(tmp_path / "a.txt", tokenizer, fraction=0.2).directory != first.directory
    (tmp_path / "a.txt").write_text("other")
    assert _whole(tmp_path / "a.txt", tokenizer).directory != first.directory


def test_two_builders_at_once_make_one_corpus(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    written = []
    write = corpus_module._write

    def slowly(*args: object) -> bool:
        written.append(1)
        time.sleep(0.2)
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus_module, "_write", slowly)
    found: list[corpus_module.Corpus] = []
    threads = [threading.Thread(target=lambda: found.append(_whole(tmp_path / "a.txt", tokenizer))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert len({(c.hash, c.directory) for c in found}) == 1
    assert len(found) == 3


KILLED = """
import sys
from pathlib import Path
from glassformer.text import corpus, parallel
from glassformer.text.tokenizer import Tokenizer
encode = parallel.encode_pieces
def slowly(*args):
    for number, one in enumerate(encode(*args)):
        yield one
        if number == 20:
            print("under way", flush=True)
            sys.stdin.read()
parallel.encode_pieces = slowly
corpus.build_corpus(sys.argv[1], Tokenizer.from_directory(sys.argv[2]), fraction=0.0)
"""


def test_a_killed_builder_leaves_nothing_in_the_way(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES))
    tokenizer.save(tmp_path / "tokenizer")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "a.jsonl"), str(tmp_path / "tokenizer")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, GLASSFORMER_CACHE=str(cache)),
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"under way\n"
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    assert len(list(corpora_dir().glob(".building-*"))) == 1
    saved = Tokenizer.from_directory(tmp_path / "tokenizer")
    assert _texts(_whole(tmp_path / "a.jsonl", saved), saved) == SENTENCES
    assert not list(corpora_dir().glob(".building-*"))


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.BlockWriter, "_block", full)
    with pytest.raises(DataError, match=r"could not be written under .*corpora: No space left on device"):
        _whole(tmp_path / "a.txt", tokenizer)
    assert not list(corpora_dir().glob(".building-*"))


def test_memory_does_not_grow_with_the_data(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    chunk = "".join(SENTENCES).encode()

    def peak(copies: int) -> int:
        path = tmp_path / f"{copies}.txt"
        with path.open("wb") as file:
            for _ in range(copies):
                file.write(chunk)
        tracemalloc.start()
        try:
            _whole(path, tokenizer, workers=0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(40)  # what is loaded once
    small, large = peak(200), peak(800)  # 5 MB, 21 MB
    assert large < 1.25 * small + 1_000_000


def test_progress_is_told(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    told: list[tuple[str, int, int | None]] = []
    _whole(tmp_path / "a.txt", tokenizer, progress=lambda *at: told.append(at))
    size = (tmp_path / "a.txt").stat().st_size
    assert told[-1] == ("tokenising", size, size)


def test_every_code_point_is_read(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, [*range(1, 0xD800, 37), *range(0xE000, 0x110000, 1009)]))
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert _texts(_whole(tmp_path / "a.txt", tokenizer), tokenizer) == [text]
