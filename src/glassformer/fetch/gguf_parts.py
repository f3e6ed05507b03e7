"""Names of GGUF files that were split: NAME-00001-of-00003.gguf and so on, each part of one model.

Any part stands for the whole. This module knows names alone; what lies in the parts is the reader's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL | re.IGNORECASE)
_MOST = 10_000


def parts_of(name: str) -> list[str]:
    """The names of all parts of the file that a name belongs to, in order; the name itself where it is no part."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]) <= _MOST:
        return [name]
    return [f"{match[1]}-{i:05d}-of-{match[3]}{match[4]}" for i in range(1, int(match[3]) + 1)]


def paths_of(path: Path) -> list[Path]:
    """`parts_of` for a path; parts lie in one folder."""
    return [path.with_name(name) for name in parts_of(path.name)]


def whole(path: Path) -> bool:
    """Whether a file is there, with all its parts."""
    return all(part.is_file() for part in paths_of(path))


def wholes(names: Iterable[str]) -> list[str]:
    """Every file once, by its first part, in the order of the names."""
    return list(dict.fromkeys(parts_of(name)[0] for name in names))


def stem(path: Path) -> str:
    """A file's name without its ending and its number."""
    match = _PART.fullmatch(path.name)
    return path.stem if match is None else match[1]
