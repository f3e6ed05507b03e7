"""`glassformer why`: which words, heads and layers made the model say what it says."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from glassformer.cli.attention import DtypeOption, PngOption, draw
from glassformer.cli.common import (
    BosOption,
    JsonOption,
    ModelOption,
    TextArgument,
    console,
    need,
    open_model,
    print_json,
    progress_console,
    read_text,
)
from glassformer.cli.pages import HtmlOption, write_page
from glassformer.errors import UsageError


def command(
    text: TextArgument,
    model: ModelOption = None,
    token: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", help="The token to explain; the first choice without.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="TOKEN", help="Explain the difference to this token.")
    ] = None,
    position: Annotated[
        int, typer.Option("--position", "-p", help="After which position; negative from the end.")
    ] = -1,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many parts to show.")] = 10,
    parts: Annotated[
        int, typer.Option("--parts", help="At most so many parts have their total effect measured.")
    ] = 5000,
    words: Annotated[int, typer.Option("--words", help="At most so many words are replaced; 0 for none.")] = 32,
    alternatives: Annotated[int, typer.Option("--alternatives", help="How many others replace each word.")] = 24,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw of other words.")] = 0,
    bos: BosOption = None,
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    png: PngOption = None,
    html: HtmlOption = None,
) -> None:
    """Show which words, heads and layers made the model say that.

    Claimed is a part's share by the arithmetic of the sum; direct is measured by taking it from the last stream;
    total by taking it out where it enters and running everything after it again.
    """
    if top < 1:
        raise UsageError(f"--top is 1 or more; {top} is not.")
    if png is not None:
        need("matplotlib", verb="why --png", extra="plot")
    text = read_text(text)
    opened = open_model(model, dtype=dtype)
    trace = opened.trace(text, bos)
    with progress_console().status("measuring"):
        found = trace.why(token, against, position, parts=parts, words=words, alternatives=alternatives, seed=seed)
    if png is not None:
        from glassformer.interp.tables import why_view

        draw(why_view(found, top), png, "why")
    if html is not None:
        from glassformer.views.why import account

        neurons = trace.neurons(token, against, position, k=16).to_dict()
        given = {"why": account(trace, found), "neurons": neurons}
        at = trace.position(position)
        asked = {"position": at, "token": token, "against": against, "given": given}
        write_page(html, opened, text, "why", bos=bos, trace=trace, **asked)
    if as_json:
        print_json({"model": trace.model, **found.to_dict(), "tokens": trace.tokens})
    elif png is None and html is None:
        from glassformer.interp.tables import why_view

        show(why_view(found, top))


def show(data: dict[str, Any]) -> None:
    """The sentence, the words, the largest parts and the receipt."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    out.print(Text(data["sentence"]))
    out.print()
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
    rule = data["replacements"]
    out.print(Text(f"Replaced: {rule['count']} drawn from seed {rule['seed']}, {rule['rule']}.", style="dim"))


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:+.2f}"
