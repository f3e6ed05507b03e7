"""The page served for real, and a browser in front of it."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.tiny import tiny_directory

TEXT = "The American shrew mole is a small"
HERE = f"#text={quote(TEXT)}"
HOSTILE = "</script><img src=x onerror=document.title='broken'><b>&lt;"
ROOMS = ["attention", "depth", "why", "facts", "compare", "texts", "vectors", "meaning", "learning", "size"]
# Waits until so many frames in turn found nothing busy: what has come may ask for more a frame later (a run, then its
# film), and frames, unlike seconds, are as slow as the machine. A page that never rests says what it works at.
IDLE = """async () => {
  const end = performance.now() + 180_000;
  for (let idle = 0; idle < 8; ) {
    await Promise.race([new Promise(requestAnimationFrame), new Promise((done) => setTimeout(done, 200))]);
    const busy = document.querySelectorAll('[aria-busy="true"]');
    idle = busy.length ? 0 : idle + 1;
    if (performance.now() > end) throw new Error("still busy: " + [...busy].map((e) => e.outerHTML.slice(0, 200)));
  }
}"""
SHOTS = Path(__file__).parents[2] / "out" / "screenshots"


class Server:
    """The app on a free port, in a thread; can be stopped and started again at the same address."""

    def __init__(self, make: Callable[[], Any], token: str) -> None:
        self.make, self.token, self.port = make, token, 0
        self.start()

    def start(self) -> None:
        import uvicorn

        listener = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio holds small pieces back
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self.make(), log_level="error", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/?token={self.token}"


def serve(model: Any, runs: Path, token: str = "a-token-of-the-tests", **named: Any) -> Server:
    from glassformer.errors import SourceError
    from glassformer.serve.app import page_app
    from glassformer.serve.security import Policy
    from glassformer.views import Session

    def load(name: str, progress: Any = None) -> Any:
        if progress:
            progress(1, 4, f"fetching {name}")
        raise SourceError(f"There is no model called {name}.")

    session = Session(model, open_model=load, runs=str(runs), **named)
    return Server(lambda: page_app(session, Policy(token=token), load=load), token)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import glassformer

    directory = tiny_directory(tmp_path_factory.mktemp("tiny") / "tiny", "llama")
    return glassformer.load(directory, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one short training run of two checkpoints."""
    import glassformer
    from glassformer.cli.probes import standard

    folder = tmp_path_factory.mktemp("runs")
    text = folder.parent / "little.txt"
    text.write_text("the cat sat on the mat and the dog ran to the sea.\n" * 200, "utf-8")
    os.environ.setdefault("GLASSFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
    settings = {
        "layers": 2, "width": 32, "heads": 4, "d_ff": 48, "context": 32, "steps": 6, "batch": 4, "save_every": 3,
        "eval_every": 3, "sample_every": 3, "log_every": 1, "keep": 5, "eval_tokens": 256, "sample_tokens": 8,
        "probe_every": 3, "threads": 1,
    }  # fmt: skip
    glassformer.train(
        "shakespeare-char",
        data=str(text),
        out=str(folder / "little"),
        quiet=True,
        settings=settings,
        probes=(lambda *given: {"steps seen": float(given[-1])}, standard(["the cat"])),
    )
    return folder


@pytest.fixture(scope="session")
def server(tiny_model: Any, runs: Path) -> Iterator[Server]:
    running = serve(tiny_model, runs)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def mixed_model(tiny_model: Any) -> Any:
    """A layer of every kind: attention, Mamba 2, Mamba 1, gated delta, and two with experts."""
    import copy

    import torch

    from glassformer.model import Attention, Config, Experts, FeedForward, Layer, Transformer
    from glassformer.model.choices import GatedDelta, SelectiveStateSpace, StateSpace

    torch.manual_seed(0)
    seeing, feed, experts = Attention(2, 2, 8), FeedForward(24), Experts(6, 2, 8, shared=FeedForward(8))
    layers = (
        Layer(seeing, feed),
        Layer(StateSpace(4, 8, 4), feed),
        Layer(SelectiveStateSpace(32, 4, 2), None),
        Layer(GatedDelta(4, 2, 4, 8), experts),
        Layer(seeing, experts),
    )
    model = copy.copy(tiny_model)
    model._transformer = t = Transformer(Config(tiny_model.config.vocab_size, 16, 64, layers))
    with torch.no_grad():  # surer than at its first weights, so that a change is seen
        for name, p in t.named_parameters():
            p.mul_(40 if "embed" in name else 8 if ".mlp." in name else 1)
    return model


@pytest.fixture(scope="session")
def mixed(mixed_model: Any, runs: Path) -> Iterator[Server]:
    running = serve(mixed_model, runs)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("There is no Chromium; the page's tests need it: apt-get install chromium.")
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Watched:
    """A page whose errors and console messages are kept."""

    def __init__(self, page: Any, server: Server | None) -> None:
        self.page, self.server = page, server
        self.complaints: list[str] = []
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)

    def open(self, fragment: str = "") -> Watched:
        """Open the app; a page that was opened before goes to the new view."""
        assert self.server is not None
        self.page.goto("about:blank")
        self.page.goto(self.server.address + fragment)
        self.page.wait_for_selector("#composer", state="attached")
        return self.settle()

    def settle(self) -> Watched:
        """Wait until nothing that is seen is working any more."""
        self.page.evaluate(IDLE)
        return self

    def room(self, name: str) -> Watched:
        self.page.click(f"#tab-{name}")
        return self.settle()

    def see(self, selector: str) -> Watched:
        """Bring something into sight: what lies far below asks for nothing yet, and how far depends on the fonts."""
        self.page.locator(selector).scroll_into_view_if_needed()
        return self.settle()

    def problems(self) -> list[str]:
        return self.page.locator(".problem:visible").all_text_contents()

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Open pages, each in an empty profile, closed at the end."""
    contexts = []

    def opened(server: Server | None = None, **options: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
        contexts.append(context)
        return Watched(context.new_page(), server)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def app(visit: Callable[..., Watched], server: Server) -> Iterator[Watched]:
    """The app on the tiny model; at the end nothing may have complained."""
    watched = visit(server, reduced_motion="reduce")
    yield watched
    assert not watched.complaints


def chips(app: Watched) -> list[str]:
    """The texts of the tokens under the words."""
    return app.page.locator(".panel.words .chips .chip").all_text_contents()


def bars(app: Watched) -> list[str]:
    """The numbers beside the bars of the next token."""
    return app.page.locator("[aria-label='Most probable next tokens'] button .num").all_text_contents()
