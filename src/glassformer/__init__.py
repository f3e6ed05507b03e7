"""Glassformer: a transformer language model made of glass.

Train it, run it, and see exactly why it says what it says:

    import glassformer as gf
    model = gf.load("smollm2")
    model.next("The capital of France is").top(5)

Every public name is imported when it is first used, so `import glassformer` costs nothing and torch
is not loaded until a model is needed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it, sorted by module from the top floor down.
_PUBLIC: dict[str, str] = {
    "Model": "glassformer.lm",
    "load": "glassformer.loading",
    "connect": "glassformer.remote",
    "train": "glassformer.train",
    "influence": "glassformer.train.influence",
    "circuit": "glassformer.interp.circuit_edit",
    "ablate": "glassformer.interp.edits",
    "freeze": "glassformer.interp.edits",
    "knockout": "glassformer.interp.edits",
    "record": "glassformer.interp.edits",
    "replace": "glassformer.interp.edits",
    "steer": "glassformer.interp.edits",
    "tap": "glassformer.interp.edits",
    "Trace": "glassformer.interp.trace",
    "count": "glassformer.count",
    "Config": "glassformer.model.config",
    "GlassformerError": "glassformer.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from glassformer.count import count as count
    from glassformer.errors import GlassformerError as GlassformerError
    from glassformer.interp.circuit_edit import circuit as circuit
    from glassformer.interp.edits import ablate as ablate
    from glassformer.interp.edits import freeze as freeze
    from glassformer.interp.edits import knockout as knockout
    from glassformer.interp.edits import record as record
    from glassformer.interp.edits import replace as replace
    from glassformer.interp.edits import steer as steer
    from glassformer.interp.edits import tap as tap
    from glassformer.interp.trace import Trace as Trace
    from glassformer.lm import Model as Model
    from glassformer.loading import load as load
    from glassformer.model.config import Config as Config
    from glassformer.remote import connect as connect
    from glassformer.train import train as train
    from glassformer.train.influence import influence as influence


class _Package(ModuleType):
    """This package: public names win over modules of the same name.

    `glassformer.count` is a module and `gf.count` the function in it. Importing a module sets it as
    an attribute of its package, so without this `gf.count` would mean one or the other depending on
    what was imported before.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _PUBLIC):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'glassformer' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
