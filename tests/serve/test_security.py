"""Who may speak to the page's server."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from glassformer.cli.open import outward
from glassformer.errors import UsageError
from glassformer.serve import app as apps
from glassformer.serve.app import page_app
from glassformer.serve.security import CONTENT_SECURITY_POLICY, LOCAL_HOSTS, Policy
from glassformer.views import Session
from tests.tiny import tiny_directory

TOKEN = "a-long-secret-of-this-test"
BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import glassformer

    model = glassformer.load(tiny_directory(tmp_path_factory.mktemp("tiny") / "tiny"), device="cpu")
    return page_app(Session(model), Policy(token=TOKEN))


class Caller:
    """Calls the app without a network, by name of host, origin and cookie."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, method: str, path: str, *, base: str = BASE, **options: Any) -> httpx.Response:
        import anyio

        async def go() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=base) as client:
                return await client.request(method, path, **options)

        return anyio.run(go)


@pytest.fixture
def call(app: Any) -> Caller:
    return Caller(app)


# The base's port stands in the name: a browser keeps one jar for all ports of a host.
COOKIE = {"cookie": f"glassformer-8000={TOKEN}"}


def test_the_page_needs_the_address_that_was_printed(call: Caller):
    refused = call("GET", "/")
    assert refused.status_code == 401
    assert "the address that `glassformer open` printed" in refused.text
    assert call("GET", "/", headers={"cookie": "glassformer-8000=wrong"}).status_code == 401
    assert call("GET", "/?token=wrong").status_code == 401


def test_the_token_moves_from_the_address_into_a_cookie(call: Caller):
    answer = call("GET", f"/?token={TOKEN}")
    assert answer.status_code == 303
    assert TOKEN not in answer.headers["location"]
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert call("GET", "/", headers=COOKIE).status_code == 200


def test_two_pages_on_one_machine_keep_their_keys_apart(call: Caller):
    other = {"cookie": f"glassformer-9000=another; glassformer-8000={TOKEN}"}
    assert call("GET", "/", headers=other).status_code == 200
    assert call("GET", "/", headers={"cookie": f"glassformer-9000={TOKEN}"}).status_code == 401


def test_every_answer_carries_the_policy(call: Caller):
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    for answer in (call("GET", "/", headers=COOKIE), call("GET", "/"), call("GET", "/nothing", headers=COOKIE)):
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_has_no_inline_script_or_style(call: Caller):
    html = call("GET", "/", headers=COOKIE).text
    assert "<style" not in html
    assert "style=" not in html
    assert "onload" not in html
    assert html.count("<script") == html.count('<script type="module" src=')


@pytest.mark.parametrize("path", ["/api/view/tokens", "/api/generate", "/api/open", "/api/race", "/api/report"])
def test_other_origins_cannot_drive_the_api(call: Caller, path: str):
    body = {"text": "mole", "source": "x"}
    assert call("POST", path, json=body).status_code == 401
    for headers in (
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
    ):
        answer = call("POST", path, json=body, headers={**COOKIE, **headers})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_another_name_for_this_machine_is_refused(call: Caller):
    answer = call("GET", "/", base="http://rebound.example:8000", headers=COOKIE)
    assert answer.status_code == 421
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert call("GET", "/", base=f"http://{name}:8000", headers=COOKIE).status_code == 200


@pytest.mark.parametrize(
    "path", ["/web/../views/session.py", "/web/%2e%2e/lm.py", "/web/../../etc/passwd", "/web/js", "/web/none.js"]
)
def test_only_the_page_s_own_files_are_handed_out(call: Caller, path: str):
    assert call("GET", path, headers=COOKIE).status_code == 404


def test_long_bodies_are_refused(call: Caller):
    answer = call("POST", "/api/view/tokens", content=b"x" * (5 * 2**20), headers=COOKIE)
    assert answer.status_code == 413


def test_a_view_answers_or_says_why_in_one_sentence(call: Caller):
    good = call("POST", "/api/view/tokens", json={"text": "The mole"}, headers=COOKIE)
    assert good.json()["text"] == "The mole"
    for path, body in (
        ("/api/view/nothing", {}),
        ("/api/view/tokens", {"text": "mole", "more": 1}),
        ("/api/view/cell", {"text": "mole", "layer": 99, "head": 0, "query": 0, "key": 0}),
        ("/api/view/next", {"text": "mole", "model": "another"}),
    ):
        answer = call("POST", path, json=body, headers=COOKIE)
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert message.endswith((".", "?"))
        assert "Traceback" not in message
    assert call("POST", "/api/view/tokens", content=b"{", headers=COOKIE).status_code == 400


def test_the_page_binds_to_this_machine_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = opened(monkeypatch, tmp_path)
    assert asked["where"] == ("127.0.0.1", 0)
    assert asked["policy"].hosts == LOCAL_HOSTS
    assert not asked["policy"].secure


def test_other_machines_reach_the_page_with_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    key = "0123456789abcdef"
    asked = opened(monkeypatch, tmp_path, "--host", "0.0.0.0", "--key", key, "--host-name", "glass.example")
    assert asked["where"] == ("0.0.0.0", 0)
    assert f"http://glass.example:1234/?token={key}" in asked["said"]
    if (own := outward()) is not None:  # where there is a network, its address in numbers too
        assert f"http://{own}:1234/?token={key}" in asked["said"]
        socket.create_server((own, 0)).close()
    assert "travel unencrypted" in asked["said"]
    monkeypatch.undo()
    call = Caller(apps.page_app(Session(asked["model"]), asked["policy"]))
    for base in ("http://192.0.2.7:1234", "http://glass.example:1234", "http://[2001:db8::7]:1234"):
        assert call("GET", "/", base=base).status_code == 401
        let_in = call("GET", f"/?token={key}", base=base)
        assert let_in.status_code == 303
        assert call("GET", "/", base=base, headers={"cookie": f"glassformer-1234={key}"}).status_code == 200
    # A name that leads here without being ours is another site's.
    assert call("GET", f"/?token={key}", base="http://evil.example:1234").status_code == 421


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0", "--key", "short"], "at least 16"),
        (["--key", "no spaces"], "letters and digits"),
        (["--keyfile", "k.pem"], "name that with --certfile"),
        (["--certfile", "none.pem"], "no certificate with its key"),
    ],
    ids=str,
)
def test_a_page_that_cannot_be_opened_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], said: str
):
    with pytest.raises(UsageError, match=said):
        opened(monkeypatch, tmp_path, *options)


def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict[str, Any]:
    """What `glassformer open` with these options does, up to where it would serve."""
    import typer
    import uvicorn

    import glassformer.serve.running as running
    from glassformer.cli import open as verb

    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    found: dict[str, Any] = {"said": ""}

    class Listener:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return found["where"][0], 1234

    def listening(host: str, port: int) -> Any:
        found["where"] = (host, port)
        return Listener()

    def page(session: Any, policy: Policy, **more: Any) -> Any:
        found["policy"], found["model"] = policy, session.model()
        return None

    monkeypatch.setattr(running, "listening", listening)
    monkeypatch.setattr(apps, "page_app", page)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(typer, "echo", lambda text, err=False: found.update(said=found["said"] + text + "\n"))
    monkeypatch.setattr(socket, "gethostname", lambda: "this-machine")
    source = tmp_path / "tiny"
    app = typer.Typer()
    app.command()(verb.command)
    typer.main.get_command(app)(
        [str(source if source.exists() else tiny_directory(source)), "--no-browser", "--port", "0", *options],
        standalone_mode=False,
    )
    return found
