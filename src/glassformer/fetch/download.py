"""Bytes from a URL or an archive into a file: resumable, atomic, locked against other processes, and verified.

A killed download leaves a ``.partial`` file that the next one goes on with, and nothing under the final name.
It refuses to know which file is wanted and where it may be had (``sources.py``, ``index.py``).
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glassformer.errors import SourceError
from glassformer.system import files, locks
from glassformer.system.progress import Progress, quiet, size_text

TIMEOUT = 10.0  # seconds without an answer
_CHUNK = 1 << 20
_ATTEMPTS = 4  # broken connections in a row without a byte gained before giving up


class DiskFullError(SourceError):
    """The disk is full: another place to download from would not help."""


def locked(target: Path, what: str, progress: Progress = quiet) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of ``target``, waiting for another process that fetches the same."""
    told = f"waiting for another process that is fetching {what}"
    return locks.locked(target, lambda: progress(0, None, told), raises=SourceError)


def fetch(
    url: str,
    target: Path,
    *,
    what: str,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress = quiet,
    client: object = None,
) -> Path:
    """Download ``url`` into ``target``; an interrupted download with a known ``sha256`` is resumed.

    ``client`` is an ``httpx2.Client`` when the caller has one. The caller holds ``locked(target)`` when other processes
    may fetch the same. Raises ``SourceError`` when the server cannot be reached or answers with an error, when the disk
    is full, and when the bytes are not the ones expected: then nothing is kept.
    """
    import httpx2

    partial = target.with_name(target.name + ".partial")
    if sha256 is not None and target.is_file() and files.sha256(target) == sha256:
        return target  # what a killed process had fetched and not yet used
    if sha256 is None:
        partial.unlink(missing_ok=True)  # nothing would tell if the rest were of another version
    with contextlib.ExitStack() as stack:
        client = client or stack.enter_context(httpx2.Client(timeout=TIMEOUT, follow_redirects=True))
        failures, begun = 0, _size(partial)
        while True:
            before = _size(partial)
            try:
                _stream(client, url, partial, what, size, progress)
                check(partial, what, sha256=sha256, size=size)
                break
            except SourceError:
                if not begun or partial.exists():
                    raise
                begun = 0  # what an earlier download left was of another file: once more, from the beginning
            except httpx2.HTTPStatusError as error:
                raise SourceError(f"{_host(url)} answered {error.response.status_code} for {what}") from None
            except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                failures = 1 if _size(partial) > before else failures + 1
                if isinstance(error, httpx2.ConnectError) or failures >= _ATTEMPTS or sha256 is None:
                    raise SourceError(f"{_host(url)} did not deliver {what} ({reason(error)})") from None
                time.sleep(0.2 * failures)
            except httpx2.HTTPError as error:
                raise SourceError(f"{_host(url)} did not deliver {what} ({reason(error)})") from None
    files.publish(partial, target)
    return target


def _stream(client: Any, url: str, partial: Path, what: str, size: int | None, progress: Progress) -> None:
    """One request: from the end of ``partial`` when it holds something, into its end."""
    done = _size(partial)
    if size is not None and done > size:
        partial.unlink()
        done = 0
    if size is not None and done == size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and done:  # our end is past theirs: not the same file, so from its beginning
            partial.unlink(missing_ok=True)
            _stream(client, url, partial, what, size, progress)
            return
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if done and not resumed:
            done = 0
            partial.unlink()
        length = response.headers.get("Content-Length")
        total = size if size is not None else done + int(length) if length and length.isdigit() else None
        with writing(partial.parent, what, None if total is None else total - done), partial.open("ab") as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                done += len(chunk)
                progress(done, total, f"fetching {what}")


def extract(
    archive: Path, member: str, target: Path, *, what: str, sha256: str, size: int, progress: Progress = quiet
) -> Path:
    """Stream ``member`` of the zip ``archive`` into ``target`` and verify it. Raises ``SourceError``."""
    partial = target.with_name(target.name + ".partial")
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(member) as source,
            writing(target.parent, what, size),
            partial.open("wb") as file,
        ):
            done = 0
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(done, size, f"unpacking {what}")
    except KeyError:
        partial.unlink(missing_ok=True)
        raise SourceError(f"{archive.name} holds no {member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        partial.unlink(missing_ok=True)
        raise SourceError(f"{archive.name} is not a sound archive ({error})") from None
    except SourceError:
        partial.unlink(missing_ok=True)
        raise
    check(partial, what, sha256=sha256, size=size)
    files.publish(partial, target)
    return target


def check(path: Path, what: str, *, sha256: str | None, size: int | None = None) -> None:
    """Raise ``SourceError`` and remove ``path`` when its bytes are not the ones expected."""
    got = _size(path)
    if size is not None and got != size:
        path.unlink(missing_ok=True)
        raise SourceError(f"what came as {what} has {got:,} bytes where {size:,} were expected, and was removed")
    if sha256 is not None and (found := files.sha256(path)) != sha256:
        path.unlink(missing_ok=True)
        raise SourceError(
            f"what came as {what} is not the expected file (its SHA-256 is {found[:12]}…, expected {sha256[:12]}…), and"
            " was removed"
        )


@contextlib.contextmanager
def writing(directory: Path, what: str, needed: int | None = None) -> Iterator[None]:
    """Around writing into ``directory``: a disk without ``needed`` bytes, or that fills up, is one sentence."""
    free = shutil.disk_usage(directory).free
    if needed is not None and needed > free:
        raise DiskFullError(_full(directory, what, needed, free))
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(_full(directory, what, needed, shutil.disk_usage(directory).free)) from None
        if type(error).__module__ == "builtins":
            raise SourceError(f"{what} cannot be written into {directory} ({error.strerror or error})") from None
        raise


def _full(directory: Path, what: str, needed: int | None, free: int) -> str:
    wants = "more room" if needed is None else size_text(needed)
    return (
        f"the disk is full: {what} needs {wants}, and {size_text(free)} is free in {directory} (free some, or set"
        " GLASSFORMER_CACHE to a folder on another disk)"
    )


def reason(error: BaseException) -> str:
    """An exception in a few words, on one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _host(url: str) -> str:
    """The server of a URL, without the password that may stand in it."""
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or url
