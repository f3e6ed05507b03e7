"""Decoding several sequences at once: throughput against batch 1, and whether the texts stay the same."""

from __future__ import annotations

import statistics
import time

from common import alternate, arguments, report, smollm2, table, verdict

SIZES = (1, 2, 4, 8, 16)
ASKED = 4.0  # × batch 1 at batch 8
PROMPT = "Once upon a time, in a small village by the sea, there lived"


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    import torch

    import glassformer as gf
    from glassformer.generate.native_model import NativeModel

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    ids = model.encode(PROMPT)
    rows = []
    made = {
        "fast": lambda: NativeModel.from_gguf(smollm2(), slots=max(SIZES), capacity=512),
        "exact": lambda: NativeModel.from_gguf(smollm2(), exact=True, slots=max(SIZES), capacity=512),
        "bfloat16": lambda: NativeModel.from_transformer(model.transformer, "bfloat16", slots=max(SIZES), capacity=512),
        "float32": lambda: NativeModel.from_transformer(model.transformer, "float32", slots=max(SIZES), capacity=512),
    }
    for precision, make in made.items():
        fast = make()
        texts: dict[int, list[list[int]]] = {}

        def run(size: int, fast: NativeModel = fast, texts: dict = texts) -> float:
            """Each row's prompt is one token shorter than the one before, so positions differ."""
            prompts = [ids[: len(ids) - slot % 8] for slot in range(size)]
            tokens = [int(fast.prefill(p, slot).argmax()) for slot, p in enumerate(prompts)]
            answers = [[token] for token in tokens]
            start = time.perf_counter()
            for step in range(options.tokens):
                positions = [len(p) + step for p in prompts]
                tokens = fast.decode(tokens, range(size), positions).numpy().argmax(1).tolist()
                for answer, token in zip(answers, tokens, strict=True):
                    answer.append(token)
            took = time.perf_counter() - start
            texts[size] = answers
            return took

        times = alternate(options.rounds, **{str(size): lambda size=size: run(size) for size in SIZES})
        speed = {size: size * options.tokens / statistics.median(times[str(size)]) for size in SIZES}
        same = all(texts[size] == texts[max(SIZES)][:size] for size in SIZES)
        for size in SIZES:
            ratio = speed[size] / speed[1]
            asked = verdict(ratio, least=ASKED) if size == 8 else ""
            label = f"{precision} ({fast.precision})" if precision == "fast" else precision
            rows.append((label, size, f"{speed[size]:.0f}", f"{ratio:.2f} ×", "yes" if same else "NO", asked))
        del fast
    report(
        "batch",
        "Batched decode",
        table(("precision", "sequences", "tokens/s", "against one", "same texts as alone", "asked"), rows),
        options,
        f"SmolLM2-135M, {options.tokens} greedy tokens of each sequence, at different positions; medians of "
        f"{options.rounds} runs in turn.",
    )


if __name__ == "__main__":
    main()
