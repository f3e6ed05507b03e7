"""What excites a neuron: the passages are those of a plain search, read in the background once."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from glassformer.data import docstrings
from glassformer.errors import SiteError
from glassformer.interp.neurons import passages
from glassformer.system.folders import cache_directory
from glassformer.views import Session

TEXTS = ["the cat sat on the mat", "a dog ran to the sea", "cats and dogs", "the mat"]


def test_passages_are_those_of_a_plain_search(session: Session, model: Any):
    found = session.view("exciting", {"layer": 1, "neuron": 3, "texts": TEXTS, "top": 4})
    for passage in found["passages"]:
        (best,) = passages([model.trace(TEXTS[passage["text"]])], 1, 3, k=1)
        assert (passage["position"], passage["token"]) == (best.position, best.token)
        assert passage["output"] == pytest.approx(best.activation, abs=1e-5)
        assert passage["before"].endswith(best.before[-10:])
    sizes = [abs(p["output"]) for p in found["passages"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found["passages"]) == len(TEXTS)


def background() -> None:
    for thread in threading.enumerate():
        if thread.name == "exciting":
            thread.join()


def test_docstrings_are_read_in_the_background_and_kept(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GLASSFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(docstrings, "passages", lambda: tuple(TEXTS * 3))
    ask = {"layer": 0, "neuron": 1}
    first = Session(model)
    first.view("exciting", ask)
    background()
    read = first.view("exciting", ask)
    assert read["done"] == read["of"] == 12
    own = first.view("exciting", {**ask, "texts": TEXTS * 3})
    assert [p["output"] for p in read["passages"]] == [p["output"] for p in own["passages"]]
    kept = Session(model).view("exciting", ask)
    assert kept == read
    held = next((cache_directory() / "exciting").glob("*.safetensors"))
    whole = held.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        held.write_bytes(damaged)  # is read again, and kept
        third = Session(model)
        third.view("exciting", ask)
        background()
        assert third.view("exciting", ask) == read
        assert held.read_bytes() == whole
    with pytest.raises(SiteError, match="no neuron"):
        first.view("exciting", {"layer": 0, "neuron": 10_000_000})


def test_every_machine_has_the_corpus():
    found = docstrings.passages()
    assert 200 <= len(found) <= docstrings.MOST
    assert all(len(text) >= docstrings.SHORTEST for text in found)
    assert found == docstrings.passages.__wrapped__()


def test_the_package_holds_what_excites_smollm2():
    from safetensors.torch import load_file

    from glassformer.views import facts

    held = load_file(str(facts.SHIPPED))
    assert {name.partition(".")[0] for name in held} == {"values", "texts", "places"}
    assert all(tensor.shape == (1536, 3) for tensor in held.values())
    assert sum(name.startswith("values") for name in held) == 30
    sizes = held["values.7"].float().abs()
    assert bool((sizes[:, :-1] >= sizes[:, 1:]).all())
    assert int(held["texts.7"].max()) < docstrings.MOST
    assert facts.SHIPPED.stat().st_size < 600_000


def test_what_the_package_holds_is_of_today_s_smollm2(smollm2: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A design that gained a setting since is still the same design; another is not, nor are other passages."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from glassformer.views import facts

    with safe_open(facts.SHIPPED, framework="pt") as opened:
        told = opened.metadata()
    assert facts._shipped(smollm2) == (docstrings.digest() == told["texts"])  # another Python has other docstrings
    older = json.loads(told["config"])
    del older["final_eps"]
    for changed, same in (({}, True), ({"context": 4096}, False)):
        config = json.dumps({**older, **changed})
        save_file({}, tmp_path / "x", {**told, "config": config, "texts": docstrings.digest()})
        monkeypatch.setattr(facts, "SHIPPED", tmp_path / "x")
        assert facts._shipped(smollm2) is same
