"""`glassformer train`: a model from raw text."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from glassformer.cli.common import JsonOption


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="A recipe's name or a .toml file; --recipes lists the names."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", help="Files, folders, globs, hf:NAME or -; without it, Python's own library."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one setting of the recipe.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The run directory; runs/RECIPE by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest sound checkpoint, or begin.")] = False,
    step: Annotated[
        int | None,
        typer.Option("--from", metavar="STEP", min=0, help="Go back to the checkpoint of this step; 0 begins anew."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would cost, and stop.")] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="List the recipes with the loss, time and memory to expect, and stop.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a model from raw text.

    The run directory is a model like any other: glassformer next --model runs/NAME "…". Ctrl-C saves a checkpoint
    and leaves; --resume goes on from it, to the bit. Under torchrun the same command uses all processes.
    """
    from glassformer.cli.common import print_json

    if recipes:
        _list(json)
        return
    if dry_run:
        from glassformer.train.plan import plan

        found = plan(recipe, data, out, resume or step is not None, settings or [])
        print_json(found.to_dict()) if json else print(found.text())
        return
    if not resume:
        from glassformer.train import native

        native.begin_for(recipe, settings or [])  # while torch is imported and the data are read
    from glassformer.cli.probes import standard
    from glassformer.train.run import train

    result = train(recipe, data, out, resume, (standard(),), False, settings or [], step)
    first = int(os.environ.get("RANK", "0")) == 0
    if json and first:
        print_json(_plain(result))
    if result.interrupted and not first:
        raise typer.Exit(130)
    if result.interrupted:
        from glassformer.cli.common import note

        note(f"Stopped at step {result.step} with a checkpoint; go on: glassformer train --resume --out {result.path}")
        raise typer.Exit(130)
    if first and not json:
        _say(result)


def _say(result: object) -> None:
    import math

    from glassformer.train.loop import Result

    assert isinstance(result, Result)
    loss = "" if math.isnan(result.loss) else f", held-out loss {result.loss:.4f} nats a token"
    bits = "" if math.isnan(result.bits_per_byte) else f" ({result.bits_per_byte:.3f} bits a byte)"
    print(f"{result.path}: {result.step} steps in {result.seconds:.1f} s{loss}{bits}")
    print(f'Try: glassformer complete --model {result.path} "The "')


def _plain(result: object) -> dict[str, object]:
    import dataclasses
    import math

    values = dataclasses.asdict(result)  # type: ignore[call-overload]
    values["path"] = str(values["path"])
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _list(json: bool) -> None:
    from glassformer.cli.common import print_json
    from glassformer.train.recipe import EXPECTED, load, names

    found = [load(name) for name in names()]
    if json:
        print_json([{"name": r.name, "about": r.about, "exports": r.exports, "expect": vars(r.expect)} for r in found])
        return
    for r in found:
        exports = "exports to " + " and ".join(r.exports) if r.exports else "no other library loads it"
        print(f"{r.name}: {r.about}\n    {exports}")
        for name, value in vars(r.expect).items():
            if value:
                print(f"    {EXPECTED[name]}: {value}")
