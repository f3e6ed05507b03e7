"""How our time and memory grow: fitted exponents against length, layers, width and experts, beside the FLOP count's.

Random models. A forward of a prompt, a trace and a training step, in float32; the exponent is the slope of a straight
line through the logarithms, and what is left of the line says how straight it is.
"""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Worker, arguments, peak, report, seconds, serve, table

BASE = {"width": 256, "layers": 4, "length": 1024, "experts": 0}
VARIED: dict[str, list[int]] = {
    "length": [256, 512, 1024, 2048, 4096, 8192, 16384],
    "layers": [2, 4, 8, 16],
    "width": [128, 256, 512, 1024],
    "experts": [4, 8, 16, 32],
}
WORKS = ("prefill", "trace", "training")
LONGEST = {"prefill": 16384, "trace": 16384, "training": 4096}


def slope(xs: list[float], ys: list[float]) -> tuple[float, float]:
    """The exponent of y in x, and the largest factor by which a point lies off the fitted line."""
    line = statistics.linear_regression([math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys])
    off = [abs(math.log(max(y, 1e-9)) - line.slope * math.log(x) - line.intercept) for x, y in zip(xs, ys, strict=True)]
    return line.slope, math.exp(max(off))


def worker() -> None:
    """Do one work once, asked by message."""
    import torch

    from glassformer.count import count
    from glassformer.generate.native_model import NativeModel
    from glassformer.interp.trace import Trace
    from glassformer.model import Transformer
    from glassformer.model.choices import Attention, Experts, FeedForward, Rotary
    from glassformer.model.config import uniform
    from glassformer.train import native
    from glassformer.train.native_stepper import NativeStepper
    from glassformer.train.recipe import Recipe
    from glassformer.train.torch_stepper import TorchStepper, initialise

    state: dict[str, Any] = {}

    def handle(
        width: int = 0, layers: int = 0, length: int = 0, experts: int = 0, work: str = "", go: bool = False
    ) -> dict[str, Any]:
        if go:
            return {"seconds": seconds(state["work"])}
        state.clear()
        feed = Experts(experts, 2, width) if experts else FeedForward(4 * width)
        config = uniform(512, width, layers, length, Attention(4, 4, width // 4, rotary=Rotary()), feed)
        flops = count(replace(config, context=length)).training_flops * length
        model = Transformer.empty(config).to_empty(device="cpu")
        initialise(model, 1)
        ids = torch.randint(0, 512, (1, length + 1))
        path = "torch"
        if work == "prefill":
            if experts:

                def once() -> Any:
                    with torch.inference_mode():
                        return model(ids[:, 1:], last=True)

            else:
                fast = NativeModel.from_transformer(model.requires_grad_(False), "float32", slots=1, capacity=length)
                path, given = "native", ids[0, 1:].tolist()

                def once() -> Any:
                    return fast.prefill(given, 0)

        elif work == "trace":
            given = ids[0, 1:].tolist()

            def once() -> Any:
                return Trace(model, given)

        else:
            recipe = Recipe().with_settings({"precision": "fp32", "kind": "adamw"})
            chosen = not experts and native.decide(recipe, config, device="cpu", processes=1, before=None)[0]
            stepper = (NativeStepper if chosen else TorchStepper)(model, recipe, torch.float32)
            x, y, path = ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), stepper.name.split(",")[0]

            def once() -> Any:
                stepper.zero()
                stepper.accumulate(x, y, 1.0 / length)
                stepper.finish()
                stepper.step(1.0, 0.95)

        state["work"] = once
        _, added, _ = peak(once)
        return {"flops": flops if work == "training" else flops / 3, "path": path, "megabytes": added * 1e3}

    serve(handle)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--only", default=",".join(VARIED), help="what is varied, by comma")
    options = parser.parse_args()
    rows = []
    for name in options.only.split(","):
        for work in WORKS:
            values = [v for v in VARIED[name] if name != "length" or v <= LONGEST[work]]
            times, flops, memory, path = [], [], [], ""
            for value in values:
                with Worker(sys.executable, Path(__file__), threads=options.threads) as us:
                    said = us.ask(**{**BASE, name: value}, work=work)
                    found = [us.ask(go=True) for _ in range(options.rounds)]
                times.append(statistics.median(one["seconds"] for one in found))
                memory.append(said["megabytes"])
                flops.append(said["flops"])
                path = said["path"]
            xs = [float(v) for v in values]
            time_slope, off = slope(xs, times)
            row = f"{values[0]:,} … {values[-1]:,}", f"{times[0]:.3g} … {times[-1]:.3g}"
            added = f"{memory[0]:.0f} … {memory[-1]:.0f}"
            rows.append(
                (name, f"{work} ({path})", *row, f"{time_slope:.2f} (off by {off:.2f} ×)",
                 f"{slope(xs, flops)[0]:.2f}", added)
            )  # fmt: skip
            print(*rows[-1], sep=" | ", flush=True)
    base = ", ".join(f"{key} {value:,}" for key, value in BASE.items() if value)
    report(
        "growth",
        "How time and memory grow",
        table(("against", "work", "from … to", "seconds", "exponent of time", "of FLOPs", "MB added"), rows),
        options,
        f"Random models around {base}, 4 heads, 512 tokens, one text, float32; with experts two are chosen.",
    )


if __name__ == "__main__":
    worker() if "--worker" in sys.argv else main()
