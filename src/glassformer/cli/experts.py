"""`glassformer experts`: which experts a text goes to, and what they write."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from glassformer.cli.common import TextArgument, console, read_text
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking


@looking
def command(
    look: Look,
    text: TextArgument,
    layer: Annotated[
        int | None, typer.Option("--layer", "-l", help="A layer; negative ones from the last; the first without.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", help="The token whose score is shared; the first choice.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="TOKEN", help="Share the difference to this token.")
    ] = None,
    position: Annotated[
        int, typer.Option("--position", "-p", help="Whose experts are taken apart; negative from the end.")
    ] = -1,
    words: Annotated[int, typer.Option("--words", metavar="N", help="How many tokens for each.")] = 5,
) -> Seen:
    """Show which experts a text goes to, and what they write.

    A row of the grid is a position, a column an expert. Of one position, every chosen expert with the router's score,
    its share of the prediction (as why claims it), and the tokens that what it wrote raises and lowers.
    """
    at_least_one(words=words)
    text = read_text(text)
    from glassformer.interp.experts import expert_layers

    opened = look.open()
    trace = opened.trace(text, look.bos)
    chosen = expert_layers(trace.config)[0] if layer is None else layer
    found = trace.experts(chosen, token, against, position, words=words)
    data = {"model": opened.name, "precision": opened.precision, "tokens": trace.tokens, **found.to_dict()}

    def page() -> PageOf:
        state = {"position": found.position, "token": token, "against": against}
        return opened, text, "why", {"trace": trace, **state}

    return Seen(data, lambda: show(data), lambda: ("grid", grid(data)), page)


def grid(data: dict[str, Any]) -> dict[str, Any]:
    """The weights as a picture's data."""
    from glassformer.interp.tables import grid_view

    return grid_view(
        f"{data['model']}: experts of layer {data['layer']}",
        list(data["tokens"]),
        [f"expert {i}" for i in range(data["n_experts"])],
        data["weights"],
        "what each expert's output was multiplied by",
        data["precision"],
    )


def show(data: dict[str, Any]) -> None:
    """Who was chosen at every position, then what each of one position's experts wrote."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    out.print(Text(f"Layer {data['layer']}: {data['n_active']} of {data['n_experts']} experts a token", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}; experts and their weights", style="dim"))
    for i, (token, row) in enumerate(zip(data["tokens"], data["weights"], strict=True)):
        chosen = sorted((e for e, x in enumerate(row) if x), key=lambda e, row=row: -abs(row[e]))  # type: ignore[misc]
        out.print(Text(f"{i:4} {visible(token):16.16} " + "  ".join(f"{e}: {row[e]:.3f}" for e in chosen)))
    here = visible(data["tokens"][data["position"]])
    out.print()
    out.print(Text(f"At position {data['position']}, “{here}”", style="bold"))
    said = f"{data['unit']} of {visible(data['token'])!r}: {data['value']:+.3f}"
    if data["shared"] is not None:
        said += f"; the part that every token passes {data['shared']['contribution']:+.3f}"
    out.print(Text(said, style="dim"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("expert", "weight", "score", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("so raises", "so lowers"):
        table.add_column(name)
    for one in data["experts"]:
        table.add_row(
            str(one["expert"]),
            f"{one['weight']:.3f}",
            f"{one['score']:+.2f}",
            f"{one['contribution']:+.3f}",
            *(Text("  ".join(map(visible, one[key]))) for key in ("raises", "lowers")),
        )
    out.print(table)
    out.print(Text(f"Parts and the layer's output differ by {data['apart']:.1e} of its largest number.", style="dim"))
