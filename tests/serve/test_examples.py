"""The examples that the documentation gives of the glass over HTTP, asked as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import glassformer
from glassformer.errors import GlassformerError
from glassformer.lm import Model
from glassformer.views import VIEWS
from glassformer.views.examples import python, shell
from tests.serve.running import Running, beside_a_run, running, with_experts

DOCS = Path(__file__).parents[2] / "docs"
PLACE = "localhost:8000"
# What the pages say of SmolLM2, as it is of the tiny model: its layers, heads and tokens.
SMALLER = [
    (r'("layer": |layer=)2[03]', r"\g<1>1"),
    (r'("head": |head=)4', r"\g<1>1"),
    (r"pattern\(20, 4\)", "pattern(1, 1)"),
    (r'model="smollm2"', 'model="tiny"'),
    (r'" Paris"', '"a"'),
    (r"When Mary and John went to the store, John gave a drink to", "The mole is"),
    (r"When Mary and John went to the store, Mary gave a drink to", "A mole is"),
    (r"faithfulness=0\.9\)", 'faithfulness=0.5, metric="kl", exact="none")'),
    (r'"exact": "none"', '"exact": "none", "metric": "kl"'),
]


@pytest.fixture(scope="module", autouse=True)
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A run called tiny in the runs folder here."""
    with beside_a_run(tmp_path_factory.mktemp("here")):
        yield


@pytest.fixture(scope="module")
def quick(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that knows a direction, as the page's does."""
    french = tmp_path_factory.mktemp("directions") / "french"
    model.direction("french", ["Le chat dort", "Il fait beau"], ["The cat sleeps", "It is fine"], 1).save(french)
    with running(model, directions={"french": french}) as made:
        yield made


@pytest.fixture(scope="module")
def sparse(model: Model) -> Iterator[Running]:
    with running(with_experts(model)) as made:
        yield made


def there(command: str, server: Running) -> str:
    """A command of the shell, of this server."""
    return command.replace(PLACE, server.url.removeprefix("http://"))


def asked(command: str, server: Running) -> Any:
    """What a command of the shell prints, as JSON."""
    done = subprocess.run(["sh", "-c", there(command, server)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("view", sorted(VIEWS))
def test_every_view_s_example(request, view):
    server = request.getfixturevalue("sparse" if view == "experts" else "quick")
    found = asked(shell(view), server)
    assert found.get("view") == view, found
    remote = glassformer.connect(server.url)
    there = eval(python(view), {"remote": remote})  # noqa: S307 - our own page
    assert set(there) == set(found["data"])


def test_every_view_s_example_stands_in_the_page():
    page = (DOCS / "views.md").read_text("utf-8")
    assert all(shell(view) in page and python(view) in page for view in VIEWS)


def blocks(language: str) -> list[str]:
    """The blocks of the page on serving that ask a server of this machine for something, made smaller."""
    page = (DOCS / "serving.md").read_text("utf-8")
    out = []
    for one in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL):
        for pattern, small in SMALLER:
            one = re.sub(pattern, small, one)
        out.append(one)
    return out


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("command", [one for one in blocks("sh") if one.startswith("curl")], ids=lambda one: one[:60])
def test_the_page_s_commands(quick, model, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if "-o pattern.safetensors" in command:
        monkeypatch.chdir(tmp_path)
        subprocess.run(["sh", "-c", there(command, quick)], check=True, timeout=120)
        (pattern,) = load_file("pattern.safetensors").values()
        assert torch.allclose(pattern, model.trace("The capital of France is").pattern(1, 1), atol=1e-6)
        return
    found = asked(command, quick)
    assert "error" not in found, found


def test_the_page_s_python(quick):
    said = [one for one in blocks("python") if any(mark in one for mark in ("httpx.post", "gf.connect", "extra_body"))]
    assert len(said) == 3
    names: dict[str, Any] = {"gf": glassformer, "client": quick.client()}
    for one in said:
        try:
            exec(one.replace("http://127.0.0.1:8000", quick.url), names)  # noqa: S102 - our own page
        except GlassformerError as error:
            pytest.fail(str(error))
    want = quick.model.trace("The capital of France is")
    assert torch.allclose(names["trace"].pattern(1, 1), want.pattern(1, 1), atol=1e-6)
