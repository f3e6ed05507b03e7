"""Quality at equal compute: our recipe (Muon for matrices) against AdamW alone, three seeds.

The same model, text, batches, schedule and time: AdamW gets as many more steps as its steps are cheaper. AdamW's rate
is the best of three. Held-out loss over the whole tail of each text.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import DATA, arguments, report, table, verdict

MUON: dict[str, Any] = {"kind": "muon"}
ADAMW = [
    {"kind": "adamw", "matrix_lr": lr, "embed_lr": lr, "head_lr": lr, "vector_lr": lr, "beta1": 0.9, "eps": 1e-8}
    for lr in (1e-3, 3e-3, 6e-3)
]


def run(recipe: Any, out: Path) -> tuple[float, float]:
    """Held-out loss and seconds of the steps."""
    import json

    from glassformer.train import train

    result = train(recipe, out=out, quiet=True)
    if result.interrupted:
        raise SystemExit("A run was interrupted; nothing is compared.")
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    start = next(e["seconds"] for e in events if e["event"] == "start")
    last = [e["seconds"] for e in events if e["event"] == "step"][-1]
    return result.loss, last - start


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--steps", type=int, default=300, help="steps of our recipe")
    options = parser.parse_args()
    import torch

    from glassformer.train.recipe import load

    torch.set_num_threads(options.threads)
    texts: dict[str, tuple[str, ...]] = {"standard library": ()}
    for name in ("tinyshakespeare.txt", "wikitext-2-valid.txt"):
        if (DATA / name).exists():
            texts[name] = (str(DATA / name),)
    rows, worst = [], float("inf")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in texts.items():
            base = load("cpu-minutes").with_settings(
                {"data": data, "layers": 3, "width": 128, "heads": 4, "context": 128, "batch": 12, "eval_every": 0,
                 "steps": options.steps, "threads": options.threads, "save_every": 0, "sample_every": 0}
            )  # fmt: skip
            place = iter(Path(folder) / f"{name}-{i}" for i in range(1000))
            pace = [
                run(base.with_settings({**s, "steps": 20}), next(place))[1] for s in (MUON, ADAMW[0], MUON, ADAMW[0])
            ]
            more = (pace[0] + pace[2]) / (pace[1] + pace[3])
            steps = max(1, round(options.steps * more))
            tried = [(run(base.with_settings({**s, "steps": steps}), next(place))[0], i) for i, s in enumerate(ADAMW)]
            best = ADAMW[min(tried)[1]]
            ours, theirs = [], []
            for seed in range(1, options.rounds + 1):
                ours.append(run(base.with_settings({**MUON, "seed": seed}), next(place))[0])
                theirs.append(run(base.with_settings({**best, "steps": steps, "seed": seed}), next(place))[0])
            gain = statistics.mean(theirs) - statistics.mean(ours)
            worst = min(worst, gain)
            rows.append([name, _shown(ours), _shown(theirs), f"{steps}", f"{best['matrix_lr']:g}", f"{gain:+.4f}"])
    head = ["text", f"ours, {options.steps} steps", "AdamW, equal time", "its steps", "its rate", "ours lower by"]
    spent = time.perf_counter() - began
    notes = f"Smallest gain {worst:.4f} nats a token ({verdict(worst, least=0.0)}); {spent:.0f} s in all."
    report("train_quality", "Quality at equal compute", table(head, rows), options, notes)


def _shown(losses: list[float]) -> str:
    return f"{statistics.mean(losses):.4f} ± {(max(losses) - min(losses)) / 2:.4f}"


if __name__ == "__main__":
    main()
