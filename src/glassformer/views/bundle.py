"""The page in one file: its modules, styles and data put together, for reports and notebooks.

The modules stay what they are on disk; here their relative imports are resolved and each becomes a
function's scope in one script. It reads the page's own files only, and knows nothing of models.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

WEB = Path(__file__).parents[1] / "web"
_IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";\n', re.MULTILINE)
# What is imported when it is wanted; in one file it is there from the start.
_LATER = re.compile(r'\bawait import\("(\.[^"]+)"\)')
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const|let) (\w+))", re.MULTILINE)


def module(name: str) -> str:
    """A module as a browser gets it: without the comments that say types, an eighth of the whole."""
    path = WEB / "js" / name
    return _plain(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=128)
def _plain(path: Path, changed: int) -> str:
    text = path.read_text("utf-8")
    return re.sub(r"\n{2,}", "\n", re.sub(r"[ \t]*/\*\*.*?\*/", "", text, flags=re.DOTALL))


@lru_cache(maxsize=8)
def script(entry: str) -> str:
    """One classic script of `js/ENTRY` and everything it imports; its exports are `glassformer[ENTRY]`.

    Raises:
        ValueError: for modules that import each other in a circle, or in a way this does not read.
    """
    parts = []
    for name in _ordered(entry):
        text = module(name)
        heads = []
        for names, target in _IMPORT.findall(text):
            wanted = ", ".join(
                piece.strip().replace(" as ", ": ") for piece in names.replace("\n", " ").split(",") if piece.strip()
            )
            heads.append(f"const {{ {wanted} }} = glassformer[{json.dumps(_target(name, target))}];")
        exports = [found[1] for found in _EXPORT.finditer(text)]
        body = _EXPORT.sub("", _IMPORT.sub("", text))
        for target in _LATER.findall(body):
            held = f"Promise.resolve(glassformer[{json.dumps(_target(name, target))}])"
            body = body.replace(f'await import("{target}")', f"await {held}")
        if re.search(r"^(?:import|export)\b", body, re.MULTILINE):
            raise ValueError(f"{name} imports or exports in a way that cannot be put into one file.")
        inside = "\n".join([*heads, body.strip(), f"glassformer[{json.dumps(name)}] = {{ {', '.join(exports)} }};"])
        parts.append(f"(() => {{\n{inside}\n}})();")
    # A script element ends where its text says so, even inside a string.
    return ('"use strict";\nconst glassformer = {};\n' + "\n".join(parts)).replace("</script", "<\\/script")


def _target(name: str, target: str) -> str:
    parts: list[str] = []
    for piece in (PurePosixPath(name).parent / target).parts:
        if piece == "..":
            parts.pop()
        elif piece != ".":
            parts.append(piece)
    return "/".join(parts)


@lru_cache(maxsize=1)
def opened() -> str:
    """The page as a server sends it, naming the modules it begins with: they come at once and not in turns."""
    links = [f'<link rel="modulepreload" href="/web/js/{name}">\n' for name in _ordered("start.js", later=False)]
    return (WEB / "index.html").read_text("utf-8").replace("</head>", "".join(links) + "</head>")


def _ordered(entry: str, later: bool = True) -> Iterator[str]:
    """Modules so that each comes after those it imports, those that are imported when wanted among them."""
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> Iterator[str]:
        if name in above:
            raise ValueError(f"The modules import each other in a circle: {' → '.join((*above, name))}.")
        if name in done:
            return
        text = module(name)
        targets = [target for _, target in _IMPORT.findall(text)] + (_LATER.findall(text) if later else [])
        for target in targets:
            yield from walk(_target(name, target), (*above, name))
        if name not in done:
            done.add(name)
            yield name

    return walk(entry, ())


@lru_cache(maxsize=1)
def styles() -> str:
    """All style sheets, one after the other."""
    return "\n".join(
        (WEB / "css" / name).read_text("utf-8") for name in ("base.css", "views.css", "stage.css", "rooms.css")
    )


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def page(title: str, data: dict[str, Any], start: str) -> str:
    """A whole HTML page that loads nothing: the modules, the styles, and `data` as JSON.

    Args:
        title: of the document.
        data: plain data; the page finds it in its `data` element.
        start: the function of `report.js` that begins, handed the data.
    """
    code = script("report.js") + f"\nglassformer['report.js'].{start}();\n"
    css = styles()
    # "<" never stands in the JSON, so no text of a model can end the element that holds it.
    held = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_digest(code)}; style-src {_digest(css)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="content-security-policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n"
        '<div id="app"></div>\n<noscript>This report draws its numbers with JavaScript.</noscript>\n'
        f'<script type="application/json" id="data">{held}</script>\n<script>{code}</script>\n</body>\n</html>\n'
    )
