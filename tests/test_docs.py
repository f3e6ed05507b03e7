"""What a machine can know is generated, and what is written down is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ROOT = Path(__file__).parents[1]


def test_generated_pages_are_what_the_program_says():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda p: p.name)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", t)]
    missing = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert not missing


def commands() -> list[list[str]]:
    """Every `glassformer …` line shown in a code block of the README."""
    blocks = re.findall(r"```(?:sh|bash|console)?\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split() for line in lines if line.startswith("glassformer ")]


def test_the_readme_shows_only_verbs_and_options_that_exist():
    from glassformer.cli.app import load_verb, verbs

    assert {words[1] for words in commands()} <= {*verbs(), "--help", "--version"}
    for words in commands():
        if words[1] in verbs():
            known = {opt for param in load_verb(words[1]).params for opt in [*param.opts, *param.secondary_opts]}
            asked = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert asked <= known, f"{' '.join(words)}: {asked - known}"


def test_the_readme_shows_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= shown <= targets


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda p: p.name)
def test_no_page_names_a_place_on_somebody_s_machine(page):
    assert not re.findall(r"(?<![\w.])/(?:(?:home|root|work|Users|tmp|opt)/\S+|nonexistent)", page.read_text("utf-8"))


def test_the_changelog_names_this_version():
    import glassformer

    assert f"## [{glassformer.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text("utf-8"))
    assert listed == sorted(path.name for path in folder.glob("0*.md"))


def test_everything_public_says_what_it_is():
    """A method may leave it to a base, a protocol of the same package, or a class of another library; the parameters of
    a view are explained by the view."""
    source = ROOT / "src" / "glassformer"
    bodies = {path: ast.parse(path.read_text("utf-8")).body for path in sorted(source.rglob("*.py"))}
    classes: dict[str, list[tuple[list[str], set[str]]]] = {}  # by name: names of bases, methods with a docstring
    protocols: dict[str, list[str]] = {}
    for path, body in bodies.items():
        for node in body:
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
                said = {m.name for m in node.body if isinstance(m, FUNCTIONS) and ast.get_docstring(m)}
                classes.setdefault(node.name, []).append((bases, said))
                if "Protocol" in bases:
                    protocols.setdefault(path.relative_to(source).parts[0], []).append(node.name)

    def says(name: str, method: str) -> bool:
        if name not in classes:
            return name not in ("Module", "Protocol", "ABC", "NamedTuple", "Generic")
        return any(method in said or any(says(base, method) for base in bases) for bases, said in classes[name])

    unsaid = []
    for path, body in bodies.items():
        near = protocols.get(path.relative_to(source).parts[0], [])
        for node in body:
            if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not node.name.endswith("Ask"):
                unsaid.append(f"{path.name}: {node.name}")
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                public = isinstance(method, FUNCTIONS) and not method.name.startswith("_")
                if public and not any(says(name, method.name) for name in (node.name, *near)):
                    unsaid.append(f"{path.name}: {node.name}.{method.name}")
    assert not unsaid
