"""What is said of every family: its parts are those of designs with every feature on, and the command prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glassformer.checkpoint import read_config
from glassformer.checkpoint.families import FAMILIES
from glassformer.checkpoint.families.listing import PARTS, listing, parts_of
from tests import tiny
from tests.checkpoint.test_alike import SETTINGS, kind
from tests.cli import running

ALIASES = {"internlm3": "llama", "iquestcoder": "llama"}


def test_parts_are_those_of_designs_with_every_feature_on(tmp_path: Path) -> None:
    from transformers import AutoConfig

    found: dict[str, set[str]] = {name: set() for name in FAMILIES}
    rows = [(kind(name), settings) for name, settings in SETTINGS.items()]
    rows += [(family, {**tiny._SETTINGS[family], **tiny.VARIANTS[family][variant]}) for family, variant in tiny.EVERY]
    for number, (name, settings) in enumerate(rows):
        folder = tmp_path / str(number)
        AutoConfig.for_model(name, **settings).save_pretrained(folder)
        found[name] |= parts_of(read_config(folder))
    for name, of in ALIASES.items():
        found[name] = found[of]
    assert {name: set(parts.split(", ")) for name, parts in PARTS.items()} == found


def test_every_family_is_listed_as_it_is() -> None:
    listed = {one["type"]: one for one in listing()}
    assert set(listed) == set(FAMILIES)
    for name, one in listed.items():
        gguf = FAMILIES[name].gguf
        assert one["class"] == FAMILIES[name].architecture
        assert ("gguf" in one["read_from"]) == ("gguf" in one["written_to"]) == (gguf is not None) == bool(one["gguf"])


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = running.run(capsys, "models", "--families", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["families"] == listing()
    assert "zamba2" in data["not_read"]
    code, out, _ = running.run(capsys, "models", "--families")
    assert code == 0
    assert all(name in out for name in ("qwen3_next", "gated delta", "GGUF", "llama.cpp", "zamba2"))
    code, _, err = running.run(capsys, "models", "--families", "fetch", "smollm2")
    assert code == 2
    assert "--families belongs to the list" in err
