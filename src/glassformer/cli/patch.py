"""`glassformer patch`: which places carry what makes two prompts end differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import PositionOption, console, read_text
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking
from glassformer.errors import DataError, UsageError, near

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

KINDS = ("stream", "attention", "feed_forward", "heads")


@looking
def command(
    look: Look,
    clean: Annotated[
        str | None, typer.Argument(metavar="CLEAN", help="The prompt whose answer is to be brought back.")
    ] = None,
    corrupted: Annotated[
        str | None, typer.Argument(metavar="CORRUPTED", help="The prompt that is patched: as many tokens.")
    ] = None,
    what: Annotated[
        str, typer.Option("--what", help="stream, attention, feed_forward, heads, or all of them.")
    ] = "stream",
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TOKEN", help="The clean answer; the clean run's first choice.")
    ] = None,
    wrong: Annotated[
        str | None, typer.Option("--wrong", metavar="TOKEN", help="The other answer; the corrupted run's first choice.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help='Lines of {"clean": …, "corrupted": …, "answer": …, "wrong": …}.'),
    ] = None,
    position: PositionOption = -1,
    attribution: Annotated[
        bool, typer.Option("--attribution/--no-attribution", help="Also the gradient's estimate.")
    ] = True,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many places to list.")] = 8,
) -> Seen:
    """Find where two prompts part, by activation patching.

    One place of the corrupted run at a time is given what the clean run has there, and everything after it runs
    again: 100 means that this place alone brings the clean answer back, 0 that it does nothing. Attribution estimates
    the same from one gradient; its correlation with what was measured stands beside it.
    """
    kinds = KINDS if what == "all" else (what.replace("-", "_"),)
    if kinds[0] not in KINDS:
        raise UsageError(f"--what is {', '.join(KINDS)} or all; {what!r} is none of them.{near(what, KINDS)}")
    at_least_one(top=top)
    if len(kinds) > 1 and look.pictured:
        raise UsageError("A picture is of one kind of place; name it with --what.")
    given = read_pairs(pairs, clean, corrupted, answer, wrong)
    opened = look.open()
    from glassformer.cli.passages import progress
    from glassformer.interp.patching import patch

    traces = [(opened.trace(p["clean"], look.bos), opened.trace(p["corrupted"], look.bos)) for p in given]
    results = {}
    with progress() as report:
        for kind in kinds:
            results[kind] = patch(
                traces,
                kind,  # type: ignore[arg-type]
                answer=[p.get("answer") for p in given],
                wrong=[p.get("wrong") for p in given],
                position=position,
                attribution=attribution,
                progress=report,
            ).to_dict()
    data = {"model": opened.name, "precision": opened.precision, "prompts": given, "results": list(results.values())}

    def page() -> PageOf:
        options = {
            "other": {"text": given[0]["corrupted"]},
            "given": {"patched": {kinds[0]: results[kinds[0]]}},
            "state": {"what": "patch", "place": kinds[0]},
        }
        return opened, given[0]["clean"], "compare", options

    return Seen(data, lambda: show(data, top), lambda: ("grid", grid(data)), page)


def read_pairs(
    file: Path | None, clean: str | None, corrupted: str | None, answer: str | None, wrong: str | None
) -> list[dict[str, Any]]:
    """The pairs of prompts asked for, each with its answers where they are named.

    Raises:
        UsageError: when both a file and prompts are given, or neither.
        DataError: for a line that is no pair, by its number.
    """
    if file is None:
        if clean is None or corrupted is None:
            raise UsageError("Give two prompts, a clean and a corrupted one, or a file of them with --pairs.")
        return [
            {"clean": read_text(clean), "corrupted": read_text(corrupted)} | _named({"answer": answer, "wrong": wrong})
        ]
    if clean is not None or corrupted is not None:
        raise UsageError("Give either two prompts or --pairs FILE, not both.")
    from glassformer.cli.passages import read_file

    out = []
    for number, line in enumerate(read_file(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}, is not JSON ({error}).") from None
        texts = ("clean", "corrupted", "answer", "wrong")
        if not isinstance(row, dict) or not {"clean", "corrupted"} <= set(row):
            raise DataError(f'{file}, line {number}, needs an object with "clean" and "corrupted" in it.')
        if odd := [key for key in row if key not in texts or not isinstance(row[key], str | None)]:
            raise DataError(f"{file}, line {number}: {odd[0]!r} is not one of the texts {', '.join(texts)}.")
        out.append(_named({"answer": answer, "wrong": wrong}) | _named(row))
    if not out:
        raise DataError(f"{file} holds no pairs.")
    return out


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def grid(data: dict[str, Any]) -> dict[str, Any]:
    """The grid as a picture's data: what each place brings back, in percent."""
    from glassformer.interp.tables import grid_view

    found = data["results"][0]
    heads = found["what"] == "heads"
    return grid_view(
        f"{data['model']}: patching {found['what'].replace('_', '-')}",
        [f"layer {i}" for i in range(len(found["restored"]))],
        [f"head {c}" if heads else f"{i} {c}" for i, c in enumerate(found["columns"])],
        [[100 * x for x in row] for row in found["restored"]],
        "percent of the clean answer brought back",
        f"{found['unit']}, {data['precision']}" + _pairs(found),
    )


def _pairs(found: dict[str, Any]) -> str:
    return f", mean of {len(found['pairs'])} pairs" if len(found["pairs"]) > 1 else ""


def show(data: dict[str, Any], top: int) -> None:
    """The prompts and what each ends with, then every grid and its largest cells."""
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    first = data["results"][0]
    out.print(Text(f"{data['model']}, {data['precision']}; {first['unit']}{_pairs(first)}", style="dim"))
    for prompt, pair in list(zip(data["prompts"], first["pairs"], strict=True))[:3]:
        against = "" if pair["wrong"] is None else f" against {visible(pair['wrong'])!r}"
        answer = visible(pair["answer"] or "")
        out.print(Text.assemble(("clean      ", "dim"), visible(prompt["clean"])))
        out.print(Text.assemble(("corrupted  ", "dim"), visible(prompt["corrupted"])))
        out.print(Text(f"           {answer!r}{against}: {pair['clean']:+.3f} and {pair['corrupted']:+.3f}"))
    for found in data["results"]:
        out.print()
        kind = found["what"].replace("_", "-")
        title = f"{kind}: percent of the clean answer that each layer's {_place(found)} brings back"
        out.print(Text(title, style="bold"))
        _grid(out, found)
        for row in found["ranked"][:top]:
            where = f"head {row['head']}" if "head" in row else f"position {row['position']}"
            token = "" if "head" in row else f" {visible(found['columns'][row['position']])}"
            out.print(Text(f"  layer {row['layer']:2} {where}{token}: {100 * row['restored']:+.0f}%"))
        if found["attribution"] is not None:
            r = found["correlation"]
            said = "not defined" if r is None else f"{r:.3f}"
            out.print(Text(f"Attribution's correlation with what was measured: {said}.", style="dim"))


def _place(found: dict[str, Any]) -> str:
    return "head" if found["what"] == "heads" else "position"


def _grid(out: Console, found: dict[str, Any]) -> None:
    from rich.text import Text

    from glassformer.cli.next import visible

    grid = found["restored"]
    shown = [c for c in range(len(grid[0])) if any(abs(row[c]) >= 0.005 for row in grid)]
    most = max(4, (out.width - 6) // 5)
    if not shown:
        out.print(Text("No place brings half a percent of it back.", style="dim"))
        return
    if len(shown) > most:
        out.print(Text(f"The last {most} of {len(shown)} columns; --json, --png and --html have all.", style="dim"))
    shown = shown[-most:]
    names = [visible(found["columns"][c]).lstrip("␣") or "␣" for c in shown]
    out.print(Text("layer " + "".join(f"{name:.4}".rjust(5) for name in names), style="dim"))
    for layer, row in enumerate(grid):
        line: Text = Text(f"{layer:5} ", style="dim")
        for c in shown:
            line.append(f"{100 * row[c]:5.0f}", style=_shade(row[c]))
        out.print(line)


def _shade(x: float) -> str:
    return "bold cyan" if x >= 0.5 else "cyan" if x >= 0.1 else "red" if x <= -0.1 else "dim"
