"""Reading 1,024 tokens with the engine's native path against llama.cpp."""

from __future__ import annotations

import statistics
import time

from common import DATA, HERE, Worker, alternate, arguments, need_peers, report, smollm2, spread, table, verdict
from peer_files import FORMATS, gguf_in

ASKED = 4.0


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    need_peers(options, "llama_cpp")
    import torch

    import glassformer as gf
    from glassformer.generate.native_model import NativeModel

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    text = DATA / "wikitext-2-test.txt"
    source = text if text.exists() else HERE.parent / "LICENSE"
    ids = model.encode(source.read_text("utf-8")[:20_000], bos=False)[: options.tokens]
    ours = {
        "fast": NativeModel.from_gguf(smollm2(), capacity=2048),
        "exact": NativeModel.from_gguf(smollm2(), exact=True, capacity=2048),
    }
    for precision in ("bfloat16", "float32"):
        ours[precision] = NativeModel.from_transformer(model.transformer, precision, capacity=2048)

    def run(name: str) -> float:
        start = time.perf_counter()
        ours[name].prefill(ids)
        return time.perf_counter() - start

    with Worker(options.peers, HERE / "peer_llama.py", threads=options.threads) as llama:
        files = {kind: str(gguf_in(kind)) for kind in FORMATS}

        def theirs(kind: str) -> float:
            return llama.ask(do="prefill", path=files[kind], ids=ids, threads=options.threads)["seconds"]

        runners = {f"ours {p}": lambda p=p: run(p) for p in ours}
        runners |= {f"llama.cpp {k}": lambda k=k: theirs(k) for k in FORMATS}
        times = alternate(options.rounds, **runners)
        about = llama.ask(do="about")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    base, best = medians["llama.cpp Q4_1"], min(medians[f"llama.cpp {kind}"] for kind in FORMATS)
    rows = []
    for name, seconds in times.items():
        faster = best / medians[name]
        asked = f"{faster:.2f} × llama.cpp's best ({verdict(faster, least=ASKED)})" if name == "ours fast" else ""
        label = f"{name} ({ours['fast'].precision})" if name == "ours fast" else name
        rows.append((label, spread(seconds), f"{len(ids) / medians[name]:.0f}", f"{base / medians[name]:.2f} ×", asked))
    report(
        "prefill",
        f"Prefill: {len(ids):,} tokens",
        table(("engine", "seconds", "tokens/s", "against llama.cpp Q4_1", "asked"), rows),
        options,
        f"SmolLM2-135M, batch 1, the last token's logits given; medians and ranges of {options.rounds} runs in turn. "
        f"llama-cpp-python {about['version']}, built with {about['built']}.",
    )


if __name__ == "__main__":
    main()
