"""Two checkouts of Glassformer in turn: the processor time of native decode and prefill, as ratios with their interval.

python benchmarks/trees.py OLD --pairs 20      this checkout beside another one, such as a worktree of an older commit
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, Worker, arguments, serve, smollm2, table

START = 64  # positions before the first decoded token
PREFILL = "prefill 1,024"


def answering(path: str) -> None:
    """Work of a checkout, as asked: seconds of processor time."""
    from glassformer.generate.native_model import NativeModel

    model = NativeModel.from_gguf(path, slots=8, capacity=1280, threads=1)
    generator = random.Random(1)
    ids = [generator.randrange(1000, 20_000) for _ in range(1024)]
    for slot in range(8):
        model.prefill(ids[: START + slot], slot)

    def work(kind: str, tokens: int) -> float:
        start = time.process_time()
        if kind == PREFILL:
            model.prefill(ids, 0)
            model.prefill(ids[:START], 0)
        else:
            rows = list(range(int(kind.removeprefix("decode "))))
            for step in range(tokens):
                model.decode([ids[step + r] for r in rows], rows, [START + r + step for r in rows])
        return time.process_time() - start

    serve(work)


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and where it lies with 95 % by drawing the pairs again."""
    drawn = random.Random(1)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[-51]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=24, help="decoded at a time")
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long, with the pairs there are")
    parser.add_argument("--works", nargs="*", default=["decode 1", "decode 8", PREFILL])
    options = parser.parse_args()
    end, path = time.monotonic() + options.seconds, str(smollm2())

    def worker(tree: Path) -> Worker:
        return Worker(sys.executable, __file__, path, threads=1, PYTHONPATH=str(tree.resolve() / "src"))

    found: dict[str, list[float]] = {work: [] for work in options.works}
    with worker(options.old) as old, worker(ROOT) as new:

        def ask(one: Worker, work: str) -> Any:
            return one.ask(kind=work, tokens=options.tokens)

        for work in options.works:  # both are warm before any is timed
            ask(old, work), ask(new, work)
        for pair in range(options.pairs):
            for work in options.works:
                order = (old, new) if pair % 2 else (new, old)
                times = {id(one): ask(one, work) for one in order}
                found[work].append(times[id(old)] / times[id(new)])
            if time.monotonic() > end:
                break
    rows = []
    for work, ratios in found.items():
        middle, low, high = interval(ratios)
        rows.append([work, len(ratios), f"{middle:.3f}", f"{low:.3f}–{high:.3f}"])
    print(table(["work", "pairs", "old / new", "95 %"], rows))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        answering(sys.argv[-1])
    else:
        main()
