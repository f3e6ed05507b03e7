"""What holding eight answers to a JSON schema costs of a step, after the first: masks, and following the answers."""

from __future__ import annotations

import statistics
import time

from common import arguments, report, smollm2, table, verdict

SCHEMA = {
    "type": "array",
    "minItems": 6,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "city": {"enum": ["Paris", "London", "Rome", "Berlin"]},
            "notes": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 3},
        },
        "required": ["name", "age", "city", "notes"],
        "additionalProperties": False,
    },
}
PROMPT = "Six people, each with a name, an age, a city and notes, as JSON:\n"


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    import torch

    import glassformer as gf
    from glassformer.generate.constraints import Constraint
    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request
    from glassformer.generate.sequence import Sequence
    from glassformer.generate.settings import Sampling

    torch.set_num_threads(options.threads)
    path = smollm2()
    model = gf.load("smollm2", device="cpu", dtype="float32")
    ids = tuple(model.encode(PROMPT))
    spent = {"choosing": 0.0}
    clock = time.process_time if options.threads == 1 else time.perf_counter  # the former on a busy machine
    real = Sequence.advance, Sequence.draft

    def timed(method):  # of the engine's thread, so that a busy machine changes little
        def call(*args):
            start = time.thread_time()
            try:
                return method(*args)
            finally:
                spent["choosing"] += time.thread_time() - start

        return call

    Sequence.advance, Sequence.draft = timed(real[0]), timed(real[1])
    rows = []
    for precision in ("fast", "exact"):
        engine = Engine(model.transformer, model.tokenizer, precision=precision, source=path, slots=8, capacity=512)
        engine.wait()

        def run(constraint: Constraint | None, engine: Engine = engine) -> tuple[float, float, int]:
            """Processor seconds of choosing and seconds in all, a token of the batch, and tokens."""
            spent["choosing"] = 0.0
            start = clock()
            handles = [
                engine.submit(
                    Request(
                        ids, options.tokens, Sampling(seed=seed), constraint=constraint, stop_ids=frozenset(), drafts=1
                    )
                )
                for seed in range(8)
            ]
            count = sum(event.id is not None for handle in handles for event in handle)
            return spent["choosing"] / count, (clock() - start) / count, count

        form = Constraint.schema(SCHEMA)
        run(form), run(None)
        free, held = [], []
        for _ in range(options.rounds):
            free.append(run(None))
            held.append(run(form))
        step = 8 * statistics.median(one[1] for one in free)
        cost = 8 * statistics.median(one[0] - other[0] for one, other in zip(held, free, strict=True))
        whole = statistics.median(one[1] / other[1] for one, other in zip(held, free, strict=True))
        rows.append(
            (
                precision,
                f"{1000 * step:.1f}",
                f"{1000 * cost:.2f}",
                f"{cost / step:.1%}",
                f"{whole:.3f}",
                verdict(cost / step, most=0.05),
            )
        )
        engine.close()
    head = ("precision", "a step of eight, ms", "the form's part, ms", "share", "a token's time, held / free", "asked")
    notes = "Steps in processor time of one thread." if options.threads == 1 else ""
    report("constraints", "Answers of a form", table(head, rows), options, notes)


if __name__ == "__main__":
    main()
