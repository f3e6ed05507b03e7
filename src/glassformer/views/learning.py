"""Views of models as things: their size, the catalogue, training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from glassformer.errors import SourceError, TextError

if TYPE_CHECKING:
    from glassformer.lm import Model
    from glassformer.views.session import Check, Studio


def size(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """Where every parameter, FLOP and byte of a design goes; of the current model when none is named."""
    from glassformer.count import count

    model = None if ask.name is not None else studio.model(ask.model)
    subject: Any = ask.name if model is None else model.config
    counted = count(subject) if ask.context is None else count(subject, context=ask.context)
    return {**counted.to_dict(), "name": ask.name if model is None else model.name}


def models(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The catalogue's models, and which are here and open."""
    from glassformer.fetch.catalogue import CATALOGUE

    listed = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "licence": entry.licence,
            "bytes": entry.artifact.bytes if entry.artifact else None,
            "open": entry.name in studio.opened,
        }
        for entry in CATALOGUE.values()
    ]
    others = [
        {"name": n, "summary": "", "licence": "", "bytes": None, "open": True}
        for n in studio.opened
        if not n.startswith("run:")
    ]
    known = {entry["name"] for entry in listed}
    return {"current": studio.current, "models": listed + [o for o in others if o["name"] not in known]}


def runs(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """The training runs in the runs folder."""
    from glassformer.train.reading import list_runs

    return {"runs": [run.summary() for run in list_runs(studio.runs)]}


def run(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """One run: its recipe, curves, samples, probes and checkpoints."""
    from glassformer.train.reading import read_run

    return read_run(studio.runs, ask.name).to_dict()


def run_step(studio: Studio, ask: Any, check: Check) -> dict[str, Any]:
    """One gradient step of a model on one sentence, before and after; the model itself is not changed."""
    from glassformer.train.gradient_step import one_step

    if not ask.text.strip():
        raise TextError("The sentence is empty; give at least two words.")
    model = studio.model(ask.model)
    check()
    step = one_step(model.transformer, studio.ids(ask), rate=ask.rate, movers=8)
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


def open_run(folder: str, source: str) -> Model:
    """The model of "run:NAME" (its newest checkpoint) or "run:NAME@STEP".

    Raises:
        SourceError, CheckpointError: no such run or step, or one that is damaged.
    """
    from glassformer.lm import Model
    from glassformer.model import Transformer
    from glassformer.tokenizer.tokenizer import Tokenizer
    from glassformer.train.reading import read_run

    name, at, step = source.removeprefix("run:").rpartition("@")
    if not at:
        name, step = step, ""
    if step and not step.isdecimal():
        raise SourceError(f"A checkpoint is asked for as run:NAME@STEP, such as run:{name}@100; got {source!r}.")
    stored = read_run(folder, name)
    taken, config, tensors = stored.weights(int(step) if step else None)
    transformer = Transformer.empty(config).load(tensors, dtype=torch.float32)
    tokenizer = Tokenizer.from_directory(stored.path)
    return Model(transformer, tokenizer, name=f"{name}, step {taken}", source=str(stored.path))
