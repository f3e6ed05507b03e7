"""Imports only run downwards, packages on one floor do not import each other, and the light stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glassformer

ROOT = Path(__file__).parents[1] / "src" / "glassformer"

# From the top floor to the ground; a package is a module or folder directly under glassformer.
FLOORS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"serve", "notebook"},
    {"views"},
    {"loading"},
    {"lm", "remote"},
    {"train"},
    {"generate", "interp"},
    {"predict", "checkpoint"},
    {"fetch", "data", "count"},
    {"model", "tokenizer"},
    {"kernels"},
    {"system"},
    {"errors"},
]
HEIGHT = {package: -floor for floor, packages in enumerate(FLOORS) for package in packages}

# These may be imported by anybody at no cost, so they never import torch on import.
LIGHT = [
    "glassformer",
    "glassformer.errors",
    "glassformer.remote",
    "glassformer.system.folders",
    "glassformer.kernels.compile",
    "glassformer.count",
    "glassformer.generate.settings",
    "glassformer.model.config",
    "glassformer.model.sites",
    "glassformer.cli.app",
    "glassformer.cli.common",
    "glassformer.cli.count",
]


def package_of(module: str) -> str:
    """ "glassformer.tokenizer.tokenizer" -> "tokenizer"; a public name -> the package that defines it; else ""."""
    name = module.split(".")[1] if "." in module else ""
    if name in glassformer._PUBLIC and "." in glassformer._PUBLIC[name]:
        return glassformer._PUBLIC[name].split(".")[1]
    return name if name in HEIGHT else ""


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """Line, module of ours and whether it is imported for type checking only, for every import in a file."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = ["glassformer", *path.relative_to(ROOT).parent.parts]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
                if node.level
                else [node.module]
            )
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        found += [(node.lineno, n, id(node) in typing_only) for n in names if n.split(".")[0] == "glassformer"]
    return found


def files() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def test_every_package_has_a_floor():
    packages = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in files()}
    assert packages - {"web"} <= set(HEIGHT), "a new package: say on which floor it stands"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    wrong = []
    for line, module, _ in imports(path):
        there = package_of(module)
        if there not in ("", here) and HEIGHT[there] >= HEIGHT[here]:
            wrong.append(f"line {line}: {here} imports {module}")
    assert not wrong, wrong


def test_the_package_itself_imports_nothing_of_ours():
    eager = [(line, module) for line, module, typing_only in imports(ROOT / "__init__.py") if not typing_only]
    assert not eager


def test_upper_floors_reach_the_lower_through_their_modules():
    """`import glassformer` inside the package would hide which floor is meant; only cli may use the public face."""
    wrong = [
        str(path.relative_to(ROOT))
        for path in files()
        for _, module, _ in imports(path)
        if module == "glassformer" and path.relative_to(ROOT).parts[0] not in ("cli", "notebook.py")
    ]
    assert not wrong


def reached(path: Path) -> set[str]:
    """The modules of ours that a file imports when it runs, at once or later; not those named for types only."""
    names = (module for _, module, typing_only in imports(path) if not typing_only)
    return {
        found for name in names if (found := next((m for m in (name, name.rpartition(".")[0]) if m in MODULES), ""))
    }


MODULES = {
    ".".join(["glassformer", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in files()
}


def test_no_files_import_in_a_circle():
    """A file whose imports are all gone can go itself; what cannot go stands in a circle or above one."""
    left = {module: reached(path) - {module} for module, path in MODULES.items()}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left, "a circle: " + "; ".join(f"{m} -> {', '.join(n & left.keys())}" for m, n in left.items())


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_not_import_torch(module):
    loaded = python(f"import sys, {module}; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])")
    assert loaded == "[]"


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["count", "--help"], ["count", "gpt3", "--json"]])
def test_light_commands_do_not_import_torch(args):
    code = (
        "import sys\n"
        "from glassformer.cli.app import main\n"
        f"try:\n    main({args!r})\n"
        "except SystemExit as leave:\n    assert not leave.code\n"
        "assert 'torch' not in sys.modules\n"
        "print('light')"
    )
    assert python(code).endswith("light")


def test_no_verb_imports_torch_to_show_its_help():
    code = (
        "import sys\n"
        "from glassformer.cli.app import load_verb, verbs\n"
        "heavy = []\n"
        "for name in verbs():\n"
        "    load_verb(name)\n"
        "    if 'torch' in sys.modules: heavy.append(name); break\n"
        "print(heavy)"
    )
    assert python(code) == "[]"


# The last word of a class's name, where the glossary gives it one meaning, and the packages that mean it so; in kernels
# a shape is what a driver of C++ is told.
WORDS = {
    "Room": set(),
    "Report": set(),
    "Shape": {"kernels"},
    "Part": {"model", "interp", "checkpoint"},
    "Site": {"model"},
    "Step": {"train"},
    "Stepper": {"train"},
    "Plan": {"train"},
    "Recipe": {"train"},
    "Run": {"train"},
    "Runner": {"generate"},
    "Circuit": {"interp"},
    "Readout": {"interp"},
    "Trace": {"interp", "remote", "serve"},
    "Family": {"checkpoint"},
}


def test_a_class_named_by_a_word_of_the_glossary_means_that():
    glossary = (ROOT.parents[1] / "docs" / "architecture.md").read_text("utf-8").partition("## Glossary")[2]
    rows = [line[2:].split(" | ")[0] for line in glossary.splitlines() if line.startswith("| ")]
    heads = {word.strip() for row in rows for word in row.split(",")}
    assert {word.lower() for word in WORDS} <= heads
    found = {word: set() for word in WORDS}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            last = re.findall("[A-Z][a-z]*", node.name)[-1:] if isinstance(node, ast.ClassDef) else []
            for word in found.keys() & set(last):
                found[word].add(path.relative_to(ROOT).parts[0].removesuffix(".py"))
    assert {word: places - WORDS[word] for word, places in found.items()} == {word: set() for word in WORDS}
