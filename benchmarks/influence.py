"""Influence of passages, verified by really training again without them.

A small model learns docstrings of Python's standard library, one passage each. For some held-out texts the effect of
every passage is computed, exactly (through the run's steps) and by gradients alone; then the run is really repeated,
each time without a random share of the passages. The score is the rank correlation, over the repetitions, of the sum of
what the left out passages were said to do with what came of it (the linear datamodelling score of arXiv:2303.14186).

The recipe is smooth, so that a slope says what a step away will do (arXiv:2504.16430): rows of about one passage, 32 of
them in a step, so that no step hangs on one passage, and an `eps` beside which AdamW's root is small.
"""

from __future__ import annotations

import ast
import json
import math
import os
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, report, table, verdict

SHARES = (0.01, 0.05, 0.2)
LONGEST = 78
"""Characters of a passage at most; a row holds two more tokens."""


def docstrings(many: int) -> list[str]:
    """Docstrings of a paragraph, in the order of the files' names."""
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                first = " ".join(text.split("\n\n")[0].split())
                if 40 <= len(first) <= 160 and first.isascii():
                    found[first] = None
    texts = list(found)
    random.Random(0).shuffle(texts)
    return [text for text in texts if len(text) <= LONGEST][:many]


def ranks(values: list[float]) -> list[float]:
    """Ranks from 0; equal values share theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    for rank, i in enumerate(order):
        found[i] = float(rank)
    return found


def spearman(a: list[float], b: list[float]) -> float:
    """Correlation of ranks."""
    return statistics.correlation(ranks(a), ranks(b))


def interval(score: Any, many: int, samples: int = 1000) -> tuple[float, float]:
    """The middle 95 % of a score over resampled repetitions."""
    draw = random.Random(1)
    found = sorted(score([draw.randrange(many) for _ in range(many)]) for _ in range(samples))
    return found[round(0.025 * samples)], found[round(0.975 * samples) - 1]


def main() -> None:
    parser = arguments(__doc__, rounds=30)
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--texts", type=int, default=5, help="held-out texts that are asked about")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=SHARES, help="of the passages, each left out in turn"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe")
    options = parser.parse_args()
    found = docstrings(options.passages + options.texts)
    learned, asked = found[: options.passages], found[options.passages :]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GLASSFORMER_CACHE"] = str(Path(folder, "cache"))
        run_benchmark(options, learned, asked, Path(folder))


def run_benchmark(options: Any, learned: list[str], asked: list[str], folder: Path) -> None:
    """Train, ask, train again, compare."""
    import torch

    from glassformer.train import train
    from glassformer.train.influence import influences, loss_on
    from glassformer.train.recipe import Recipe
    from glassformer.train.recorded import Recorded, trained_again

    torch.set_num_threads(options.threads)
    data = folder / "passages.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in learned), encoding="utf-8")
    recipe = Recipe(name="influence").with_settings(
        {
            "layers": 1,
            "width": 32,
            "heads": 2,
            "context": LONGEST + 2,
            "data": (str(data),),
            "tokenizer": "byte",
            "held_out": 0.0,
            "steps": options.steps,
            "batch": 32,
            "precision": "fp32",
            "threads": options.threads,
            "kind": "adamw",
            "matrix_lr": 0.01,
            "embed_lr": 0.01,
            "head_lr": 0.01,
            "vector_lr": 0.01,
            "beta1": 0.9,
            "eps": 1e-2,
            "decay": 0.8,
            "warmup": 10,
            "eval_every": 0,
            "save_every": 0,
            "native": "on",
        }
    )
    recipe = recipe.with_settings(options.set)
    train(recipe, out=folder / "run", quiet=True)
    run = Recorded(folder / "run")
    began = time.process_time()
    answers = influences(run, asked)
    spent = time.process_time() - began
    ids = [run.ids(text) for text in asked]
    began = time.process_time()
    plain = trained_again(run)
    once = time.process_time() - began
    same = all(torch.equal(plain[name], tensor) for name, tensor in run.weights().items())
    before = [loss_on(run, plain, one) for one in ids]
    passages = len(run.edges) - 1
    rows = []
    met = 0.0
    for share in options.shares:
        draw = random.Random(round(1000 * share))
        left = [draw.sample(range(passages), max(1, round(share * passages))) for _ in range(options.rounds)]
        changes: list[list[float]] = [[] for _ in asked]
        for number, without in enumerate(left):
            weights = trained_again(run, without)
            for i, one in enumerate(ids):
                changes[i].append(loss_on(run, weights, one) - before[i])
            print(f"\r{share:.0%} {number + 1}/{options.rounds}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for form in ("effects", "gradients"):
            said = [[sum(getattr(answer, form)[n] for n in one) for one in left] for answer in answers]

            def score(picked: list[int], said: list[list[float]] = said, real: list[list[float]] = changes) -> float:
                pairs = zip(said, real, strict=True)
                return statistics.fmean(spearman([a[k] for k in picked], [b[k] for k in picked]) for a, b in pairs)

            whole = score(list(range(options.rounds)))
            low, high = interval(score, options.rounds)
            print(f"{share:.0%} {form} {whole:.3f}", file=sys.stderr)
            worst = min(spearman(a, b) for a, b in zip(said, changes, strict=True))
            name = "through the steps" if form == "effects" else "gradients alone"
            size = statistics.fmean(abs(c) for one in changes for c in one)
            rows.append(
                [f"{share:.0%}", name, f"{whole:.3f}", f"{low:.3f} – {high:.3f}", f"{worst:.3f}", f"{size:.5f}"]
            )
            if share == options.shares[0] and form == "effects":
                met = whole
    notes = (
        f"{passages} passages, {run.steps} steps of {recipe.schedule.batch} rows, {run.config.n_layers} layers, "
        f"{sum(w.numel() for w in plain.values()):,} parameters, AdamW with eps {recipe.optimizer.eps:g} and rates "
        f"{recipe.optimizer.matrix_lr:g}; {len(asked)} held-out texts, on which the loss falls to "
        f"{statistics.fmean(before):.2f} nats a token from {math.log(run.config.vocab_size):.2f} of a model that knows "
        f"nothing; {options.rounds} repetitions a share; mean over texts of Spearman's correlation, its 95 % interval "
        "over resampled repetitions, the worst text, and by how much losses really changed (nats a token). Trained "
        f"again with everything, the weights are {'the same to the bit' if same else 'NOT the same'}. One takes "
        f"{once:.1f} s of processor time, the effects of all passages on all texts {spent:.0f} s in float64; "
        f"the replay's weights are within {answers[0].gap:.1e} of the recorded. Without {options.shares[0]:.0%}: "
        f"{met:.3f} ({verdict(met, least=0.9)})."
    )
    heads = ["left out", "form", "score", "interval", "worst text", "mean change"]
    report("influence", "Influence of passages", table(heads, rows), options, notes)


if __name__ == "__main__":
    main()
