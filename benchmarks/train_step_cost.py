"""Step cost on a processor at GPT-2's 124 M shape: ours beside nanoGPT's own step in its best form.

Ours takes the steps that `glassformer train` would take for the gpt2 design in bfloat16, with nanoGPT's optimiser
(AdamW) and with our own (Muon); nanoGPT its model under bfloat16 autocast and torch.compile, its clipping and its
AdamW. Then how our step grows with depth, width and context, beside the FLOP count.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import Worker, alternate, arguments, rates, report, serve, spread, table, verdict
from peer_nanogpt import checkout, option

SHAPE = {"block_size": 1024, "vocab_size": 50304, "n_layer": 12, "n_head": 12, "n_embd": 768}
GPT2 = {"design": "gpt2", "layers": 12, "heads": 12, "width": 768, "context": 1024}
GROWTH = [
    ("base: 4 layers, width 256, context 256", {}),
    ("8 layers", {"layers": 8}),
    ("width 512", {"width": 512, "heads": 8}),
    ("context 512", {"context": 512, "batch": 4}),
    ("context 1024", {"context": 1024, "batch": 2}),
]
KINDS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw"},
    "muon": {"kind": "muon"},
    "muon of three rounds": {"kind": "muon", "newton_schulz": 3},
}
ASKED = {"adamw": 1.5, "muon": 1.0, "muon of three rounds": 1.0}


def worker() -> None:
    """Time our training steps, asked by message."""
    import resource

    import torch

    from glassformer.count import count
    from glassformer.model import Transformer
    from glassformer.system import hardware
    from glassformer.train import compiling, native
    from glassformer.train.native_stepper import NativeStepper
    from glassformer.train.recipe import Recipe
    from glassformer.train.torch_stepper import TorchStepper, initialise

    hardware.keep_freed_memory()
    device = torch.device("cpu")
    state: dict[str, Any] = {}

    def handle(
        settings: dict[str, Any] | None = None, vocab: int = 0, batch: int = 1, steps: int = 1
    ) -> dict[str, Any]:
        if settings is not None:
            state.clear()
            recipe = Recipe().with_settings(settings)
            config = recipe.config(vocab)
            transformer = Transformer.empty(config).to_empty(device="cpu")
            initialise(transformer, 1)
            compute = hardware.pick_precision(recipe.loop.precision, device)
            if native.decide(recipe, config, device="cpu", processes=1, before=None)[0]:
                state["stepper"] = NativeStepper(transformer, recipe, compute)
            else:
                run_block = compiling.choose(recipe, transformer, device, lambda text: None, sharded=False, before=None)
                state["stepper"] = TorchStepper(transformer, recipe, compute, None, run_block)
            state["tokens"] = torch.randint(0, vocab, (batch, recipe.model.context + 1))
            return {"flops": count(config).training_flops, "engine": state["stepper"].name}
        stepper, tokens = state["stepper"], state["tokens"]
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        began = time.perf_counter()
        for _ in range(steps):
            stepper.zero()
            stepper.accumulate(x, y, 1.0 / x.numel())
            stepper.finish()
            stepper.step(1.0, 0.95)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    serve(handle)


def beside(us: Worker, peer: Worker, options: Any, batch: int) -> list[tuple[str, ...]]:
    """Steps of one batch: ours with each optimiser, the peer's between them, in turn."""
    peer.ask(shape={**SHAPE, "vocab_size": options.vocab}, batch=batch, best=True)
    tokens, times, engine, flops = batch * SHAPE["block_size"], {}, "", 0.0
    for kind, settings in KINDS.items():
        said = us.ask(settings={**GPT2, **settings, "precision": "bf16"}, vocab=options.vocab, batch=batch)
        engine, flops = said["engine"], said["flops"] * tokens
        found = alternate(
            options.rounds, ours=lambda: us.ask()["seconds"], nanogpt=lambda: peer.ask(steps=1)["seconds"]
        )
        times[kind] = found["ours"]
        times.setdefault("nanogpt", []).extend(found["nanogpt"])
    middle = {name: statistics.median(each) for name, each in times.items()}
    rows = []
    for name, each in times.items():
        label = "nanoGPT, bfloat16, compiled" if name == "nanogpt" else f"ours, {name} ({engine})"
        ratio = middle["nanogpt"] / middle[name]
        asked = verdict(ratio, least=ASKED[name]) if name in ASKED else ""
        rows.append(
            (f"{batch} × 1,024", label, spread(each), f"{tokens / middle[name]:,.0f}",
             f"{flops / middle[name] / 1e9:.0f}", f"{ratio:.2f} ×", asked)
        )  # fmt: skip
    return rows


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    option(parser)
    parser.add_argument("--batches", default="1,8", help="rows of 1,024 tokens in a step, by comma")
    parser.add_argument("--vocab", type=int, default=SHAPE["vocab_size"])
    options = parser.parse_args()
    source = checkout(options.nanogpt)
    here = Path(__file__)
    before = rates(options.threads)
    with (
        Worker(sys.executable, here, threads=options.threads) as us,
        Worker(sys.executable, here.with_name("peer_nanogpt.py"), str(source), threads=options.threads) as peer,
    ):
        rows = [row for batch in options.batches.split(",") for row in beside(us, peer, options, int(batch))]
        growth, base = [], None
        for label, change in GROWTH:
            settings = {"layers": 4, "width": 256, "heads": 4, "context": 256, "batch": 8, **change}
            flops = us.ask(settings=settings, vocab=4096, batch=settings["batch"])["flops"]
            us.ask(steps=1)
            seen = settings["batch"] * settings["context"]
            each = min(us.ask(steps=1)["seconds"] for _ in range(options.rounds)) / seen
            base = base or (each, flops)
            growth.append([label, f"{each * 1e6:.1f}", f"{each / base[0]:.2f}", f"{flops / base[1]:.2f}"])
    after = rates(options.threads)
    head = ["tokens a step", "124 M, GPT-2's shape", "seconds a step", "tokens/s", "GFLOP/s", "of nanoGPT's", "asked"]
    rate = " and ".join(f"{found['bfloat16']:.0f}" for found in (before, after))
    notes = f"GFLOP/s are of the model's own products; this machine's in bfloat16 before and after: {rate}."
    grown = table(["ours", "µs a token", "× base, time", "× base, FLOPs"], growth)
    report("train_step_cost", "Step cost", table(head, rows) + "\n\n" + grown, options, notes)


if __name__ == "__main__":
    worker() if "--worker" in sys.argv else main()
