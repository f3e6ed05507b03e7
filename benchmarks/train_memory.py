"""Peak memory of training: GPT-2's 124 M shape at batch 4 × 1,024, against nanoGPT's own step.

The most that each process ever held (resident), after two whole steps, each in a process of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import Worker, arguments, report, table, verdict
from peer_nanogpt import checkout, option

SHAPE = {"block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768}
GPT2 = {"design": "gpt2", "layers": 12, "heads": 12, "width": 768, "context": 1024}


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    option(parser)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    source = checkout(options.nanogpt)
    here = Path(__file__)
    peaks: dict[str, float] = {}
    for label, change in (("glassformer", {}), ("glassformer, recompute", {"recompute": True})):
        with Worker(sys.executable, here.with_name("train_step_cost.py"), threads=options.threads) as us:
            us.ask(settings={**GPT2, **change}, vocab=SHAPE["vocab_size"], batch=options.batch)
            peaks[label] = us.ask(steps=options.steps)["peak"]
    with Worker(sys.executable, here.with_name("peer_nanogpt.py"), str(source), threads=options.threads) as peer:
        peer.ask(shape=SHAPE, batch=options.batch)
        peaks["nanogpt"] = peer.ask(steps=options.steps)["peak"]
    rows = [[name, f"{peak / 1e9:.2f} GB", f"{peak / peaks['nanogpt']:.2f}"] for name, peak in peaks.items()]
    ratio = peaks["glassformer"] / peaks["nanogpt"]
    notes = f"{ratio:.2f} × nanoGPT's peak at batch {options.batch} × 1,024 ({verdict(ratio, most=0.7)})."
    report("train_memory", "Memory of training", table(["", "peak", "× nanoGPT"], rows), options, notes)


if __name__ == "__main__":
    main()
