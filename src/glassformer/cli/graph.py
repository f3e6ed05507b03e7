"""`glassformer graph`: which words, heads and neurons made a prediction, and by which ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glassformer.cli.common import AgainstOption, PositionOption, TextArgument, TokenOption, console, note, read_text
from glassformer.cli.looking import Look, Seen, at_least_one, looking
from glassformer.errors import UsageError
from glassformer.system import files


@looking(drawn=False)
def command(
    look: Look,
    text: TextArgument,
    token: TokenOption = None,
    against: AgainstOption = None,
    position: PositionOption = -1,
    coverage: Annotated[
        float, typer.Option("--coverage", "-c", help="Show nodes until they have this share of all effects, 0 to 1.")
    ] = 0.8,
    nodes: Annotated[int, typer.Option("--nodes", "-n", metavar="N", help="Or until there are so many.")] = 60,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Whether each node is also taken away and its effect measured."),
    ] = True,
    lay: Annotated[
        list[Path] | None,
        typer.Option("--lay", metavar="PATH", help="A transcoder or SAE whose features stand for a layer's neurons."),
    ] = None,
    turn: Annotated[
        list[str] | None,
        typer.Option("--turn", metavar="NODE=X", help="Multiply a node or a group by X and measure; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Save the graph as JSON.")] = None,
    name: Annotated[str, typer.Option("--name", help="What the saved graph is called.")] = "",
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many nodes and edges to show.")] = 20,
) -> Seen:
    """Show which words, heads and neurons made a prediction.

    Each stands at a layer and a position. Effects are exact sums with norms and attention patterns as they ran; beside
    them stands what the score loses when the node is taken away and the rest computed anew.
    """
    at_least_one(top=top)
    turned = [(one, *_turn(one)) for one in turn or []]
    text = read_text(text)
    if out is not None:
        files.writable(out)
    opened = look.open()
    trace = opened.trace(text, look.bos)
    from glassformer.interp.dictionary import dictionaries

    laid = [one for path in lay or () for one in dictionaries(path)]
    found = trace.graph(token, against, position, coverage=coverage, most=nodes, measure=measure, lay=laid)
    data = {"model": opened.name, "precision": opened.precision, **found.to_dict()}
    data["turned"] = [{"what": members, "by": by, "value": found.turned(members, by)} for _, members, by in turned]
    if out is not None:
        found.save(out, name)
        note(f"The graph stands in {out}.")
    return Seen(data, lambda: show(data, top))


def _turn(given: str) -> tuple[str, float]:
    members, sign, by = given.rpartition("=")
    try:
        return members, float(by if sign else "")
    except ValueError:
        raise UsageError(f"--turn is NODE=X, a node's or group's name and a number; {given!r} is not.") from None


def show(data: dict[str, Any], top: int) -> None:
    """The number, the strongest nodes and edges, groups, and how much is shown."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    against = "" if data["against"] is None else f" against {visible(data['against'])!r}"
    out.print(Text(f"{data['model']}, {data['precision']}; {data['unit']}", style="dim"))
    out.print(Text(f"{visible(data['token'])!r}{against}: {data['value']:+.3f}", style="bold"))
    out.print()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in ("node", "token", "effect", "direct", "measured"):
        table.add_column(column, justify="left" if column in ("node", "token") else "right")
    for node in data["nodes"][:top]:
        measured = "" if node["measured"] is None else f"{node['measured']:+.3f}"
        numbers = (f"{node['effect']:+.3f}", f"{node['direct']:+.3f}", measured)
        table.add_row(node["name"], Text(visible(node["token"])), *numbers)
    out.print(table)
    out.print()
    names = [node["name"] for node in data["nodes"]]
    for edge in data["edges"][:top]:
        end = "the score" if edge["to"] is None else names[edge["to"]]
        out.print(Text(f"  {edge['share']:+8.3f}  {names[edge['from']]} → {end}"))
    out.print()
    for group in data["groups"]:
        members = ", ".join(names[i] for i in group["nodes"])
        out.print(Text(f"{group['name']}: {members} ({group['effect']:+.3f})"))
    for turned in data["turned"]:
        out.print(Text(f"With {turned['what']} × {turned['by']:g} the score is {turned['value']:+.3f}."))
    r = data["correlation"]
    if r is not None:
        out.print(Text(f"Effects go with what was measured with r = {r:.2f}.", style="dim"))
    shown = sum(node["direct"] for node in data["nodes"])
    out.print(
        Text(
            f"{len(names)} nodes with {data['coverage']:.0%} of all effects; directly they hand over {shown:+.3f} of "
            f"{data['direct']:+.3f}, biases and the unembedding add {data['constant']:+.3f}.",
            style="dim",
        )
    )
