"""Who may speak to the server: one middleware in front of everything else.

It refuses, before a route runs: a Host header that is not ours (DNS rebinding), a page of another
origin (no CORS is granted unless asked for), a missing or wrong key, and a body over the limit. It
knows headers and bytes, nothing of models.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from glassformer.errors import UsageError
from glassformer.serve.problems import Refusal, payload

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
ADDRESSES = "addresses"
COOKIE = "glassformer"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


@dataclass(frozen=True)
class Policy:
    """What the server asks of a request.

    Args:
        hosts: names by which it may be called, without port; "*" accepts any, and ADDRESSES any address in numbers,
            which no other site's name can lead to.
        origins: other origins whose pages may call it; none by default.
        key: the API key that `Authorization: Bearer` or `x-api-key` must carry, or None.
        keys: more keys, by name in a file; None for none.
        token: the page's token: once in the address, then in a cookie; None where there is no page.
        secure: whether the page is served over HTTPS, so that its cookie goes over nothing else.
        max_body: bytes a request may carry.
        open_paths: paths that need no key (health checks).
    """

    hosts: frozenset[str] = LOCAL_HOSTS
    origins: frozenset[str] = frozenset()
    key: str | None = None
    keys: KeyFile | None = None
    token: str | None = None
    secure: bool = False
    max_body: int = 4 * 2**20
    open_paths: frozenset[str] = field(default_factory=lambda: frozenset({"/healthz", "/health"}))

    @property
    def guarded(self) -> bool:
        """Whether a key is asked for."""
        return self.key is not None or self.keys is not None


class KeyFile:
    """Keys with names, one `name: key` a line, read again whenever the file changes.

    Args:
        path: of the file; `#` begins a remark.

    Raises:
        UsageError: a file that cannot be read, holds no key, or a line that is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, str] = {}
        self.read()

    def read(self) -> None:
        """Read the file where it has changed.

        Raises:
            UsageError: as when it is first read.
        """
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return
            lines = self.path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The file of keys {str(self.path)!r} cannot be read ({error}).") from None
        keys = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, mark, key = line.partition(":")
            if not (mark and name.strip() and key.strip() and key.strip().isascii()):
                raise UsageError(f"{self.path}, line {number}: a key is written as 'name: key', in ASCII.")
            keys[name.strip()] = key.strip()
        if not keys:
            raise UsageError(f"The file of keys {str(self.path)!r} holds none; write lines as 'name: key'.")
        self._keys, self._stamp = keys, stamp

    def who(self, given: str) -> str | None:
        """The name of a key; what the file last said in order holds while it cannot be read."""
        with contextlib.suppress(UsageError):
            self.read()
        return next((name for name, key in self._keys.items() if same(given, key)), None)


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(24)


def same(given: str, wanted: str) -> bool:
    """Equality in constant time."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def hostname(header: str) -> str:
    """The host of a Host header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0].lower()


def cookie_name(headers: dict[str, str]) -> str:
    """The cookie's name at this address: browsers keep one jar for all ports of a host."""
    port = headers.get("host", "").rpartition("]")[2].rpartition(":")[2]
    return f"{COOKIE}-{port}" if port.isdecimal() else COOKIE


class Guard:
    """ASGI middleware that enforces a `Policy` and adds the security headers to every answer.

    Args:
        say: an error in the shape of the API that a path belongs to.
    """

    def __init__(self, app: ASGIApp, policy: Policy, say: Callable[[Refusal, str], dict[str, Any]] = payload) -> None:
        self.app, self.policy, self.say = app, policy, say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        origin = headers.get("origin")
        granted = origin if origin in self.policy.origins else None

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS, *_cors(granted)]}
            await send(message)

        refusal = self._refusal(scope, headers, origin)
        if refusal is not None:
            await _answer(sending, refusal[0], self.say(Refusal(*refusal), scope["path"]))
        elif scope["method"] == "OPTIONS" and granted:
            await _answer(sending, 204, None)
        elif self._arrives_with_token(scope):
            # The token leaves the address bar at once; from here on the cookie carries it.
            cookie = f"{cookie_name(headers)}={self.policy.token}; Path=/; HttpOnly; SameSite=Strict"
            cookie += "; Secure" if self.policy.secure else ""
            rest = _without_token(scope)
            await _answer(sending, 303, None, [(b"location", rest.encode()), (b"set-cookie", cookie.encode())])
        else:
            inner = scope
            if scope["method"] == "HEAD":  # as GET; the HTTP library leaves the body out
                state = {**scope.get("state", {}), "method": "HEAD"}
                inner = {**scope, "method": "GET", "state": state}
            await self.app(inner, _limited(receive, self.policy.max_body), sending)

    def _refusal(self, scope: Scope, headers: dict[str, str], origin: str | None) -> tuple[int, str] | None:
        policy = self.policy
        host = headers.get("host", "")
        if not _called(hostname(host), policy.hosts):
            return 421, f"This server does not answer to the host {hostname(host)[:100]!r}; start it with --host-name."
        if origin is not None and origin not in policy.origins and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Pages of other origins may not call this server; start it with --allow-origin to let one."
        if headers.get("sec-fetch-site") == "cross-site" and origin not in policy.origins and scope["path"] != "/":
            return 403, "Pages of other origins may not call this server."
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > policy.max_body:
            return 413, f"The request carries {length[:20]} bytes; at most {policy.max_body} are read."
        if scope["path"] in policy.open_paths or scope["method"] == "OPTIONS":
            return None
        if policy.guarded and not self._key_given(scope, headers) and not self._token_given(scope, headers):
            return 401, "The API key is missing or wrong; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        if not policy.guarded and policy.token is not None and not self._token_given(scope, headers):
            return 401, "This page opens with the address that `glassformer open` printed; open that one."
        return None

    def _key_given(self, scope: Scope, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            given = headers.get("x-api-key", "")
        given = given.strip()
        if self.policy.key is not None and same(given, self.policy.key):
            return True
        name = None if self.policy.keys is None else self.policy.keys.who(given)
        if name is not None:
            scope.get("state", {}).get("told", {})["key"] = name
        return name is not None

    def _token_given(self, scope: Scope, headers: dict[str, str]) -> bool:
        if self.policy.token is None:
            return False
        if self._arrives_with_token(scope):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(headers))
        except CookieError:
            return False
        return cookie is not None and same(cookie.value, self.policy.token)

    def _arrives_with_token(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        return self.policy.token is not None and scope["method"] == "GET" and same(given, self.policy.token)


def _called(name: str, hosts: frozenset[str]) -> bool:
    """Whether a server may be called by a name."""
    if "*" in hosts or name in hosts:
        return True
    if ADDRESSES not in hosts:
        return False
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name.strip("[]")))
    return False


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _cors(origin: str | None) -> Iterable[tuple[bytes, bytes]]:
    if origin is None:
        return ()
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id, anthropic-version"),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-expose-headers", b"x-request-id, retry-after"),
        (b"vary", b"Origin"),
    )


def _without_token(scope: Scope) -> str:
    kept = [part for part in scope["query_string"].decode("latin-1").split("&") if not part.startswith("token=")]
    # One slash only: "//host" in a Location header would lead elsewhere.
    return "/" + scope["path"].lstrip("/") + ("?" + "&".join(kept) if any(kept) else "")


def _limited(receive: Receive, limit: int) -> Receive:
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                return {"type": "http.disconnect"}
        return message

    return limited


async def _answer(
    send: Send, status: int, data: dict[str, Any] | None, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    body = b"" if data is None else json.dumps(data).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
