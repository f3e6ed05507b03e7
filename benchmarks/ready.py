"""From a fresh process to the first token and to the native path, with and without its compiled library."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

from common import arguments, environment, report, smollm2, spread, table, verdict

CODE = """
import json, sys, time
start = float(sys.argv[1])
import torch
torch.set_num_threads(int(sys.argv[2]))
import glassformer as gf
imported = time.time()
model = gf.load("smollm2", device="cpu")
loaded = time.time()
import os
from glassformer.generate.engine import Engine
from glassformer.generate.request import Request
if sys.argv[4]:
    os.environ["GLASSFORMER_CACHE"] = sys.argv[4]  # the model is open; from here on it is where libraries are kept
engine = Engine(model.transformer, model.tokenizer, precision="fast", source=sys.argv[3], capacity=2048)
steps = engine.generate(Request(tuple(model.encode("The capital of France is")), max_tokens=40))
next(steps)
first = time.time()
for _ in steps:
    pass
engine.wait()
ready = time.time()
print(json.dumps({"import": imported - start, "load": loaded - imported, "first": first - start,
                  "ready": ready - loaded, "path": engine.path}))
"""


def main() -> None:
    options = arguments(__doc__, rounds=3).parse_args()
    gguf = str(smollm2())
    from glassformer.kernels import infer_abi

    infer_abi.library()

    def run(cache: str) -> dict:
        import time

        done = subprocess.run(
            [sys.executable, "-c", CODE, str(time.time()), str(options.threads), gguf, cache],
            check=True,
            capture_output=True,
            text=True,
            env=environment(options.threads),
        )
        return json.loads(done.stdout)

    run("")
    warm, cold = [], []
    for _ in range(options.rounds):
        warm.append(run(""))
        with tempfile.TemporaryDirectory() as empty:
            cold.append(run(empty))

    def row(what: str, runs: list[dict], key: str, most: float | None = None) -> tuple[str, ...]:
        values = [r[key] for r in runs]
        return what, spread(values), "" if most is None else verdict(statistics.median(values), most=most)

    rows = [
        row("first token after a fresh start, library compiled before", warm, "first", 2.0),
        row("… of it importing torch and glassformer", warm, "import"),
        row("… of it opening the model", warm, "load"),
        row("native path ready after the model is open, library compiled before", warm, "ready", 3.0),
        row("first token after a fresh start, library to be compiled", cold, "first"),
        row("native path ready after the model is open, library to be compiled", cold, "ready", 10.0),
    ]
    report(
        "ready",
        "From start to speed",
        table(("", "seconds", "asked"), rows),
        options,
        f"A fresh process each time ({options.rounds} of each, in turn), SmolLM2-135M fetched and opened before. "
        "The native path counts as ready after 40 tokens have been answered.",
    )


if __name__ == "__main__":
    main()
