"""Who may speak to the page's server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from glassformer.serve.app import page_app
from glassformer.serve.security import CONTENT_SECURITY_POLICY, Policy
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


def test_the_page_binds_to_this_machine_only():
    source = (Path(__file__).parents[2] / "src" / "glassformer" / "cli" / "open.py").read_text("utf-8")
    assert 'listening("127.0.0.1", port)' in source
