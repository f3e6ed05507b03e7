"""Traces on disk: trace.safetensors holds what was kept, trace.json says what it is of.

A trace is small because the model derives the rest, so reading one back needs the same model; a
fingerprint of its weights says whether it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glassformer.errors import CheckpointError
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.recorded_layers import GRIDS, basis_sites
from glassformer.interp.recording import Recording
from glassformer.model import Transformer
from glassformer.model.sites import block_sites
from glassformer.system import files, sealed

if TYPE_CHECKING:
    from glassformer.interp.trace import Trace

FORMAT = "glassformer.trace/1"
TENSORS, DESCRIPTION = "trace.safetensors", "trace.json"


@torch.no_grad()
def save(trace: Trace, path: Path) -> None:
    """Write a trace into a directory, made if need be."""
    forward = trace.forward
    files.folder(path, raises=CheckpointError)
    tensors: dict[str, Tensor] = {name: x.detach().contiguous() for name, x in forward.recorded.items()}
    for layer in range(forward.config.n_layers):
        grids = [g for g in GRIDS if g in block_sites(forward.config.layers[layer])]
        if forward.edits_grid(layer):  # what changed it is not saved, so what it became is
            tensors |= {f"blocks.{layer}.{g}": forward.get(f"blocks.{layer}.{g}").contiguous() for g in grids}
    shared = {name: x.clone() if x.untyped_storage().nbytes() != x.nbytes else x for name, x in tensors.items()}
    description: dict[str, Any] = {
        "format": FORMAT,
        "model": trace.model,
        "config": trace.config.to_dict(),
        "weights": fingerprint(trace.transformer),
        "precision": trace.precision,
        "batched": trace.batched,
        "ids": trace.ids,
        "tokens": trace.tokens,
        "edited": sorted(forward.edit.writes) if forward.edit is not None else [],
    }
    if forward.mask is not None:
        shared["mask"] = forward.mask
    here = {name: x.cpu() for name, x in shared.items()}
    files.write_with(path / TENSORS, lambda draft: save_file(here, draft), raises=CheckpointError)
    description["tensors"] = files.sha256(path / TENSORS)
    sealed.write(path / DESCRIPTION, description, indent=1, raises=CheckpointError)


def load(path: Path, transformer: Transformer) -> dict[str, Any]:
    """Read what `save` wrote, as the arguments of `Trace.of_forward`.

    Raises:
        CheckpointError: when it is no trace, is broken, or is of another model.
    """
    try:
        described = files.sha256(path / TENSORS)
        tensors = load_file(path / TENSORS, device=str(transformer.device))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} holds no readable trace ({files.reason(error)}); a trace is a directory with {DESCRIPTION} and "
            f"{TENSORS}."
        ) from None
    description = sealed.read(path / DESCRIPTION, FORMAT, "trace's description", raises=CheckpointError)
    if description.get("tensors") != described:
        raise CheckpointError(f"{path / TENSORS} is not the file that {DESCRIPTION} was written with.")
    if description.get("weights") != fingerprint(transformer):
        raise CheckpointError(
            f"The trace in {path} is of {description.get('model') or 'another model'} with other weights or in another "
            "precision; open it with the model that made it."
        )
    ids, batched = description.get("ids"), bool(description.get("batched"))
    mask = tensors.pop("mask", None)
    missing = [name for name in basis_sites(transformer.config) if name not in tensors]
    if missing or not isinstance(ids, list):
        raise CheckpointError(f"The trace in {path} lacks {missing[0] if missing else 'its token ids'}.")
    shape = tensors["embed"].shape[:2]
    if mask is None:
        positions = torch.arange(shape[1], device=transformer.device).expand(shape)
    else:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    forward = Recording(transformer, tensors, positions, mask)
    return {"forward": forward, "ids": ids, "batched": batched, "model": str(description.get("model", ""))}
