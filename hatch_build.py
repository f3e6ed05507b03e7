"""Compiles the C++ libraries into the wheel, once for each kind of processor of this architecture.

What cannot be compiled is left out and said; a wheel without any is a pure one and compiles at first use. An editable
install brings none. GLASSFORMER_VARIANTS names the variants to build ("x86-64-v3 x86-64-v4"), all of them by default;
"none" builds a pure wheel.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledLibraries(BuildHookInterface):
    """Adds ``glassformer/kernels/built/`` to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say which files the wheel has besides its own."""
        if version == "editable":
            return
        variants = _variants(Path(self.root))
        named = os.environ.get("GLASSFORMER_VARIANTS")
        only = None if named is None else frozenset(named.replace(",", " ").split())
        self._folder = tempfile.TemporaryDirectory(prefix="glassformer-wheel-")
        folder = Path(self._folder.name, "built")
        for note in variants.build(folder, only):
            print(f"glassformer: {note}", file=sys.stderr)
        if not folder.is_dir():
            return
        build_data["force_include"] |= {
            str(path): f"glassformer/kernels/built/{path.name}" for path in sorted(folder.iterdir())
        }
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _variants(root: Path) -> ModuleType:
    """`glassformer.kernels.variants`, which needs nothing installed."""
    spec = importlib.util.spec_from_file_location("variants", root / "src/glassformer/kernels/variants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["variants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
