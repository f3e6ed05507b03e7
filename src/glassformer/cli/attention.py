"""`glassformer attention`: where heads look."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import TextArgument, console, read_text
from glassformer.cli.looking import Look, PageOf, Seen, looking
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_SHADES = " ░▒▓█"


@looking
def command(
    look: Look,
    text: TextArgument,
    layer: Annotated[int | None, typer.Option("--layer", "-l", help="A layer; negative ones from the last.")] = None,
    head: Annotated[int | None, typer.Option("--head", help="A head of the layer; the mean of all without.")] = None,
    query: Annotated[int | None, typer.Option("--query", "-q", help="Only the row of this position.")] = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="The size of what is handed over, not the weight.")
    ] = False,
    words: Annotated[bool, typer.Option("--words", help="By words: sums of keys, averages of queries.")] = False,
) -> Seen:
    """Show where each head looks.

    With no layer, where every head looks from the last position (or --query); with one, a shaded grid: rows attend,
    columns are attended to, and every row sums to 1.
    """
    if layer is None and (head is not None or weighted or words or look.pictured):
        raise UsageError("Name a layer with --layer; without one only the overview of all heads is shown.")
    if look.html is not None and (weighted or words):
        raise UsageError("A page shows weights by token; leave --weighted and --words out, or take --png.")
    text = read_text(text)
    from glassformer.interp.tables import attention_view, overview

    opened = look.open()
    trace = opened.trace(text, look.bos)
    if layer is None:
        data = overview(trace, -1 if query is None else query)
        return Seen(data, lambda: show_overview(data))
    data = attention_view(trace, layer, head, query, weighted=weighted, by_word=words)

    def page() -> PageOf:
        at = data["layer"]
        heads = range(trace.config.n_heads(at)) if head is None else [data["head"]]
        state = {"layer": at, "head": data["head"]}
        if data["query"] is not None and head is not None:
            row = data["rows"][0]
            state |= {"query": data["query"], "key": row.index(max(row))}
        return opened, text, "attention", {"trace": trace, "first": [(at, h) for h in heads], "state": state}

    return Seen(data, lambda: show(data), lambda: ("attention", data), page)


def show_overview(data: dict[str, Any]) -> None:
    """For each layer a line of what its heads weigh most, the sink at position 0 left out."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    here = visible(data["tokens"][data["query"]])
    out.print(Text(f"Where every head looks from position {data['query']}, “{here}”", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}; percent; position 0, the usual sink, left out", style="dim"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("layer", justify="right", style="dim", no_wrap=True, min_width=5)
    for h in range(len(data["layers"][0]["heads"])):
        table.add_column(f"head {h}", no_wrap=True, max_width=14)
    for row in data["layers"]:
        table.add_row(str(row["layer"]), *(_first(head, visible) for head in row["heads"]))
    out.print(table)


def _first(head: list[dict[str, Any]], visible: Callable[[str], str]) -> Text:
    from rich.text import Text

    best = next((h for h in head if h["key"] != 0), head[0])
    return Text(f"{visible(best['token'])} {100 * best['weight']:.0f}", style="bold" if best["weight"] > 0.3 else "")


def show(data: dict[str, Any]) -> None:
    """The grid in shades, or one row as a list."""
    from rich.text import Text

    from glassformer.cli.common import bar
    from glassformer.cli.next import visible

    out = console()
    which = "mean of its heads" if data["head"] is None else f"head {data['head']}"
    out.print(Text(f"Layer {data['layer']}, {which}: {data['measure']} by {data['by']}", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}", style="dim"))
    out.print()
    if data["query"] is not None:
        most = max(data["rows"][0]) or 1.0
        out.print(Text(f"from {visible(data['queries'][0])}"))
        for i, (key, x) in enumerate(zip(data["keys"], data["rows"][0], strict=True)):
            if i <= data["query"] or data["by"] == "word":
                out.print(Text.assemble(f"{i:5} {visible(key):16.16} {x:8.4f} ", bar(x / most, 32)))
    else:
        _grid(out, data, visible)
    if data["row_sum_error"] is not None:
        out.print(Text(f"Rows sum to 1 within {data['row_sum_error']:.1e}.", style="dim"))


def _grid(out: Console, data: dict[str, Any], visible: Callable[[str], str]) -> None:
    from rich.text import Text

    keys, rows = data["keys"], data["rows"]
    most = max(8, (out.width - 22) // 2)
    first = max(0, len(keys) - most)
    if first:
        out.print(Text(f"The last {most} of {len(keys)}; --json, --png and --html have them all.", style="dim"))
    full = 1.0 if data["measure"] == "weight" else max(max(row) for row in rows) or 1.0
    out.print(Text(" " * 22 + "".join(f"{i % 100:2}" for i in range(first, len(keys))), style="dim"))
    for i, row in enumerate(rows[first:], start=first):
        line: Text = Text(f"{i:4} {visible(data['queries'][i]):16.16} ")
        line.append("".join(_shade(x / full) * 2 for x in row[first:]))
        out.print(line)
    out.print(Text(f"Columns are numbered as rows are; {_SHADES[1]} is little, {_SHADES[-1]} is all.", style="dim"))


def _shade(share: float) -> str:
    return _SHADES[0 if share < 0.03 else max(1, min(len(_SHADES) - 1, round(share * (len(_SHADES) - 1))))]
