"""`glassformer step`: one gradient step on one sentence, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import BosOption, JsonOption, TextArgument

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.train.gradient_step import GradientStep


def command(
    source: Annotated[str, typer.Argument(metavar="RUN", help="A training run or any other model.")],
    text: TextArgument,
    rate: Annotated[
        float | None, typer.Option("--rate", help="The learning rate; by default what should take --share of the loss.")
    ] = None,
    share: Annotated[
        float, typer.Option("--share", help="The share of the loss that the step should take away.")
    ] = 0.1,
    top: Annotated[int, typer.Option("--top", min=1, help="Rows of each list.")] = 8,
    bos: BosOption = None,
    json: JsonOption = False,
) -> None:
    """Take one gradient step on a sentence and show what changed.

    What the loss asked of each component, which weights move furthest, and every next token's probability before and
    after. The model on disk never changes.
    """
    from glassformer.cli.common import open_model, print_json, read_text
    from glassformer.train.gradient_step import one_step

    model = open_model(source, dtype="float32")
    ids = model.encode(read_text(text), bos=bos)
    step = one_step(model.transformer, ids, rate=rate, share=share, movers=top)
    print_json(_plain(model, step, top)) if json else _show(model, step, top)


def _tokens(model: Model, step: GradientStep) -> list[dict[str, Any]]:
    rows = []
    for i, target in enumerate(step.ids[1:]):
        before, after = step.before[i], step.after[i]
        best = int(before.argmax())
        rows.append(
            {
                "after": model.decode([step.ids[i]]),
                "token": model.decode([target]),
                "before_p": float(before[target].exp()),
                "after_p": float(after[target].exp()),
                "guess": model.decode([best]),
                "guess_before_p": float(before[best].exp()),
                "guess_after_p": float(after[best].exp()),
            }
        )
    return rows


def _last(model: Model, step: GradientStep, top: int) -> list[dict[str, Any]]:
    order = step.after[-1].topk(min(top, step.after.shape[1])).indices.tolist()
    return [
        {"token": model.decode([i]), "before": float(step.before[-1, i].exp()), "after": float(step.after[-1, i].exp())}
        for i in order
    ]


def _plain(model: Model, step: GradientStep, top: int) -> dict[str, Any]:
    return {
        "model": model.name,
        "rate": step.rate,
        "loss": step.loss,
        "loss_after": step.loss_after,
        "promised": step.promised,
        "gradient_norm": step.gradient_norm,
        "gradient_norms": step.gradient_norms,
        "weight_norms": step.weight_norms,
        "tokens": _tokens(model, step),
        "next": _last(model, step, top),
        "movers": [{"name": m.name, "index": list(m.index), "before": m.before, "after": m.after} for m in step.movers],
    }


def _show(model: Model, step: GradientStep, top: int) -> None:
    from rich.table import Table

    from glassformer.cli.common import console

    out = console()
    fall = step.loss - step.loss_after
    out.print(
        f"loss {step.loss:.4f} → {step.loss_after:.4f} nats a token: it fell by {fall:.4f}, where the gradient "
        f"promised {step.promised:.4f} (rate {step.rate:.3g} × norm {step.gradient_norm:.4g}²)\n",
        markup=False,
        soft_wrap=True,
    )
    words = Table("token", "before", "after", "its first guess", "before", "after", box=None, title_justify="left")
    for row in _tokens(model, step):
        cells = (
            row["token"],
            row["before_p"],
            row["after_p"],
            row["guess"],
            row["guess_before_p"],
            row["guess_after_p"],
        )
        words.add_row(*(_cell(cell) for cell in cells))
    out.print(words)
    nexts = Table("next token now", "before", "after", box=None)
    for row in _last(model, step, top):
        nexts.add_row(*(_cell(row[key]) for key in ("token", "before", "after")))
    out.print(nexts)
    asked = Table("component", "gradient norm", "relative to its weights", box=None)
    ranked = sorted(step.gradient_norms, key=lambda name: -step.gradient_norms[name])
    for name in ranked[:top]:
        gradient, weight = step.gradient_norms[name], step.weight_norms[name]
        asked.add_row(name, f"{gradient:.4g}", f"{gradient / weight:.3g}" if weight else "its weights are 0")
    out.print(asked)
    movers = Table("weight that moved furthest", "before", "after", box=None)
    for m in step.movers:
        movers.add_row(_escape(f"{m.name}[{', '.join(map(str, m.index))}]"), f"{m.before:+.5f}", f"{m.after:+.5f}")
    out.print(movers)


def _cell(value: object) -> str:
    return f"{100 * value:.2f} %" if isinstance(value, float) else _escape(repr(value))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
