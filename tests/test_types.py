"""`Any` stands where JSON enters and where libraries without types begin, and nowhere more than it does now."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "glassformer"
JSON = ("dict[str, Any]", "Mapping[str, Any]", "MutableMapping[str, Any]")

# How often each package says `Any` other than as an object of JSON, at most. Lower a number when it falls.
MOST = {
    "__init__.py": 1,
    "checkpoint": 65,
    "cli": 33,
    "count.py": 1,
    "data": 7,
    "fetch": 6,
    "generate": 19,
    "interp": 54,
    "kernels": 4,  # what autograd hands to a function of ours
    "lm.py": 2,
    "model": 12,
    "notebook.py": 10,
    "remote": 30,
    "serve": 39,
    "system": 2,
    "tokenizer": 21,
    "train": 22,
    "views": 58,
}


def elsewhere(tree: ast.AST) -> int:
    """How often `Any` stands in a tree other than as the values of an object of JSON."""
    found = 0
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node) in JSON:
            continue
        found += isinstance(node, ast.Name) and node.id == "Any"
        found += elsewhere(node)
    return found


def counted() -> Counter[str]:
    """By package."""
    found: Counter[str] = Counter()
    for path in SOURCE.rglob("*.py"):
        found[path.relative_to(SOURCE).parts[0]] += elsewhere(ast.parse(path.read_text(encoding="utf-8")))
    return +found


def test_only_what_is_no_object_of_json_is_counted() -> None:
    assert elsewhere(ast.parse("def f(a: dict[str, Any], b: list[dict[str, Any]]) -> Mapping[str, Any]: ...")) == 0
    assert elsewhere(ast.parse("def f(a: Any, *b: Any) -> dict[str, list[Any]]:\n    c: Any = 1")) == 4


def test_any_stands_nowhere_more_than_it_does() -> None:
    assert {name: count for name, count in counted().items() if count > MOST.get(name, 0)} == {}
