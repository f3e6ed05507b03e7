"""The public face: every name resolves, none is hidden by a module of the same name."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import glassformer


def test_all_is_sorted_and_complete():
    assert set(glassformer.__all__) == {"__version__", *glassformer._PUBLIC}
    assert len(glassformer.__all__) == len(set(glassformer.__all__))
    assert set(glassformer.__all__) <= set(dir(glassformer))


@pytest.mark.parametrize("name", [n for n in glassformer.__all__ if n != "__version__"])
def test_names_resolve(name):
    value = getattr(glassformer, name)
    assert not isinstance(value, type(sys)), f"{name} is a module, not what it promises"
    assert value.__doc__, f"{name} has no docstring"


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(glassformer.__file__).read_text("utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {alias.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert seen == glassformer._PUBLIC


@pytest.mark.parametrize("first", ["import glassformer.count", "from glassformer.count import count", "pass"])
def test_a_function_wins_over_the_module_of_its_name(first):
    code = f"{first}\nimport glassformer as gf\nprint(type(gf.count).__name__, gf.count is gf.count)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["function", "True"]


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'glassformer' has no attribute 'laod'"):
        glassformer.laod  # noqa: B018


def test_version_is_the_distribution_s():
    assert glassformer.__version__ == version("glassformer")
