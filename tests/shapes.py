"""The shapes in signatures, held against the tensors that go in and come out.

Every function of `glassformer` whose signature has a shape is checked, and no other: what has no shape costs nothing.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.abc
import importlib.machinery
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import jaxtyping
from beartype import beartype

SOURCE = Path(__file__).parent.parent / "src"


def shaped_modules() -> list[str]:
    """The modules that write shapes."""
    return [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SOURCE.rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]


def _has_shape(annotation: object) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_has_shape(inner) for inner in typing.get_args(annotation))


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, checked by beartype in those annotations that have a shape; the others are mypy's."""
    function.__annotations__ = {
        name: note if _has_shape(note) else Any for name, note in function.__annotations__.items()
    }
    return beartype(function)


class _Marked(ast.NodeTransformer):
    """Puts the check on functions whose annotations name one of jaxtyping's types."""

    def __init__(self, tree: ast.Module) -> None:
        found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping")
        self.types = {alias.asname or alias.name for node in found for alias in node.names}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg)
        notes = [argument.annotation for argument in every if argument] + [node.returns]
        names = {name.id for note in notes if note for name in ast.walk(note) if isinstance(name, ast.Name)}
        if names & self.types and not any(ast.unparse(d).endswith("abstractmethod") for d in node.decorator_list):
            check = ast.parse(
                "__import__('jaxtyping').jaxtyped(typechecker=__import__('tests.shapes').shapes.check_shapes)"
            )
            node.decorator_list.append(typing.cast(ast.Expr, check.body[0]).value)
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        return compile(ast.fix_missing_locations(_Marked(tree).visit(tree)), path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that write shapes and has them checked."""

    def __init__(self) -> None:
        self.modules = frozenset(shaped_modules())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if fullname in self.modules else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """No shape is checked inside: for functions that refuse wrong ones themselves, in words of their own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def install() -> None:
    """Have the shapes of every module that is imported from now on checked."""
    sys.meta_path.insert(0, Finder())
