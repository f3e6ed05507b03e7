"""`glassformer corpus`: one head, neuron, expert or direction over the user's own texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glassformer.cli.common import console
from glassformer.cli.looking import Look, Seen, looking
from glassformer.errors import TextError, UsageError
from glassformer.system import files


@looking(drawn=False)
def command(
    look: Look,
    texts: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text files of your own.")],
    head: Annotated[tuple[int, int] | None, typer.Option("--head", metavar="LAYER HEAD", help="Follow a head.")] = None,
    neuron: Annotated[
        tuple[int, int] | None, typer.Option("--neuron", metavar="LAYER INDEX", help="Follow a neuron.")
    ] = None,
    expert: Annotated[
        tuple[int, int] | None, typer.Option("--expert", metavar="LAYER EXPERT", help="Follow an expert.")
    ] = None,
    direction: Annotated[
        Path | None, typer.Option("--direction", metavar="FILE", help="Follow a saved direction.")
    ] = None,
    matching: Annotated[
        str | None, typer.Option("--matching", metavar="WORDS", help="Read only passages that hold this.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", "--out", "-o", metavar="FILE", help="Say in it how far reading is, and go on from it."),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many passages.")] = 10,
) -> Seen:
    """Follow one part of the model through your own texts.

    The passages where it acts most; and, by tenths of how strongly it acts, the loss of the next token with and without
    it, and the commonest tokens: where it acts and where it does not. Texts are read a passage at a time.
    """
    given = {"head": head, "neuron": neuron, "expert": expert, "direction": direction}
    chosen = [kind for kind, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise UsageError("Name one part: --head, --neuron, --expert or --direction.")
    for file in texts:
        if not file.is_file():
            raise TextError(f"{file} is a folder: name its files." if file.is_dir() else f"There is no file {file}.")
    if keep is not None:
        files.writable(keep)
    opened = look.open()
    from glassformer.cli.passages import LONGEST, progress
    from glassformer.interp.corpus import Part, Survey, survey

    [kind] = chosen
    if direction is not None:
        loaded = opened.load_direction(direction)
        part = Part(kind, loaded.layer, direction=loaded)
    else:
        layer, index = head or neuron or expert or (0, 0)
        part = Part(kind, layer + opened.config.n_layers if layer < 0 else layer, index)
    found = Survey(opened.transformer, opened.tokenizer, part, top=top)
    with progress() as report:
        survey(
            found,
            texts,
            lambda text: opened.encode(text, False),
            opened.encode("", look.bos),
            longest=LONGEST,
            matching=matching,
            keep=keep,
            progress=report,
        )
    data = {"model": opened.name, "precision": opened.precision, **found.to_dict()}
    return Seen(data, lambda: show(data))


def show(data: dict[str, Any]) -> None:
    """The passages, then the tenths."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible
    from glassformer.cli.passages import in_context

    out = console()
    name = data.get("name", data.get("index"))
    read = f"{data['positions']:,} positions of {data['texts']:,} passages"
    out.print(Text(f"{data['kind']} {name} of layer {data['layer']} at {read}", style="bold"))
    for one in data["passages"]:
        out.print(in_context(f"{one['strength']:+9.3f}", one["before"], one["token"], one["after"]))
    out.print()
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in ("tenth", "strength", "loss", "without it", "commonest tokens"):
        table.add_column(column, justify="left" if column == "commonest tokens" else "right")
    for row in data["deciles"]:
        tokens = ", ".join(visible(one["token"]) for one in row["tokens"])
        cells = (str(row["decile"]), f"{row['from']:.3f}–{row['to']:.3f}", f"{row['loss']:.3f}")
        table.add_row(*cells, f"{row['loss_without'] - row['loss']:+.4f}", Text(tokens))
    out.print(table)
