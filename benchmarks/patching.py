"""Activation patching of every layer and position against TransformerLens's hooks, on the same weights.

Each side runs in a process of its own and in turn, and fills the same grid: the logit difference of the two names
with one place of the residual stream as in the clean run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import HERE, Worker, alternate, arguments, need_peers, report, smollm2, spread, table, two_sided, verdict
from peer_transformer_lens import ANSWERS, PAIR

PAIRS = {
    "words differ late": PAIR,
    "words differ at once": (
        "When Mary and John went to the store, John gave a drink to",
        "When John and Mary went to the store, Mary gave a drink to",
    ),
}


def ours(threads: int) -> Callable[..., Any]:
    """Our side: the two forwards and the grid."""
    import torch

    import glassformer as gf

    torch.set_num_threads(threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    right, wrong = (model.encode(text, False)[0] for text in ANSWERS)

    def handle(clean: str, corrupted: str, every: int = 1) -> Any:
        start = time.perf_counter()
        found = model.patch([(clean, corrupted)], answer=right, wrong=wrong, attribution=False)
        return {"seconds": time.perf_counter() - start, "grid": found.measured[0, ::every].tolist()}

    return handle


def theirs(gguf: Path, threads: int) -> Callable[..., Any]:
    """TransformerLens's side: a hook for each place, a forward for each."""
    import torch
    from peer_transformer_lens import bridge

    model, encode, layers = bridge(gguf, threads)
    right, wrong = (encode(text)[0] for text in ANSWERS)

    def handle(clean: str, corrupted: str, every: int = 1) -> Any:
        a, b = (torch.tensor([encode(text)]) for text in (clean, corrupted))
        start = time.perf_counter()
        with torch.inference_mode():
            names = [f"blocks.{layer}.hook_resid_pre" for layer in range(0, layers, every)]
            kept: dict[str, Any] = {}

            def keep(x: Any, hook: Any, name: str) -> Any:
                kept[name] = x.clone()
                return x

            def keeping(name: str) -> Callable[..., Any]:
                return lambda x, hook: keep(x, hook, name)

            model.run_with_hooks(a, fwd_hooks=[(name, keeping(name)) for name in names])
            grid = []
            for name in names:
                row = []
                for position in range(a.shape[1]):

                    def put(x: Any, hook: Any, name: str = name, position: int = position) -> Any:
                        x = x.clone()
                        x[:, position] = kept[name][:, position]
                        return x

                    logits = model.run_with_hooks(b, fwd_hooks=[(name, put)])[0, -1]
                    row.append(float(logits[right] - logits[wrong]))
                grid.append(row)
        # One forward for each cell, whichever its layer: the whole grid takes as much for every layer.
        share = len(names) / layers
        return {"seconds": (time.perf_counter() - start) / share, "grid": grid}

    return handle


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--every", type=int, default=1, help="the peer runs only every so many layers; time scaled up")
    options = parser.parse_args()
    need_peers(options, "transformer_lens")
    me, threads = str(HERE / "patching.py"), options.threads
    rows: list[tuple[str, ...]] = []
    with (
        Worker(sys.executable, me, "ours", str(threads), threads=threads) as us,
        Worker(options.peers, me, "theirs", str(smollm2()), str(threads), threads=threads) as them,
    ):
        for name, (clean, corrupted) in PAIRS.items():
            grids: dict[str, Any] = {}

            def asked(worker: Worker, who: str, a: str, b: str, grids: dict[str, Any] = grids) -> Callable[[], float]:
                def run() -> float:
                    answer = worker.ask(clean=a, corrupted=b, every=options.every)
                    grids[who] = answer["grid"]
                    return float(answer["seconds"])

                return run

            times = alternate(
                options.rounds,
                warmup=0 if rows else 1,
                ours=asked(us, "ours", clean, corrupted),
                theirs=asked(them, "theirs", clean, corrupted),
            )
            cells = [
                (x, y) for a, b in zip(grids["ours"], grids["theirs"], strict=True) for x, y in zip(a, b, strict=True)
            ]
            most = max(abs(y) for _, y in cells)
            gap = max(abs(x - y) for x, y in cells) / most
            ratio = statistics.median(times["theirs"]) / statistics.median(times["ours"])
            head = f"{name}: "
            rows += [
                (head + "ours", spread(times["ours"]), ""),
                (head + "TransformerLens", spread(times["theirs"]), ""),
                (head + "faster", f"{ratio:.1f} ×", verdict(ratio, least=3)),
                (head + "largest difference of the grids", f"{gap:.1e}", verdict(gap, most=1e-4)),
            ]
    scaled = (
        f" Of the peer's layers every {options.every}th was run and the time scaled up." if options.every > 1 else ""
    )
    report(
        "patching",
        "Activation patching: every layer and position",
        table(("what", "seconds", "asked"), rows),
        options,
        "SmolLM2-135M in float32. The residual stream before every layer, at every position, as in the clean run; "
        "the number is the difference of the logits of ' Mary' and ' John'. Ours runs only what a place can change: "
        "nothing before the first word that differs, nothing before the patched layer and position; its time holds "
        "both traces. TransformerLens 4.3's bridge runs one forward with a hook for each place, as its users do, on "
        "the same dequantised weights." + scaled,
    )


if __name__ == "__main__":
    two_sided(main, ours, theirs)
