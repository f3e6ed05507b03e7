"""Where on this machine things are kept that can be had again."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "GLASSFORMER_CACHE"


def cache_directory() -> Path:
    """The cache's root: ``GLASSFORMER_CACHE``, else the platform's folder for a user's caches. Not created here."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(os.path.expanduser(named)).absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("glassformer", appauthor=False))
