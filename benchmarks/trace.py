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

from common import (
    DATA,
    HERE,
    Worker,
    alternate,
    arguments,
    need_peers,
    peak,
    report,
    smollm2,
    spread,
    table,
    two_sided,
    verdict,
)

WHOLE = 8192  # SmolLM2's context
ME = str(HERE / "trace.py")


def _memory(field: str) -> float:
    """Gigabytes of the machine's memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def ours(threads: int) -> Callable[..., Any]:
    """Our side: a plain forward, a trace, and what is asked of it."""
    import torch

    import glassformer as gf

    torch.set_num_threads(threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")

    def plain(ids: list[int], every: bool = False) -> Any:
        with torch.inference_mode():
            return model.transformer(torch.tensor([ids]), last=not every)

    plain(list(range(64)), every=True)  # reads every weight from the file, so that no peak counts them

    def handle(do: str, ids: list[int], **_: Any) -> Any:
        if do == "plain":
            return peak(lambda: plain(ids))
        if do == "plain, all logits":
            return peak(lambda: plain(ids, every=True))
        if do == "trace":
            return peak(lambda: model.trace(ids))
        trace = model.trace(ids)
        n, layers, heads = len(ids), model.config.n_layers, model.config.most_heads
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
    from peer_transformer_lens import bridge

    model, _, _ = bridge(gguf, threads)

    def handle(do: str, ids: list[int], **_: Any) -> Any:
        with torch.inference_mode():
            return peak(lambda: model.run_with_cache(torch.tensor([ids])))

    return handle


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=2048)
    roomy = _memory("MemAvailable") > 17
    parser.add_argument(
        "--peer-tokens", type=int, default=2048 if roomy else 1024, help="TransformerLens needs 13 GB for 2,048"
    )
    parser.add_argument("--only", choices=["plain", "peer", "whole"], nargs="+", default=["plain", "peer", "whole"])
    options = parser.parse_args()
    if "peer" in options.only:
        need_peers(options, "transformer_lens")
    ids = tokens()
    rows: list[tuple[str, ...]] = []
    with Worker(sys.executable, ME, "ours", str(options.threads), threads=options.threads) as us:
        if "plain" in options.only:
            rows += against_plain(us, ids[: options.tokens], options.rounds)
        if "peer" in options.only:
            gguf = str(smollm2())
            with Worker(options.peers, ME, "theirs", gguf, str(options.threads), threads=options.threads) as them:
                rows += against_peer(us, them, ids[: options.peer_tokens], max(2, options.rounds // 2))
        if "whole" in options.only:
            rows += whole(us, ids)
    report(
        "trace",
        "Traces: everything inside one forward",
        table(("what", "seconds", "GB added at the peak", "asked"), rows),
        options,
        "SmolLM2-135M in float32. The plain forward gives the last position's logits only; a trace derives logits when "
        "asked. TransformerLens 4.3's bridge runs on the same dequantised weights; memory is the process's peak above "
        "what it held before.",
    )


def tokens() -> list[int]:
    """A text as long as the model's context."""
    import glassformer as gf

    text = DATA / "wikitext-2-test.txt"
    source = text if text.exists() else HERE.parent / "LICENSE"
    ids = gf.load("smollm2", device="cpu").encode(source.read_text("utf-8")[:60_000], bos=False)
    return (ids * (WHOLE // len(ids) + 1))[:WHOLE]


class Asked:
    """Runs of a worker, each one's memory kept beside its time."""

    def __init__(self) -> None:
        self.peaks: dict[str, list[float]] = {}

    def run(self, worker: Worker, do: str, ids: list[int], name: str) -> Callable[[], float]:
        def once() -> float:
            took, added, _ = worker.ask(do=do, ids=ids)
            self.peaks.setdefault(name, []).append(added)
            return float(took)

        return once


def against_plain(us: Worker, ids: list[int], rounds: int) -> list[tuple[str, ...]]:
    """A trace beside the plain forward."""
    asked = Asked()
    times = alternate(
        rounds,
        plain=asked.run(us, "plain", ids, "plain"),
        logits=asked.run(us, "plain, all logits", ids, "logits"),
        trace=asked.run(us, "trace", ids, "trace"),
    )
    ratio = statistics.median(times["trace"]) / statistics.median(times["plain"])
    above = max(asked.peaks["trace"]) - min(asked.peaks["plain"])
    head = f"{len(ids):,} tokens: "
    rows: list[tuple[str, ...]] = [
        (head + label, spread(times[name]), f"{max(asked.peaks[name]):.2f}", "")
        for name, label in (("plain", "plain forward"), ("logits", "… with all logits"), ("trace", "trace"))
    ]
    rows.append((head + "trace over plain", f"{ratio:.2f} ×", "", verdict(ratio, most=1.15)))
    rows.append((head + "trace above plain", "", f"{above:.2f}", verdict(above, most=1.2)))
    return rows


def against_peer(us: Worker, them: Worker, ids: list[int], rounds: int) -> list[tuple[str, ...]]:
    """A trace beside run_with_cache."""
    asked = Asked()
    times = alternate(rounds, ours=asked.run(us, "trace", ids, "ours"), theirs=asked.run(them, "cache", ids, "theirs"))
    faster = statistics.median(times["theirs"]) / statistics.median(times["ours"])
    share = max(asked.peaks["ours"]) / max(asked.peaks["theirs"])
    head = f"{len(ids):,} tokens: "
    return [
        (head + "trace", spread(times["ours"]), f"{max(asked.peaks['ours']):.2f}", ""),
        (head + "run_with_cache", spread(times["theirs"]), f"{max(asked.peaks['theirs']):.2f}", ""),
        (head + "faster", f"{faster:.1f} ×", "", verdict(faster, least=5)),
        (head + "share of the added memory", "", f"{share:.3f}", verdict(share, most=0.1)),
    ]


def whole(us: Worker, ids: list[int]) -> list[tuple[str, ...]]:
    """The whole context traced, and rows and tiles read from it."""
    took, added, _ = us.ask(do="trace", ids=ids)
    rows: list[tuple[str, ...]] = [(f"{WHOLE:,} tokens: trace", f"{took:.1f}", f"{added:.2f}", "")]
    found = us.ask(do="read", ids=ids)
    for what, label, limit in (("row", "a head's row", 50), ("tile", "a 256 × 256 tile", 100)):
        middle = statistics.median(found[what]) * 1000
        slowest = f" (slowest of {len(found[what])}: {max(found[what]) * 1000:.0f})"
        rows.append((f"{WHOLE:,} tokens: {label}", f"{middle:.0f} ms{slowest}", "", verdict(middle, most=limit)))
    return rows


if __name__ == "__main__":
    two_sided(main, ours, theirs)
