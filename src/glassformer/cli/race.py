"""`glassformer race`: the whole passage at once against word by word."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.cli.common import BosOption, JsonOption, ModelOption, TextArgument, print_json, read_text
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.predict.race import Race

NAMES = {"at_once": "at once", "word_by_word": "word by word", "recurrent": "recurrent"}
COLOURS = {"at_once": "#0b7285", "word_by_word": "#c2410c", "recurrent": "#5f3dc4"}


def command(
    text: TextArgument,
    model: ModelOption = None,
    length: Annotated[
        list[int] | None,
        typer.Option("--length", "-n", metavar="N", help="A length to time; by default doubling ones and the whole."),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Timings of each; the shortest counts.")] = 3,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", "--out", "-o", metavar="FILE", help="Draw seconds against length: .svg, .png or .pdf."),
    ] = None,
    bos: BosOption = None,
    as_json: JsonOption = False,
) -> None:
    """Race one parallel forward against reading word by word.

    The same passage is read three ways: by the transformer in one forward, by the same transformer token by
    token with its key-value cache, and by a recurrent network (a GRU of the same width and about as many
    parameters, with random weights) that can only go step by step.
    """
    from glassformer.errors import UsageError

    if plot is not None and plot.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise UsageError(f"A plot is drawn as .svg, .png or .pdf; {plot} is none of them.")
    if plot is not None and not plot.parent.is_dir():
        raise UsageError(f"The plot cannot be written: there is no folder {plot.parent}.")
    if plot is not None and plot.suffix.lower() != ".svg":
        from glassformer.cli.common import need

        need("matplotlib", verb="race", extra="plot")
    passage = read_text(text)
    from glassformer.cli.common import note, open_model
    from glassformer.predict.race import race

    opened = open_model(model)
    found = race(
        opened.transformer,
        opened.ids(passage, bos),
        length or None,
        repeats=repeats,
        progress=None if as_json else lambda who, n: note(f"{n:,} token{'s' * (n > 1)}, {who} …"),
    )
    if plot is not None:
        draw(found, plot)
    if as_json:
        print_json({"model": opened.name, **found.to_dict()})
    else:
        _show(found, opened.name)


def _show(found: Race, name: str) -> None:
    from rich.table import Table

    from glassformer.cli.common import console

    out = console()
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("tokens", justify="right")
    for who in NAMES.values():
        table.add_column(f"{who}\nseconds", justify="right")
        table.add_column("tokens/s", justify="right", style="dim", vertical="bottom")
    table.add_column("at once is\nsooner by", justify="right")
    for lap in found.laps:
        row = [f"{lap.tokens:,}"]
        for who in NAMES:
            seconds = getattr(lap, who)
            row += [f"{seconds:.3g}", f"{lap.tokens / seconds:,.0f}"]
        table.add_row(*row, f"{lap.word_by_word / lap.at_once:.1f} ×")
    out.print()
    out.print(table)
    out.print()
    out.print(
        f"{name}: {found.parameters:,} parameters, {found.layers} layers, width {found.width:,}. "
        f"Recurrent: a GRU of {found.recurrent_parameters:,}, {found.recurrent_layers} layers, the same width, random "
        f"weights. {found.dtype} on {found.device}, {found.threads} threads.",
        style="dim",
    )
    gap = max(lap.gap for lap in found.laps)
    within = f"within {gap:.0e} of the largest logit" if gap else "to the bit"
    out.print(f"Both ways of the transformer gave the same answer, {within}.", style="dim")


def draw(found: Race, file: Path) -> None:
    """Seconds against length, both logarithmic."""
    if file.suffix.lower() == ".svg":
        files.write_text(file, _svg(found))
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150)
    x = [lap.tokens for lap in found.laps]
    for who, name in NAMES.items():
        axes.loglog(x, [getattr(lap, who) for lap in found.laps], marker="o", label=name, color=COLOURS[who])
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False)
    figure.tight_layout()
    files.write_with(file, lambda draft: figure.savefig(draft, format=file.suffix.lstrip(".") or "png"))
    pyplot.close(figure)


def _svg(found: Race) -> str:
    """The plot without any library."""
    width, height, left, right, top, bottom = 720, 420, 72, 132, 20, 52
    times = [getattr(lap, who) for lap in found.laps for who in NAMES]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)
    first, last = math.log2(found.laps[0].tokens), math.log2(found.laps[-1].tokens)
    last = max(last, first + 1)

    def x(tokens: int) -> float:
        return left + (math.log2(tokens) - first) / (last - first) * (width - left - right)

    def y(seconds: float) -> float:
        return height - bottom - (math.log10(seconds) - low) / (high - low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13" role="img" aria-label="Seconds to read a passage against its length in tokens">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{left}" y1="{at:.1f}" x2="{width - right}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end" fill="#444">{10.0**power:g} s</text>')
    for lap in found.laps:
        parts.append(
            f'<text x="{x(lap.tokens):.1f}" y="{height - bottom + 20}" text-anchor="middle" fill="#444">'
            f"{lap.tokens:,}</text>"
        )
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{height - 10}" text-anchor="middle" fill="#444">tokens</text>')
    ends = _apart([y(getattr(found.laps[-1], who)) for who in NAMES], 16)
    for (who, name), end in zip(NAMES.items(), ends, strict=True):
        points = [(x(lap.tokens), y(getattr(lap, who))) for lap in found.laps]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[who]}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{COLOURS[who]}"/>' for a, b in points]
        parts.append(f'<text x="{points[-1][0] + 10:.1f}" y="{end + 4:.1f}" fill="{COLOURS[who]}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _apart(places: list[float], least: float) -> list[float]:
    """The same places, moved down where two labels would overlap."""
    found = list(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    for above, below in itertools.pairwise(order):
        found[below] = max(found[below], found[above] + least)
    return found
