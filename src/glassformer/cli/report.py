"""`glassformer report`: every view of a text in one HTML file that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.cli.common import ModelOption
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.studio import Studio

# File, text and what is seen in it.
GALLERY = (
    ("mole", "The American shrew mole is a small", "One word that means several things: here, the animal."),
    ("bank", "She sat on the bank of the", "A bank of what? The words before it decide."),
    (
        "mary-and-john",
        "When Mary and John went to the store, John gave a drink to",
        "Who gets the drink? Heads look back at the name that stands once.",
    ),
    (
        "induction",
        "seven blue window garden kite lamp seven blue window garden",
        "An induction head: what followed last time is expected again.",
    ),
)


def command(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The text; - reads standard input.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("report.html"),
    gallery: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the gallery of examples into a folder instead.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Write a text's every view into one HTML file that works offline.

    The numbers are inside the file, which loads nothing from elsewhere: send it, or put it on a web page.
    """
    from glassformer.cli.common import note, open_model, read_text
    from glassformer.studio import Studio
    from glassformer.studio.report import build

    if (text is None) == (gallery is None):
        raise UsageError("Give a text to report on, or --gallery DIR for the examples; one of the two.")
    studio = Studio(open_model(model))
    if gallery is not None:
        _gallery(studio, gallery)
        return
    html = build(studio, read_text(text or ""))
    out.write_text(html, "utf-8")
    note(f"{out}: {len(html.encode()) / 1e6:.1f} MB")


def _gallery(studio: Studio, folder: Path) -> None:
    from html import escape

    from glassformer.cli.common import note
    from glassformer.studio.report import build

    folder.mkdir(parents=True, exist_ok=True)
    links = []
    for name, text, about in GALLERY:
        html = build(studio, text)
        (folder / f"{name}.html").write_text(html, "utf-8")
        links.append(f'<li><p><a href="{name}.html">{escape(text)} …</a></p><p>{escape(about)}</p></li>')
        note(f"{folder / name}.html: {len(html.encode()) / 1e6:.1f} MB")
    (folder / "index.html").write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Glassformer: a gallery</title></head>\n'
        f"<body><h1>Glassformer: a gallery</h1><p>What {escape(studio.current)} does with a few texts. Each page holds "
        f"its numbers and works offline.</p>\n<ul>{''.join(links)}</ul></body></html>\n",
        "utf-8",
    )
