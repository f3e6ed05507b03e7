"""Every example of docs/views.md, curl's and Python's, asked of a server as it stands there: all must answer alike.

Without `--url` it serves SmolLM2 beside a small run of its own, which the examples of runs read.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, arguments, report, skip, table, verdict
from server_common import Server, commit

EXAMPLE = re.compile(r"## `(\w+)`\n.*?```sh\n(curl .*?)\n```.*?```python\n(remote\..*?)\n```", re.DOTALL)
PLACE = "localhost:8000"
SLOW = 10.0  # seconds
LINES = [f"The mole digs for {what}.\n" for what in ("worms", "roots", "France", "capital letters")]


def examples() -> list[tuple[str, str, str]]:
    """Each view's name, its command of the shell and its line of Python."""
    page = (ROOT / "docs" / "views.md").read_text("utf-8")
    found = [EXAMPLE.match(part) for part in re.split(r"^(?=## `)", page, flags=re.MULTILINE)[1:]]
    assert all(found), "a view without its two examples"
    return [(one[1], one[2], one[3]) for one in found if one]


def a_run(folder: Path) -> None:
    """A finished run called tiny in the runs folder of `folder`."""
    import glassformer
    from glassformer.train.recipe import Recipe

    (folder / "lines.txt").write_text("".join(LINES * 40), "utf-8")
    settings: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 32, "steps": 6, "batch": 4, "film": 4}
    settings |= {"data": (str(folder / "lines.txt"),), "precision": "fp32", "threads": 1, "eval_every": 0}
    recipe = Recipe(name="tiny").with_settings(settings)
    glassformer.train(recipe, out=str(folder / "runs" / "tiny"), quiet=True)


def by_curl(command: str, url: str) -> Any:
    """What a documented command prints, as JSON; or why it prints nothing."""
    asked = command.replace(PLACE, url.removeprefix("http://"))
    done = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, timeout=600, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"error": {"message": done.stderr or done.stdout or f"curl left with code {done.returncode}"}}


def by_python(line: str, remote: Any) -> Any:
    """What a documented line of Python gives; or the sentence that it ends with."""
    from glassformer.errors import GlassformerError

    try:
        return eval(line, {"remote": remote})  # noqa: S307 - our own page
    except GlassformerError as error:
        return str(error)


def alike(a: Any, b: Any) -> bool:
    """Whether two answers are of one form: the same fields, lengths, texts and integers."""
    if isinstance(a, dict) and {"shape", "dtype", "base64"} <= set(a):
        return list(b.shape) == a["shape"]
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return isinstance(b, int | float)
    return bool(a == b)


def ask(url: str, views: list[str]) -> list[tuple[str, float, float, str]]:
    """Of each view: its name, the seconds of curl and of Python, and what was seen."""
    import glassformer

    remote, rows = glassformer.connect(url), []
    for view, command, line in examples():
        if views and view not in views:
            continue
        start = time.perf_counter()
        told = by_curl(command, url)
        between = time.perf_counter()
        found = by_python(line, remote)
        end = time.perf_counter()
        if isinstance(found, str):
            seen = f"curl: {told['error']['message']}" if "error" in told else f"Python alone: {found}"
        elif "error" in told:
            seen = f"curl alone: {told['error']['message']}"
        else:
            seen = "alike" if told.get("view") == view and alike(told["data"], found) else "DIFFER"
        rows.append((view, between - start, end - between, seen))
        print(f"{view}: {between - start:.2f} s, {end - between:.2f} s, {seen}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--url", help="a server that runs; without it one is started")
    parser.add_argument("--model", default="smollm2", help="what is served where one is started")
    parser.add_argument("--views", nargs="*", default=[], help="these alone")
    options = parser.parse_args()
    if shutil.which("curl") is None:
        skip("there is no curl here")
    if options.url:
        rows = ask(options.url, options.views)
    else:
        with tempfile.TemporaryDirectory() as place:
            a_run(Path(place))
            with Server(options.model, Path(place) / "log", threads=options.threads, folder=Path(place)) as server:
                rows = ask(server.url, options.views)
    refused = [f"`{view}`: {seen.partition(': ')[2]}" for view, _, _, seen in rows if seen.startswith("curl: ")]
    wrong = [f"{view} ({seen})" for view, _, _, seen in rows if seen != "alike" and not seen.startswith("curl: ")]
    slow = [(view, max(curl, py)) for view, curl, py, _ in rows if max(curl, py) > SLOW]
    by_each = f"{sum(row[1] for row in rows):.1f}, {sum(row[2] for row in rows):.1f}"
    figures = [
        ("views with an example each in curl and Python", len(rows), ""),
        ("answered, both with the same fields, texts and sizes", len(rows) - len(refused) - len(wrong), ""),
        ("refused in a sentence, in both", len(refused), ""),
        ("anything else", ", ".join(wrong) or 0, verdict(len(wrong), most=0)),
        ("seconds of all of them by curl, and by Python", by_each, ""),
        (f"slower than {SLOW:g} s", ", ".join(f"{v} {s:.0f} s" for v, s in slow) or 0, verdict(len(slow), most=0)),
    ]
    notes = "Each example of [views.md](views.md) as it stands there, first by curl and then by Python." + commit()
    if refused:
        notes += f" The refused: {'; '.join(refused)}"
    body = table(("what", "figure", "asked"), figures)
    report("server_examples", "Server: every view's example", body, options, notes)


if __name__ == "__main__":
    main()
