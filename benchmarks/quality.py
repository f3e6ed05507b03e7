"""What each precision costs: perplexity on wikitext-2 against the same file dequantised to float32."""

from __future__ import annotations

import math

from common import DATA, arguments, report, skip, smollm2, table, verdict

ASKED = 1.0  # percent, for "fast"


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--windows", type=int, default=40, help="texts of --length tokens")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--only", nargs="*", help="these rows alone")
    options = parser.parse_args()
    text = DATA / "wikitext-2-test.txt"
    if not text.exists():
        skip(f"no {text}")
    import torch
    from torch.nn.functional import cross_entropy

    import glassformer as gf
    from glassformer.generate.native_model import NativeModel
    from glassformer.model.cache import cache_bytes

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    size = options.length
    ids = model.encode(text.read_text("utf-8")[: 8 * size * options.windows], bos=False)
    windows = [ids[i * size : (i + 1) * size] for i in range(options.windows)]
    windows = [window for window in windows if len(window) == size]

    def losses(logits) -> list:
        return [cross_entropy(logits(w)[:-1].double(), torch.tensor(w[1:]), reduction="none") for w in windows]

    with torch.inference_mode():
        exact = torch.cat(losses(lambda w: model.transformer(torch.tensor([w]))[0]))
    runners = {
        "fast": lambda: NativeModel.from_gguf(smollm2(), capacity=size),
        "exact": lambda: NativeModel.from_gguf(smollm2(), exact=True, capacity=size),
        **{p: lambda p=p: NativeModel.from_transformer(model.transformer, p, capacity=size) for p in PRECISIONS},
        "fast, cache in 8 bits": lambda: NativeModel.from_gguf(smollm2(), capacity=size, cache_bits=8),
        "exact, cache in 16 bits": lambda: NativeModel.from_gguf(smollm2(), exact=True, capacity=size, cache_bits=16),
        "exact, cache in 8 bits": lambda: NativeModel.from_gguf(smollm2(), exact=True, capacity=size, cache_bits=8),
    }
    if options.only:
        runners = {name: make for name, make in runners.items() if name in options.only}
    rows = [("transformer, float32", f"{exact.mean().exp():.4f}", "", "", "", "", "")]
    for name, make in runners.items():
        fast = make()
        mine = torch.cat(losses(lambda w, fast=fast: fast.forward(w, [0] * size, range(size))))
        difference = mine - exact
        percent = 100 * math.expm1(float(difference.mean()))
        error = 100 * float(difference.std()) / math.sqrt(len(difference))
        label = f"{name} ({fast.precision})" if name == "fast" else name
        asked = verdict(percent, most=ASKED) if name == "fast" else ""
        kept = f"{cache_bytes(model.config, fast.cache_bits) / 1000:.1f}"
        cells = (f"{mine.mean().exp():.4f}", f"{percent:+.3f} %", f"± {error:.3f}", f"{fast.weight_bytes / 1e6:.0f}")
        rows.append((label, *cells, kept, asked))
        del fast
    report(
        "quality",
        "What each precision costs",
        table(
            (
                "precision",
                "perplexity",
                "difference",
                "standard error",
                "MB of weights",
                "kB of cache a token",
                "asked",
            ),
            rows,
        ),
        options,
        f"SmolLM2-135M's Q4_1 file on the first {len(windows)} × {size} tokens of wikitext-2's test text. The first "
        "line is the file's weights dequantised to float32 in the transformer; the others are the native path, whose "
        "products with 8- and 4-bit weights round activations to 8 bits with a scale per 32. Keys and values are "
        "kept in 32 bits where weights are float32 and in 16 otherwise, unless their bits are named; in 8 with a scale "
        "for each token and head.",
    )


PRECISIONS = ("float32", "bfloat16", "int8", "int4")

if __name__ == "__main__":
    main()
