"""Whatever a message advises is there: every option and setting that the source names in a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import glassformer
from glassformer.train.recipe import Recipe

SOURCE = Path(glassformer.__file__).parent
PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")  # made from the options themselves
OTHERS = {"--version"}


def sentences() -> Iterator[tuple[str, str]]:
    """Every text of the source that is a sentence, f-strings with their holes left out, and where it stands."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if " " in text.strip():
                yield text, f"{path.relative_to(SOURCE)}:{node.lineno}"


def test_options_that_are_advised_exist() -> None:
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", PAGE)) | OTHERS
    named = {
        (option, place)
        for text, place in sentences()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)
        if not place.startswith("kernels")  # compilers' options
    }
    assert len(named) > 50
    assert {(option, place) for option, place in named if option not in known} == set()


def test_settings_that_are_advised_exist() -> None:
    parts = [kind for kind in get_type_hints(Recipe).values() if hasattr(kind, "__dataclass_fields__")]
    known = {field.name for part in parts for field in fields(part)}
    named = {
        (setting, place)
        for text, place in sentences()
        for setting in re.findall(r"(?:\b[Ss]et|--set|, or) ([a-z_]+)=", text)
        if place.startswith(("train", "data", "cli/train"))
    }
    assert len(named) > 8
    assert {(setting, place) for setting, place in named if setting not in known} == set()
