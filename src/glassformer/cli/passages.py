"""What the verbs that look inside share: the user's own texts as traces, layers of options, a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.errors import TextError
from glassformer.system.progress import Progress

if TYPE_CHECKING:
    from rich.text import Text

    from glassformer.interp.trace import Trace
    from glassformer.lm import Model

TextsOption = Annotated[
    list[Path] | None,
    typer.Option("--texts", metavar="FILE", help="A text file of your own to search; may be repeated."),
]
# Tokens of one trace: attention is quadratic, and what a word means rarely hangs on what stands further off.
LONGEST = 512


def traces_of(model: Model, files: list[Path], bos: bool | None = None) -> Iterator[Trace]:
    """The files' texts as traces of at most `LONGEST` tokens, cut between lines where that can be.

    Raises:
        TextError: for a file that is not UTF-8 text, or when none of them holds text.
    """
    texts = [read_file(file) for file in files]
    if not any(text.strip() for text in texts):
        raise TextError(f"There is no text in {', '.join(map(str, files))}.")
    longest = min(LONGEST, model.config.context)
    for text in texts:
        kept: list[int] = []
        lead = len(model.encode("", bos))
        for line in text.splitlines(keepends=True):
            ids = model.encode(line, False)
            while ids:
                if kept and len(kept) + len(ids) > longest - lead:
                    yield model.trace([*model.encode("", bos), *kept])
                    kept = []
                kept += ids[: longest - lead]
                ids = ids[longest - lead :]
        if kept:
            yield model.trace([*model.encode("", bos), *kept])


def read_file(file: Path) -> str:
    """A file's text.

    Raises:
        TextError: when it is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{file} is not UTF-8 text (its byte {error.start} cannot be decoded).") from None


def in_context(number: str, before: str, what: str, after: str) -> Text:
    """One line: a number, and what it is of between what stands around it."""
    from rich.text import Text

    def line(text: str) -> str:
        return " ".join(text.replace("\r", "").replace("\t", " ").split("\n"))

    return Text.assemble(
        number + "  ",
        (line(before)[-40:], "dim"),
        (f"[{line(what)}]", "bold cyan"),
        (line(after)[:24], "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )


@contextlib.contextmanager
def progress() -> Iterator[Progress | None]:
    """A progress bar on standard error where that is a terminal, as a callback; None elsewhere."""
    from glassformer.cli.common import progress_console

    console = progress_console()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
