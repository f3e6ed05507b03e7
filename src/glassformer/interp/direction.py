"""A direction of the residual stream: a vector with a name, of one model, on disk and back.

NAME.safetensors holds the vector (and the subspace of one that was aligned), NAME.json says what it is of and how it
was found. Knows nothing about finding one (`directions`) or about steering by it (`edits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from glassformer.errors import CheckpointError, UsageError
from glassformer.interp.fingerprint import design, fingerprint
from glassformer.model import Config, Transformer
from glassformer.system import files, sealed

FORMAT = "glassformer.direction/1"


@dataclass(frozen=True)
class Direction:
    """A direction of the residual stream as it leaves a layer.

    Attributes:
        name: what it stands for.
        layer: which stream it was found in; steering adds it there.
        vector: (d_model); added once it moves the mean of the one side to the mean of the other along it.
        method: "mean", "probe" or "das"; position: "last" or "mean", what of each text was compared.
        model, weights, design: of what model it is: its name and digests of weights and design.
        facts: how it was found and how far to trust it (`directions.direction`).
        subspace: (k, d_model), orthonormal rows of the subspace that alignment found; None otherwise.
    """

    name: str
    layer: int
    vector: Float[Tensor, " d_model"]
    method: str
    position: str
    model: str
    weights: str
    design: str
    facts: dict[str, Any]
    subspace: Float[Tensor, "k d_model"] | None = None

    def check(self, config: Config) -> None:
        """Raise UsageError unless it is of a model of this design."""
        if design(config) != self.design:
            raise UsageError(
                f"The direction {self.name!r} was found in {self.model or 'another model'}, whose design is another "
                f"(width {len(self.vector)}, this model's {config.d_model}); find it again in this one."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the vector left out."""
        return {
            "name": self.name,
            "layer": self.layer,
            "method": self.method,
            "position": self.position,
            "model": self.model,
            "norm": float(self.vector.norm()),
            **self.facts,
        }

    def save(self, path: str | Path) -> Path:
        """Write PATH.safetensors and PATH.json, each whole or not at all; gives the path without an ending.

        Raises:
            CheckpointError: they cannot be written.
        """
        stem = _stem(Path(path))
        kept = {"vector": self.vector} | ({} if self.subspace is None else {"subspace": self.subspace})
        data = save({name: x.detach().cpu().contiguous() for name, x in kept.items()})
        described = {
            "format": FORMAT,
            "name": self.name,
            "layer": self.layer,
            "method": self.method,
            "position": self.position,
            "model": self.model,
            "weights": self.weights,
            "design": self.design,
            "facts": self.facts,
            "vector": files.sha256_of(data),
        }
        files.write_bytes(_with(stem, ".safetensors"), data, raises=CheckpointError)
        sealed.write(_with(stem, ".json"), described, raises=CheckpointError)
        return stem

    @classmethod
    def load(cls, path: str | Path, transformer: Transformer) -> Direction:
        """Read a direction that `save` wrote.

        Raises:
            CheckpointError: it is none, is broken, or is of another model.
        """
        stem = _stem(Path(path))
        told = sealed.read(_with(stem, ".json"), FORMAT, "direction", raises=CheckpointError)
        try:
            data = _with(stem, ".safetensors").read_bytes()
            tensors = load(data)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is no readable direction ({files.reason(error)}); a direction is {stem.name}.safetensors and "
                f"{stem.name}.json beside it."
            ) from None
        if told.get("vector") != files.sha256_of(data):
            raise CheckpointError(f"{_with(stem, '.safetensors')} is not the file that its .json was written with.")
        if told.get("weights") != fingerprint(transformer):
            raise CheckpointError(
                f"The direction {told.get('name')!r} is of {told.get('model') or 'another model'} with other weights "
                "or in another precision; open it with the model that it was found in."
            )
        try:
            vector = tensors["vector"].to(transformer.device)
            names = ("name", "layer", "method", "position", "model", "weights", "design", "facts")
            subspace = tensors["subspace"].to(transformer.device) if "subspace" in tensors else None
            found = cls(vector=vector, subspace=subspace, **{name: told[name] for name in names})
        except KeyError as error:
            raise CheckpointError(f"The direction in {path} lacks its {error.args[0]}.") from None
        if vector.shape != (transformer.config.d_model,) or not bool(torch.isfinite(vector).all()):
            raise CheckpointError(f"The direction in {path} is not {transformer.config.d_model} finite numbers.")
        if subspace is not None and (subspace.ndim != 2 or subspace.shape[1] != len(vector)):
            raise CheckpointError(f"The subspace in {path} is not of vectors of {len(vector)} numbers.")
        return found


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _with(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
