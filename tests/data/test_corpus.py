"""Data: what can be named is read, nothing is lost without a word, and some is held out."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import zstandard
from pyarrow import parquet
from tokenizers import decoders, models

from glassformer.data import corpus as corpus_module
from glassformer.data import readers, sources
from glassformer.data.corpus import build_corpus, corpora_dir, text_iterator
from glassformer.data.sources import Findings, expand
from glassformer.errors import DataError, TokenizerError
from glassformer.system.files import remove
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.data.corpora import SENTENCES, a_cache, a_tokenizer, texts, whole

__all__ = ["a_cache", "a_tokenizer"]  # fixtures


# What can be named


def test_a_folder_becomes_documents_in_name_order(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    data = tmp_path / "data"
    (data / "b").mkdir(parents=True)
    (data / "b" / "two.md").write_text("two 二\r\n")
    (data / "a.txt").write_text("one")
    (data / "z.py").write_text("three\n")
    (data / ".hidden").write_text("never")
    corpus = whole(data, tokenizer)
    assert texts(corpus, tokenizer) == ["one", "two 二\r\n", "three\n"]
    assert corpus.train.slice(0, len(corpus.train))[-1] == tokenizer.eos_id
    assert corpus.findings.documents == corpus.findings.files == 3
    assert corpus.findings.bytes == corpus.train.text_bytes == len("onetwo 二\r\nthree\n".encode())
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
        corpus = whole(tmp_path / name, tokenizer)
        assert texts(corpus, tokenizer) == documents, name
        assert not corpus.findings.problems
        hashes.add(corpus.hash)
    assert len(hashes) == 1


def test_compressed_text_globs_and_lists(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "two.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"two") + b"")
    (tmp_path / "three.txt").write_text("three")
    assert texts(whole(str(tmp_path / "*.txt*"), tokenizer), tokenizer) == ["one", "three", "two"]
    both = [tmp_path / "two.txt.zst", str(tmp_path / "three.txt")]
    assert texts(whole(both, tokenizer), tokenizer) == ["two", "three"]
    assert list(text_iterator(both)) == ["two", "three"]


def test_standard_input(cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"from a pipe")))
    spooled = expand("-", Findings())
    assert expand("-", Findings()) == spooled, "a pipe is read once and can be used again"
    assert list(text_iterator("-")) == ["from a pipe"]
    assert texts(whole("-", tokenizer), tokenizer) == ["from a pipe"]
    assert isinstance(spooled[0], sources.FileSource)
    remove(spooled[0].path)


SPOOLER = """
import os, signal, sys
from glassformer.data.sources import Findings, expand
print(expand("-", Findings())[0].path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_kept_of_standard_input_goes_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", SPOOLER], input=b"left behind", stdout=subprocess.PIPE)
    left = Path(done.stdout.decode().strip())
    assert (done.returncode, left.parent, left.read_bytes()) == (-signal.SIGKILL, tmp_path, b"left behind")
    assert left.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"the next")))
    (source,) = expand("-", Findings())
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"the next"]
    assert isinstance(source, sources.FileSource)
    remove(source.path)


def test_the_standard_library_is_there_and_in_order() -> None:
    sources = expand(None, Findings())
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
    corpus = whole("hf:some/stories@abc?split=test&text=story&config=en", tokenizer)
    assert asked == {"path": "some/stories", "name": "en", "split": "test", "revision": "abc", "streaming": True}
    assert texts(corpus, tokenizer) == ["once", "twice"]
    assert corpus.findings.sentences() == ["1 without a text in story, left out: hf:some/stories:3."]
    asked.clear()
    whole("hf:some/stories@abc?split=test&text=story&config=en", tokenizer)
    assert not asked, "the same version is not streamed again"
    version[0] = "two"
    whole("hf:some/stories@abc?split=test&text=story&config=en", tokenizer)
    assert asked
    with pytest.raises(DataError, match="has the option 'splt'; known are config, split, text. Did you mean split"):
        expand("hf:some/stories?splt=test", Findings())


@pytest.mark.parametrize(
    ("query", "row", "found"),
    [
        ("", {"id": 1, "text": "once"}, "once"),
        ("", {"id": 1, "story": "once"}, "once"),
        ("?text=title", {"title": "once", "text": "twice"}, "once"),
        (
            "?text=stori",
            {"title": "once", "story": "twice"},
            r"no column 'stori'; it has title, story. Did you mean st",
        ),
        ("", {"title": "once", "story": "twice"}, r"has the columns title, story; say .*, as in hf:a/b\?text=COLUMN\."),
    ],
)
def test_the_column_of_a_hub_set(query: str, row: dict, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda path, **options: [row, row]))
    findings = Findings()
    sources = expand(f"hf:a/b{query}", findings)
    if " " not in found:
        assert [(piece.text, piece.first, piece.last) for piece in readers.read(sources, findings)] == [
            (found, True, True)
        ] * 2
        return
    with pytest.raises(DataError, match=found):
        list(readers.read(sources, findings))


def test_conversations_of_a_hub_set_and_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]

    def load_dataset(path: str, **options: object) -> list[dict[str, object]]:
        if path == "a/chats":
            return [{"id": 1, "messages": said}]
        raise FileNotFoundError(f"Couldn't reach '{path}' on the Hub.")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    findings = Findings()
    assert [piece.messages for piece in readers.read(expand("hf:a/chats", findings), findings)] == [said]
    with pytest.raises(
        DataError, match=r"datasets \(Couldn't reach 'a/b' on the Hub\); check the name, the split and the network\."
    ):
        list(readers.read(expand("hf:a/b", findings), findings))


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
        whole(spec if spec.startswith("hf:") else tmp_path / spec, tokenizer)


def test_what_is_not_there_is_said(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "shakespeare.txt").write_text("To be")
    with pytest.raises(DataError, match=r"no file or folder .*shakespear.txt.* Did you mean shakespeare.txt\?"):
        whole(tmp_path / "shakespear.txt", tokenizer)
    with pytest.raises(DataError, match="No file matches"):
        whole(str(tmp_path / "*.csv"), tokenizer)
    with pytest.raises(DataError, match="The list of data is empty"):
        whole([], tokenizer)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        whole(tmp_path / "none", tokenizer)
    with pytest.raises(DataError, match=r"held-out fraction must be in \[0, 1\); got 1"):
        build_corpus(tmp_path / "shakespeare.txt", tokenizer, fraction=1)
    parquet.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "two.parquet")
    with pytest.raises(DataError, match="columns a, b; say which holds the text, with --set text_field=COLUMN"):
        whole(tmp_path / "two.parquet", tokenizer)
    assert texts(whole(tmp_path / "two.parquet", tokenizer, text_field="b"), tokenizer) == ["y"]
    with pytest.raises(DataError, match="no column 'c'; it has a, b"):
        whole(tmp_path / "two.parquet", tokenizer, text_field="c")


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
    corpus = whole(data, tokenizer)
    documents = texts(corpus, tokenizer)
    assert {"good", "marked", "na\ufffdve caf\ufffd", "row", "caf\ufffd"} <= set(documents)
    problems = {problem: entry["names"] for problem, entry in corpus.findings.problems.items()}
    assert problems == {
        "broken off or damaged; what was read before is kept": ["cut.txt.gz"],
        "gone before they could be read": ["dangling.txt"],
        "empty, left out": ["empty.txt", "rows.jsonl:3"],
        "not valid UTF-8, faulty bytes replaced": ["latin.txt", "rows.jsonl:5"],
        "not text, left out": ["picture.png"],
        "lines that are not JSON, left out": ["rows.jsonl:2"],
        "without a text in text or content, left out": ["rows.jsonl:4"],
    }
    assert corpus.findings.count("empty") == 2
    strict = whole(data, tokenizer, invalid="skip")
    assert strict.findings.problems["not valid UTF-8, left out"]["names"] == ["latin.txt", "rows.jsonl:5"]
    assert not any("\ufffd" in text for text in texts(strict, tokenizer))
    again = whole(data, tokenizer)
    assert again.findings.to_dict() == corpus.findings.to_dict(), "the findings are kept with the shards"


def test_nothing_at_all_is_an_error_that_says_why(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"nothing to learn from in this data. 1 empty, left out: .*empty.txt\."):
        whole(tmp_path / "empty.txt", tokenizer)
    assert not any(corpora_dir().glob(".*.tmp")), "nothing is left behind"


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
    corpus = whole(data, tokenizer)
    assert texts(corpus, tokenizer) == ["aaaaa", "changed!"]
    assert corpus.findings.problems["gone before they could be read"]["names"] == ["b"]
    assert corpus.findings.problems["changed while they were read"]["names"] == ["c"]
    monkeypatch.setattr(corpus_module, "_fingerprints", fingerprints)
    (data / "b").write_text("bbbbb")
    (data / "c").write_text("ccccc")
    assert texts(whole(data, tokenizer), tokenizer) == ["aaaaa", "bbbbb", "ccccc"], "not found under that hash"


def test_a_character_the_vocabulary_lacks_is_named_with_its_file(tmp_path: Path, cache: Path) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: n for n, c in enumerate("abc\n")}, merges=[]))
    backend.decoder = decoders.Fuse()
    letters = Tokenizer(backend)
    (tmp_path / "good.txt").write_text("abc\ncab")
    corpus = whole(tmp_path / "good.txt", letters)
    assert corpus.train.slice(0, 7).tolist() == [0, 1, 2, 3, 2, 0, 1]
    (tmp_path / "bad.txt").write_text("abcé")
    with pytest.raises(TokenizerError, match=r"bad.txt: This tokenizer knows 4 characters .*'é'"):
        whole([tmp_path / "good.txt", tmp_path / "bad.txt"], letters)


# Holding out


def test_the_tail_is_held_out(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES))
    corpus = build_corpus(tmp_path / "a.jsonl", tokenizer, fraction=0.1)
    everything = whole(tmp_path / "a.jsonl", tokenizer)
    n = len(everything.train)
    assert len(corpus.train) == int(n * 0.9)
    joined = np.concatenate([corpus.train.slice(0, len(corpus.train)), corpus.held_out.slice(0, len(corpus.held_out))])
    assert np.array_equal(joined, everything.train.slice(0, n))
    assert corpus.train.text_bytes + corpus.held_out.text_bytes == everything.train.text_bytes
    held = corpus.held_out
    exact = sum(len(tokenizer.token_bytes(i)) for i in held.slice(0, len(held)).tolist() if i != tokenizer.eos_id)
    assert held.text_bytes == exact
    inside = {int(x) for x in everything.train.documents if x > len(corpus.train)}
    assert {int(x) + len(corpus.train) for x in held.documents[1:]} == inside
    assert held.documents[0] == 0


def test_documents_are_held_out_whole_and_copies_together(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SENTENCES + SENTENCES))
    corpus = build_corpus(tmp_path / "a.jsonl", tokenizer, held_out="document", fraction=0.2)
    train = set(texts(corpus, tokenizer))
    held = set(SENTENCES) - train
    assert 0.1 < len(held) / len(SENTENCES) < 0.3
    assert len(corpus.train.documents) + len(corpus.held_out.documents) - 2 == 2 * len(SENTENCES)
    text = tokenizer.decode(corpus.held_out.slice(0, len(corpus.held_out)).tolist()).replace("<|endoftext|>", "")
    assert text == "".join(s for s in SENTENCES + SENTENCES if s in held)
    (tmp_path / "one.txt").write_text("alone")
    with pytest.raises(DataError, match="0.1 of 1 documents leaves one part empty; hold out the end"):
        build_corpus(tmp_path / "one.txt", tokenizer, held_out="document")
