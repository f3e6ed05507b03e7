"""Greedy and drawn answers with n-gram lookup on text that repeats itself and on prose, against the same without."""

from __future__ import annotations

import statistics
import time

from common import alternate, arguments, report, smollm2, table, verdict

RECORDS = "".join(
    f'  {{"id": {i}, "name": "user{i}", "email": "user{i}@example.com", "active": true, "roles": ["reader"]}},\n'
    for i in range(1, 9)
)
CODE = "".join(
    f"    def get_{name}(self):\n        return self._{name}\n\n    def set_{name}(self, value):\n"
    f"        self._{name} = value\n\n"
    for name in ("name", "age", "city", "email", "phone")
)
TEXTS = {
    "JSON, again": ("[\n" + RECORDS + "]\n\nThe same list again:\n\n[\n" + RECORDS[:20], 1.8),
    "code, again": ("class Person:\n" + CODE + "\n# The same class again:\nclass Person:\n" + CODE[:40], 1.8),
    "a passage said twice": (
        "The tide had gone out and left the boats lying on their sides in the mud. An old man walked along the wall "
        "with a dog behind him.\n\nAgain, word for word:\n\nThe tide had gone out",
        1.8,
    ),
    "prose": ("Once upon a time, in a small village by the sea, there lived", 0.97),
    "prose, a question": ("Question: Why is the sky blue?\nAnswer: The sky is blue because", 0.97),
}


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--precision", default="fast")
    options = parser.parse_args()
    import torch

    import glassformer as gf
    from glassformer.generate.drafting import NgramLookup
    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request
    from glassformer.generate.settings import Sampling

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    engine = Engine(
        model.transformer, model.tokenizer, precision=options.precision, source=smollm2(), slots=1, capacity=1024
    )
    engine.wait()
    rows = []
    for name, (text, least) in TEXTS.items():
        ids = tuple(model.encode(text))
        for how in ("greedy", "drawn at 0.7"):
            sampling = Sampling(temperature=0.0) if how == "greedy" else Sampling(temperature=0.7, seed=1)
            answers: dict[bool, list[int]] = {}

            def run(lookup: bool, ids=ids, sampling=sampling, answers=answers) -> float:
                drafter = NgramLookup() if lookup else None
                request = Request(ids, options.tokens, sampling, stop_ids=frozenset(), drafter=drafter)
                events = iter(engine.submit(request))
                answers[lookup] = [next(events).id]
                start = time.perf_counter()
                answers[lookup] += [event.id for event in events]
                return time.perf_counter() - start

            times = alternate(options.rounds, plain=lambda run=run: run(False), lookup=lambda run=run: run(True))
            ratio = statistics.median(a / b for a, b in zip(times["plain"], times["lookup"], strict=True))
            if answers[True] != answers[False]:
                raise SystemExit(f"{name}, {how}: the answers differ, so nothing is said about their speed.")
            speed = (options.tokens - 1) / statistics.median(times["lookup"])
            asked = verdict(ratio, least=least) if how == "greedy" or least < 1 else "–"
            rows.append((name, how, f"{speed:.0f}", f"{ratio:.2f} ×", "equal", asked))
    engine.close()
    head = ("text", "answer", "tokens/s with lookup", "as quick as without", "tokens", "asked")
    report("drafting", "Guessing ahead", table(head, rows), options)


if __name__ == "__main__":
    main()
