"""The errors Glassformer raises on purpose.

Every message is one sentence (or a few) that says what was asked, what is there, and what to do.
The command line prints the message and exits with the class's ``exit_code``; a traceback means a bug.

    GlassformerError                 exit 1
    ├── UsageError                   exit 2   an option or argument that cannot be meant
    ├── ConfigError                           a model design that contradicts itself
    ├── SourceError                           a model that cannot be found or fetched
    ├── FileError                             a file or folder that cannot be written
    ├── CheckpointError                       a model file that is broken or lies about itself
    │   ├── UnsupportedError                  a true checkpoint of something we cannot express
    │   └── UnsafeFileError                   a file we refuse to open because reading it runs code
    ├── TokenizerError                        a tokenizer that is missing, broken or cannot do this
    ├── TaskError                         a task that the model cannot do
    ├── TextError                             a text that is empty, or not text
    │   └── ContextLengthError                one with more tokens than the model reads
    ├── SiteError                             a named place that does not exist or never fired
    ├── ShapeError                            tensors or positions that do not fit the model
    ├── MemoryLimitError                      work refused because the arithmetic says it will not fit
    ├── DataError                             training data that is missing or unusable
    │   ├── EmptyDataError                    data without any text
    │   └── TooFewDocumentsError              too few to hold whole ones out
    ├── TrainError                            a training run that cannot go on
    └── ServerError                           a server that cannot start or was asked the impossible
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GlassformerError(Exception):
    """Root of everything Glassformer raises on purpose."""

    exit_code = 1


class UsageError(GlassformerError):
    """An option or argument that cannot be meant."""

    exit_code = 2


class ConfigError(GlassformerError):
    """A model design that contradicts itself."""


class SourceError(GlassformerError):
    """A model that cannot be found or fetched."""


class FileError(GlassformerError):
    """A file or folder that cannot be written; its cause is the system's error."""


class CheckpointError(GlassformerError):
    """A model file that is broken or lies about itself."""


class UnsupportedError(CheckpointError):
    """A sound checkpoint of something this program cannot express."""


class UnsafeFileError(CheckpointError):
    """A file refused because reading it would run code."""


class TokenizerError(GlassformerError):
    """A tokenizer that is missing, broken, or cannot do what was asked."""


class TaskError(GlassformerError):
    """A task that the model cannot do, so that nothing can be said of how it does it."""


class TextError(GlassformerError):
    """A text that is empty, too long, or not text."""


class ContextLengthError(TextError):
    """A text with more tokens than the model reads, or than leave room for an answer."""


class SiteError(GlassformerError):
    """A named place in the model that does not exist, or a tap on it that never fired."""


class ShapeError(GlassformerError):
    """Tensors or positions that do not fit the model."""


class MemoryLimitError(GlassformerError):
    """Work refused because the arithmetic says it will not fit."""


class DataError(GlassformerError):
    """Training data that is missing or unusable."""


class EmptyDataError(DataError):
    """Data without any text."""


class TooFewDocumentsError(DataError):
    """Whole documents cannot be held out: nothing would be left, or nothing held out."""


class TrainError(GlassformerError):
    """A training run that cannot go on."""


class ServerError(GlassformerError):
    """A server that cannot start or was asked the impossible."""


def near(name: str, known: Iterable[str], *, most: int = 4) -> str:
    """The sentence part that offers near matches: ``" Did you mean a, b or c?"``, or ``""``."""
    matches = difflib.get_close_matches(name, list(known), n=most, cutoff=0.5)
    if not matches:
        return ""
    listed = ", ".join(matches[:-1]) + " or " + matches[-1] if len(matches) > 1 else matches[0]
    return f" Did you mean {listed}?"
