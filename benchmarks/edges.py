"""Every edge of SmolLM2 measured, estimated, and a sample of them against TransformerLens's path patching.

Each side runs in a process of its own. The sample is measured in turn by both: one edge at a time carries what the
other prompt has, everything after it computed anew. Our worker also says how much memory it took.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import HERE, Worker, alternate, arguments, need_peers, report, smollm2, spread, table, two_sided, verdict
from peer_transformer_lens import ANSWERS, PAIR

# TransformerLens's share of the sample is taken in so many parts, ours whole before each.
PARTS = 5


def ours(threads: int) -> Callable[..., Any]:
    """Our side: what is asked of the pair, by name."""
    import torch

    import glassformer as gf
    from glassformer.interp.edge_exact import Exact
    from glassformer.interp.edges import edges

    torch.set_num_threads(threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    answer, wrong = (model.encode(text, False)[0] for text in ANSWERS)

    def found(**options: Any) -> Any:
        pair = (model.trace(PAIR[0], False), model.trace(PAIR[1], False))
        return edges([pair], answer=answer, wrong=wrong, **options)

    def handle(what: str, sample: int = 0) -> Any:
        start, work = time.perf_counter(), time.process_time()
        if what == "picture":
            found(exact="none").to_dict(200)
        elif what == "estimates":
            found(exact="none")
        elif what == "all":
            found(exact="all")
        seconds, work = time.perf_counter() - start, time.process_time() - work
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if what != "sample":
            return {"seconds": seconds, "work": work, "gigabytes": memory}
        pair = found(exact="none", method="eap").pairs[0]
        chosen = torch.randperm(pair.graph.total, generator=torch.Generator().manual_seed(0))[:sample].sort().values
        start, work = time.perf_counter(), time.process_time()
        values = Exact(pair)(chosen)
        return {
            "seconds": time.perf_counter() - start,
            "work": time.process_time() - work,
            "edges": [pair.graph.names(int(e)) for e in chosen],
            "values": values.tolist(),
            "total": pair.graph.total,
            "span": pair.span,
        }

    return handle


def theirs(gguf: Path, threads: int) -> Callable[..., Any]:
    """TransformerLens's side: the sender's change is added at one input of the receiver by a hook, a forward each, as
    its own direct path patching does it; the inputs of heads are split only while a head is the receiver."""
    import torch
    from peer_transformer_lens import bridge

    model, encode, layers = bridge(gguf, threads)
    model.set_use_hook_mlp_in(True)
    right, wrong = (encode(text)[0] for text in ANSWERS)
    clean, corrupted = (torch.tensor([encode(text)]) for text in PAIR)

    def sent(ids: Any) -> tuple[float, dict[str, Any]]:
        logits, cache = model.run_with_cache(ids)
        out = {"embed": cache["blocks.0.hook_resid_pre"]}
        for layer in range(layers):
            z, w = cache[f"blocks.{layer}.attn.hook_z"], model.blocks[layer].attn.W_O
            z = z.view(*z.shape[:2], len(w), -1)
            out |= {f"a{layer}.h{head}": z[:, :, head] @ w[head] for head in range(len(w))}
            out[f"m{layer}"] = cache[f"blocks.{layer}.hook_mlp_out"]
        return float(logits[0, -1, right] - logits[0, -1, wrong]), out

    def place(receiver: str) -> tuple[str, int | None]:
        if receiver == "logits":
            return f"blocks.{layers - 1}.hook_resid_post", None
        if receiver.startswith("m"):
            return f"blocks.{receiver[1:]}.hook_mlp_in", None
        layer, index, side = receiver[1:].split(".")
        return f"blocks.{layer}.attn.hook_{side}_input", int(index.lstrip("hkv"))

    with torch.inference_mode():
        before, first = sent(clean)
        _, second = sent(corrupted)
        change = {name: second[name] - first[name] for name in first}

    def handle(edges: list[tuple[str, str]]) -> Any:
        values = [0.0] * len(edges)
        start, work = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for split in (False, True):
                model.set_use_split_qkv_input(split)
                for number, (sender, receiver) in enumerate(edges):
                    name, head = place(receiver)
                    if split is (head is None):
                        continue

                    def put(x: Any, hook: Any, add: Any = change[sender], head: int | None = head) -> Any:
                        x = x.clone()
                        if head is None:
                            return x + add
                        x[:, :, head] += add
                        return x

                    logits = model.run_with_hooks(clean, fwd_hooks=[(name, put)])[0, -1]
                    values[number] = before - float(logits[right] - logits[wrong])
        return {"seconds": time.perf_counter() - start, "work": time.process_time() - work, "values": values}

    return handle


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--sample", type=int, default=500, help="how many edges both sides measure")
    options = parser.parse_args()
    need_peers(options, "transformer_lens")
    load = os.getloadavg()[0]
    me, threads = str(HERE / "edges.py"), options.threads
    with Worker(sys.executable, me, "ours", str(threads), threads=threads) as us:
        kinds = {
            kind: lambda kind=kind: float(us.ask(what=kind)["seconds"])  # type: ignore[misc]
            for kind in ("estimates", "picture")
        }
        light = alternate(options.rounds, **kinds)
        whole = us.ask(what="all")
    with (
        Worker(sys.executable, me, "ours", str(threads), threads=threads) as us,
        Worker(options.peers, me, "theirs", str(smollm2()), str(threads), threads=threads) as them,
    ):
        wanted = us.ask(what="sample", sample=options.sample)["edges"]
        one, other = [], []
        for low in range(0, len(wanted), -(-len(wanted) // PARTS)):
            one.append(us.ask(what="sample", sample=options.sample))
            other.append(them.ask(edges=wanted[low : low + -(-len(wanted) // PARTS)]))
    values, total = one[0]["values"], one[0]["total"]
    gap = max(abs(a - b) for a, b in zip(values, [v for part in other for v in part["values"]], strict=True))
    gap /= max(abs(one[0]["span"]), *(abs(v) for v in values))
    ratio, worked = (
        sum(part[kind] for part in other) / statistics.median(part[kind] for part in one)
        for kind in ("seconds", "work")
    )
    per = sum(part["work"] for part in other) / options.sample / (whole["work"] / total)
    sample = f"{options.sample} edges drawn at random: "
    report(
        "edges",
        "Edges: all of them measured, and a sample against path patching",
        table(
            ("what", "seconds", "processor seconds", "asked"),
            [
                (
                    f"all {total:,} edges measured, once",
                    f"{whole['seconds']:.0f}",
                    f"{whole['work']:.0f}",
                    f"{verdict(whole['seconds'], most=360)}; processor seconds a thread "
                    f"{verdict(whole['work'] / options.threads, most=360)}",
                ),
                (
                    "peak memory of that process, GB",
                    f"{whole['gigabytes']:.2f}",
                    "",
                    verdict(whole["gigabytes"], most=3),
                ),
                (
                    "all edges estimated (EAP-IG, 5 steps, with their reliability)",
                    spread(light["estimates"]),
                    "",
                    verdict(statistics.median(light["estimates"]), most=15),
                ),
                (
                    "first picture: both traces, estimates, the strongest as JSON",
                    spread(light["picture"]),
                    "",
                    verdict(statistics.median(light["picture"]), most=5),
                ),
                (sample + "ours", *(spread([part[kind] for part in one]) for kind in ("seconds", "work")), ""),
                (
                    sample + "TransformerLens",
                    *(f"{sum(part[kind] for part in other):.0f}" for kind in ("seconds", "work")),
                    "",
                ),
                (sample + "faster", f"{ratio:.0f} ×", f"{worked:.0f} ×", verdict(min(ratio, worked), least=20)),
                ("one of all the edges, ours, against one of theirs", "", f"{per:.0f} ×", ""),
                (sample + "largest difference", f"{gap:.1e}", "", verdict(gap, most=1e-4)),
            ],
        ),
        options,
        "SmolLM2-135M in float32, the pair 'When Mary and John went to the store, John (Mary) gave a drink to'; "
        "an edge's worth is what the difference of the logits of ' Mary' and ' John' loses when that edge alone "
        "carries the other prompt's value. Ours skips what stands before the first word that differs and before "
        "the receiver, and runs edges into one place together; a random sample leaves few to a place. Traces are "
        "outside the time of both. The sample is run in turn: ours whole five times, a fifth of TransformerLens's"
        " after each. TransformerLens 4.3's bridge adds the sender's change at the receiver's own input, a "
        "forward each, as its direct path patching does. The difference is relative to the largest worth, or to "
        "what the metric differs by between the prompts. "
        f"The machine's load was {load:.0f} at the start and {os.getloadavg()[0]:.0f} at the end, on {os.cpu_count()} "
        "cores; where others use it, processor seconds say more.",
    )


if __name__ == "__main__":
    two_sided(main, ours, theirs)
