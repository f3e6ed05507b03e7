"""Data: shards hold what was written, are made once, and a damaged or half-made one harms nobody."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.data import corpus as corpus_module
from glassformer.data import parallel, shards
from glassformer.data.corpus import build_corpus, corpora_dir
from glassformer.data.shards import BLOCK, Shards, StreamWriter
from glassformer.errors import DataError
from glassformer.tokenizer.tokenizer import Tokenizer
from tests.data.corpora import SENTENCES, a_cache, a_tokenizer, texts, whole

__all__ = ["a_cache", "a_tokenizer"]  # fixtures


# Shards


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 70), max_size=12))
def test_files_and_checksums_do_not_depend_on_how_bytes_came(sizes: list[int], tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    data = np.random.default_rng(sum(sizes)).bytes(sum(sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK", 16)
        patch.setattr(shards, "SMALL", 5)
        writer = shards.BlockWriter(folder, "x", file_bytes=48)
        for stop, size in zip(itertools.accumulate(sizes), sizes, strict=True):
            writer.append(data[stop - size : stop])
        entry = writer.close()
    files = [path.read_bytes() for path in sorted(folder.iterdir())]
    assert files == [data[at : at + 48] for at in range(0, len(data), 48)]
    assert entry["crc32"] == [zlib.crc32(data[at : at + 16]) for at in range(0, len(data), 16)]
    assert entry["bytes"] == len(data)


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
    from glassformer.tokenizer.encode import token_dtype

    assert token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")
    writer = StreamWriter(tmp_path, "x", np.dtype("<u4"))
    writer.append(np.array([70_000, 1], dtype=np.uint32))
    assert Shards(tmp_path, writer.close(), 0, 2, 0).slice(0, 2).tolist() == [70_000, 1]


def test_a_damaged_shard_is_found_before_it_is_used(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    corpus = whole(tmp_path / "a.txt", tokenizer)
    shard = corpus.directory / "all-00000.bin"
    data = bytearray(shard.read_bytes())
    data[11] ^= 1
    shard.write_bytes(data)
    opened = whole(tmp_path / "a.txt", tokenizer)
    with pytest.raises(DataError, match=r"all-00000.bin is damaged in its block at byte 0; run again, and it is made"):
        opened.train.slice(100, 5)
    with pytest.raises(DataError, match="is damaged"):
        opened.verify()
    again = whole(tmp_path / "a.txt", tokenizer)  # as the sentence says
    again.verify()
    assert (again.hash, texts(again, tokenizer)) == (corpus.hash, ["".join(SENTENCES)])


@pytest.mark.parametrize("harm", ["short", "missing", "index", "no index", "lying index", "altered index"])
def test_unsound_shards_in_the_cache_are_made_anew(
    harm: str, tmp_path: Path, cache: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    before = whole(tmp_path / "a.txt", tokenizer)
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
        told["parts"]["train"]["stop" if harm == "lying index" else "text_bytes"] += 1
        index.write_text(json.dumps(told))
    after = whole(tmp_path / "a.txt", tokenizer)
    assert after.hash == before.hash
    assert after.findings.count("damaged shards in the cache, made anew") == 1
    after.verify()


def test_the_second_run_reads_no_token(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    first = whole(tmp_path / "a.txt", tokenizer)

    def never(*args: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(parallel, "encode_pieces", never)
    second = whole(tmp_path / "a.txt", tokenizer)
    assert (second.hash, second.directory) == (first.hash, first.directory)
    monkeypatch.undo()
    monkeypatch.setenv("GLASSFORMER_CACHE", str(cache))
    assert build_corpus(tmp_path / "a.txt", tokenizer, fraction=0.2).directory != first.directory
    (tmp_path / "a.txt").write_text("other")
    assert whole(tmp_path / "a.txt", tokenizer).directory != first.directory


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
    threads = [threading.Thread(target=lambda: found.append(whole(tmp_path / "a.txt", tokenizer))) for _ in range(3)]
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
from glassformer.data import corpus, parallel
from glassformer.tokenizer.tokenizer import Tokenizer
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
    assert len(list(corpora_dir().glob(".*.tmp"))) == 1
    saved = Tokenizer.from_directory(tmp_path / "tokenizer")
    (tmp_path / "other.txt").write_text("other data, as it may be mended before the next start")
    whole(tmp_path / "other.txt", saved)
    assert not list(corpora_dir().glob(".*.tmp"))
    assert texts(whole(tmp_path / "a.jsonl", saved), saved) == SENTENCES
    assert not list(corpora_dir().glob(".*.tmp"))


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.BlockWriter, "_write", full)
    with pytest.raises(DataError, match=r"could not be written under .*corpora: No space left on device"):
        whole(tmp_path / "a.txt", tokenizer)
    assert not list(corpora_dir().glob(".*.tmp"))


def test_memory_does_not_grow_with_the_data(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    chunk = "".join(SENTENCES).encode()

    def peak(copies: int) -> int:
        path = tmp_path / f"{copies}.txt"
        with path.open("wb") as file:
            for _ in range(copies):
                file.write(chunk)
        tracemalloc.start()
        try:
            whole(path, tokenizer, workers=0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(40)  # what is loaded once
    small, large = peak(200), peak(800)  # 5 MB, 21 MB
    assert large < 1.25 * small + 1_000_000


def test_progress_is_told(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(SENTENCES))
    told: list[tuple[str, int, int | None]] = []
    whole(tmp_path / "a.txt", tokenizer, progress=lambda *at: told.append(at))
    size = (tmp_path / "a.txt").stat().st_size
    assert told[-1] == ("tokenising", size, size)


def test_every_code_point_is_read(tmp_path: Path, cache: Path, tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, [*range(1, 0xD800, 37), *range(0xE000, 0x110000, 1009)]))
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert texts(whole(tmp_path / "a.txt", tokenizer), tokenizer) == [text]
