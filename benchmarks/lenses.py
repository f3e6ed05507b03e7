"""Which lens is right: what the plain, tuned, Jacobian and relevance lenses claim of edits, and what the edits do.

All fitted lenses are fitted to the same text, Python's own documentation of its language. In texts of another kind the
stream is moved a little along what each lens reads a token by, and along random directions; the model runs on, and each
lens' claims about all these edits are compared with what came of them, layer by layer.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import arguments, report, table

KINDS = ("tuned", "jacobian", "relevance")
TEXTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "The shrew mole lives here. The shrew",
    "The keys to the cabinet are on the table, and the picture near the windows is",
)


def fitted(model: Any, ids: list[int], kind: str, options: Any) -> Any:
    """A lens of one kind, from the folder where it was kept."""
    many, window = (options.tuned, 128) if kind == "tuned" else (options.others, 64)
    path = None if options.keep is None else options.keep / f"{kind}-{many}.safetensors"
    if path is not None and path.exists():
        return model.load_readout(path)
    began = time.process_time()
    found = model.readout(ids, kind, tokens=many, window=window)
    found = dataclasses.replace(found, facts=found.facts | {"seconds": time.process_time() - began})
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=(4, 8, 12, 16, 20, 24, 28), help="after which layers")
    parser.add_argument("--tuned", type=int, default=4096, help="tokens that the tuned lens is fitted to at most")
    parser.add_argument("--others", type=int, default=640, help="tokens that the other two are fitted to")
    parser.add_argument("--keep", type=Path, help="a folder of fitted lenses, from which a run goes on")
    parser.add_argument("--samples", type=int, default=16, help="edits of each kind, text and layer")
    options = parser.parse_args()
    from pydoc_data.topics import topics

    import torch

    import glassformer as gf
    from glassformer.interp.agreement import agreement

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    ids = model.encode("\n\n".join(topics[name] for name in sorted(topics))[: 16 * options.tuned], False)
    lenses: dict[str, Any] = {"plain": None}
    for kind in KINDS:
        lenses[kind] = fitted(model, ids, kind, options)
        print(f"{kind}: {lenses[kind].facts['seconds']:.0f} s", file=sys.stderr, flush=True)
    spent = {kind: lenses[kind].facts["seconds"] for kind in KINDS}
    traces = [model.trace(text) for text in TEXTS]
    rows = []
    for layer in options.layers:
        found = [agreement(trace, layer, lenses, samples=options.samples).rows() for trace in traces]

        def mean(lens: int, key: str, found: list[list[dict[str, Any]]] = found) -> str:
            return f"{statistics.fmean(each[lens][key] for each in found):.3f}"

        kls = [lenses["tuned"].facts["plain"][layer], *(lenses[kind].facts["kl"][layer] for kind in KINDS)]
        rows.append(
            (
                str(layer),
                *(mean(i, "correlation") for i in range(len(lenses))),
                *(mean(i, "share") for i in range(len(lenses))),
                *(f"{kl:.2f}" for kl in kls),
            )
        )
    head = ("after layer", *(f"{what} {name}" for what in ("agrees", "share", "KL") for name in lenses))
    report(
        "lenses",
        "Lenses: which is right",
        table(head, rows),
        options,
        "SmolLM2-135M in float32. Agrees: the correlation of what a lens claims about edits with what they do, over "
        f"edits along all four lenses' directions and random ones, {options.samples} of each in each of {len(TEXTS)} "
        "texts, averaged over the texts. Share: the effect of edits along the lens' own direction, as a share of what "
        "it claims. KL: nats from the model's own prediction on held-out windows of the text that lenses were fitted "
        "to, Python's documentation of its language: the tuned lens to "
        f"{lenses['tuned'].facts['tokens']:,} tokens in {spent['tuned']:.0f} s of one core, the Jacobian one to "
        f"{lenses['jacobian'].facts['tokens']:,} in {spent['jacobian']:.0f} s, the relevance one to as many in "
        f"{spent['relevance']:.0f} s; the divergence of the plain lens is on the tuned lens' windows.",
    )


if __name__ == "__main__":
    main()
