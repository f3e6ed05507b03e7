"""Greedy decode at batch 1 against llama.cpp in its 4- and 8-bit formats and transformers, in every precision."""

from __future__ import annotations

import statistics

from common import HERE, Worker, alternate, arguments, need_peers, report, smollm2, table, verdict
from peer_files import FORMATS, gguf_in

PROMPT = "Once upon a time, in a small village by the sea, there lived"


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    need_peers(options, "llama_cpp")
    import torch

    import glassformer as gf
    from glassformer.generate.engine import Engine
    from glassformer.generate.request import Request

    torch.set_num_threads(options.threads)
    gguf, count = smollm2(), options.tokens
    model = gf.load("smollm2", device="cpu", dtype="float32")
    ids = model.encode(PROMPT)
    request = Request(tuple(ids), max_tokens=count + 1, stop_ids=frozenset())
    answers: dict[str, list[int]] = {}
    engines = {}
    for precision in ("fast", "exact", "int8", "bfloat16", "float32"):
        engines[precision] = Engine(
            model.transformer, model.tokenizer, precision=precision, source=gguf, slots=1, capacity=1024
        )
        engines[precision].wait()

    def ours(precision: str) -> float:
        """Seconds from the first token to the last, text and all, as a user gets them."""
        import time

        steps = iter(engines[precision].submit(request))
        answers[precision] = [next(steps).id]
        start = time.perf_counter()
        answers[precision] += [step.id for step in steps]
        return time.perf_counter() - start

    with (
        Worker(options.peers, HERE / "peer_llama.py", threads=options.threads) as llama,
        Worker(options.peers, HERE / "peer_transformers.py", str(gguf), threads=options.threads) as hf,
    ):
        files = {kind: str(gguf_in(kind)) for kind in FORMATS}

        def theirs(kind: str) -> float:
            return llama.ask(do="decode", path=files[kind], ids=ids, count=count, threads=options.threads)["seconds"]

        def transformers(dtype: str) -> float:
            found = hf.ask(do="decode", ids=ids, count=count, dtype=dtype)
            answers[f"transformers {dtype}"] = found["ids"]
            return found["seconds"]

        runners = {f"ours {p}": lambda p=p: ours(p) for p in engines}
        runners |= {f"llama.cpp {k}": lambda k=k: theirs(k) for k in FORMATS}
        runners |= {f"transformers {d}": lambda d=d: transformers(d) for d in ("float32", "bfloat16")}
        times = alternate(options.rounds, **runners)
        about = llama.ask(do="about")["version"], hf.ask(do="about")["transformers"]
    speed = {name: count / statistics.median(seconds) for name, seconds in times.items()}
    best = max(speed[f"llama.cpp {kind}"] for kind in FORMATS)
    best_hf = max(speed["transformers float32"], speed["transformers bfloat16"])
    same = _agreement(answers["exact"], answers["transformers float32"])
    bandwidth = _bandwidth(options.threads)
    asked = {
        "ours fast": [(best, 2.0, "llama.cpp's best"), (best_hf, 5.0, "transformers' best")],
        "ours bfloat16": [(speed["llama.cpp Q4_1"], 1.0, "llama.cpp Q4_1")],
        "ours exact": [(speed["transformers float32"], 3.0, "transformers float32")],
    }
    rows = []
    for name, value in speed.items():
        seconds = times[name]
        engine = engines.get(name.removeprefix("ours "))
        read = "" if engine is None else f"{engine._runner.bytes_per_token(len(ids) + count // 2) * value / 1e9:.1f}"
        claims = [
            f"{value / other:.2f} × {who} ({verdict(value / other, least=least)})"
            for other, least, who in asked.get(name, [])
        ]
        labels = {"ours fast": f" ({engines['fast'].precision})", "ours exact": " (float32, from the file's blocks)"}
        label = name + labels.get(name, "")
        rows.append(
            (label, f"{value:.1f}", f"{count / max(seconds):.1f}–{count / min(seconds):.1f}", read, "; ".join(claims))
        )
    report(
        "decode",
        f"Greedy decode: {count} tokens, batch 1",
        table(("engine", "tokens/s", "range", "GB/s read", "asked"), rows),
        options,
        f"SmolLM2-135M, after a prompt of {len(ids)} tokens; medians and ranges of {options.rounds} runs in turn; "
        f"llama-cpp-python {about[0]}, transformers {about[1]}. Ours are timed through the engine, text included; "
        "llama.cpp through its own evaluation with the same argmax. Our exact answer and transformers' in float32 "
        f"agree on {same} of {count} tokens from the start. This machine reads memory at {bandwidth:.1f} GB/s with "
        "all threads (the best of 20 plain reads of 512 MiB, same run).",
    )


def _agreement(ours: list[int], theirs: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))


def _bandwidth(threads: int) -> float:
    """GB/s of a plain read of 512 MiB with all threads, the best of 20."""
    import ctypes

    from glassformer.kernels import infer_abi

    lib, size = infer_abi.library(), 512 << 20
    place = lib.gf_allocate(size)
    ctypes.memset(place, 1, size)
    quickest = min(lib.gf_read(place, size, threads) for _ in range(20))
    lib.gf_free(place)
    return size / quickest / 1e9


if __name__ == "__main__":
    main()
