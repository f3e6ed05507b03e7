"""Quantised safetensors: each method's stored tensors read as the float tensors that they stand for, exactly.

One file per method. A method finds what it stored by names and types alone, from headers, and gives values when they
are asked for; families see float tensors and know nothing of it. Importing this does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from glassformer.checkpoint.quantised.method import Method, Packed
from glassformer.checkpoint.unread import refuse_unlisted
from glassformer.errors import CheckpointError, UnsupportedError, near

__all__ = ["METHODS", "Method", "Packed", "method_for"]

# `quant_method` of a config.json -> the module that reads it.
METHODS: Mapping[str, str] = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "compressed-tensors": "compressed",
    "gptq": "gptq",
    "awq": "awq",
    "bitsandbytes": "bitsandbytes",
}


def method_for(settings: Mapping[str, Any], where: str) -> Method | None:
    """How the weights beside a config.json are quantised; None when it does not say that they are.

    Raises:
        UnsupportedError: by a method that is not read, or with a setting that it is not read with; by name.
        CheckpointError: the settings are broken.
    """
    path = "quantization_config" if settings.get("quantization_config") else "compression_config"
    found = settings.get(path)
    if not found and isinstance(inner := settings.get("text_config"), Mapping):
        path, found = "text_config.quantization_config", inner.get("quantization_config")
    if not found:
        return None
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} sets quantization_config to {found!r}; it must be an object.")
    name = found.get("quant_method")
    if name is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        name = "bitsandbytes"  # written without a name by older versions
    if not isinstance(name, str) or name not in METHODS:
        said = repr(name) if name else "a method that it does not name"
        raise UnsupportedError(
            f"{where} describes weights quantised by {said}; Glassformer reads {', '.join(METHODS)}."
            f"{near(str(name), METHODS)} Use the model's float release, or a .gguf of it."
        )
    module = importlib.import_module(f"{__name__}.{METHODS[name]}")
    method: Method = module.method(found, f"{where}, quantization_config")
    refuse_unlisted(found, where, path, {"quant_method", "modules_to_not_convert", *module.KNOWN})
    return method
