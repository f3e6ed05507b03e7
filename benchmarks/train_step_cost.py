"""Step cost on a processor: tokens a second at GPT-2's 124 M shape, the same batch, against nanoGPT's own step.

Ours runs the gpt2 design with the recipe's optimiser; nanoGPT its model, clipping and AdamW. Then how our step grows
with depth, width and context, beside the FLOP count.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import Worker, alternate, arguments, report, serve, spread, table, verdict
from peer_nanogpt import checkout, option

SHAPE = {"block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768}
GROWTH = [
    ("base: 4 layers, width 256, context 256", {}),
    ("8 layers", {"layers": 8}),
    ("width 512", {"width": 512, "heads": 8}),
    ("context 512", {"context": 512, "batch": 4}),
    ("context 1024", {"context": 1024, "batch": 2}),
]


def worker() -> None:
    """Time our training steps, asked by message."""
    import torch

    from glassformer.count import count
    from glassformer.model import Transformer
    from glassformer.system import hardware
    from glassformer.train.recipe import Recipe
    from glassformer.train.torch_stepper import TorchStepper, initialise

    hardware.keep_freed_memory()
    device = torch.device("cpu")
    state: dict[str, Any] = {}

    def handle(
        settings: dict[str, Any] | None = None, vocab: int = 0, batch: int = 1, steps: int = 1
    ) -> dict[str, float]:
        if settings is not None:
            recipe = Recipe().with_settings(settings)
            transformer = Transformer.empty(recipe.config(vocab)).to_empty(device="cpu")
            initialise(transformer, 1)
            state["engine"] = TorchStepper(transformer, recipe, hardware.pick_precision(recipe.loop.precision, device))
            state["tokens"] = torch.randint(0, vocab, (batch, recipe.model.context + 1))
            return {"flops": count(recipe.config(vocab)).training_flops}
        engine, tokens = state["engine"], state["tokens"]
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        began = time.perf_counter()
        for _ in range(steps):
            engine.zero()
            engine.accumulate(x, y, 1.0 / x.numel())
            engine.finish()
            engine.step(1.0, 0.95)
        import resource

        return {
            "seconds": time.perf_counter() - began,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    serve(handle)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    option(parser)
    parser.add_argument("--batch", type=int, default=1, help="rows of 1,024 tokens in a step")
    parser.add_argument("--vocab", type=int, default=SHAPE["vocab_size"])
    options = parser.parse_args()
    source = checkout(options.nanogpt)
    here = Path(__file__)
    shape = {**SHAPE, "vocab_size": options.vocab}
    gpt2 = {"design": "gpt2", "layers": 12, "heads": 12, "width": 768, "context": 1024}
    tokens = options.batch * 1024
    with (
        Worker(sys.executable, here, threads=options.threads) as us,
        Worker(sys.executable, here.with_name("peer_nanogpt.py"), str(source), threads=options.threads) as peer,
    ):
        us.ask(settings=gpt2, vocab=options.vocab, batch=options.batch)
        peer.ask(shape=shape, batch=options.batch)
        times = alternate(
            options.rounds,
            glassformer=lambda: us.ask(steps=1)["seconds"],
            nanogpt=lambda: peer.ask(steps=1)["seconds"],
        )
        ratio = statistics.median(times["nanogpt"]) / statistics.median(times["glassformer"])
        rows = [[n, spread(t), f"{tokens / statistics.median(t):,.0f}"] for n, t in times.items()]
        body = table(["124 M, GPT-2's shape", "seconds a step", "tokens/s"], rows)
        growth, base = [], None
        for label, change in GROWTH:
            settings = {"layers": 4, "width": 256, "heads": 4, "context": 256, "batch": 8, **change}
            flops = us.ask(settings=settings, vocab=4096, batch=settings["batch"])["flops"]
            us.ask(steps=1)
            seen = settings["batch"] * settings["context"]
            each = min(us.ask(steps=1)["seconds"] for _ in range(options.rounds)) / seen
            base = base or (each, flops)
            growth.append([label, f"{each * 1e6:.1f}", f"{each / base[0]:.2f}", f"{flops / base[1]:.2f}"])
    head = ["ours", "µs a token", "× base, time", "× base, FLOPs"]
    notes = f"{ratio:.2f} × nanoGPT's tokens a second at batch {options.batch} ({verdict(ratio, least=1.3)})."
    report("train_step_cost", "Step cost", body + "\n\n" + table(head, growth), options, notes)


if __name__ == "__main__":
    worker() if "--worker" in sys.argv else main()
