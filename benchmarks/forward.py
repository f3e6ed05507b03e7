"""Prefill of 1,024 tokens against transformers with its fused attention, in float32 and bfloat16."""

from __future__ import annotations

import statistics
import time

from common import DATA, HERE, Worker, alternate, arguments, need_peers, report, smollm2, spread, table, verdict

ASKED = {"float32": 1.5, "bfloat16": 1.0}  # × transformers' speed


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    need_peers(options, "transformers")
    import torch

    import glassformer as gf
    from glassformer.count import count
    from glassformer.model import Cache

    torch.set_num_threads(options.threads)
    text = DATA / "wikitext-2-test.txt"
    source = text if text.exists() else HERE.parent / "LICENSE"
    rows = []
    with Worker(options.peers, HERE / "peer_transformers.py", str(smollm2()), threads=options.threads) as peer:
        version = peer.ask(do="about")["transformers"]
        for dtype, asked in ASKED.items():
            model = gf.load("smollm2", device="cpu", dtype=dtype)
            ids = model.encode(source.read_text("utf-8")[:20_000], bos=False)[: options.tokens]
            tokens = torch.tensor([ids])

            def forward(model=model, tokens=tokens) -> tuple[float, torch.Tensor]:
                cache = Cache(model.config, 1, tokens.shape[1], model.transformer.dtype)
                with torch.inference_mode():
                    start = time.perf_counter()
                    logits = model.transformer(tokens, cache, last=True)
                    return time.perf_counter() - start, logits[0, -1].float()

            def theirs(dtype=dtype, ids=ids) -> dict:
                return peer.ask(do="prefill", ids=ids, dtype=dtype)

            ours_logits, their_logits = forward()[1], torch.tensor(theirs()["logits"])
            apart = float((ours_logits - their_logits).abs().max() / their_logits.abs().max())
            times = alternate(options.rounds, ours=lambda f=forward: f()[0], theirs=lambda t=theirs: t()["seconds"])
            ours_s, theirs_s = (statistics.median(times[who]) for who in ("ours", "theirs"))
            flops = count(model.config, len(ids)).training_flops / 3 * len(ids)
            ratio = theirs_s / ours_s
            rows.append(
                (
                    dtype,
                    spread(times["ours"]),
                    spread(times["theirs"]),
                    f"{flops / ours_s / 1e9:.0f}",
                    f"{apart:.1e}",
                    f"{ratio:.2f} ×",
                    verdict(ratio, least=asked),
                )
            )
            del model
    head = ("precision", "Glassformer, s", f"transformers {version}, s", "our GFLOP/s", "difference", "faster", "asked")
    report(
        "forward",
        f"Forward: reading {options.tokens:,} tokens",
        table(head, rows),
        options,
        "SmolLM2-135M, batch 1, the cache filled and the last position's logits given; medians and ranges of runs in "
        "turn. The difference is max|Δ| of those logits over the largest; in float32 the design asks for 1e-5.",
    )


if __name__ == "__main__":
    main()
