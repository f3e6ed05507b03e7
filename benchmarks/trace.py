"""A trace against the plain forward and against TransformerLens's run_with_cache, in time and memory.

Each side runs in a process of its own, so that peaks of memory are its own; runs are in turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import DATA, HERE, Worker, alternate, arguments, need_peers, report, serve, smollm2, spread, table, verdict

WHOLE = 8192  # SmolLM2's context


def peak(work: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds, gigabytes added at the highest moment, and gigabytes still held afterwards."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest moment so far
    before = _status("VmRSS")
    start = time.perf_counter()
    held = work()
    took = time.perf_counter() - start
    added, kept = _status("VmHWM") - before, _status("VmRSS") - before
    del held
    return took, added, kept


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"this system does not say {field}")


def ours(threads: int) -> Callable[..., Any]:
    """Our side: a plain forward, a trace, and what is asked of it."""
    import torch

    import glassformer as gf

    torch.set_num_threads(threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")

    def plain(ids: list[int], every: bool = False) -> Any:
        with torch.inference_mode():
            return model.transformer(torch.tensor([ids]), last=not every)

    def handle(do: str, ids: list[int], **_: Any) -> Any:
        if do == "plain":
            return peak(lambda: plain(ids))
        if do == "plain, all logits":
            return peak(lambda: plain(ids, every=True))
        if do == "trace":
            return peak(lambda: model.trace(ids))
        trace = model.trace(ids)
        n, layers, heads = len(ids), model.config.n_layers, model.config.attention.n_heads
        rows, tiles = [], []
        for i in range(20):
            layer, head = i * 7 % layers, i % heads
            start = time.perf_counter()
            trace.pattern(layer, head, n - 1 - i)
            rows.append(time.perf_counter() - start)
            q, k = (n - 256) - 256 * (i % 4), 256 * i % max(1, n - 256)
            start = time.perf_counter()
            trace.pattern(layer, head, slice(q, q + 256), slice(k, k + 256))
            tiles.append(time.perf_counter() - start)
        return {"row": rows, "tile": tiles}

    return handle


def theirs(gguf: Path, threads: int) -> Callable[..., Any]:
    """TransformerLens's side."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    plain = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    bridge = TransformerBridge.boot_transformers("smollm2", hf_model=plain, tokenizer=tokenizer, device="cpu")

    def handle(do: str, ids: list[int], **_: Any) -> Any:
        with torch.inference_mode():
            return peak(lambda: bridge.run_with_cache(torch.tensor([ids])))

    return handle


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--peer-tokens", type=int, default=1024, help="TransformerLens needs 13 GB for 2,048")
    parser.add_argument("--whole", action=argparse_boolean(), default=True, help="also the whole context of 8,192")
    options = parser.parse_args()
    need_peers(options, "transformer_lens")
    from glassformer.checkpoint import open_checkpoint
    from glassformer.text.tokenizer import Tokenizer

    kind, where = open_checkpoint(smollm2()).tokenizer_source
    tokenizer = Tokenizer.from_gguf(where) if kind == "gguf" else Tokenizer.from_directory(where)
    text = DATA / "wikitext-2-test.txt"
    source = text if text.exists() else HERE.parent / "LICENSE"
    ids = tokenizer.encode(source.read_text("utf-8")[:60_000], False)
    ids = (ids * (WHOLE // len(ids) + 1))[:WHOLE]
    rows: list[tuple[str, ...]] = []
    me = str(HERE / "trace.py")
    with Worker(sys.executable, me, "ours", str(options.threads), threads=options.threads) as us:
        some = ids[: options.tokens]
        peaks: dict[str, list[float]] = {}
        kept: dict[str, list[float]] = {}

        def asked(worker: Worker, do: str, which: list[int], name: str) -> Callable[[], float]:
            def run() -> float:
                took, added, held = worker.ask(do=do, ids=which)
                peaks.setdefault(name, []).append(added)
                kept.setdefault(name, []).append(held)
                return took

            return run

        times = alternate(
            options.rounds,
            plain=asked(us, "plain", some, "plain"),
            logits=asked(us, "plain, all logits", some, "logits"),
            trace=asked(us, "trace", some, "trace"),
        )
        ratio = statistics.median(times["trace"]) / statistics.median(times["plain"])
        above = max(peaks["trace"]) - min(peaks["plain"])
        head = f"{len(some):,} tokens: "
        for name, label in (("plain", "plain forward"), ("logits", "… with all logits"), ("trace", "trace")):
            rows.append((head + label, spread(times[name]), f"{max(peaks[name]):.2f}", ""))
        rows.append((head + "trace over plain", f"{ratio:.2f} ×", "", verdict(ratio, most=1.15)))
        rows.append((head + "trace above plain", "", f"{above:.2f}", verdict(above, most=1.2)))
        with Worker(options.peers, me, "theirs", str(smollm2()), str(options.threads), threads=options.threads) as them:
            few = ids[: options.peer_tokens]
            times = alternate(
                max(2, options.rounds // 2),
                ours=asked(us, "trace", few, "ours"),
                theirs=asked(them, "cache", few, "theirs"),
            )
        faster = statistics.median(times["theirs"]) / statistics.median(times["ours"])
        share = max(peaks["ours"]) / max(peaks["theirs"])
        head = f"{len(few):,} tokens: "
        rows.append((head + "trace", spread(times["ours"]), f"{max(peaks['ours']):.2f}", ""))
        rows.append((head + "run_with_cache", spread(times["theirs"]), f"{max(peaks['theirs']):.2f}", ""))
        rows.append((head + "faster", f"{faster:.1f} ×", "", verdict(faster, least=5)))
        rows.append((head + "share of the added memory", "", f"{share:.3f}", verdict(share, most=0.1)))
        if options.whole:
            took, added, _ = us.ask(do="trace", ids=ids)
            rows.append((f"{WHOLE:,} tokens: trace", f"{took:.1f}", f"{added:.2f}", ""))
            found = us.ask(do="read", ids=ids)
            for what, limit in (("row", 50), ("tile", 100)):
                worst = max(found[what]) * 1000
                label = {"row": "a head's row, slowest of 20", "tile": "a 256 × 256 tile, slowest of 20"}[what]
                rows.append((f"{WHOLE:,} tokens: {label}", f"{worst:.0f} ms", "", verdict(worst, most=limit)))
    report(
        "trace",
        "Traces: everything inside one forward",
        table(("what", "seconds", "GB added at the peak", "asked"), rows),
        options,
        "SmolLM2-135M in float32. The plain forward gives the last position's logits only; a trace derives logits when "
        "asked. TransformerLens 4.3's bridge runs on the same dequantised weights; memory is the process's peak above "
        "what it held before.",
    )


def argparse_boolean() -> Any:
    import argparse

    return argparse.BooleanOptionalAction


if __name__ == "__main__":
    if "--worker" in sys.argv:
        role, *rest = sys.argv[sys.argv.index("--worker") + 1 :]
        serve(ours(int(rest[0])) if role == "ours" else theirs(Path(rest[0]), int(rest[1])))
    else:
        main()
