"""`glassformer direction`: a direction from examples, what it moves, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glassformer.cli.common import console, note
from glassformer.cli.looking import Look, Seen, looking
from glassformer.errors import UsageError
from glassformer.system import files


@looking(drawn=False, reads=False)
def command(
    look: Look,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the direction stands for.")],
    positive: Annotated[Path, typer.Option("--positive", metavar="FILE", help="Texts that have it, one a line.")],
    negative: Annotated[Path, typer.Option("--negative", metavar="FILE", help="Texts that do not, one a line.")],
    layer: Annotated[
        int, typer.Option("--layer", "-l", help="In the stream after this layer; negative from the last.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="mean, the difference of means; probe, a logistic probe's normal; or das: line pairs up with line, "
            "and a subspace is trained so that exchanging it exchanges the answer.",
        ),
    ] = "mean",
    dimensions: Annotated[int, typer.Option("--dimensions", metavar="K", help="Of the subspace, for das.")] = 1,
    position: Annotated[
        str, typer.Option("--position", help="last, each text's last token; or mean, the mean of all but the first.")
    ] = "last",
    strength: Annotated[
        float, typer.Option("--strength", help="How many times it is added to see what else moves.")
    ] = 1.0,
    neutral: Annotated[
        Path | None, typer.Option("--neutral", metavar="FILE", help="A text that is not about it; a plain one without.")
    ] = None,
    shuffles: Annotated[
        int | None, typer.Option("--shuffles", help="How often labels are shuffled for the control: 20, or 3 for das.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the shuffles and the held-out parts.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Write PATH.safetensors and PATH.json.")
    ] = None,
) -> Seen:
    """Find a direction from examples, to steer by.

    Accuracy is on held-out examples; beside it the same procedure on shuffled labels, which says what so many
    dimensions reach by chance. For das it is the share of exchanges that bring the other text's answer.
    `complete --steer PATH=2` adds the saved direction twice.
    """
    texts = {"positive": _lines(positive), "negative": _lines(negative)}
    plain = None if neutral is None else "\n".join(_lines(neutral))
    if out is not None:
        files.writable(f"{out}.safetensors")
    opened = look.open()
    from glassformer.interp.edits import steer

    found = opened.direction(
        name,
        **texts,
        layer=layer,
        method=method,
        position=position,
        shuffles=shuffles,
        dimensions=dimensions,
        seed=seed,
    )
    moved = opened.edited(steer(found, strength=strength)).moved(plain).to_dict()
    data: dict[str, Any] = {**found.to_dict(), "strength": strength, "moved": moved}
    if out is not None:
        data["saved"] = str(found.save(out))
        note(f"Wrote {data['saved']}.safetensors and {data['saved']}.json.")
    return Seen(data, lambda: show(data))


def _lines(path: Path) -> list[str]:
    try:
        found = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    if not found:
        raise UsageError(f"{path} holds no text; give at least one line.")
    return found


def show(data: dict[str, Any]) -> None:
    """How far to trust the direction, and what it moves."""
    from rich.text import Text

    from glassformer.cli.next import visible

    out = console()
    how = {"mean": "difference of means", "probe": "probe", "das": "aligned by exchanging"}[data["method"]]
    out.print(Text(f"“{data['name']}”, {how} after layer {data['layer']}, length {data['norm']:.2f}", style="bold"))
    out.print(Text(f"{data['model']}; {data['positive']} positive and {data['negative']} negative texts", style="dim"))
    if data["method"] == "das":
        coin = (
            "" if data["shuffled"] is None else f"; trained towards a coin's answers, as the coin said {_share(data)}"
        )
        out.print(
            f"Exchanged at the last token of {data['held_out']} held-out pairs, {data['dimensions']} of the stream's "
            f"dimensions bring the other's answer in {data['accuracy']:.1%} ({data['trained']:.1%} where trained); "
            f"random ones in {data['random']:.1%}, the whole stream in {data['whole']:.1%}{coin}."
        )
    elif data["accuracy"] is None:
        out.print("Too few examples to hold any out: nothing says that it is not chance.")
    else:
        out.print(
            f"Held-out accuracy {data['accuracy']:.1%}; with shuffled labels {_share(data)}; "
            f"selectivity {data['selectivity']:+.1%}."
        )
    moved = data["moved"]
    out.print(
        f"Added {data['strength']:g} times to a neutral text of {moved['positions']} tokens: KL {moved['kl_mean']:.4f} "
        f"nats on average, {moved['kl_max']:.4f} at most; another first choice at {moved['top_changed']:.1%}."
    )
    for label in ("raised", "lowered"):
        tokens = ", ".join(f"{visible(t['token'])} {t['before']:.2%} → {t['after']:.2%}" for t in moved[label][:6])
        out.print(Text(f"{label}: {tokens or 'nothing'}"))


def _share(data: dict[str, Any]) -> str:
    return f"{data['shuffled']:.1%} ± {data['shuffled_deviation']:.1%} ({data['shuffles']} times)"
