"""Learning: training runs, and one gradient step on a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from glassformer.errors import SourceError, TextError, UsageError
from glassformer.tokenizer.spelling import spelled_alone
from glassformer.views.arrays import packed
from glassformer.views.asks import Ask, Strict
from glassformer.views.registry import Check, Json, view

if TYPE_CHECKING:
    from glassformer.views.report_data import ReportDraft
    from glassformer.views.session import Session


# Where on the line through a step its loss is computed, in steps.
ALONG = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
# Of a film: rows and columns of a matrix, and tokens' vectors, that are shown.
SIDE, DOTS = 64, 200


class RunsAsk(Strict):
    pass


def _runs(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    for _, found in draft.kept("runs"):
        yield {}, {"runs": [one for one in found["runs"] if one["name"] == draft.options.run]}


@view("runs", RunsAsk, room="learning", report=_runs)
def runs(session: Session, ask: RunsAsk, check: Check) -> Json:
    """The training runs in the runs folder."""
    from glassformer.train.reading import list_runs

    return {"runs": [run.summary() for run in list_runs(session.runs)]}


class RunAsk(Strict):
    name: str = Field(description="The run's name.")


@view(
    "run",
    RunAsk,
    room="learning",
    report=lambda draft: draft.kept("run", name=draft.options.run) if draft.options.run else None,
)
def run(session: Session, ask: RunAsk, check: Check) -> Json:
    """One run: its recipe, curves, samples, probes and checkpoints."""
    from glassformer.train.reading import read_run

    return read_run(session.runs, ask.name).to_dict()


class FilmAsk(Strict):
    name: str = Field(description="The run's name.")
    layer: int | None = Field(default=None, ge=0, description="Layer whose patterns are shown; by default the first.")
    head: int = Field(default=0, ge=0, description="Head whose patterns are shown.")
    weight: str | None = Field(default=None, description="Weight matrix shown; the first that is kept by default.")


@view("film", FilmAsk, room="learning", report=lambda draft: _filmed(draft))
def film(session: Session, ask: FilmAsk, check: Check) -> Json:
    """The film of a run: at each frame the sample, the likeliest next tokens, one head's pattern, embeddings in the
    plane of the last frame's two principal axes, and one weight matrix (at most 64 rows and columns)."""
    from glassformer.train import film as kept
    from glassformer.train.reading import read_run

    run = read_run(session.runs, ask.name)
    frames = []
    for path in run.frames.values():
        check()
        frames.append(kept.read(path))
    if not frames:
        raise SourceError(f"The run {ask.name} keeps no film; train with film=20 to have one.")
    about, last = frames[-1]
    named = sorted(name for name, x in last.items() if x.ndim == 2 and name.startswith("model."))
    matrices = [name.removeprefix("model.") for name in named]
    patterns = {int(name.removeprefix("pattern.")): len(x) for name, x in last.items() if name.startswith("pattern.")}
    layer = ask.layer if ask.layer is not None else min(patterns, default=None)
    if layer is not None and ask.head >= patterns.get(layer, 0):
        raise SourceError(f"The film of {ask.name} has no pattern of layer {layer}, head {ask.head}.")
    grids = None if layer is None else torch.stack([x[f"pattern.{layer}"][ask.head].float() for _, x in frames])
    # The blocks' own matrices before the tables, which the dots show already.
    shown = ask.weight or next((name for name in matrices if name.startswith("blocks.")), next(iter(matrices), None))
    if shown is not None and shown not in matrices:
        raise SourceError(f"The film of {ask.name} keeps no matrix {shown!r}; it keeps {', '.join(matrices)}.")
    return {
        "name": run.name,
        "whole": about["whole"],
        "context": about["config"]["context"],
        "tokens": about["tokens"],
        "heads": [[layer, heads] for layer, heads in sorted(patterns.items())],
        "layer": layer,
        "head": ask.head,
        "frames": [{"step": one["step"], "text": one["text"], "next": one["next"]} for one, _ in frames],
        "patterns": None if grids is None else packed(grids),
        "matrices": matrices,
        "weight": shown,
        **_weights(frames, shown),
        **_dots(frames, run),
    }


def _weights(frames: list[Any], name: str | None) -> Json:
    if name is None:
        return {"shape": None, "weights": None}
    seen = [x[f"model.{name}"] for _, x in frames]
    return {"shape": list(seen[0].shape), "weights": packed(torch.stack([x[:SIDE, :SIDE].float() for x in seen]))}


def _dots(frames: list[Any], run: Any) -> Json:
    """Rows of the embedding at each frame, laid onto the two principal axes of the last frame's."""
    from glassformer.tokenizer.tokenizer import Tokenizer

    if "model.embed.weight" not in frames[-1][1]:
        return {"dots": None, "dot_tokens": [], "dots_shown": []}
    tokenizer = Tokenizer.from_directory(run.path)
    listed = [i for i in tokenizer.token_ids if i not in tokenizer.special_ids]
    wordlike = [i for i in listed if tokenizer.token_text(i).strip().isalpha()]
    chosen = (wordlike if len(wordlike) >= 20 else listed)[:DOTS]
    rows = torch.stack([x["model.embed.weight"][chosen].double() for _, x in frames])
    centred = rows - rows.mean(1, keepdim=True)
    _, _, axes = torch.linalg.svd(centred[-1], full_matrices=False)
    dots = centred @ axes[:2].T
    share = dots.pow(2).sum((1, 2)) / centred.pow(2).sum((1, 2)).clamp(min=1e-12)
    return {"dots": packed(dots), "dot_tokens": spelled_alone(tokenizer, chosen), "dots_shown": share.tolist()}


def _filmed(draft: ReportDraft) -> Iterator[tuple[Json, Json]]:
    from glassformer.train.reading import read_run

    name = draft.options.run
    if name and read_run(draft.session.runs, name).frames:
        yield from draft.kept("film", name=name)


def repeated(session: Session, ask: Any, check: Check) -> Iterator[Json]:
    """The same step on one sentence, until every token of it is the likeliest; each step as it is taken.

    A step that would raise the loss is followed by one half as long.
    """
    from glassformer.train.gradient_step import Descent

    if not ask.text.strip():
        raise TextError("The sentence is empty; give at least two words.")
    model = session.model(ask.model)
    ids, share = model.ids(ask.text), ask.share
    descent = Descent(model.transformer, ids)
    for number in range(1, ask.steps + 1):
        check()
        if descent.learnt:
            yield {"learnt": True, "steps": number - 1}
            return
        step = descent.step(share=share)
        if step.loss_after > step.loss:
            share /= 2
        writes = spelled_alone(model.tokenizer, step.after[:-1].argmax(-1).tolist())
        written = spelled_alone(model.tokenizer, ids)
        yield {
            "step": number,
            "loss": step.loss,
            "loss_after": step.loss_after,
            "promised": step.promised,
            "rate": step.rate,
            "tokens": [
                {"token": written[i + 1], "now": float(step.after[i][target].exp()), "writes": writes[i]}
                for i, target in enumerate(ids[1:])
            ],
        }
    yield {"learnt": descent.learnt, "steps": ask.steps}


class InfluenceAsk(Strict):
    name: str = Field(description="The run's name.")
    text: str = Field(description="The text asked about, as the beginning of a document.")
    top: int = Field(default=10, ge=1, le=200, description="Passages listed.")


@view("influence", InfluenceAsk, room="learning", trims=("top",), python="gf.influence({name!r}, {text!r}, top={top})")
def influence(session: Session, ask: InfluenceAsk, check: Check) -> Json:
    """Which passages of its training text taught a small run a text: by how much the loss on it would rise without
    each, through all steps of the run."""
    from glassformer.train.influence import influence as found
    from glassformer.train.reading import read_run

    if not ask.text.strip():
        raise TextError("The text is empty; give at least two tokens.")
    run = read_run(session.runs, ask.name)
    return found(run.path, ask.text, top=ask.top, progress=lambda done, total: check()).to_dict()


class RunStepAsk(Ask):
    rate: float | None = Field(
        default=None, gt=0, le=1000, description="Learning rate; by default one that suits the step."
    )
    top: int = Field(default=8, ge=1, le=50, description="Next tokens listed.")


@view(
    "run_step",
    RunStepAsk,
    room="learning",
    report=lambda draft: draft.tried("run_step", edits=[]),
    trims=("top",),
)
def run_step(session: Session, ask: RunStepAsk, check: Check) -> Json:
    """One gradient step of a model on one sentence, before and after; the model itself is not changed."""
    from glassformer.train.gradient_step import one_step

    if not ask.text.strip():
        raise TextError("The sentence is empty; give at least two words.")
    if ask.edits:
        raise UsageError("A step is taken by the model as it is; ask for it without edits.")
    model = session.model(ask.model)
    check()
    step = one_step(model.transformer, session.ids(ask), rate=ask.rate, movers=8, along=ALONG)
    written = spelled_alone(model.tokenizer, step.ids)
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
                "after": written[i],
                "token": written[i + 1],
                "before": float(step.before[i][target].exp()),
                "now": float(step.after[i][target].exp()),
            }
            for i, target in enumerate(step.ids[1:])
        ],
        "next": [
            {"token": token, "before": float(step.before[-1, i].exp()), "after": float(step.after[-1, i].exp())}
            for token, i in zip(spelled_alone(model.tokenizer, order), order, strict=True)
        ],
        "components": [
            {"name": name, "gradient": norm, "weights": step.weight_norms[name]}
            for name, norm in sorted(step.gradient_norms.items(), key=lambda item: -item[1])
        ],
        "slice": [list(point) for point in step.slice],
        "movers": [{"name": m.name, "index": list(m.index), "before": m.before, "after": m.after} for m in step.movers],
    }
