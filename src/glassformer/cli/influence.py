"""`glassformer influence`: which passages of its training text taught a run a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.cli.common import JsonOption, TextArgument

if TYPE_CHECKING:
    from glassformer.train.influence import Influence


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A training run of a small model: its directory.")],
    text: TextArgument,
    top: Annotated[int, typer.Option("--top", min=1, help="Passages listed.")] = 10,
    json: JsonOption = False,
) -> None:
    """Show which passages of its training text taught a run a text.

    The run is replayed from its seed and differentiated step by step, so the run must be small and its training text as
    it was. Each passage's effect is by how much the loss on the text would rise had the passage been left out.
    """
    from rich.console import Console

    from glassformer.cli.common import console, print_json, read_text
    from glassformer.train.influence import influence

    asked = read_text(text)
    with Console(stderr=True).status("replaying the run") as shown:
        found = influence(
            run,
            asked,
            top=top,
            progress=lambda done, total: shown.update(f"replaying the run: {100 * done // total} %"),
        )
    print_json(found.to_dict()) if json else _show(found, console())


def _show(found: Influence, out: object) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    assert isinstance(out, Console)
    out.print(
        f"loss {found.loss:.4f} nats a token, through {found.steps:,} steps in {found.precision}; the replay ends "
        f"within {found.gap:.1e} of the weights that the run saved (their loss: {found.recorded:.4f})\n",
        markup=False,
        soft_wrap=True,
    )
    table = Table("loss without it", "by gradients alone", "from", "passage", box=None)
    for one in found.passages:
        name = one.origin.rpartition("/")[2]
        table.add_row(
            f"{one.effect:+.6f}", f"{one.gradient:+.3g}", escape(name), escape(" ".join(one.text.split())[:100])
        )
    out.print(table)
    out.print("\n+ : it taught the text; − : the text would be foretold better without it.", markup=False)
