"""Readouts: one affine map for each layer, from the stream as it leaves the layer to the form of the last stream.

A lens that reads a layer through such a map, the final norm and the unembedding is a "tuned" one (arXiv:2303.08112),
a "jacobian" one (arXiv:2607.15495) or a "relevance" one (the R-lens), by how the map was found (`fitting`). One
safetensors file holds the maps and what they are of. Knows nothing about texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.checkpoint.tensorfile import packed, unpacked
from glassformer.errors import CheckpointError
from glassformer.interp.fingerprint import fingerprint
from glassformer.model import Transformer
from glassformer.system import files

FORMAT = "glassformer.readout/1"
KINDS = ("tuned", "jacobian", "relevance")


@dataclass(frozen=True)
class Readout:
    """Maps of all layers.

    Attributes:
        kind: "tuned", "jacobian" or "relevance".
        matrices: (layer, d_model, d_model), the last one the identity; derivatives of a stream in copies, by all of
            them, (layer, d_model, d_stream). biases: (layer, d_model).
        model, weights: of what model they are: its name and a digest of its weights.
        facts: how they were found, and how well they read held-out text (`fitting.fit`).
    """

    kind: str
    matrices: Float[Tensor, "layer d_model taken"]
    biases: Float[Tensor, "layer d_model"]
    model: str
    weights: str
    facts: dict[str, Any]

    def __call__(self, layer: int, x: Float[Tensor, "*batch taken"]) -> Float[Tensor, "*batch d_model"]:
        """What a map takes of the stream as it leaves a layer, as the last layer would leave it."""
        return x @ self.matrices[layer].to(x).T + self.biases[layer].to(x)

    def of(
        self, transformer: Transformer, layer: int, x: Float[Tensor, "*batch d_stream"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The stream as it leaves a layer, as the last layer would leave it: all its copies through the map, or what
        they come to; after the last layer nothing is left to foretell."""
        by_copies = self.matrices.shape[2] != transformer.config.d_model
        if by_copies and layer + 1 < len(self.matrices):
            return self(layer, x)
        one = transformer.gathered(x)
        return one if by_copies else self(layer, one)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the maps left out."""
        return {"kind": self.kind, "model": self.model, **self.facts}

    def save(self, path: str | Path) -> None:
        """Write them into one safetensors file, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        told = {"format": FORMAT, "kind": self.kind, "model": self.model, "weights": self.weights, "facts": self.facts}
        data = packed({"matrices": self.matrices, "biases": self.biases}, told)
        files.write_bytes(path, data, raises=CheckpointError)

    @classmethod
    def load(cls, path: str | Path, transformer: Transformer) -> Readout:
        """Read what `save` wrote.

        Raises:
            CheckpointError: it is no readout, is broken, or is of another model.
        """
        told, tensors = unpacked(path, FORMAT, "readout")
        del told["format"]
        if told.get("weights") != fingerprint(transformer):
            raise CheckpointError(
                f"The readout in {path} is of {told.get('model') or 'another model'} with other weights or in another "
                "precision; fit one to this model."
            )
        try:
            found = cls(matrices=tensors["matrices"], biases=tensors["biases"], **told)
        except (KeyError, TypeError):
            raise CheckpointError(f"The readout in {path} lacks its maps or what they are of.") from None
        layers, d = transformer.config.n_layers, transformer.config.d_model
        taken = d if found.kind == "tuned" else transformer.config.d_stream
        if found.matrices.shape != (layers, d, taken) or found.biases.shape != (layers, d):
            raise CheckpointError(f"The readout in {path} does not hold {layers} maps from {taken} numbers to {d}.")
        return found


def read(transformer: Transformer, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """Logits of a stream read as if it were the last."""
    return transformer.unembed_hidden(transformer.normed(x))


def divergence(teacher: Float[Tensor, "row vocab"], student: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(teacher ‖ student) of two sets of logits, in nats."""
    p, q = torch.log_softmax(teacher.float(), -1), torch.log_softmax(student.float(), -1)
    return (p.exp() * (p - q)).sum(-1)
