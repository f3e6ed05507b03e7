"""Where on this machine things are kept that can be had again."""

from __future__ import annotations

import os
from pathlib import Path

from glassformer.errors import SourceError

CACHE_VARIABLE = "GLASSFORMER_CACHE"


def cache_directory() -> Path:
    """The cache's root: ``GLASSFORMER_CACHE``, else the platform's folder for a user's caches. Not created here."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(os.path.expanduser(named)).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("glassformer", appauthor=False))


def cache_folder(*names: str) -> Path:
    """A folder of the cache, created when missing. Raises ``SourceError`` when it cannot be."""
    directory = cache_directory().joinpath(*names)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"The cache folder {directory} cannot be made ({error.strerror or error}): set {CACHE_VARIABLE} to a folder"
            " that can be written."
        ) from None
    return directory
