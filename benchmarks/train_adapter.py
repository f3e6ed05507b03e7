"""Memory and time of training an adapter alone, beside fine-tuning the whole of the same model.

Each way is a process of its own that takes steps of the same rows: the most private memory it held at once (files that
are mapped do not count), the bytes that it would save, and processor time of a step after the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from common import arguments, report, table

WAYS: dict[str, dict[str, Any]] = {
    "whole model": {},
    "LoRA": {"adapter": "lora"},
    "rsLoRA": {"adapter": "lora", "rank_stable": True},
    "DoRA": {"adapter": "dora"},
    "LoRA over 8 bits": {"adapter": "lora", "base": "q8_0"},
    "LoRA over 4 bits": {"adapter": "lora", "base": "q4_0"},
    "DoRA over 4 bits": {"adapter": "dora", "base": "q4_0"},
}


def private() -> int:
    """Bytes of memory that this process alone holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def child(settings: dict[str, Any], threads: int, batch: int, length: int, steps: int) -> dict[str, Any]:
    """Take steps one way; this process is there for nothing else."""
    import torch

    from glassformer.model import Transformer
    from glassformer.system import hardware
    from glassformer.train import adapter
    from glassformer.train.recipe import Recipe
    from glassformer.train.run_inputs import opened
    from glassformer.train.torch_stepper import TorchStepper

    hardware.keep_freed_memory()
    hardware.set_threads(threads)
    usual = {"context": length, "batch": batch, "kind": "adamw", "matrix_lr": 2e-5, "native": "off"}
    recipe = Recipe().with_settings({**usual, **settings})
    start = opened(recipe.model.start)
    compute = hardware.pick_precision(recipe.loop.precision, torch.device("cpu"))
    before, peak, done = private(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], private())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    if recipe.adapter.adapter == "none":
        transformer = Transformer.empty(start.config)
        transformer.load({name: start.tensors[name].to(torch.float32, copy=True) for name in start.tensors})
    else:
        transformer = adapter.adapted(start, start.config, recipe, compute)
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad) or sum(
        p.numel() for p in transformer.parameters()
    )
    stepper = TorchStepper(transformer, recipe, compute)
    generator = torch.Generator().manual_seed(0)
    spent = []
    for _ in range(steps + 1):
        ids = torch.randint(0, start.config.vocab_size, (batch, length + 1), generator=generator)
        began = time.process_time()
        stepper.zero()
        stepper.accumulate(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), 1 / (batch * length))
        stepper.finish()
        stepper.step(1.0, 0.9)
        spent.append(time.process_time() - began)
    done.set()
    watching.join()
    saved = sum(tensor.nbytes for tensor in stepper.whole().values())
    return {"peak": peak[0] - before, "seconds": spent[1:], "trained": trained, "saved": saved, "compute": str(compute)}


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--model", default="smollm2", help="what is fine-tuned")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each round")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = child(json.loads(options.child), options.threads, options.batch, options.length, options.steps)
        print(json.dumps(found))
        return
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    for _ in range(options.rounds):
        for name, settings in WAYS.items():
            asked = json.dumps({"start": options.model, **settings})
            shape = ["--batch", str(options.batch), "--length", str(options.length), "--steps", str(options.steps)]
            command = [sys.executable, __file__, "--child", asked, "--threads", str(options.threads), *shape]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    whole = rounds["whole model"]
    base = statistics.median(second for one in whole for second in one["seconds"])
    for name, found in rounds.items():
        peak = max(one["peak"] for one in found)
        seconds = statistics.median(second for one in found for second in one["seconds"])
        rows.append(
            [
                name,
                f"{found[0]['trained'] / 1e6:.2f} M",
                f"{peak / 1e9:.2f} GB",
                f"{peak / max(one['peak'] for one in whole):.2f}",
                f"{seconds:.2f} s",
                f"{seconds / base:.2f}",
                f"{found[0]['saved'] / 1e6:.1f} MB",
            ]
        )
    heads = ["", "trained", "private memory", "× whole", "processor time a step", "× whole", "weights saved"]
    notes = (
        f"{options.model}, {options.batch} × {options.length} tokens a step, rank 16, every matrix of the blocks, "
        f"computed in {whole[0]['compute'].removeprefix('torch.')}. Time is the processor's, of all threads."
    )
    report("train_adapter", "Adapters beside whole fine-tuning", table(heads, rows), options, notes)


if __name__ == "__main__":
    main()
