"""How large the program is: lines by package, the largest files and the longest functions.

python scripts/size.py           lines of code by package, and what is largest
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "glassformer"
KINDS = (".py", ".h", ".cpp", ".js", ".css")


def code_lines(text: str) -> int:
    """Lines that are not empty."""
    return sum(1 for line in text.splitlines() if line.strip())


def functions(path: Path) -> list[tuple[int, str]]:
    """Every function of a Python file with the number of its lines."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    found = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [((node.end_lineno or node.lineno) - node.lineno + 1, f"{path.name}:{node.name}") for node in found]


def main() -> None:
    """Print the tables."""
    files = sorted(path for path in ROOT.rglob("*") if path.suffix in KINDS)
    sizes = {path: code_lines(path.read_text("utf-8")) for path in files}
    packages: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for path, size in sizes.items():
        parts = path.relative_to(ROOT).parts
        package = parts[0] if len(parts) > 1 else "(top)"
        packages[package] += size
        count[package] += 1
    for package, size in packages.most_common():
        print(f"{size:7,}  {package}  ({count[package]} files)")
    print(f"{sum(packages.values()):7,}  in all, in {len(files)} files\n\nThe largest files:")
    for path in sorted(sizes, key=lambda p: -sizes[p])[:12]:
        print(f"{sizes[path]:7,}  {path.relative_to(ROOT)}")
    print("\nThe longest functions:")
    every = [item for path in files if path.suffix == ".py" for item in functions(path)]
    for length, name in sorted(every, reverse=True)[:12]:
        print(f"{length:7,}  {name}")


if __name__ == "__main__":
    main()
