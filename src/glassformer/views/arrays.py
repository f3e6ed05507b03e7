"""Tensors as JSON: shape, type and base64 of the bytes, in C order, little-endian."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor


def packed(x: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """`{"shape", "dtype", "base64"}`; dtype float32, float16, uint8, uint16, int8 or int32."""
    data = x.detach().to("cpu", dtype).contiguous()
    return {
        "shape": list(data.shape),
        "dtype": str(dtype).removeprefix("torch."),
        "base64": base64.b64encode(data.numpy().tobytes()).decode("ascii"),
    }
