"""What is said of a GGUF's matrices that run in another format than the file's."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from glassformer.generate.packed import StoredWeights
from glassformer.generate.quantize import Weight

KINDS = gguf.GGMLQuantizationType


class Stored:
    """A matrix of random blocks."""

    shape = (4, 256)

    def __init__(self, kind: str) -> None:
        self.kind, size = kind, gguf.GGML_QUANT_SIZES[KINDS[kind]]
        self.data = np.random.default_rng(0).integers(0, 50, (4, 256 // size[0] * size[1]), np.uint8)

    def values(self) -> Any:
        return gguf.quants.dequantize(self.data, KINDS[self.kind])


@pytest.mark.parametrize(
    ("kinds", "exact", "said"),
    [
        (("Q4_0", "Q8_0", "Q8_0"), False, "Q8_0+Q4_0"),
        (("Q6_K", "Q4_K"), False, "Q8_0 from Q4_K+Q6_K"),
        (("Q4_0", "Q4_0", "Q4_0", "Q4_K"), False, "Q4_0+Q8_0 from Q4_K"),
    ],
)
def test_formats_that_were_stored_again_are_said(kinds: tuple[str, ...], exact: bool, said: str) -> None:
    weights = StoredWeights({str(i): Stored(kind) for i, kind in enumerate(kinds)}, exact)
    for name in weights:
        held = weights[name]
        assert isinstance(held, Weight)
        wanted = torch.from_numpy(Stored(kinds[int(name)]).values())
        torch.testing.assert_close(held.to_float(), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))
    assert weights.kinds() == said


def test_exact_keeps_the_numbers_of_every_format() -> None:
    weights = StoredWeights({"one": Stored("Q4_K")}, True)
    held = weights["one"]
    numbers = held.to_float() if isinstance(held, Weight) else held.float()
    assert torch.equal(numbers, torch.from_numpy(Stored("Q4_K").values()))
