"""`glassformer circuit`: the edges that carry what makes two prompts end differently."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import PositionOption, console, note
from glassformer.cli.looking import Look, Seen, at_least_one, looking
from glassformer.cli.patch import read_pairs
from glassformer.errors import UsageError, near
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace
    from glassformer.lm import Model


@looking(drawn=False)
def command(
    look: Look,
    clean: Annotated[
        str | None, typer.Argument(metavar="CLEAN", help="The prompt whose answer the circuit is to give.")
    ] = None,
    corrupted: Annotated[
        str | None, typer.Argument(metavar="CORRUPTED", help="What edges outside it carry: as many tokens.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help='Lines of {"clean": …, "corrupted": …, "answer": …, "wrong": …}.'),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="Prompts from a template: names, greater-than, agreement, capitals, induction, brackets or copying.",
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", help="How many of a task; half of them are held out.")
    ] = 20,
    metric: Annotated[str, typer.Option("--metric", help="logit_difference, probability or kl.")] = "logit_difference",
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TOKEN", help="The clean answer; the clean run's first choice.")
    ] = None,
    wrong: Annotated[
        str | None, typer.Option("--wrong", metavar="TOKEN", help="The other answer; the corrupted run's first choice.")
    ] = None,
    position: PositionOption = -1,
    faithfulness: Annotated[
        float, typer.Option("--faithfulness", "-f", help="The share of the difference to bring back, 0 to 1.")
    ] = 0.9,
    method: Annotated[str, typer.Option("--method", help="eap, eap-ig, eap-ig-activations or relp.")] = "eap-ig",
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help="Gradients that are averaged: 5, or 40 where 5 do not add up."),
    ] = None,
    exact: Annotated[
        str,
        typer.Option("--exact", help="Edges measured too: unreliable (and the strongest), strongest, all, or none."),
    ] = "unreliable",
    strongest: Annotated[
        int, typer.Option("--strongest", metavar="N", help="How many of the strongest edges are measured.")
    ] = 300,
    by_position: Annotated[bool, typer.Option("--by-position", help="Tell positions apart, for one pair.")] = False,
    top: Annotated[
        int | None, typer.Option("--top", "-k", metavar="K", help="How many edges to list: 20, or all in --json.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Save the circuit, for `complete --circuit`.")
    ] = None,
) -> Seen:
    """Find the edges that carry what makes two prompts differ.

    An edge leads from a part (embedding, head, feed-forward) to an input of a later one (a head's query, key or value).
    What each is worth is estimated from gradients; estimates that the curvature makes unreliable are replaced by
    running the model with that edge alone corrupted. The smallest set found, the circuit, then runs with every
    other edge as in CORRUPTED: faithfulness 1 means that it brings the whole difference back.
    """
    if exact not in ("unreliable", "strongest", "all", "none"):
        raise UsageError(f"--exact is unreliable, strongest, all or none; {exact!r} is none of them.")
    if strongest < 0:
        raise UsageError(f"--strongest is 0 or more; {strongest} is not.")
    at_least_one(top=1 if top is None else top)
    if by_position and (out is not None or task is not None):
        raise UsageError(
            "A circuit by position is of one pair of prompts and cannot be run on others; leave out --task and --out."
        )
    if task is not None:
        from glassformer.interp.tasks import TASKS

        if clean is not None or corrupted is not None or pairs is not None or answer is not None or wrong is not None:
            raise UsageError("A --task brings its own prompts and answers; give either it or prompts.")
        if task not in TASKS:
            raise UsageError(f"There is no task {task!r}; choose {', '.join(TASKS)}.{near(task, TASKS)}")
        if examples < 2:
            raise UsageError(f"--examples is 2 or more, so that some can be held out; {examples} is not.")
    given = [] if task is not None else read_pairs(pairs, clean, corrupted, answer, wrong)
    if out is not None:
        files.writable(out)
    opened, bos = look.open(), look.bos
    from glassformer.cli.passages import progress
    from glassformer.interp.circuit_search import circuit
    from glassformer.interp.edges import edges, prepared

    held: list[dict[str, Any]] = []
    accuracy = None
    trace = cache(lambda text: opened.trace(text, bos))
    if task is not None:
        given, held, accuracy = of_task(opened, task, examples, bos, trace)
    traces, others = ([(trace(p["clean"]), trace(p["corrupted"])) for p in prompts] for prompts in (given, held))
    with progress() as report:
        options: dict[str, Any] = {"metric": metric, "position": position}
        found = edges(
            traces,
            **options,
            answer=[p.get("answer") for p in given],
            wrong=[p.get("wrong") for p in given],
            method=method,  # type: ignore[arg-type]
            steps=steps,
            exact=exact,  # type: ignore[arg-type]
            strongest=strongest,
            by_position=by_position,
            progress=report,
        )
        data: dict[str, Any] = {"model": opened.name, "precision": opened.precision, "task": task, "accuracy": accuracy}
        data |= {"prompts": given}
        beside: tuple[Any, ...] = ()
        if held:
            named: dict[str, Any] = {"answer": [p["answer"] for p in held], "wrong": [p["wrong"] for p in held]}
            beside = prepared(others, **options, **named)
        result = circuit(found, faithfulness, held_out=beside, progress=report)
    if out is not None:
        from glassformer.interp.circuit_edit import circuit as run_alone

        run_alone(result).save(out)
        note(f"The circuit stands in {out}; glassformer complete --circuit {out} runs it alone.")
    data |= result.to_dict(top if look.as_json else top or 20)
    return Seen(data, lambda: show(data))


def of_task(
    opened: Model, task: str, count: int, bos: bool | None, trace: Callable[[str], Trace]
) -> tuple[list[Any], list[Any], float]:
    """Examples to find the circuit on, others to try it on, and the model's accuracy, which is said at once.

    Raises:
        TaskError: when the model cannot do the task.
    """
    from glassformer.interp.tasks import TASKS, tried

    rows, held, accuracy = tried(task, lambda text: opened.encode(text, bos), trace, count)
    note(f"{TASKS[task].what} {opened.name} gets {len(rows) + len(held)} of {count} examples right.")
    return rows, held, accuracy


def show(data: dict[str, Any]) -> None:
    """The prompts, the circuit and its edges, then how far to trust it."""
    from rich.text import Text

    out, found = console(), data["circuit"]
    _heading(data)
    needed = "each of which it needs" if found["pruned"] else "not pruned one by one"
    line = f"{found['size']} of {data['total_edges']:,} edges ({needed}) bring {found['f']:.0%} of it back"
    held = "" if found["held_out"] is None else f", {found['held_out']:.0%} on prompts held out"
    out.print(Text(line + held + ":", style="bold"))
    _edges(found["edges"][: len(data["edges"])])
    if len(found["edges"]) > len(data["edges"]):
        out.print(Text(f"  and {len(found['edges']) - len(data['edges'])} more; --top K lists K of them.", style="dim"))
    out.print()
    shares = " ".join(f"{100 * row['share']:g}%:{row['f']:.2f}" for row in data["faithfulness"])
    out.print(Text(f"Faithfulness of the best edges: {shares}"))
    chance = data["random"]
    out.print(
        Text(
            f"CPR {data['cpr']:.3f}, CMD {data['cmd']:.3f}; random edges {chance['cpr']:.3f} and {chance['cmd']:.3f}, "
            f"and as many of them as the circuit has bring {chance['f']:.0%} back."
        )
    )
    rivals = ", ".join(f"{row['size']}: {row['f']:.0%}" for row in data["rivals"])
    out.print(Text(f"Sets without any of its edges bring back, by size, {rivals}."))
    if data["jaccard"] is not None:
        out.print(Text(f"With the pairs drawn again, sets overlap by {data['jaccard']:.2f} (Jaccard)."))
    _measured(data)


def _heading(data: dict[str, Any]) -> None:
    """The prompts and what is measured of them."""
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    of = f", mean of {len(data['pairs'])} pairs" if len(data["pairs"]) > 1 else ""
    out.print(Text(f"{data['model']}, {data['precision']}; {data['unit']}{of}", style="dim"))
    for prompt, pair in list(zip(data["prompts"], data["pairs"], strict=True))[:2]:
        out.print(Text.assemble(("clean      ", "dim"), visible(prompt["clean"])))
        out.print(Text.assemble(("corrupted  ", "dim"), visible(prompt["corrupted"])))
        against = "" if pair["wrong"] is None else f" against {visible(pair['wrong'])!r}"
        said = "" if pair["answer"] is None else f"{visible(pair['answer'])!r}{against}: "
        out.print(Text(f"           {said}{pair['clean']:+.3f} and {pair['corrupted']:+.3f}"))
    out.print()


def _edges(rows: list[dict[str, Any]]) -> None:
    """Edges with what each is worth."""
    from rich.text import Text

    from glassformer.cli.next import visible

    for row in rows:
        value = row["estimate"] if row["exact"] is None else row["exact"]
        how = "" if row["exact"] is not None else "  estimated" + ("" if row["reliable"] else ", unreliable")
        at = f" at {visible(row['token'])!r} ({row['position']})" if "position" in row else ""
        console().print(Text.assemble(f"  {value:+8.3f}  {row['from']} → {row['to']}{at}", (how, "dim")))


def _measured(data: dict[str, Any]) -> None:
    """How many estimates are unreliable, how many edges were measured."""
    from rich.text import Text

    from glassformer.interp.edge_estimates import OFF

    r = data["correlation"]
    said = (
        f"{data['unreliable']:.1%} of the estimates are unreliable; {data['replaced']:.1%} of the edges were measured"
    )
    console().print(Text(said + ("." if r is None else f", and estimates match them with r = {r:.3f}."), style="dim"))
    whole = data["adds_up"]
    if whole is not None and abs(whole - 1) > OFF:
        said = "Averaged gradients that leave the embedding add up to"
        console().print(Text(f"{said} {whole:.0%} of the difference: take more --steps, or --exact all."))
