"""SmolLM2-135M read and continued by every engine in its best form: prefill, decode alone and of many at once."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import DATA, HERE, ROOT, Worker, alternate, arguments, rates, report, smollm2, spread, table, verdict
from peer_files import FORMATS, gguf_in

LONGEST = 8192 + 64
OURS = ("fast", "exact", "bfloat16", "torch bfloat16")


@dataclass(frozen=True)
class Work:
    """What is timed: `rows` prompts of `length` tokens at once, each continued by `count`."""

    rows: int
    length: int
    count: int
    asked: Mapping[str, float] = field(default_factory=dict)
    """Our form -> how many times the best peer it must be."""

    @property
    def name(self) -> str:
        return f"prefill-{self.length}" if self.count == 1 else f"decode-{self.rows}"

    @property
    def title(self) -> str:
        if self.count == 1:
            return f"Prefill: {self.length:,} tokens"
        return f"Greedy decode: {self.rows} sequence{'s'[: self.rows > 1]}, {self.count} tokens each, prompts apart"

    @property
    def tokens(self) -> int:
        """How many tokens the seconds stand for: those read, or those written after the first."""
        return self.rows * (self.length if self.count == 1 else self.count - 1)


WORKS = (
    Work(1, 1024, 1, {"fast": 1.2, "bfloat16": 1.0}),
    Work(1, 8192, 1, {"fast": 1.2}),
    Work(1, 15, 129, {"fast": 2.0}),
    Work(8, 20, 65, {"fast": 3.0}),
    Work(32, 20, 65, {"fast": 3.0}),
)

Answer = Callable[[list[list[int]], int], float]
"""Continue all prompts greedily by so many tokens; the seconds it took."""


def timed(answer: Answer, prompts: list[list[int]], work: Work) -> float:
    """Seconds of what the work counts: reading, or the steps after the first token."""
    whole = answer(prompts, work.count)
    return whole if work.count == 1 else max(1e-9, whole - answer(prompts, 1))


def native(model: Any) -> Answer:
    """Our native forward, driven as the engine drives it: no torch operation in between uses threads, which would go on
    spinning where the forward's are wanted."""

    def answer(prompts: list[list[int]], count: int) -> float:
        start = time.perf_counter()
        tokens = [int(model.prefill(prompt, slot).numpy().argmax()) for slot, prompt in enumerate(prompts)]
        for step in range(count - 1):
            positions = [len(prompt) + step for prompt in prompts]
            tokens = model.decode(tokens, range(len(prompts)), positions).numpy().argmax(1).tolist()
        return time.perf_counter() - start

    return answer


def ours(model: Any, slots: int, capacity: int) -> dict[str, Answer]:
    """Our forms: the file's own blocks fast and exact, bfloat16 natively, and plain torch in bfloat16."""
    import torch

    import glassformer as gf
    from glassformer.generate.native_model import NativeModel
    from glassformer.model import Cache

    options = {"slots": slots, "capacity": capacity}
    plain = gf.load("smollm2", device="cpu", dtype="bfloat16").transformer

    def by_torch(prompts: list[list[int]], count: int) -> float:
        assert count == len(prompts) == 1
        cache = Cache(plain.config, 1, len(prompts[0]), plain.dtype)
        start = time.perf_counter()
        with torch.inference_mode():
            plain(torch.tensor(prompts), cache, last=True).argmax()
        return time.perf_counter() - start

    made = {
        "fast": native(NativeModel.from_gguf(smollm2(), **options)),
        "exact": native(NativeModel.from_gguf(smollm2(), exact=True, **options)),
        "bfloat16": native(NativeModel.from_transformer(model.transformer, "bfloat16", **options)),
    }
    return made | ({"torch bfloat16": by_torch} if slots == 1 else {})


def peers(options: Any, stack: contextlib.ExitStack, folder: Path, missing: list[str]) -> dict[str, Answer]:
    """What is installed of the others, each in a process and an environment of its own."""
    import subprocess

    def has(python: str, module: str) -> bool:
        there = Path(python).exists()
        if there and not subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode:
            return True
        missing.append(f"{module} (not installed; make peers)")
        return False

    found: dict[str, Answer] = {}

    def worker(python: str, script: str, *more: str) -> Worker:
        return stack.enter_context(Worker(python, HERE / script, *more, threads=options.threads))

    if has(options.vllm, "vllm"):
        vllm = worker(options.vllm, "peer_vllm.py", str(folder), str(LONGEST))
        name = f"vLLM {vllm.ask(do='about')} bfloat16"
        found[name] = lambda prompts, count: vllm.ask(do="answer", prompts=prompts, count=count)["seconds"]
    if has(options.openvino, "openvino_genai"):
        openvino = worker(options.openvino, "peer_openvino.py", str(folder))
        for kind in ("int8", "int4"):
            found[f"OpenVINO {kind}"] = lambda prompts, count, kind=kind: openvino.ask(
                do="answer", prompts=prompts, count=count, weights=kind, threads=options.threads
            )["seconds"]
    if has(options.peers, "llama_cpp"):
        llama = worker(options.peers, "peer_llama.py")
        for kind in FORMATS:
            found[f"llama.cpp {kind}"] = lambda prompts, count, kind=kind: llama.ask(
                do="answer", path=str(gguf_in(kind)), prompts=prompts, count=count, threads=options.threads
            )["seconds"]
    if has(options.peers, "transformers"):
        hf = worker(options.peers, "peer_transformers.py", str(smollm2()))
        for kind in ("eager float32", "compiled float32"):
            found[f"transformers {kind}"] = lambda prompts, count, kind=kind: hf.ask(
                do="answer", prompts=prompts, count=count, kind=kind
            )["seconds"]
    return found


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--vllm", default=str(ROOT / ".venv-vllm/bin/python"), help="the interpreter that has vLLM")
    parser.add_argument("--openvino", default=str(ROOT / ".venv-openvino/bin/python"), help="the one with OpenVINO")
    names = [work.name for work in WORKS]
    parser.add_argument("--only", default=",".join(names), help="which works, by comma")
    options = parser.parse_args()
    import torch

    import glassformer as gf
    from glassformer.cli.export import export

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    folder = ROOT / ".bench" / "smollm2-hf"
    if not (folder / "config.json").exists():
        export("smollm2", "hf", str(folder))
    text = DATA / "wikitext-2-test.txt"
    source = text if text.exists() else HERE.parent / "LICENSE"
    ids = model.encode(source.read_text("utf-8")[:60_000], bos=False)
    while len(ids) < LONGEST:
        ids += ids
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        others = peers(options, stack, folder, missing)
        for work in WORKS:
            if work.name in options.only.split(","):
                measure(work, model, ids, others, missing, options)


def measure(
    work: Work, model: Any, ids: list[int], others: dict[str, Answer], missing: list[str], options: Any
) -> None:
    """Time one work with all engines in turn, and say what came out."""
    prompts = [ids[row * 37 : row * 37 + work.length - row % 8 * (work.rows > 1)] for row in range(work.rows)]
    made = ours(model, work.rows, work.length + work.count + 8)
    runners = {f"ours {name}": answer for name, answer in made.items() if work.count == 1 or "torch" not in name}
    # transformers and llama.cpp's binding continue one sequence; many at once are for servers.
    runners |= {
        name: answer
        for name, answer in others.items()
        if not name.startswith("transformers") or (work.rows == 1 and (work.count == 1 or "compiled" not in name))
    }
    before = rates(options.threads)
    times = alternate(
        options.rounds, **{name: lambda answer=answer: timed(answer, prompts, work) for name, answer in runners.items()}
    )
    after = rates(options.threads)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min((name for name in medians if not name.startswith("ours")), key=medians.__getitem__, default=None)
    rows = []
    for name, seconds in times.items():
        against = f"{medians[best] / medians[name]:.2f} ×" if best else ""
        least = work.asked.get(name.removeprefix("ours ")) if name.startswith("ours") and best else None
        claim = verdict(medians[best] / medians[name], least=least) if best and least else ""
        rows.append((name, spread(seconds), f"{work.tokens / medians[name]:.0f}", against, claim))
    notes = f"SmolLM2-135M, {options.threads} threads; medians and ranges of {options.rounds} runs in turn. "
    notes += "This machine, before and after: " + "; ".join(
        f"{what} {before[what]:.0f} and {after[what]:.0f} {unit}"
        for what, unit in (("float32", "GFLOP/s"), ("bfloat16", "GFLOP/s"), ("int8", "GOP/s"), ("reading", "GB/s"))
    )
    notes += "." + (f" Skipped: {'; '.join(missing)}." if missing else "")
    head = ("engine", "seconds", "tokens/s", "speed against the best peer", "asked")
    report(work.name, work.title, table(head, rows), options, notes)


if __name__ == "__main__":
    main()
