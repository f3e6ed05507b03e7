"""`glassformer readout`: a lens fitted to a text, and how right it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glassformer.cli.common import console, note
from glassformer.cli.looking import Look, Seen, at_least_one, looking
from glassformer.errors import UsageError
from glassformer.system import files


@looking(drawn=False, reads=False)
def command(
    look: Look,
    text: Annotated[Path, typer.Argument(metavar="FILE", help="Your own text, of the kind that will be read.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="The file to write: one safetensors.")],
    kind: Annotated[str, typer.Option("--kind", help="tuned, jacobian, or relevance (the R-lens).")] = "tuned",
    tokens: Annotated[
        int | None, typer.Option("--tokens", help="At most so many of the text: 4096 for tuned, else 640.")
    ] = None,
    window: Annotated[int | None, typer.Option("--window", help="Tokens read at once: 128 for tuned, else 64.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Of training each tuned map; 0 for the regression alone.")] = 20,
    samples: Annotated[int, typer.Option("--samples", help="Edits per layer by which lenses are compared.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Of the held-out part, the training and the edits.")] = 0,
) -> Seen:
    """Fit a lens to a text: tuned, Jacobian or relevance.

    Per layer, how far the plain lens and the fitted one diverge from the model's own prediction on held-out text; and
    which is right: how well each lens' claims about small edits correlate with what the edits do. `lens --through PATH`
    reads through it.
    """
    try:
        written = text.read_text("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{text} is not UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"{text} cannot be read: {error.strerror}.") from None
    at_least_one(samples=samples)
    files.writable(out)
    opened = look.open()
    from glassformer.cli.passages import progress
    from glassformer.interp.agreement import agreement

    small = kind != "tuned"
    tokens = (640 if small else 4096) if tokens is None else tokens
    window = (64 if small else 128) if window is None else window
    ids = opened.encode(written[: 16 * max(tokens, 0) + 1])
    with progress() as report:
        found = opened.readout(ids, kind, window=window, tokens=tokens, steps=steps, seed=seed, progress=report)
    found.save(out)
    note(f"Wrote {out}.")
    trace = opened.trace(ids[-min(len(ids), window, opened.config.context) :])
    lenses = {"plain": None, kind: found}
    compared = [
        agreement(trace, layer, lenses, samples=samples, seed=seed).rows()
        for layer in range(opened.config.n_layers - 1)
    ]
    data = {**found.to_dict(), "saved": str(out), "agreement": [row for rows in compared for row in rows]}
    return Seen(data, lambda: show(data))


def show(data: dict[str, Any]) -> None:
    """Divergence and agreement by layer."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    title = f"{data['kind']} readout of {data['model']}, fitted to {data['tokens']} tokens, {data['held_out']} held out"
    out.print(Text(title, style="bold"))
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in ("layer", "KL plain", f"KL {data['kind']}", "agrees plain", f"agrees {data['kind']}"):
        table.add_column(name, justify="right")
    agrees = {(row["layer"], row["lens"]): row["correlation"] for row in data["agreement"]}
    for layer, (plain, kl) in enumerate(zip(data["plain"], data["kl"], strict=True)):
        pair = [agrees.get((layer, lens)) for lens in ("plain", data["kind"])]
        cells = ["–" if c is None else f"{c:.3f}" for c in pair]
        table.add_row(str(layer), f"{plain:.3f}", f"{kl:.3f}", *cells)
    out.print(table)
    out.print(
        Text(
            "KL: nats from the model's own prediction on held-out text. agrees: correlation of what the lens claims "
            "about edits with what they do.",
            style="dim",
        )
    )
