"""`glassformer lens`: every layer read out as if it were the last."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glassformer.cli.common import TextArgument, console, read_text
from glassformer.cli.looking import Look, Seen, at_least_one, looking
from glassformer.errors import UsageError


@looking
def command(
    look: Look,
    text: TextArgument,
    position: Annotated[
        list[int] | None,
        typer.Option("--position", "-p", help="A position to read; may be repeated. The last without."),
    ] = None,
    everywhere: Annotated[bool, typer.Option("--all", help="Read every position.")] = False,
    words: Annotated[bool, typer.Option("--words", help="Read after every whole word: at its last token.")] = False,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many tokens of each.")] = 5,
    follow: Annotated[
        str | None,
        typer.Option("--follow", metavar="TOKEN", help="A token to follow; the model's first choice without."),
    ] = None,
    halves: Annotated[
        bool, typer.Option("--halves/--no-halves", help="Also between attention and feed-forward.")
    ] = True,
    through: Annotated[
        Path | None, typer.Option("--through", metavar="FILE", help="A fitted lens (`readout`): after each layer only.")
    ] = None,
) -> Seen:
    """Read every layer out as a next-token distribution.

    Each place of the residual stream goes through the final norm and the unembedding; the last row is the model's
    own answer.
    """
    at_least_one(top=top)
    if everywhere + words + bool(position) > 1:
        raise UsageError("Give one of --all, --words and --position.")
    if through is not None and look.html is not None:
        raise UsageError("A page shows the plain lens; leave --through out, or take --png.")
    text = read_text(text)
    opened = look.open()
    trace = opened.trace(text, look.bos)
    positions = None if everywhere else position or [-1]
    if words:
        positions = [word.positions[-1] for word in trace.words]
    readout = None if through is None else opened.load_readout(through)
    found = trace.lens(top, positions=positions, follow=follow, halves=halves, through=readout)
    data = {"model": trace.model, "precision": trace.precision, "tokens": trace.tokens, **found.to_dict()}

    def page() -> tuple[Any, ...]:
        whole = trace.lens(min(top, 20), follow=follow, halves=halves).to_dict()
        at = trace.position(data["positions"][-1])
        return opened, text, "depth", {"trace": trace, "position": at, "given": {"lens": whole}}

    return Seen(data, lambda: show(data), lambda: ("lens", data), page)


def show(data: dict[str, Any]) -> None:
    """Every position's journey through the layers."""
    for column in range(len(data["positions"])):
        _show(data, column)


def _show(data: dict[str, Any], column: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    at = data["positions"][column]
    followed = visible(data["followed"][column]["token"])
    out.print(Text(f"After position {at}, {visible(data['tokens'][at])!r}", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}; the last row is the model's answer", style="dim"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("after")
    table.add_column(f"{followed}", justify="right")
    table.add_column("rank", justify="right")
    table.add_column("most probable", no_wrap=True)
    for row in data["rows"]:
        cell = row["cells"][column]
        best = "  ".join(f"{visible(t['token'])} {t['probability']:.1%}" for t in cell["top"])
        table.add_row(place_name(row["place"]), f"{cell['followed']:.2%}", str(cell["rank"] + 1), Text(best))
    out.print(table)


def place_name(place: str) -> str:
    """ "blocks.3.resid_mid" -> "3 attention"."""
    if place == "embed":
        return "embedding"
    _, layer, half = place.split(".")
    return f"{layer} {'attention' if half == 'resid_mid' else 'feed-forward'}"
