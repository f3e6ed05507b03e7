"""`glassformer look`: why a head looks there."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from glassformer.cli.common import TextArgument, console, read_text
from glassformer.cli.looking import Look, Seen, at_least_one, looking


@looking(drawn=False)
def command(
    look: Look,
    text: TextArgument,
    layer: Annotated[int, typer.Option("--layer", "-l", help="A layer; negative ones from the last.")],
    head: Annotated[int, typer.Option("--head", help="A head of the layer.")],
    query: Annotated[int, typer.Option("--query", "-q", help="The position that looks; negative from the end.")] = -1,
    key: Annotated[
        int | None, typer.Option("--key", help="The position looked at; the one it weighs most without.")
    ] = None,
    against: Annotated[
        int | None, typer.Option("--against", help="Another position: why there rather than here.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many pairs and parts to show.")] = 10,
) -> Seen:
    """Show why a head looks from one token at another.

    The score is a sum over pairs of what earlier parts wrote, one on the query's side and one on the key's, with
    norms, rotations and biases as they ran; soft cap, position bias and mask come after the sum.
    """
    at_least_one(top=top)
    text = read_text(text)
    trace = look.open().trace(text, look.bos)
    data = {"model": trace.model, **trace.reasons(layer, head, query, key, against).to_dict(top)}
    return Seen(data, lambda: show(data))


def show(data: dict[str, Any]) -> None:
    """The sentence, the pairs, each side's parts and words, and the steps to the score."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    out.print(Text(data["sentence"]))

    def table(*columns: str) -> Table:
        found = Table(box=None, padding=(0, 1), pad_edge=False)
        for name in columns:
            found.add_column(name, justify="right" if name == "share" else "left")
        return found

    out.print()
    pairs = table("query's side", "key's side", "share")
    for p in data["pairs"]:
        pairs.add_row(p["query"]["name"], p["key"]["name"], f"{p['share']:+.3f}")
    out.print(pairs)
    out.print()
    sides = table("query's side", "share", "key's side", "share")
    for q, k in zip(data["sides"]["query"], data["sides"]["key"], strict=False):
        sides.add_row(q["name"], f"{q['share']:+.3f}", k["name"], f"{k['share']:+.3f}")
    out.print(sides)
    out.print()
    words = table("word", "read by the query", "read by the key")
    columns = [sum(row[i] for row in data["by_word"]) for i in range(len(data["words"]))]
    for word, row, column in zip(data["words"], data["by_word"], columns, strict=True):
        words.add_row(Text(visible(word["word"])), f"{sum(row):+.3f}", f"{column:+.3f}")
    out.print(words)
    out.print()
    for step in data["steps"]:
        out.print(Text(_way(data, step), style="dim"))
    if data["sink"] is not None:
        out.print(
            Text(f"The sink's score is {data['sink']['score']:.4f}, its weight {data['sink']['weight']:.1%}.", "dim")
        )


def _way(data: dict[str, Any], step: dict[str, Any]) -> str:
    said = f"Key {step['key']}: product {step['product']:.4f}"
    if data["softcap"] is not None:
        said += f", soft cap {data['softcap']:g} makes it {step['capped']:.4f}"
    if step["bias"]:
        said += f", position bias {step['bias']:+.4f}"
    if step["edit"]:
        said += f", edit {step['edit']:+.4f}"
    if step["score"] is None:
        return said + ", hidden by the mask."
    return said + f", score {step['score']:.4f}, weight {step['weight']:.2%}; {data['precision']}."
