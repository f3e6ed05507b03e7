"""`glassformer report`: every view of a text in one HTML file that works offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import ModelOption
from glassformer.errors import UsageError
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views import Session


@dataclass(frozen=True)
class Example:
    """One page of the gallery: its file, text, what is seen in it, and what stands beside the text."""

    name: str
    text: str
    about: str
    other: str | None = None
    word: str | None = None
    contexts: tuple[str, ...] = ()
    sort: str = "layer"


GALLERY = (
    Example(
        "mole",
        "The American shrew mole is a small",
        "One word that means several things: here, the animal.",
        word="mole",
        contexts=("The American shrew mole", "One mole of carbon dioxide", "Take a biopsy of the mole"),
    ),
    Example(
        "bank",
        "She sat on the bank of the",
        "A bank of what? The words before it decide.",
        other="She went to the bank of the",
        word="bank",
        contexts=(
            "She sat on the grassy bank",
            "He put his money in the bank",
            "They robbed the bank",
        ),
    ),
    Example(
        "mary-and-john",
        "When Mary and John went to the store, John gave a drink to",
        "Who gets the drink? Heads look back at the name that stands once; patching shows which carry it over.",
        other="When Mary and John went to the store, Mary gave a drink to",
    ),
    Example(
        "induction",
        "seven blue window garden kite lamp seven blue window garden",
        "An induction head: what followed last time is expected again.",
        other="seven blue window garden kite lamp seven blue window kite",
        sort="role",
    ),
)


def command(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The text; - reads standard input.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("report.html"),
    other: Annotated[str | None, typer.Option("--other", metavar="TEXT", help="A text to compare with.")] = None,
    other_model: Annotated[
        str | None, typer.Option("--other-model", metavar="SOURCE", help="A model to compare with.")
    ] = None,
    word: Annotated[
        str | None, typer.Option("--word", help="A word whose meaning is compared between --context texts.")
    ] = None,
    contexts: Annotated[
        list[str] | None, typer.Option("--context", metavar="TEXT", help="A text with the word in it; at least two.")
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the gallery of examples into a folder instead.")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Write a text's every view into one HTML file that works offline.

    The numbers are inside the file, which loads nothing from elsewhere: send it, or put it on a web page. A file can
    compute nothing: it holds one text, and beside it what the options name. Of a training run it also shows the curves,
    samples and probes.
    """
    from glassformer.cli.common import note, open_model, read_text
    from glassformer.views.report import ROOMS, build
    from glassformer.views.report_data import ReportOptions

    if (text is None) == (gallery is None):
        raise UsageError("Give a text to report on, or --gallery DIR for the examples; one of the two.")
    beside = (other, other_model, word, contexts)
    if gallery is not None and any(beside):
        raise UsageError("The gallery has its own texts; leave --other, --other-model, --word and --context out.")
    if (word is None) != (not contexts) or (contexts and len(contexts) < 2):
        raise UsageError("A word's meaning is compared between texts: give --word and at least two times --context.")
    if gallery is None:
        files.writable(out)
    opened = open_model(model)
    session, run = _session(opened)
    if gallery is not None:
        _gallery(session, gallery, run)
        return
    options = ReportOptions(
        other={"text": None if other is None else read_text(other), "model": other_model}
        if other is not None or other_model
        else None,
        word=word,
        contexts=tuple(contexts or ()),
        run=run,
        learning=True,
    )
    html = build(session, read_text(text or ""), rooms=ROOMS, options=options, say=_progress())
    files.write_text(out, html)
    note(f"{out}: {len(html.encode()) / 1e6:.1f} MB")


def _progress(before: str = "") -> Callable[[str], None]:
    """Says each view once, before it is computed: a report takes its time, and longer on a busy machine."""
    from glassformer.cli.common import note

    said: set[str] = set()

    def say(name: str) -> None:
        if name not in said:
            said.add(name)
            note(f"{before}{name.replace('_', ' ')} …")

    return say


def _session(opened: Model) -> tuple[Session, str | None]:
    """A session, and the training run that the model is of."""
    from glassformer.cli.common import open_model
    from glassformer.views import Session

    path = Path(opened.source)
    run = path.name if (path / "journal.jsonl").is_file() else None
    runs = str(path.parent) if run else "runs"
    return Session(opened, open_model=open_model, runs=runs), run


def _gallery(session: Session, folder: Path, run: str | None) -> None:
    from html import escape

    from glassformer.cli.common import note
    from glassformer.views.report import build
    from glassformer.views.report_data import ReportOptions

    files.folder(folder)
    links = []
    for one in GALLERY:
        beside: dict[str, Any] = {"other": {"text": one.other} if one.other else None, "word": one.word}
        options = ReportOptions(**beside, contexts=one.contexts, run=run, learning=True, state={"sort": one.sort})
        html = build(session, one.text, options=options, say=_progress(f"{one.name}: "))
        files.write_text(folder / f"{one.name}.html", html)
        links.append(f'<li><a href="{one.name}.html">{escape(one.text)} …</a><p>{escape(one.about)}</p></li>')
        note(f"{folder / one.name}.html: {len(html.encode()) / 1e6:.1f} MB")
    files.write_text(
        folder / "index.html",
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>Glassformer: a gallery</title>'
        f"<style>{_GALLERY_STYLE}</style></head>\n"
        f"<body><main><h1>Glassformer: a gallery</h1><p>What {escape(session.current)} does with a few texts. "
        f"Each page holds its numbers and works offline.</p>\n<ul>{''.join(links)}</ul></main></body></html>\n",
    )


_GALLERY_STYLE = (
    ":root { color-scheme: light dark; } body { font: 17px/1.55 system-ui, sans-serif; margin: 8vh auto; "
    "max-width: 44rem; padding: 0 1.2rem; } ul { list-style: none; padding: 0; } li { margin: 0.8rem 0; "
    "padding: 0.9rem 1.2rem; border: 1px solid rgb(127 140 170 / 0.35); border-radius: 12px; } "
    "a { font-size: 1.1em; font-weight: 600; } li p { margin: 0.3rem 0 0; opacity: 0.75; }"
)
