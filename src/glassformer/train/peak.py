"""The speed that model FLOP utilisation is a share of."""

from __future__ import annotations

import functools
import time

import torch

from glassformer.model.layers import linear

# Dense bfloat16 FLOP/s by the makers' data sheets; a device's name is searched for these words in turn.
_GPU_PEAKS = (("H200", 989e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("L4", 121e12), ("4090", 165e12))


@functools.lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The speed that MFU is a share of, and where the number is from.

    A GPU's is its data sheet's where the name is known. Otherwise the fastest of a few products of 1,024 × 1,024
    matrices is taken, measured once.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for word, peak in _GPU_PEAKS:
            if word in name:
                return peak, f"{name}, data sheet, dense bfloat16"
    n = 1024
    a, b = torch.ones(n, n, device=device, dtype=dtype), torch.ones(n, n, device=device, dtype=dtype)
    best = float("inf")
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best, f"measured: a product of {n} × {n} matrices in {str(dtype).removeprefix('torch.')}"
