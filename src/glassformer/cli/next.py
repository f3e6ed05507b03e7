"""`glassformer next`: what comes next, token by token and as whole words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import (
    BosOption,
    JsonOption,
    ModelOption,
    TextArgument,
    bar,
    open_model,
    print_json,
    read_text,
)
from glassformer.errors import TextError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glassformer.predict.distribution import Distribution
    from glassformer.predict.next_words import WordProbability, Words

BAR = 32
# A word that goes on with less than this is not worth a table.
COMPLETE = 0.98


def command(
    text: TextArgument,
    model: ModelOption = None,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many tokens and words to show.")] = 10,
    words: Annotated[
        bool, typer.Option("--words/--no-words", help="Whole next words as well, over every way to spell them.")
    ] = True,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", metavar="T", help="Below 1 sharpens, above 1 flattens.")
    ] = 1.0,
    coverage: Annotated[
        float,
        typer.Option("--coverage", metavar="P", help="Explore words until this part of the probability is known."),
    ] = 0.95,
    expansions: Annotated[
        int, typer.Option("--expansions", metavar="N", help="Explore at most this many continuations.")
    ] = 96,
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how likely every next token and whole next word is.

    A word's probability is the sum over all ways to spell it in tokens. It is shown as an interval, whose width is
    what was not explored. White space before a word is not part of it.
    """
    if top < 1:
        raise UsageError(f"--top is 1 or more; {top} is not.")
    if not 0 < temperature < float("inf"):
        raise UsageError(f"--temperature is a number above 0; {temperature} is not.")
    if not 0 < coverage <= 1:
        raise UsageError(f"--coverage is above 0 and at most 1; {coverage} is not.")
    if expansions < 0:
        raise UsageError(f"--expansions is 0 or more; {expansions} is not.")
    text = read_text(text)
    if not text:
        raise TextError("The text is empty; give at least one word.")
    found = open_model(model).next(text, bos=bos)
    if temperature != 1:
        found = found.temperature(temperature)
    whole = found.words(top, coverage=coverage, max_expansions=expansions) if words else None
    if as_json:
        empty: dict[str, Any] = {"words": [], "coverage": 0.0, "finish": []}
        print_json(found.to_json(top) | (whole.to_json() if whole is not None else empty))
    else:
        show(found, whole, top, temperature)


def visible(text: str) -> str:
    """A token for the eye: a leading or only space, and what cannot be seen, made visible."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    spaces = len(shown) - len(shown.lstrip(" "))
    return "␣" * spaces + shown[spaces:]


def show(found: Distribution, words: Words | None, top: int, temperature: float) -> None:
    """The answer for a person."""
    from rich.text import Text

    from glassformer.cli.common import console

    out = console()
    ids = found.ids
    heated = "" if temperature == 1 else f", temperature {temperature:g}"
    tokens = f"{len(ids)} token{'s' if len(ids) > 1 else ''}"
    end = found.text if len(found.text) <= 300 else "…" + found.text[-300:]
    out.print(Text(end, style="bold"))
    out.print(Text(f"{found.model or 'model'}, {found.precision or ''}, {tokens}{heated}", style="dim"))
    out.print()
    table = _table("next token", ("", "id"))
    for token in found.top(top):
        table.add_row(visible(token.token), f"{token.probability:7.2%}", str(token.id), bar(token.probability, BAR))
    out.print(table)
    if words is None:
        return
    if words.finish:
        _finish(out, words)
    out.print()
    out.print(_words("next word", list(words), end="(end of text)"))
    missing = 1 - words.coverage
    explored = f"{words.coverage:.1%} of the probability explored in {words.expansions} continuations"
    out.print(Text(f"{explored}: each word may have up to {missing:.1%} more.", style="dim"))


def _finish(out: Console, words: Words) -> None:
    from rich.text import Text

    lower, _ = words.starts
    standing = next((way.word for way in words.finish if way.probability == lower), "")
    if lower >= COMPLETE:
        out.print(Text(f"The last word, “{standing}”, is complete with {lower:.1%}.", style="dim"))
        return
    out.print()
    out.print(_words("the last word becomes", list(words.finish), end=""))


def _words(title: str, words: list[WordProbability], end: str) -> Table:
    table = _table(title, ("at least", "at most"))
    for word in words:
        name = visible(word.word) or end
        table.add_row(name, f"{word.probability:7.2%}", f"{word.upper:7.2%}", bar(word.probability, BAR, word.upper))
    return table


def _table(title: str, columns: tuple[str, str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column(title, style="bold", min_width=16)
    for column in columns:
        table.add_column(column, justify="right", style="dim" if column in ("id", "at most") else "")
    table.add_column("", min_width=BAR)
    return table
