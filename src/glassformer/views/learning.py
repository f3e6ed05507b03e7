"""Learning: training runs, and one gradient step on a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from glassformer.errors import TextError
from glassformer.views.asks import Ask, Strict
from glassformer.views.registry import Check, view

if TYPE_CHECKING:
    from glassformer.views.report_data import Plan
    from glassformer.views.session import Session


class RunsAsk(Strict):
    pass


def _runs(plan: Plan) -> Any:
    for _, found in plan.kept("runs"):
        yield {}, {"runs": [one for one in found["runs"] if one["name"] == plan.options.run]}


@view("runs", RunsAsk, room="learning", report=_runs)
def runs(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """The training runs in the runs folder."""
    from glassformer.train.reading import list_runs

    return {"runs": [run.summary() for run in list_runs(session.runs)]}


class RunAsk(Strict):
    name: str = Field(description="The run's name.")


@view(
    "run",
    RunAsk,
    room="learning",
    report=lambda plan: plan.kept("run", name=plan.options.run) if plan.options.run else None,
)
def run(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """One run: its recipe, curves, samples, probes and checkpoints."""
    from glassformer.train.reading import read_run

    return read_run(session.runs, ask.name).to_dict()


class RunStepAsk(Ask):
    rate: float | None = Field(default=None, gt=0, description="Learning rate; by default one that suits the step.")
    top: int = Field(default=8, ge=1, le=50, description="Next tokens listed.")


@view(
    "run_step",
    RunStepAsk,
    room="learning",
    report=lambda plan: plan.tried("run_step", edits=[]),
    trims=("top",),
)
def run_step(session: Session, ask: Any, check: Check) -> dict[str, Any]:
    """One gradient step of a model on one sentence, before and after; the model itself is not changed."""
    from glassformer.train.gradient_step import one_step

    if not ask.text.strip():
        raise TextError("The sentence is empty; give at least two words.")
    model = session.model(ask.model)
    check()
    step = one_step(model.transformer, session.ids(ask), rate=ask.rate, movers=8)
    text = model.tokenizer.token_text
    order = torch.maximum(step.before[-1].exp(), step.after[-1].exp()).topk(ask.top).indices.tolist()
    return {
        "model": model.name,
        "rate": step.rate,
        "loss": step.loss,
        "loss_after": step.loss_after,
        "promised": step.promised,
        "gradient_norm": step.gradient_norm,
        "tokens": [
            {
                "after": text(step.ids[i]),
                "token": text(target),
                "before": float(step.before[i][target].exp()),
                "now": float(step.after[i][target].exp()),
            }
            for i, target in enumerate(step.ids[1:])
        ],
        "next": [
            {"token": text(i), "before": float(step.before[-1, i].exp()), "after": float(step.after[-1, i].exp())}
            for i in order
        ],
        "components": [
            {"name": name, "gradient": norm, "weights": step.weight_norms[name]}
            for name, norm in sorted(step.gradient_norms.items(), key=lambda item: -item[1])
        ],
        "movers": [{"name": m.name, "index": list(m.index), "before": m.before, "after": m.after} for m in step.movers],
    }
