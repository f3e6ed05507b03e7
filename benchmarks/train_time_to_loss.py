"""Time to a loss on a processor: tiny Shakespeare by character, against nanoGPT's published recipe.

Both are run in turn, each as its users run it, and measured by one evaluator: our transformer's loss over the whole
held-out text (nanoGPT's split, the last tenth) in windows that do not overlap. Ours is a plain transformer that exports
to Hugging Face and GGUF; its settings were chosen on a split of the training text.

    --task small    0.80 M parameters, 64 characters; to 1.88
    --task large    10.65 M parameters, 256 characters; to 1.4697 in 30 minutes (nanoGPT: a step × 5,000)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Worker, arguments, environment, report, skip, table, verdict
from peer_nanogpt import checkout, option, prepare, published, read_text, weights

SMALL = {"block_size": 64, "vocab_size": 65, "n_layer": 4, "n_head": 4, "n_embd": 128}
LARGE = {"block_size": 256, "vocab_size": 65, "n_layer": 6, "n_head": 6, "n_embd": 384}
TASKS = {"small": ("shakespeare-char", 1.88, 800_000, 64), "large": ("shakespeare-char-large", 1.4697, 10_650_000, 256)}


def held_out_loss(transformer: Any, ids: Any, length: int) -> float:
    """Mean −log p over a text in windows of `length` that do not overlap, in float32."""
    import torch
    import torch.nn.functional as F

    count = (len(ids) - 1) // length
    x = torch.tensor(ids[: count * length].astype("int64")).view(count, length)
    y = torch.tensor(ids[1 : count * length + 1].astype("int64")).view(count, length)
    total = 0.0
    with torch.inference_mode():
        for i in range(0, count, 64):
            logits = transformer(x[i : i + 64]).float()
            total += F.cross_entropy(logits.flatten(0, 1), y[i : i + 64].flatten(), reduction="sum").item()
    return total / (count * length)


def ours(text: Path, work: Path, recipe: str, threads: int, seed: int, *settings: str) -> dict[str, Any]:
    """One cold run of the command line: seconds of the process, of the steps alone, and the model's loss."""
    run = work / "run"
    sets = [part for setting in (f"seed={seed}", *settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "glassformer", "train", recipe, "--data", str(text), "--out", str(run), *sets]
    env = environment(threads, GLASSFORMER_CACHE=str(work / "cache"))
    began = time.perf_counter()
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    spent = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr)
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    start = next(e for e in events if e["event"] == "start")
    steps = [e for e in events if e["event"] == "step"]
    return {
        "process": spent,
        "training": steps[-1]["seconds"] - start["seconds"],
        "steps": steps[-1]["step"],
        "parameters": start["parameters"],
        "path": run,
    }


def evaluate(run: Path, letters: list[str], held: str, length: int) -> float:
    """The loss of one of our runs."""
    import numpy as np

    import glassformer

    model = glassformer.load(run, device="cpu")
    ids = np.array([model.encode(letter, bos=False)[0] for letter in letters])
    index = dict(zip(letters, ids, strict=True))
    return held_out_loss(model.transformer, np.array([index[letter] for letter in held]), length)


def theirs(work: Path, letters: list[str], held: str, length: int, layers: int, heads: int, width: int) -> float:
    """The loss of nanoGPT's run, by the same evaluator."""
    import numpy as np

    from glassformer.model import Transformer
    from glassformer.train.recipe import Recipe

    shape = {"design": "gpt2", "layers": layers, "heads": heads, "width": width, "context": length}
    config = Recipe().with_settings(shape).config(len(letters))
    index = {letter: i for i, letter in enumerate(letters)}
    transformer = Transformer.empty(config).load(weights(work, config))
    return held_out_loss(transformer, np.array([index[letter] for letter in held]), length)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    option(parser)
    parser.add_argument("--text", help="tiny Shakespeare's text")
    parser.add_argument("--task", choices=TASKS, default="small")
    parser.add_argument("--peer-rounds", type=int, default=1, help="runs of nanoGPT's whole recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change our recipe")
    options = parser.parse_args()
    source = checkout(options.nanogpt)
    text = read_text(options.text)
    recipe, target, most, length = TASKS[options.task]
    held = text[int(0.9 * len(text)) :]
    if options.task == "large" and options.rounds > 1:
        print("each round of this task takes up to 30 minutes", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        file = base / "text.txt"
        file.write_text(text, "utf-8")
        letters = prepare(source, base / "nanogpt", text)
        rounds: list[dict[str, Any]] = []
        peers: list[dict[str, Any]] = []
        env = dict(environment(options.threads))
        for i in range(max(options.rounds, options.peer_rounds)):
            if i < options.rounds:
                work = base / f"ours-{i}"
                work.mkdir()
                found = ours(file, work, recipe, options.threads, i + 1, *options.set)
                rounds.append({**found, "loss": evaluate(found["path"], letters, held, length)})
            if i < options.peer_rounds and options.task == "small":
                done: dict[str, Any] = dict(published(base / "nanogpt", env))
                peers.append({**done, "loss": theirs(base / "nanogpt", letters, held, length, 4, 4, 128)})
        if options.task == "large":
            peers = [_best_step(source, options.threads, LARGE, 64, 5000) | {"loss": 1.4697}]
        else:
            best = _best_step(source, options.threads, SMALL, 12, 2000)
            peers.append(best | {"loss": statistics.median(p["loss"] for p in peers)})
        same_time = None
        if options.task == "small":
            pace = statistics.median(r["training"] / r["steps"] for r in rounds)
            steps = int(statistics.median(p["training"] for p in peers) / pace)
            (base / "long").mkdir()
            found = ours(file, base / "long", recipe, options.threads, 1, *options.set, f"steps={steps}")
            same_time = {**found, "loss": evaluate(found["path"], letters, held, length)}
    _report(options, rounds, peers, same_time, target, most)


def _best_step(source: Path, threads: int, shape: dict[str, int], batch: int, steps: int) -> dict[str, Any]:
    """What the published number of steps would take in nanoGPT's best form: eager float32, or compiled bfloat16."""
    each = {}
    with Worker(sys.executable, Path(__file__).with_name("peer_nanogpt.py"), str(source), threads=threads) as worker:
        for best in (False, True):
            worker.ask(shape=shape, batch=batch, best=best)
            worker.ask(steps=2)
            form = "compiled bfloat16" if best else "eager float32"
            each[form] = min(worker.ask(steps=5)["seconds"] / 5 for _ in range(3))
    form = min(each, key=each.__getitem__)
    return {"training": steps * each[form], "process": steps * each[form], "step": each[form], "form": form}


def _report(
    options: Any, rounds: list[dict[str, Any]], peers: list[dict[str, Any]], same_time: Any, target: float, most: int
) -> None:
    if any(r["parameters"] > most for r in rounds):
        skip(f"the recipe has {rounds[0]['parameters']} parameters, more than {most}")

    def median(rows: list[dict[str, Any]], key: str) -> float:
        return statistics.median(row[key] for row in rows)

    rows = [
        [
            f"ours, seed {i + 1}",
            f"{r['parameters']:,}",
            r["steps"],
            f"{r['training']:.2f} s",
            f"{r['process']:.2f} s",
            f"{r['loss']:.4f}",
        ]
        for i, r in enumerate(rounds)
    ]
    small = options.task == "small"
    rows += [
        [f"nanoGPT, a step in {p['form']} × its published steps" if "form" in p else "nanoGPT, published recipe", "",
         2000 if small else 5000, f"{p['training']:.2f} s", f"{p['process']:.2f} s", f"{p['loss']:.4f}"]
        for p in peers
    ]  # fmt: skip
    if same_time:
        rows.append(
            ["ours, in nanoGPT's time", "", same_time["steps"], f"{same_time['training']:.2f} s",
             f"{same_time['process']:.2f} s", f"{same_time['loss']:.4f}"]
        )  # fmt: skip
    worst = max(r["loss"] for r in rounds)
    notes = [f"Highest loss of {len(rounds)} seeds {worst:.4f} ({verdict(worst, most=target)})."]
    sooner = min(p["training"] for p in peers) / median(rounds, "training")
    notes.append(f"From the first step {sooner:.1f} × sooner than nanoGPT's best form ({verdict(sooner, least=40)}).")
    if small:
        sooner = median([p for p in peers if "form" not in p], "process") / median(rounds, "process")
        notes.append(f"From the start of a cold process {sooner:.1f} × sooner ({verdict(sooner, least=15)}).")
    else:
        spent = median(rounds, "process")
        notes.append(f"{spent / 60:.1f} minutes ({verdict(spent / 60, most=30)}).")
    head = ["run", "parameters", "steps", "from the first step", "cold process", "held-out loss"]
    report(
        f"train_time_to_loss_{options.task}",
        f"Time to loss, {options.task} task",
        table(head, rows),
        options,
        " ".join(notes),
    )


if __name__ == "__main__":
    main()
