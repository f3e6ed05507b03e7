"""What keeping documents apart costs: training steps on full rows apart and together in turn, and eval's own batch.

Rows of 1,024 tokens hold documents of 200 or of 2,000 tokens (random letters, a token each); a step apart is held to
the same step together. `eval` reads 111,539 characters of such documents with its own batch and with others.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import arguments, report, table, verdict
from trees import interval

LENGTHS = (200, 2000)
CHARACTERS = 111_539
BATCHES = (1, 16, 64, 256)
SHAPE: dict[str, Any] = {"layers": 4, "width": 256, "heads": 4, "context": 1024, "batch": 2, "tokenizer": "byte"}
SMALL: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4, "context": 128, "tokenizer": "byte"}


def texts(folder: Path, length: int, characters: int) -> Path:
    """A file of documents of so many random letters each."""
    import json

    drawn = random.Random(1)
    count = -(-characters // length)
    path = folder / f"{length}-{characters}.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            size = min(length, characters - i * length)
            out.write(json.dumps({"text": "".join(drawn.choices("abcdefgh ", k=size))}) + "\n")
    return path


def stepping(data: Path, pack: str, native: bool) -> Any:
    """A function that takes one training step and returns its seconds."""
    import torch

    from glassformer.data.corpus import build_corpus
    from glassformer.model import Transformer
    from glassformer.tokenizer.train import byte_tokenizer
    from glassformer.train.data import Order, rows_of
    from glassformer.train.native_stepper import NativeStepper
    from glassformer.train.recipe import Recipe
    from glassformer.train.torch_stepper import TorchStepper, fresh

    recipe = Recipe().with_settings({**SHAPE, "pack": pack, "data": (str(data),)})
    tokenizer = byte_tokenizer()
    config = recipe.config(tokenizer.vocab_size)
    made = fresh(Transformer.empty(config), 1)
    stepper = NativeStepper(made, recipe, torch.bfloat16) if native else TorchStepper(made, recipe, torch.bfloat16)
    rows = rows_of(build_corpus([str(data)], tokenizer, fraction=0.0).train, tokenizer.eos_id)
    order = Order(rows, 1, pack=pack, packed=stepper.packs)

    def step() -> float:
        passes = order.passes(recipe.schedule.batch, recipe.model.context, recipe.schedule.batch)
        start = time.perf_counter()
        stepper.zero()
        for x, y, lengths in passes:
            stepper.accumulate(x, y, 1 / 2048, lengths)
        stepper.finish()
        stepper.step(1.0, 0.95)
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = arguments(__doc__, rounds=20)
    options = parser.parse_args()
    import torch

    from glassformer.cli.eval import evaluate
    from glassformer.train import train
    from glassformer.train.recipe import Recipe

    torch.set_num_threads(options.threads)
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for length in LENGTHS:
            data = texts(folder, length, 400_000)
            for native in (False, True):
                apart, together = (stepping(data, pack, native) for pack in ("apart", "together"))
                apart(), together()
                ratios = [apart() / together() for _ in range(options.rounds)]
                middle, low, high = interval(ratios)
                worst = max(worst, middle)
                cells = (f"{middle:.3f} ({low:.3f}–{high:.3f})", verdict(middle, most=1.05))
                rows.append((f"{length:,}", "native" if native else "torch", *cells))
        run = train(
            Recipe().with_settings({**SMALL, "data": (str(texts(folder, 400, 40_000)),), "steps": 1, "save_every": 0}),
            out=folder / "run",
            quiet=True,
        )
        whole = str(texts(folder, 400, CHARACTERS))
        times: dict[int | None, list[float]] = {batch: [] for batch in (None, *BATCHES)}
        for _ in range(3):
            for batch, each in times.items():
                start = time.perf_counter()
                evaluate(str(run.path), [whole], batch=batch)
                each.append(time.perf_counter() - start)
    middles = {batch: statistics.median(each) for batch, each in times.items()}
    best = min(middles[batch] for batch in BATCHES)
    evals = [
        ("its own" if batch is None else str(batch), f"{middle:.2f}", f"{middle / best:.2f}",
         verdict(middle / best, most=1.3) if batch is None else "")
        for batch, middle in middles.items()
    ]  # fmt: skip
    body = table(["tokens a document", "step", "apart against together (95 %)", "asked"], rows)
    body += "\n\n" + table(["eval's batch", "seconds", "of the best", "asked"], evals)
    notes = (
        f"Two rows of 1,024 tokens a step, 4 layers of width 256 in bfloat16; {options.rounds} pairs of steps in turn. "
        f"`eval` reads {CHARACTERS:,} characters in documents of 400 with a model of 2 layers of width 64 and a "
        "context of 128, median of 3 in turn. Without starting."
    )
    report("documents", "Documents apart", body, options, notes)


if __name__ == "__main__":
    main()
