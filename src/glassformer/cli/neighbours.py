"""`glassformer neighbours`: which tokens' vectors lie near a word or a sum of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import JsonOption, ModelOption, note, open_model, print_json, read_text
from glassformer.errors import TextError, UsageError

if TYPE_CHECKING:
    from glassformer.predict.neighbours import Neighbours

MATRICES = ("embedding", "unembedding", "both")


def command(
    words: Annotated[
        str | None,
        typer.Argument(metavar="[WORDS]", help='A word, or a sum as in "king - man + woman"; - reads standard input.'),
    ] = None,
    plus: Annotated[list[str] | None, typer.Option("--plus", metavar="WORD", help="A word to add; repeatable.")] = None,
    minus: Annotated[
        list[str] | None, typer.Option("--minus", metavar="WORD", help="A word to subtract; repeatable.")
    ] = None,
    matrix: Annotated[
        str,
        typer.Option("--matrix", metavar="NAME", help="embedding (what is read), unembedding (what is said) or both."),
    ] = "both",
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many tokens to show.")] = 10,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the nearest tokens of a word or a direction.

    Near means the cosine between rows of the model's embedding and unembedding matrices: what a token means before
    any context. A word of several tokens is taken as their mean, and that is said.
    """
    if top < 1:
        raise UsageError(f"--top is 1 or more; {top} is not.")
    if matrix not in MATRICES:
        raise UsageError(f"--matrix is one of {', '.join(MATRICES)}; {matrix!r} is not.")
    asked = read_text(words) if words is not None else ""
    if not asked.strip() and not plus and not minus:
        raise TextError("There is no word; give at least one, as in: king - man + woman")
    opened = open_model(model)
    tied = opened.config.tied
    names = (
        ["embedding"]
        if tied or matrix == "embedding"
        else ["unembedding"]
        if matrix == "unembedding"
        else list(MATRICES[:2])
    )
    found = {name: opened.neighbours(asked, plus=plus or (), minus=minus or (), k=top, matrix=name) for name in names}
    if as_json:
        print_json({"model": opened.name, "tied": tied} | {name: n.to_json() for name, n in found.items()})
        return
    for name, one in found.items():
        show(f"{name} (shared with the unembedding)" if tied else name, one)
    for remark in dict.fromkeys(text for one in found.values() for text in one.notes):
        note(f"glassformer: note: {remark}")


def show(name: str, found: Neighbours) -> None:
    """One matrix's answer for a person."""
    from rich.table import Table

    from glassformer.cli.common import console
    from glassformer.cli.next import visible

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(name, style="bold", min_width=16)
    table.add_column("cosine", justify="right")
    table.add_column("id", justify="right", style="dim")
    rows: list[Any] = [*found.found]
    for one in rows:
        table.add_row(visible(one.token), f"{one.similarity:.3f}", str(one.id))
    console().print(table)
