"""`glassformer neurons`: which feed-forward neurons pushed a prediction, and what they are about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import AgainstOption, PositionOption, TokenOption, console, read_text
from glassformer.cli.looking import Look, PageOf, Seen, at_least_one, looking
from glassformer.cli.passages import TextsOption
from glassformer.errors import UsageError

if TYPE_CHECKING:
    from glassformer.lm import Model


@looking
def command(
    look: Look,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="The text whose prediction is explained; - reads a pipe.")
    ] = None,
    token: TokenOption = None,
    against: AgainstOption = None,
    position: PositionOption = -1,
    neuron: Annotated[
        tuple[int, int] | None, typer.Option("--neuron", metavar="LAYER INDEX", help="Show this neuron alone.")
    ] = None,
    texts: TextsOption = None,
    top: Annotated[int, typer.Option("--top", "-k", metavar="K", help="How many neurons, or passages.")] = 10,
    words: Annotated[int, typer.Option("--words", metavar="N", help="How many tokens for each.")] = 5,
) -> Seen:
    """Show the feed-forward neurons behind a prediction.

    A neuron's share is exact, the norms' divisions as run. What it raises and lowers is its column read through the
    unembedding; what excites it are the tokens whose embeddings drive it most. With --texts, the passages of your
    own files where the neuron's output is largest: of --neuron, or of the first found.
    """
    at_least_one(top=top, words=words)
    if text is None and neuron is None:
        raise UsageError("Give a text whose prediction to explain, or a neuron with --neuron LAYER INDEX.")
    if text is not None and neuron is not None:
        raise UsageError("Give either a text or --neuron; a text's neurons are found, not named.")
    if neuron is not None and look.pictured:
        raise UsageError("Pictures are of a prediction's neurons; give a text.")
    text = None if text is None else read_text(text)
    opened = look.open()
    data: dict[str, Any] = {"model": opened.name, "precision": opened.precision}
    if text is not None:
        trace = opened.trace(text, look.bos)
        found = trace.neurons(token, against, position, k=top, words=words)
        data |= {"tokens": trace.tokens, **found.to_dict()}
        neuron = (found.neurons[0]["layer"], found.neurons[0]["index"])
    elif neuron is not None:
        data["neuron"] = alone(opened, neuron, words)
    if texts:
        data["passages"] = searched(opened, neuron, texts, top, look.bos)

    def page() -> PageOf:
        from glassformer.views.why import account

        assert text is not None
        why = trace.why(token, against, position, parts=400, words=0)
        given = {"why": account(trace, why), "neurons": data}
        beside = {"position": data["position"], "given": given, "token": token, "against": against, "look": ".neurons"}
        return opened, text, "why", {"trace": trace, **beside}

    return Seen(data, lambda: show(data), lambda: ("grid", grid(data)), page)


def alone(model: Model, neuron: tuple[int, int], words: int) -> dict[str, Any]:
    """One neuron by its weights."""
    from glassformer.interp.neurons import excited_by, writes
    from glassformer.interp.vocabulary import known_ids

    known = known_ids(model.tokenizer, model.config.vocab_size)
    raised, lowered = writes(model.transformer, *neuron, words, known)
    excited = excited_by(model.transformer, *neuron, words, known)
    name = model.tokenizer.token_text
    return {
        "layer": neuron[0] % model.config.n_layers,
        "index": neuron[1],
        "raises": [name(i) for i in raised],
        "lowers": [name(i) for i in lowered],
        "excited_by": [name(i) for i in excited],
    }


def searched(
    model: Model, neuron: tuple[int, int] | None, files: list[Path], top: int, bos: bool | None
) -> dict[str, Any]:
    """Where in the user's texts the neuron's output is largest."""
    from glassformer.cli.passages import traces_of
    from glassformer.interp.neurons import passages

    assert neuron is not None
    found = passages(traces_of(model, files, bos), *neuron, top)
    return {"layer": neuron[0] % model.config.n_layers, "index": neuron[1], "found": [vars(p) for p in found]}


def grid(data: dict[str, Any]) -> dict[str, Any]:
    """The neurons' shares as a picture's data."""
    from glassformer.interp.tables import grid_view

    return grid_view(
        f"{data['model']}: neurons behind {data['token']!r}",
        [f"{n['layer']}.{n['index']} raises {' '.join(n['raises'][:3])}" for n in data["neurons"]],
        ["share"],
        [[n["contribution"]] for n in data["neurons"]],
        data["unit"],
        f"{data['precision']}; all feed-forward neurons together {data['all']:+.3f} of {data['value']:+.3f}",
    )


def show(data: dict[str, Any]) -> None:
    """The neurons, or one; then the passages."""
    from rich.table import Table
    from rich.text import Text

    from glassformer.cli.next import visible
    from glassformer.cli.passages import in_context

    def listed(tokens: list[str]) -> Text:
        return Text("  ".join(map(visible, tokens)))

    out = console()
    if "neurons" in data:
        out.print(Text(f"{visible(data['token'])!r} after position {data['position']}", style="bold"))
        out.print(
            Text(
                f"{data['unit']}: {data['value']:+.3f}; feed-forward neurons together {data['all']:+.3f}; "
                f"{data['model']}, {data['precision']}",
                style="dim",
            )
        )
        if data["written_over"]:
            layers = ", ".join(map(str, data["written_over"]))
            out.print(Text(f"A tap wrote the output of layer {layers}, so its neurons have no share.", style="dim"))
        table = Table(box=None, padding=(0, 1), pad_edge=False)
        for name in ("layer.neuron", "output", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("so raises", "so lowers", "excited by"):
            table.add_column(name)
        for n in data["neurons"]:
            table.add_row(
                f"{n['layer']}.{n['index']}",
                f"{n['activation']:+.2f}",
                f"{n['contribution']:+.3f}",
                *(listed(n[key]) for key in ("raises", "lowers", "excited_by")),
            )
        out.print(table)
    if "neuron" in data:
        n = data["neuron"]
        out.print(Text(f"Layer {n['layer']}, neuron {n['index']}", style="bold"))
        out.print(Text(f"{data['model']}, {data['precision']}; from the weights alone", style="dim"))
        for name, key in (("raises", "raises"), ("lowers", "lowers"), ("excited by", "excited_by")):
            out.print(Text.assemble(f"{name:11}", listed(n[key])))
    if "passages" in data:
        found = data["passages"]
        out.print()
        out.print(Text(f"Where neuron {found['layer']}.{found['index']} puts out most in your texts", style="bold"))
        for p in found["found"]:
            out.print(in_context(f"{p['activation']:+8.2f}", p["before"], p["token"], p["after"]))
