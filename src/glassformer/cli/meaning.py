"""`glassformer meaning`: one word in several contexts, and where its vectors part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import console, read_text
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking
from glassformer.cli.passages import TextsOption
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


@looking
def command(
    look: Look,
    word: Annotated[str, typer.Argument(metavar="WORD", help="The word; its case does not matter.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT…", help="Texts with the word in them.")] = None,
    occurrence: Annotated[
        int, typer.Option("--occurrence", metavar="N", help="Which one, where it comes several times; from 0.")
    ] = -1,
    files: TextsOption = None,
    layer: Annotated[int, typer.Option("--layer", "-l", help="With --texts: compared after which layer.")] = -1,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="With --texts: how many contexts.")] = 5,
) -> Seen:
    """Follow one word's vector through several contexts.

    At the embedding a word's vector is the same in every text; layer by layer attention and feed-forward add to it and
    the vectors part, which the cosines between texts show. With --texts, the contexts of your own files in which the
    word's vector lies nearest to the one in each text.
    """
    texts = [read_text(text) for text in texts or []]
    if not texts or (len(texts) < 2 and not files):
        raise UsageError("A word's meaning is compared between texts; give at least two, or one and --texts FILE.")
    at_least_one(top=top)
    if len(texts) < 2 and look.pictured:
        raise UsageError("Pictures compare texts; give at least two.")
    opened = look.open()
    from glassformer.interp.meaning import find, meaning, nearest

    traces = [opened.trace(text, look.bos) for text in texts]
    for trace in traces:
        find(trace, word, occurrence)
        trace.layer(layer)
    data: dict[str, Any] = {"model": opened.name, "precision": opened.precision, "word": word.strip()}
    if len(traces) > 1:
        found = meaning(word, traces, occurrence)
        data |= found.to_dict()
        data["mean"] = found.mean
    if files:
        from glassformer.cli.passages import traces_of

        own = list(traces_of(opened, files, look.bos))
        after = traces[0].layer(layer)
        data["nearest"] = [
            {
                "text": i,
                "layer": after,
                "contexts": [vars(c) for c in nearest(word, t, own, occurrence=occurrence, layer=layer, k=top)],
            }
            for i, t in enumerate(traces)
        ]

    def page() -> PageOf:
        beside = {"word": data["word"], "contexts": texts, "given": {"meaning": data}}
        return opened, texts[0], "meaning", {"trace": traces[0], **beside}

    return Seen(data, lambda: show(data, texts), lambda: ("grid", grid(data)), page)


def pairs(data: dict[str, Any]) -> list[tuple[int, int]]:
    """The pairs of texts."""
    n = len(data["texts"])
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def grid(data: dict[str, Any]) -> dict[str, Any]:
    """The cosines of every pair at every place as a picture's data."""
    from glassformer.interp.tables import grid_view

    chosen = pairs(data)
    return grid_view(
        f"{data['model']}: “{data['word']}” in {len(data['texts'])} texts",
        [place_name(place, data["places"]) for place in data["places"]],
        [f"texts {i + 1}, {j + 1}" for i, j in chosen],
        [[at[i][j] for i, j in chosen] for at in data["similarity"]],
        "cosine of the word's vectors",
        f"{data['precision']}; " + "; ".join(f"{i + 1}: {''.join(t['tokens'])}" for i, t in enumerate(data["texts"])),
    )


def show(data: dict[str, Any], texts: list[str]) -> None:
    """The cosines by layer, what did the parting, and the nearest contexts."""
    from rich.text import Text

    from glassformer.cli.next import visible
    from glassformer.cli.passages import in_context

    out = console()
    out.print(Text(f"“{visible(data['word'])}”", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}", style="dim"))
    for i, text in enumerate(texts):
        out.print(Text(f"{i + 1}  {visible(text)}"))
    if "similarity" in data:
        _layers(out, data)
    for row in data.get("nearest", []):
        out.print()
        title = f"Nearest to text {row['text'] + 1} after layer {row['layer']}, in your texts"
        out.print(Text(title, style="bold"))
        if not row["contexts"]:
            out.print(Text("The word does not come in them.", style="dim"))
        for c in row["contexts"]:
            out.print(in_context(f"{c['similarity']:.4f}", c["before"], c["word"], c["after"]))


def _layers(out: Console, data: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    ids = {tuple(t["ids"]) for t in data["texts"]}
    if len(ids) > 1:
        out.print(Text("The word is not the same tokens in all texts, so it begins apart.", style="dim"))
    longest = max(t["pieces"] for t in data["texts"])
    if longest > 1:
        out.print(Text(f"The word is up to {longest} tokens, read at the last of them.", style="dim"))
    chosen = pairs(data)[:8]
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("after", no_wrap=True)
    for i, j in chosen:
        table.add_column(f"{i + 1}~{j + 1}", justify="right")
    for name in ("mean", "added"):
        table.add_column(name, justify="right")
    n = len(data["texts"])
    for place, at, mean in zip(data["places"], data["similarity"], data["mean"], strict=True):
        added = ""
        if place.startswith("blocks.") and not place.endswith("resid_pre"):
            layer, half = int(place.split(".")[1]), int(place.endswith("resid_post"))
            alone = f"blocks.{layer}.resid_mid" in data["places"]
            added = f"{sum(row[half] if alone else sum(row) for row in data['added'][layer]) / n:.1f}"
        table.add_row(place_name(place, data["places"]), *(f"{at[i][j]:.4f}" for i, j in chosen), f"{mean:.4f}", added)
    out.print(table)
    if len(pairs(data)) > len(chosen):
        out.print(Text(f"The first {len(chosen)} of {len(pairs(data))} pairs; --json has them all.", style="dim"))
    out.print(
        Text("Cosines of the word's vectors between texts; added is the mean length of what came in.", style="dim")
    )


def place_name(place: str, places: list[str]) -> str:
    """ "blocks.3.resid_mid" -> "3 attention"; a layer read as one step has its number."""
    if place == "embed":
        return "embedding"
    _, layer, half = place.split(".")
    if half == "resid_pre":
        return "positions"
    if f"blocks.{layer}.resid_mid" not in places:
        return f"layer {layer}"
    return f"{layer} {'attention' if half == 'resid_mid' else 'feed-forward'}"
