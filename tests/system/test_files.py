"""Files are written whole or not at all, and what dead processes left is swept."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from glassformer.errors import CheckpointError, FileError, UsageError
from glassformer.system import files, locks, sealed


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    place = tmp_path / "deep" / "a.txt"
    files.write_text(place, "one\r\n")
    place.chmod(0o640)
    files.write_text(place, "zwei ü\n")
    assert place.read_bytes() == "zwei ü\n".encode()
    assert place.stat().st_mode & 0o777 == 0o640
    files.write_json(place, {"a": ["ü"]})
    assert place.read_text("utf-8") == '{\n  "a": [\n    "ü"\n  ]\n}\n'
    assert names(place.parent) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "a.txt"
    place.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        files.write_with(place, lambda draft: (draft.write_text("half"), interrupt()))
    with pytest.raises(
        CheckpointError,
        match=r"a\.txt cannot be written \(No space left on device\); make room there or name another place\.",
    ) as caught:
        files.write_with(place, lambda draft: (_ for _ in ()).throw(full()), raises=CheckpointError)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(place, float("nan"))
    assert place.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def interrupt() -> None:
    raise KeyboardInterrupt


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_link_is_followed_a_device_is_written_into_a_folder_is_refused(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    files.write_text("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(FileError, match="directory"):
        files.write_text(tmp_path, "x")


def test_a_folder_appears_whole(tmp_path):
    with files.atomic_folder(tmp_path / "model") as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "a").write_text("1")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "inner" / "a").read_text() == "1"
    with pytest.raises(FileError, match="exists"), files.atomic_folder(tmp_path / "model") as draft:
        pass
    with files.atomic_folder(tmp_path / "model", replace=True) as draft:
        (draft / "b").write_text("2")
    assert names(tmp_path / "model") == ["b"]
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(tmp_path / "model", replace=True):
        interrupt()
    assert names(tmp_path) == ["model"]


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    for text in "12":
        with files.atomic_folder(tmp_path / "model", replace=True) as draft:
            (draft / text).write_text(text)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["2"]


WRITER = """
import sys, time
from glassformer.system import files
with files.atomic(sys.argv[1]) as draft, files.atomic_folder(sys.argv[1] + "-folder") as folder:
    draft.write_text("half")
    (folder / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_strays_of_dead_processes_are_swept_and_those_of_the_living_are_not(tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    assert files.sweep(tmp_path) == []
    assert len(names(tmp_path)) == 2
    kill(writer)
    assert not (tmp_path / "a").exists()
    assert len(names(tmp_path)) == 2, "nobody had a chance to tidy"
    assert files.sweep(tmp_path, of="b") == []
    assert len(files.sweep(tmp_path)) == 2
    assert names(tmp_path) == []


def test_whoever_writes_into_a_folder_sweeps_what_killed_writers_left(tmp_path):
    for again in (lambda: files.write_text(tmp_path / "b", "another file"), lambda: folder(tmp_path / "c")):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        before = names(tmp_path)
        files.write_text(tmp_path / "a", "meanwhile")
        assert len(names(tmp_path)) == len({*before, "a"}), "the other one is alive"
        kill(writer)
        again()
        assert not [name for name in names(tmp_path) if files.is_temporary(name)]
    assert names(tmp_path) == ["a", "b", "c"]


def folder(path: Path) -> None:
    with files.atomic_folder(path):
        pass


SCRATCH = """
import time
from glassformer.system import files
with files.scratch() as folder:
    (folder / "part").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_folders_among_the_temporary_ones_go_with_their_block_or_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with files.scratch() as folder:
        (folder / "a").write_text("1")
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == []
    own = {**os.environ, "TMPDIR": str(tmp_path)}
    other = subprocess.Popen([sys.executable, "-c", SCRATCH], stdout=subprocess.PIPE, text=True, env=own)
    assert other.stdout is not None
    assert Path(other.stdout.readline().strip(), "part").exists()
    with files.scratch():
        assert len(names(tmp_path)) == 2
    kill(other)
    with files.scratch():
        assert len(names(tmp_path)) == 1


def test_a_state_that_was_altered_is_not_believed(tmp_path):
    content = {"format": "glassformer.thing/1", "steps": {3: 0.1, 20: [1, None]}, "text": "ü"}
    sealed.write(tmp_path / "a.json", content, raises=CheckpointError)
    read = sealed.read(tmp_path / "a.json", "glassformer.thing/1", "thing", raises=CheckpointError)
    assert read["steps"] == {"3": 0.1, "20": [1, None]}
    # by hand: keys in order, no spaces
    written = '{"format":"glassformer.thing/1","steps":{"20":[1,null],"3":0.1},"text":"\\u00fc"}'
    assert read["sha256"] == hashlib.sha256(written.encode()).hexdigest()
    text = (tmp_path / "a.json").read_text("utf-8")
    for spoilt, said in (
        (text.replace("0.1", "0.2"), "does not match the checksum"),
        (text[:-5], "no readable thing"),
        ("[]", "not of the format"),
        (text.replace("thing/1", "thing/2"), "not of the format"),
    ):
        (tmp_path / "a.json").write_text(spoilt, "utf-8")
        with pytest.raises(CheckpointError, match=said):
            sealed.read(tmp_path / "a.json", "glassformer.thing/1", "thing", raises=CheckpointError)
    with pytest.raises(CheckpointError, match="no readable thing"):
        sealed.read(tmp_path / "none", "glassformer.thing/1", "thing", raises=CheckpointError)


def test_a_file_that_is_being_written_here_is_never_swept_and_another_machine_s_goes_after_a_day(tmp_path):
    with files.atomic(tmp_path / "a") as draft:
        assert files.sweep(tmp_path, alone=True) == []
        elsewhere = tmp_path / ".b.00000000-1-0123456789ab.tmp"
        elsewhere.write_text("")
        assert files.sweep(tmp_path) == []
        old = time.time() - files.ABANDONED - 60
        os.utime(elsewhere, (old, old))
        assert files.sweep(tmp_path) == [elsewhere]
        elsewhere.write_text("")
        assert files.sweep(tmp_path, alone=True) == [elsewhere]
        assert draft.exists()
    (tmp_path / ".hidden.tmp").write_text("not ours")
    assert files.sweep(tmp_path, alone=True) == []


def test_checksums(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "a") == files.sha256_of("abc") == known


HOLDER = """
import sys, time
from glassformer.system import locks
with locks.locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_waits_says_so_and_is_free_when_its_holder_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UsageError, match="in use"),
        locks.locked(tmp_path / "a", taken=lambda: UsageError("in use")),
    ):
        pass
    told = []

    def waiting() -> None:
        told.append(True)
        kill(holder)

    with locks.locked(tmp_path / "a", waiting):
        assert told == [True]
    with locks.locked(tmp_path / "a", waiting):
        assert told == [True], "nobody held it the second time"


def test_a_lock_where_nothing_can_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        locks.locked(tmp_path / "file" / "a", raises=CheckpointError),
    ):
        pass


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"file/sub cannot be written \(Not a directory\); name another place\."):
        files.folder(tmp_path / "file" / "sub")
    assert files.folder(tmp_path / "a" / "b").is_dir()
    with (
        pytest.raises(FileError, match=r"a cannot be written .*; it is a folder: name a file in it\."),
        files.atomic(tmp_path / "a"),
    ):
        pass


def test_whether_a_file_can_be_written_is_asked_beforehand_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "a" / "b" / "new", tmp_path / "file", Path(os.devnull)):
        files.writable(path)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(FileError, match=r"file/a cannot be written \(Not a directory\); name another place\."):
        files.writable(tmp_path / "file" / "a")
    with pytest.raises(FileError, match="it is a folder: name a file in it"):
        files.writable(tmp_path)
