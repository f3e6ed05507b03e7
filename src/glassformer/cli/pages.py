"""`--html` of the looking verbs: the page's own room, in one file, opened at what was asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.lm import Model

HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with this view in it, which works offline."),
]


def write_page(
    file: Path,
    model: Model,
    text: str,
    room: str,
    *,
    bos: bool | None = None,
    trace: Trace | None = None,
    **options: Any,
) -> None:
    """A report of one room.

    Args:
        trace: of the text, where it has run already.
        options: the fields of `ReportOptions`.

    Raises:
        TextError: for a text too long for a report.
    """
    from glassformer.cli.common import note
    from glassformer.system import files
    from glassformer.views import Session
    from glassformer.views.report import build
    from glassformer.views.report_data import ReportOptions

    session = Session(model)
    if trace is not None:
        session.keep(trace)
    asked = ReportOptions(**options, light=True)  # nothing beside it that would take longer than what was asked for
    files.write_text(file, build(session, text, bos=bos, rooms=[room], options=asked))
    note(f"Wrote {file}.")
