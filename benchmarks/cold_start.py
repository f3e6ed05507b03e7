"""A fresh process answering `glassformer next` against transformers loading the same GGUF for one forward pass."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from common import alternate, arguments, environment, need_peers, report, seconds, smollm2, spread, table, verdict

PROMPT = "The capital of France is"
ASKED = 5.0
PEER = """
import sys, time, json
folder, name, prompt = sys.argv[1:]
started = time.perf_counter()
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
imported = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
with torch.inference_mode():
    logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
best = int(logits.argmax())
print(json.dumps({"answer": tokenizer.decode([best]), "seconds": time.perf_counter() - imported}))
"""


def main() -> None:
    options = arguments(__doc__, rounds=3).parse_args()
    need_peers(options, "transformers")
    gguf = smollm2()
    ours_command = [sys.executable, "-m", "glassformer", "next", PROMPT, "--model", "smollm2", "--json"]
    their_command = [options.peers, "-c", PEER, str(gguf.parent), gguf.name, PROMPT]
    inside: list[float] = []  # transformers, its imports left out
    answers: dict[str, str] = {}

    def output(command: list[str]) -> dict:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(options.threads))
        return json.loads(done.stdout[done.stdout.index("{") :])

    def ours(*options: str) -> float:
        def work() -> None:
            answers["ours"] = output([*ours_command, *options])["tokens"][0]["token"]

        return seconds(work)

    def theirs() -> float:
        def work() -> None:
            found = output(their_command)
            answers["theirs"] = found["answer"]
            inside.append(found["seconds"])

        return seconds(work)

    times = alternate(options.rounds, ours=ours, tokens=lambda: ours("--no-words"), theirs=theirs)
    if answers["ours"] != answers["theirs"]:
        sys.exit(f"The answers differ: {answers}")
    mine = statistics.median(times["ours"])
    loading = inside[-options.rounds :]
    whole, strict = statistics.median(times["theirs"]) / mine, statistics.median(loading) / mine
    asked = verdict(strict, least=ASKED)
    rows = [
        ("glassformer next, whole process, with whole words", spread(times["ours"]), "", ""),
        ("glassformer next --no-words, whole process", spread(times["tokens"]), "", ""),
        ("transformers: load and one forward, imports left out", spread(loading), f"{strict:.1f} ×", asked),
        ("transformers, whole process", spread(times["theirs"]), f"{whole:.1f} ×", ""),
    ]
    report(
        "cold_start",
        "Cold start",
        table(("SmolLM2-135M Q4_1 already fetched", "seconds, median (range)", "ours is faster by", "asked"), rows),
        options,
        f"A fresh process each time, in turn; both answer {answers['ours']!r} after {PROMPT!r}.",
    )


if __name__ == "__main__":
    main()
