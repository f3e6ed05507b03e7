"""What stands in for what a machine does not have of a model: a few facts, and a sentence for the rest."""

from __future__ import annotations

from typing import Any

from glassformer.errors import UsageError


class Elsewhere:
    """Something that stays on a server; what is known of it are its attributes.

    Args:
        what: it is, for the sentence.
        known: its attributes here.
    """

    def __init__(self, what: str, **known: object) -> None:
        self.__dict__.update(known, _what=what)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UsageError(f"{name!r} is asked of {self._what}, which is on the server; load the model here for that.")

    def __call__(self, *_: object, **__: object) -> Any:
        raise UsageError(f"This needs {self._what}, which is on the server; load the model here for that.")

    def __repr__(self) -> str:
        return f"<{self._what}, on the server>"
