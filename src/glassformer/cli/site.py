"""`glassformer site`: a folder of pages that any web host serves, computed beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from glassformer.cli.common import ModelOption
from glassformer.errors import UsageError
from glassformer.system import files


class Page(NamedTuple):
    """One page of the site: its file, its text, what is seen in it, and the text that Compare and Circuit lay beside it
    (of as many tokens, so that the two can be patched)."""

    name: str
    text: str
    about: str
    other: str | None
    word: str = "mole"
    contexts: tuple[str, ...] = ("The American shrew mole", "One mole of carbon dioxide", "Take a biopsy of the mole")


BANK = ("She sat on the grassy bank", "He put his money in the bank", "They robbed the bank")
PAGES = (
    Page(
        "index",
        "The capital of France is",
        "A fact: the country is carried to the last word.",
        "The capital of Italy is",
    ),
    Page(
        "mole",
        "The American shrew mole is a small",
        "One word that means several things: here, the animal.",
        "The American brown bear is a small",
    ),
    Page(
        "avogadro",
        "One mole of carbon dioxide contains about",
        "The same word: here, an amount.",
        "One liter of carbon dioxide contains about",
    ),
    Page(
        "bank",
        "She sat on the bank of the",
        "A bank of what? The words before it decide.",
        "She sat on the edge of the",
        "bank",
        BANK,
    ),
    Page(
        "mary-and-john",
        "When Mary and John went to the store, John gave a drink to",
        "Who gets the drink? Heads look back at the name that stands once.",
        "When Mary and John went to the store, Mary gave a drink to",
    ),
    Page(
        "induction",
        "seven blue window garden kite lamp seven blue window garden",
        "What followed last time is expected again.",
        "seven blue window garden lamp kite seven blue window garden",
    ),
    Page("opposite", "The opposite of hot is", "A relation between two words.", "The opposite of big is"),
    Page("days", "Monday, Tuesday, Wednesday,", "A series that everybody knows.", "January, February, March,"),
    Page("counting", "One, two, three, four,", "Another one.", "Six, seven, eight, nine,"),
    Page("code", "def add(a, b):\n    return", "A program.", "def max(a, b):\n    return"),
    Page("german", "Die Hauptstadt von Deutschland ist", "Another language.", "Die Hauptstadt von Spanien ist"),
    Page("rhyme", "Twinkle, twinkle, little", "A line learnt by heart.", "Twinkle, twinkle, bright"),
)
# What a site may weigh, in bytes: in all, and before the first picture.
LARGEST, FIRST = 25_000_000, 3_000_000


def command(
    place: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="The same as --out.", hidden=True)] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="The folder, made when it is not there; site by default."),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT", help="Pages of your own texts instead of the dozen; may be repeated."),
    ] = None,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files and their bytes as JSON.")] = False,
) -> None:
    """Write a folder of pages that any web host serves.

    It holds the stage and every room of a dozen texts, and needs no server of Glassformer's.

    All numbers are the model's, computed now and kept in the pages, which load nothing from elsewhere and also open
    from a disk. A page computes nothing: what it does not hold, it says, and the command that computes it.
    """
    from glassformer.cli.common import note, open_model
    from glassformer.views import Session

    if place is not None and out is not None:
        raise UsageError(f"The folder is given twice, as {place} and as --out {out}; leave one of them out.")
    folder = out or place or Path("site")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the site.")
    pages = PAGES if not texts else _own(texts)
    opened = open_model(model)
    session = Session(opened, open_model=open_model)
    files.folder(folder)
    sizes: dict[str, int] = {}
    for page in pages:
        html = _page(session, page, pages, lambda view, name=page.name: note(f"{name}: {view}"))
        files.write_text(folder / f"{page.name}.html", html)
        sizes[f"{page.name}.html"] = len(html.encode())
    total = sum(sizes.values())
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "files": sizes, "bytes": total}))
    note(f"{folder}: {len(sizes)} pages, {total / 1e6:.1f} MB; open {folder / 'index.html'}")
    for over, what in ((total > LARGEST, "in all"), (sizes["index.html"] > FIRST, "before its first picture")):
        if over:
            note(f"This is more than a site should weigh {what}; name fewer or shorter texts.")


def _own(texts: list[str]) -> tuple[Page, ...]:
    """A page for each text; beside it stands the next one, beside the last the first."""
    from glassformer.cli.common import read_text

    read = [read_text(text) for text in texts]
    beside = [*read[1:], read[0]] if len(read) > 1 else [None]
    return tuple(
        Page(f"text-{i}" if i else "index", text, "", other)
        for i, (text, other) in enumerate(zip(read, beside, strict=True))
    )


def _page(session: Any, page: Page, pages: tuple[Page, ...], say: Any) -> str:
    from glassformer.views import bundle
    from glassformer.views.report import ROOMS, collect
    from glassformer.views.report_data import ReportOptions

    options = ReportOptions(
        other={"text": page.other} if page.other else None,
        word=page.word,
        contexts=page.contexts,
        texts=[one.text for one in pages],
        learning=True,
    )
    data = collect(session, page.text, rooms=[*ROOMS, "vectors"], options=options, say=say)
    data["site"] = {
        "here": page.name,
        "pages": [{"file": f"{one.name}.html", "text": one.text, "about": one.about} for one in pages],
    }
    short = page.text if len(page.text) <= 60 else page.text[:59] + "…"
    return bundle.page(f"{short} · Glassformer", data, "start")
