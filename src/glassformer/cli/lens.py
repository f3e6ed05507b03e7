"""`glassformer lens`: every layer read out as if it were the last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import TextArgument, console, read_text
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.interp.readout import Readout
    from glassformer.interp.trace import Trace


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
    put: Annotated[
        str | None,
        typer.Option("--put", metavar="TOKEN", help="Put a token into the stream along what the lens reads."),
    ] = None,
    swap: Annotated[
        tuple[str, str] | None,
        typer.Option("--swap", metavar="A B", help="Let two tokens change places in the stream."),
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", "-l", help="After which layer, for --put and --swap.")] = None,
    strength: Annotated[
        float, typer.Option("--strength", help="How far --put moves the stream, in its own lengths.")
    ] = 0.5,
    agree: Annotated[
        bool, typer.Option("--agree", help="By layer, how well the lens' claims about small edits agree with effects.")
    ] = False,
) -> Seen:
    """Read every layer out as a next-token distribution.

    Each place of the residual stream goes through the final norm and the unembedding; the last row is the model's
    own answer. With --put or --swap, what the lens claims of an edit along it stands beside what the edit does.
    """
    at_least_one(top=top)
    if (put is None) + (swap is None) + (not agree) < 2:
        raise UsageError("Give one of --put, --swap and --agree.")
    if (put is None and swap is None) is not (layer is None):
        raise UsageError("--put and --swap move the stream after a --layer; give both or neither.")
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
    if layer is not None:
        return _moved(trace, layer, swap or (put or "",), readout, positions, strength, top)
    if agree:
        return _agreeing(trace, readout)
    found = trace.lens(top, positions=positions, follow=follow, halves=halves, through=readout)
    data = {"model": trace.model, "precision": trace.precision, "tokens": trace.tokens, **found.to_dict()}

    def page() -> PageOf:
        whole = trace.lens(min(top, 20), follow=follow, halves=halves).to_dict()
        at = trace.position(data["positions"][-1])
        return opened, text, "depth", {"trace": trace, "position": at, "given": {"lens": whole}}

    return Seen(data, lambda: show(data), lambda: ("lens", data), page)


def _moved(
    trace: Trace,
    layer: int,
    tokens: Sequence[str],
    lens: Readout | None,
    at: list[int] | None,
    strength: float,
    top: int,
) -> Seen:
    """What the lens claims of a token put in or swapped, and what it does."""
    if at is None or len(at) != 1:
        raise UsageError("--put and --swap move the stream at one position; name one --position, or none for the last.")
    edit = trace.lens_edit(layer, *tokens, through=lens, position=at[0], strength=strength)
    data = {"model": trace.model, "precision": trace.precision, "tokens": trace.tokens, "edit": edit.to_dict(top)}
    return Seen(data, lambda: show_edit(data))


def _agreeing(trace: Trace, lens: Readout | None) -> Seen:
    """How well the plain lens and another agree with effects, by layer."""
    from glassformer.interp.agreement import agreement

    lenses = {"plain": None} | ({} if lens is None else {lens.kind: lens})
    found = [row for layer in range(trace.config.n_layers - 1) for row in agreement(trace, layer, lenses).rows()]
    data = {"model": trace.model, "precision": trace.precision, "tokens": trace.tokens, "agreement": found}
    return Seen(data, lambda: show_agreement(data))


def show_edit(data: dict[str, Any]) -> None:
    """Claimed and measured probabilities, before and after."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out, edit = console(), data["edit"]
    names = " and ".join(repr(visible(row["token"])) for row in edit["tokens"])
    what = "swapped" if edit["swap"] else f"put in, {edit['strength']:g} times the stream's length,"
    out.print(Text(f"{names} {what} after layer {edit['layer']} at position {edit['position']}", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}; the {edit['lens']} lens", style="dim"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("token", "the lens claims", "the model says"):
        table.add_column(name, justify="left" if name == "token" else "right")
    shown = [row["id"] for row in edit["tokens"]]
    for row in [*edit["tokens"], *(one for one in edit["top"] if one["id"] not in shown)]:
        sides = [f"{row[side]['before']:.2%} → {row[side]['after']:.2%}" for side in ("claimed", "measured")]
        table.add_row(Text(visible(row["token"])), *sides)
    out.print(table)
    r = "–" if edit["correlation"] is None else f"{edit['correlation']:.3f}"
    out.print(
        f"Over the vocabulary, claimed and measured changes correlate at {r}; "
        f"the prediction moved {edit['kl']:.3f} nats."
    )


def show_agreement(data: dict[str, Any]) -> None:
    """Correlations and shares, layer by layer."""
    from rich.table import Table

    lenses = list(dict.fromkeys(row["lens"] for row in data["agreement"]))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("layer", *(f"{lens} agrees" for lens in lenses), *(f"{lens} share" for lens in lenses)):
        table.add_column(name, justify="right")
    by = {(row["layer"], row["lens"]): row for row in data["agreement"]}
    for layer in range(len(data["agreement"]) // len(lenses)):
        rows = [by[layer, lens] for lens in lenses]
        cells = [("–" if row[key] is None else f"{row[key]:.3f}") for key in ("correlation", "share") for row in rows]
        table.add_row(str(layer), *cells)
    console().print(table)


def show(data: dict[str, Any]) -> None:
    """Every position's journey through the layers."""
    for column in range(len(data["positions"])):
        _show(data, column)


def _show(data: dict[str, Any], column: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.meaning import place_name
    from glassformer.cli.next import visible

    out = console()
    places = [row["place"] for row in data["rows"]]
    at = data["positions"][column]
    followed = visible(data["followed"][column]["token"])
    out.print(Text(f"After position {at}, {visible(data['tokens'][at])!r}", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}; the last row is the model's answer", style="dim"))
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True)
    table.add_column("after", no_wrap=True)
    table.add_column(f"{followed}", justify="right", no_wrap=True)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("most probable", no_wrap=True, ratio=1)
    for row in data["rows"]:
        cell = row["cells"][column]
        best = "  ".join(f"{visible(t['token'])} {t['probability']:.1%}" for t in cell["top"])
        table.add_row(place_name(row["place"], places), f"{cell['followed']:.2%}", str(cell["rank"] + 1), Text(best))
    out.print(table)
