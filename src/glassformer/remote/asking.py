"""A method that asks the server, made from the method that it stands in for. Needs no torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glassformer.remote.model import RemoteModel


def asking(name: str, method: Callable[..., object], owner: Callable[[Any], tuple[RemoteModel, dict[str, Any]]]) -> Any:
    """A method that asks the server for the verb `name`, with the signature and the sentence of `method`.

    Args:
        owner: of the object: the model that is asked, and what is said besides the arguments.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def ask(self: object, *given: object, **options: object) -> Any:
        bound = signature.bind(self, *given, **options).arguments
        for p in signature.parameters.values():
            if p.kind is p.VAR_KEYWORD:
                bound |= bound.pop(p.name, {})
        bound.pop("self")
        remote, said = owner(self)
        progress = bound.pop("progress", None)
        return remote.verb(name, {**said, **bound}, progress)

    return ask
