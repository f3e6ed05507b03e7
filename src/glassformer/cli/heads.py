"""`glassformer heads`: what every attention head does, by number and name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import console, note, read_text
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.lm import Model

# What a page shows heads on when no text is given: something comes twice, so that every kind has something to find.
SHOWN_ON = "seven blue window garden kite seven blue window garden"


@looking
def command(
    look: Look,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Your own text, scored as well; - reads standard input.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="SCORE", help="Rank the heads by this score only.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many heads of each score.")] = 5,
    length: Annotated[int, typer.Option("--length", metavar="N", help="Tokens in the random sequence.")] = 50,
    seed: Annotated[int, typer.Option("--seed", help="Of the random sequence and the shuffles.")] = 0,
    shuffles: Annotated[int, typer.Option("--shuffles", metavar="N", help="How many shuffles make the null.")] = 3,
    circuit: Annotated[
        tuple[int, int] | None,
        typer.Option("--circuit", metavar="LAYER HEAD", help="Show what one head looks for and what it writes."),
    ] = None,
    token: Annotated[str | None, typer.Option("--token", metavar="TOKEN", help="With --circuit: from which.")] = None,
    offset: Annotated[int, typer.Option("--offset", metavar="N", help="With --circuit: how far back it looks.")] = 1,
) -> Seen:
    """Score and name what each attention head does.

    Scores are measured on a random sequence of tokens that is then repeated, and on your text; the null is the same
    measurement on the tokens shuffled. With --circuit, what one head at a token looks for and what it writes when it
    attends to that token, read from the weights alone.
    """
    at_least_one(top=top)
    if circuit is None and token is not None:
        raise UsageError("--token belongs to --circuit LAYER HEAD; name the head.")
    if circuit is not None:
        if token is None:
            raise UsageError("--circuit needs a token to start from: --token ' Paris', its space included.")
        if text is not None or sort is not None or look.pictured:
            raise UsageError("--circuit reads the weights alone and prints; leave the text, --sort and pictures out.")
        found = circuits(look.open(), circuit, token, offset, top)
        return Seen(found, lambda: show_circuits(found))
    text = None if text is None else read_text(text)
    opened = look.open()
    from glassformer.cli.passages import progress

    with progress() as report:
        ids = None if text is None else opened.ids(text, look.bos)
        scored = opened.heads(ids, length=length, seed=seed, shuffles=shuffles, progress=report)
    kinds = list(scored.scores) if sort is None else [_kind(sort, scored.scores)]
    data = {
        "model": opened.name,
        "precision": opened.precision,
        **scored.to_dict(),
        "ranked": {kind: scored.ranked(kind, top) for kind in kinds},
    }

    def page() -> PageOf:
        if text is None:
            note(f"Without a text of yours, the page shows the heads at work on “{SHOWN_ON}”.")
        return opened, text or SHOWN_ON, "attention", {"given": {"heads": data}, "state": {"sort": "role"}}

    kind = kinds[0] if sort is not None else "induction"
    return Seen(data, lambda: show(data), lambda: ("grid", grid(data, kind)), page)


def _kind(asked: str, known: dict[str, Any]) -> str:
    """`text-same` is as good as `text same`, for shells."""
    plain = asked.strip().lower().replace("-", " ")
    return plain if plain in known else asked


def grid(data: dict[str, Any], kind: str) -> dict[str, Any]:
    """One score of all heads as a picture's data."""
    from glassformer.interp.tables import grid_view

    values = data["scores"][kind]
    return grid_view(
        f"{data['model']}: {kind}",
        [f"layer {i}" for i in range(len(values))],
        [f"head {i}" for i in range(len(values[0]))],
        values,
        data["definitions"][kind],
        f"{data['precision']}, {data['length']} tokens twice, seed {data['seed']}",
    )


def show(data: dict[str, Any]) -> None:
    """Every score's definition and largest heads, and the named heads by layer."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    where = f"{data['length']} random tokens twice, seed {data['seed']}, {data['shuffles']} shuffles"
    own = "" if data["tokens"] is None else f"; your text has {data['tokens']} tokens"
    out.print(Text(f"{data['model']}, {data['precision']}; {where}{own}", style="dim"))
    for kind, rows in data["ranked"].items():
        out.print()
        out.print(Text.assemble((kind, "bold"), ": " + data["definitions"][kind]))
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        for name in ("layer.head", "score", "null", "name"):
            table.add_column(name, justify="left" if name == "name" else "right")
        for row in rows:
            null = "–" if row["null"] is None else f"{row['null']:.3f}"
            name = data["names"][row["layer"]][row["head"]] or ""
            table.add_row(f"{row['layer']}.{row['head']}", f"{row['score']:.3f}", null, name)
        out.print(table)
    names = [
        (name, f"{layer}.{head}")
        for layer, row in enumerate(data["names"])
        for head, name in enumerate(row)
        if name is not None
    ]
    out.print()
    if not names:
        out.print(Text("No head's score is clear enough to name it."))
    for name in dict.fromkeys(n for n, _ in names):
        heads = ", ".join(at for n, at in names if n == name)
        out.print(Text.assemble((f"{name}: ", "bold"), heads))


def circuits(model: Model, which: tuple[int, int], token: str, offset: int, top: int) -> dict[str, Any]:
    """What a head at a token looks for, and what it writes when it attends to it."""
    from glassformer.interp.circuits import output_value, query_key
    from glassformer.interp.vocabulary import known_ids, token_id

    layer, head = which
    id = token_id(token, model.tokenizer, model.config.vocab_size)
    looks = query_key(model.transformer, layer, head, id, offset).float()
    written = output_value(model.transformer, layer, head, id).float()
    written = written - written.mean()
    known = known_ids(model.tokenizer, model.config.vocab_size)

    def ends(x: Any, largest: bool) -> list[dict[str, Any]]:
        best = x[known].topk(min(top, len(known)), largest=largest)
        pairs = zip((known[i] for i in best.indices.tolist()), best.values.tolist(), strict=True)
        return [{"token": model.tokenizer.token_text(i), "id": i, "score": v} for i, v in pairs]

    return {
        "model": model.name,
        "precision": model.precision,
        "layer": layer % model.config.n_layers,
        "head": head % max(1, model.config.n_heads(layer % model.config.n_layers)),
        "token": token,
        "offset": offset,
        "rank": int((written > written[id]).sum()),
        "looks_for": ends(looks, True),
        "looks_away_from": ends(looks, False),
        "raises": ends(written, True),
        "lowers": ends(written, False),
    }


def show_circuits(data: dict[str, Any]) -> None:
    """The two circuits side by side."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    here = visible(data["token"])
    out.print(Text(f"Layer {data['layer']}, head {data['head']}, at “{here}”", style="bold"))
    out.print(Text(f"{data['model']}, {data['precision']}; from the weights and embeddings alone.", style="dim"))
    said = f"Looking from it {data['offset']} back, and what attending to it writes:"
    out.print(Text(said, style="dim"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    columns = {"looks_for": "looks for", "looks_away_from": "away from", "raises": "raises", "lowers": "lowers"}
    for title in columns.values():
        table.add_column(title, no_wrap=True, max_width=14)
        table.add_column("", justify="right", style="dim", no_wrap=True)
    for row in zip(*(data[key] for key in columns), strict=True):
        table.add_row(*(cell for t in row for cell in (Text(visible(t["token"])), f"{t['score']:+.2f}")))
    out.print(table)
    own = data["rank"] + 1
    out.print(Text(f"Of all tokens it raises “{here}” itself {own:,}{_th(own)} most.", style="dim"))


def _th(n: int) -> str:
    return "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
