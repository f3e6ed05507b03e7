"""A transformer that is made when something first asks for it.

A file of quantised blocks is answered from by the native engine; its definition in torch is wanted only to look inside,
to edit, or where that engine does not compute the design.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from glassformer.model.config import Config

if TYPE_CHECKING:
    from glassformer.model.transformer import Transformer


class Deferred:
    """A transformer in float32 on the processor, made once by `make`. May be used from several threads.

    Args:
        config: its design.
        make: makes it.
    """

    def __init__(self, config: Config, make: Callable[[], Transformer]) -> None:
        self.config = config
        self._make = make
        self._made: Transformer | None = None
        self._lock = threading.Lock()

    @property
    def made(self) -> bool:
        """Whether it is there."""
        return self._made is not None

    def __call__(self) -> Transformer:
        """The transformer."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def whole(transformer: Transformer | Deferred) -> Transformer:
    """The transformer itself."""
    return transformer() if isinstance(transformer, Deferred) else transformer


def awaited(transformer: Transformer | Deferred) -> bool:
    """Whether it is not there yet."""
    return isinstance(transformer, Deferred) and not transformer.made
