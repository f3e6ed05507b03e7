"""Write into the package what excites SmolLM2 in this Python's docstrings; half a minute on a quiet machine."""

from __future__ import annotations

import glassformer
from glassformer.data import docstrings
from glassformer.interp.exciting import Exciting, shortened
from glassformer.views import facts

if __name__ == "__main__":
    model = glassformer.load("smollm2", device="cpu", dtype="float32")
    read = Exciting([shortened(model.encode(text)) for text in docstrings.passages()])
    read.read(model.transformer, lambda: print(f"{read.done} of {len(read.ids)}", end="\r"))
    facts.ship(model, read, facts.SHIPPED)
    print(f"wrote {facts.SHIPPED}, {facts.SHIPPED.stat().st_size:,} bytes")
