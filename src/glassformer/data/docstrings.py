"""A corpus that every machine has: what the docstrings of Python's standard library say, read from its files.

The modules are named, so that machines with the same Python read the same passages; which passages were read is told by
their hash. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from glassformer.system import files

MODULES = (
    "_pydecimal", "argparse", "ast", "asyncio/events", "base64", "bdb", "calendar", "cgi", "cmd", "codecs",
    "collections/__init__", "configparser", "contextlib", "copy", "csv", "datetime", "difflib", "email/message",
    "enum", "fractions", "ftplib", "functools", "glob", "gzip", "hashlib", "heapq", "http/client", "http/cookiejar",
    "imaplib", "importlib/abc", "inspect", "ipaddress", "json/__init__", "locale", "logging/__init__", "mailbox",
    "mimetypes", "nntplib", "numbers", "optparse", "os", "pathlib", "pickle", "platform", "poplib", "pprint",
    "random", "sched", "selectors", "shelve", "shutil", "smtplib", "socket", "sqlite3/dump", "ssl", "statistics",
    "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "trace", "turtle", "typing",
    "unittest/case", "unittest/mock", "urllib/request", "uuid", "wave", "weakref", "webbrowser", "xml/dom/minidom",
    "zipfile",
)  # fmt: skip
SHORTEST, MOST = 80, 240
"""Characters that a passage has at least, and how many passages there are at most."""


@functools.lru_cache(maxsize=1)
def passages() -> tuple[str, ...]:
    """The first paragraphs of docstrings, spread evenly over the modules; the same for the same Python."""
    found: dict[str, None] = {}
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES:
        try:
            tree = ast.parse((root / f"{name}.py").read_text("utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue  # a Python without this module
        found.update(dict.fromkeys(_told(tree)))
    listed = list(found)
    many = min(MOST, len(listed))
    return tuple(listed[i * len(listed) // many] for i in range(many))


def digest() -> str:
    """The SHA-256 of the passages."""
    return files.sha256_of("\0".join(passages()))


def _told(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for paragraph in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                if len(text) >= SHORTEST and ">>>" not in text:
                    yield text
                    break
