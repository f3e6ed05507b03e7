"""`glassformer why`: which words, heads and layers made the model say what it says."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from glassformer.cli.common import (
    AgainstOption,
    PositionOption,
    TextArgument,
    TokenOption,
    console,
    progress_console,
    read_text,
)
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking


@looking
def command(
    look: Look,
    text: TextArgument,
    token: TokenOption = None,
    against: AgainstOption = None,
    position: PositionOption = -1,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many parts to show.")] = 10,
    parts: Annotated[
        int, typer.Option("--parts", help="At most so many parts have their total effect measured.")
    ] = 5000,
    words: Annotated[int, typer.Option("--words", help="At most so many words are replaced; 0 for none.")] = 32,
    alternatives: Annotated[int, typer.Option("--alternatives", help="How many others replace each word.")] = 24,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of other words.")] = 0,
) -> Seen:
    """Show which words, heads and layers made the model say that.

    Claimed is a part's share by the arithmetic of the sum; direct is measured by taking it from the last stream;
    total by taking it out where it enters and running everything after it again.
    """
    at_least_one(top=top)
    text = read_text(text)
    opened = look.open()
    trace = opened.trace(text, look.bos)
    with progress_console().status("measuring"):
        found = trace.why(token, against, position, parts=parts, words=words, alternatives=alternatives, seed=seed)
    from glassformer.interp.tables import why_view

    def page() -> PageOf:
        from glassformer.views.why import account

        neurons = trace.neurons(token, against, position, k=16).to_dict()
        given = {"why": account(trace, found), "neurons": neurons}
        asked = {"position": trace.position(position), "token": token, "against": against, "given": given}
        return opened, text, "why", {"trace": trace, **asked}

    return Seen(
        {"model": trace.model, **found.to_dict(), "tokens": trace.tokens},
        lambda: show(why_view(found, top)),
        lambda: ("why", why_view(found, top)),
        page,
    )


def show_words(data: dict[str, Any]) -> None:
    """What depends on each word: replaced by others, and hidden."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("word", "replaced", "low", "high", "hidden"):
        table.add_column(name, justify="left" if name == "word" else "right")
    for w in data["words"]:
        r = w["replaced"] or {}
        mark = " (position 0)" if w["sink"] else ""
        cells = [_number(r.get(key)) for key in ("median", "low", "high")]
        table.add_row(Text(visible(w["word"]) + mark), *cells, _number(w["knocked_out"]))
    out.print(table)
    out.print()
    rule = data["replacements"]
    out.print(Text(f"Replaced: {rule['count']} drawn from seed {rule['seed']}, {rule['rule']}.", style="dim"))


def show(data: dict[str, Any]) -> None:
    """The sentence, the largest parts and the receipt; the words, where they were measured."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(Text(data["sentence"]))
    out.print()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("part", "claimed", "direct", "total", "percentile"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for p in data["top"]:
        cells = [_number(p[key]) for key in ("claimed", "direct", "total")]
        table.add_row(Text(p["name"]), *cells, f"{p['percentile']:.1f}%")
    out.print(table)
    out.print()
    receipt = (
        f"{data['unit']}: {data['value']:.4f}; parts sum to {data['sum']:.4f}; residual {data['residual']:.1e}; "
        f"{data['precision']}"
    )
    if data["softcap"]:
        step = data["softcap"]
        receipt += f"; soft cap {step['cap']:g}: {step['before']:.4f} becomes the logit {step['after']:.4f}"
    out.print(Text(receipt, style="dim"))
    if any(w["knocked_out"] is not None or w["replaced"] is not None for w in data["words"]):
        out.print()
        show_words(data)


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:+.2f}"
