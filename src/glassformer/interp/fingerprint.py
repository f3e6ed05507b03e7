"""Digests that tell one model from another: of a design, and of a design with its weights."""

from __future__ import annotations

import hashlib
import json

import torch

from glassformer.interp.elsewhere import Elsewhere
from glassformer.model import Config, Transformer


def design(config: Config) -> str:
    """A digest of the design alone."""
    return hashlib.sha256(_described(config)).hexdigest()


def fingerprint(transformer: Transformer | Elsewhere) -> str:
    """A digest of the design and of numbers spread over every weight; of a model elsewhere, what was told of it."""
    if isinstance(transformer, Elsewhere):
        return str(transformer.fingerprint)
    digest = hashlib.sha256(_described(transformer.config))
    for name, weight in transformer.named_parameters():
        flat = weight.detach().reshape(-1)
        spread = torch.linspace(0, flat.numel() - 1, 32, dtype=torch.float64).long().to(flat.device)
        digest.update(name.encode() + str(flat.dtype).encode())
        digest.update(flat[spread].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _described(config: Config) -> bytes:
    return json.dumps(config.to_dict(), sort_keys=True).encode()
