"""A server on this machine that speaks what the hub's client and package installers ask for."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Loopback:
    """What the server offers, how it misbehaves, and what it was asked.

    Attributes:
        repos: repository -> file -> bytes; all on the branch ``main``.
        wheels: file name of a wheel -> bytes.
        refuse: part of a path -> the status to answer with; ``say``: the headers with it.
        cut: a body is broken off after so many bytes, once for every entry of the list.
        pause: seconds between the pieces of a body.
        log: (method, path, Range header) of every request.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    say: dict[str, str] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    pause: float = 0.0
    html_index: bool = False
    log: list[tuple[str, str, str | None]] = field(default_factory=list)

    def commit(self, repo: str) -> str:
        """The commit of a repository: a hash of all it holds."""
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    def asked(self, part: str, method: str = "GET") -> list[tuple[str, str, str | None]]:
        """The requests of a method whose path holds ``part``."""
        return [entry for entry in self.log if entry[0] == method and part in entry[1]]


def wheel(project: str, version: str, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The name and bytes of a sound wheel that holds ``files``."""
    name, info = project.replace("-", "_"), f"{project.replace('-', '_')}-{version}.dist-info"
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}-{version}-py3-none-any.whl", held.getvalue()


@contextlib.contextmanager
def serving() -> Iterator[Loopback]:
    """Run the server while the context lasts."""
    offer = Loopback()
    handler = type("Handler", (_Handler,), {"offer": offer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    offer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield offer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _large(data: bytes, key: str = "sha256") -> dict[str, object]:
    """What the hub says besides of a file that it does not keep in git itself."""
    if len(data) < 100_000:
        return {}
    return {"lfs": {key: hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}


class _Handler(BaseHTTPRequestHandler):
    offer: Loopback
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None: ...

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.offer.log.append((self.command, path, self.headers.get("Range")))
        with contextlib.suppress(ConnectionError):
            for name, status in self.offer.refuse.items():
                if name in path:
                    self._send(status, b'{"error": "refused"}', self.offer.say)
                    return
            for pattern, answer in (
                (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
                (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
                (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
                (r"/simple/([^/]+)/?", self._project),
                (r"/wheels/(.+)", self._wheel),
            ):
                if match := re.fullmatch(pattern, path):
                    answer(*match.groups())
                    return
            self._send(404, b"")

    def _known(self, repo: str, revision: str | None) -> str | None:
        """The commit, or None after an answer that there is none."""
        if repo not in self.offer.repos:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = self.offer.commit(repo)
        if revision not in (None, "main", commit):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev"})
            return None
        return commit

    def _info(self, repo: str, revision: str | None) -> None:
        if commit := self._known(repo, revision):
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()} | _large(data)
                for name, data in self.offer.repos[repo].items()
            ]
            self._json({"id": repo, "sha": commit, "siblings": siblings})

    def _tree(self, repo: str, revision: str) -> None:
        if self._known(repo, revision):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                | _large(data, "oid")
                for name, data in self.offer.repos[repo].items()
            ]
            self._json(rows)

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit = self._known(repo, revision)
        if commit is None:
            return
        data = self.offer.repos[repo].get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(data).hexdigest()
        self._send(
            200,
            data,
            {
                "ETag": f'"{digest}"',
                "X-Linked-ETag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "X-Repo-Commit": commit,
            },
        )

    def _project(self, project: str) -> None:
        files = {n: d for n, d in self.offer.wheels.items() if n.split("-")[0].replace("_", "-") == project}
        if not files:
            self._send(404, b"")
            return
        if self.offer.html_index:
            links = [
                f'<a href="../../wheels/{name}#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
                for name, data in files.items()
            ]
            page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
            self._send(200, page, {"Content-Type": "text/html"})
            return
        listed = [
            {"filename": n, "url": f"../../wheels/{n}", "hashes": {"sha256": hashlib.sha256(d).hexdigest()}}
            for n, d in files.items()
        ]
        self._json(
            {"meta": {"api-version": "1.0"}, "name": project, "files": listed}, "application/vnd.pypi.simple.v1+json"
        )

    def _wheel(self, name: str) -> None:
        data = self.offer.wheels.get(name)
        self._send(404 if data is None else 200, data or b"")

    def _json(self, data: object, kind: str = "application/json") -> None:
        self._send(200, json.dumps(data).encode(), {"Content-Type": kind})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        whole = len(body)
        headers = {"Accept-Ranges": "bytes"} | (headers or {})
        if wanted and status == 200:
            first = int(wanted[1])
            if first >= whole:
                status, body = 416, b""
                headers["Content-Range"] = f"bytes */{whole}"
            else:
                last = min(int(wanted[2] or whole - 1), whole - 1)
                status, body = 206, body[first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{last}/{whole}"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body)
        if end > 4096 and self.offer.cut:
            end = min(end, self.offer.cut.pop(0))
        for start in range(0, end, 65536):
            self.wfile.write(body[start : min(start + 65536, end)])
            if self.offer.pause and len(body) > 4096:
                self.wfile.flush()
                time.sleep(self.offer.pause)
        if end < len(body):
            self.close_connection = True
