"""SmolLM2 in float32 against transformers on the same GGUF: tokens, logits, and the log-probability of a text."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from common import DATA, HERE, Worker, arguments, need_peers, report, smollm2, table, verdict

PROMPT = "The capital of France is"
CHARACTERS = 20_000
WINDOW = 1_024  # tokens read at once


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--text", type=Path, default=DATA / "wikitext-2-test.txt", help="the text whose start is scored"
    )
    options = parser.parse_args()
    need_peers(options, "transformers")
    import numpy
    import torch

    import glassformer as gf

    torch.set_num_threads(options.threads)
    gguf = smollm2()
    model = gf.load("smollm2", device="cpu", dtype="float32")
    rows = []
    with Worker(options.peers, HERE / "peer_transformers.py", str(gguf), threads=options.threads) as peer:
        version = peer.ask(do="about")["transformers"]
        ids = model.encode(PROMPT, bos=False)
        theirs = torch.tensor(peer.ask(do="prefill", ids=ids, dtype="float32")["logits"])
        distribution = model.next(PROMPT, bos=False)
        paris = distribution.token(" Paris")
        their_paris = float(theirs.double().softmax(-1)[paris.id])
        off = abs(paris.probability - 0.77254)
        rows.append(
            (
                f"probability of ' Paris' after {PROMPT!r}",
                f"{paris.probability:.6f}",
                f"{their_paris:.6f}",
                f"{off:.1e} from 0.77254, {verdict(off, most=2e-4)}",
            )
        )
        if options.text.exists():
            text = options.text.read_text("utf-8")[:CHARACTERS]
            note = f"first {CHARACTERS:,} characters of {options.text.name}"
        else:
            text = (HERE.parent / "LICENSE").read_text("utf-8")[:CHARACTERS]
            note = f"the licence's text ({options.text.name} is not here)"
        ids, their_ids = model.encode(text, bos=False), peer.ask(do="encode", text=text)
        rows.append((f"tokens of the {note}", f"{len(ids):,}", f"{len(their_ids):,}", same(ids == their_ids)))

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "logits.npy")
            peer.ask(do="save_logits", ids=ids[:WINDOW], to=str(file))
            theirs = torch.from_numpy(numpy.load(file))
        ours = model.logits(ids[:WINDOW]).float()
        apart = float((ours - theirs).abs().max() / theirs.abs().max())
        rows.append(
            (
                f"logits of its first {len(ours):,} tokens, largest",
                f"{float(ours.abs().max()):.4f}",
                f"{float(theirs.abs().max()):.4f}",
                f"max|Δ| / max|logit| {apart:.1e}, {verdict(apart, most=1e-5)}",
            )
        )

        windows = [ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)]
        windows = [window for window in windows if len(window) > 1]
        their_all = [x for window in peer.ask(do="logprobs", windows=windows) for x in window]
        our_all: list[float] = []
        for window in windows:
            scores = torch.log_softmax(model.logits(window)[:-1].double(), -1)
            our_all += scores.gather(-1, torch.tensor(window[1:])[:, None])[:, 0].tolist()
        our_mean, their_mean = (math.fsum(x) / len(x) for x in (our_all, their_all))
        rows.append(
            (
                f"its mean log-probability, windows of {WINDOW:,}",
                f"{our_mean:.7f}",
                f"{their_mean:.7f}",
                f"difference {abs(our_mean - their_mean):.1e}, {verdict(abs(our_mean - their_mean), most=1e-4)}",
            )
        )
    report(
        "exactness",
        "Exactness",
        table(("SmolLM2-135M, float32", "Glassformer", f"transformers {version}", "asked"), rows),
        options,
        "The same GGUF file, dequantised by each.",
    )


def same(equal: bool) -> str:
    return "equal: met" if equal else "equal: NOT met"


if __name__ == "__main__":
    main()
