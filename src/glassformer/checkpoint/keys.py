"""The native parameter keys of a design and their shapes, from its config alone.

These keys are public: a native checkpoint holds exactly them, and every family's table ends in
them. This module allocates nothing and does not import torch.
"""

from __future__ import annotations

from glassformer.model.choices import Shape
from glassformer.model.config import Config

__all__ = ["Shape", "native_shapes"]


def native_shapes(config: Config) -> dict[str, Shape]:
    """Every parameter a design has, by native key, in the order of the computation.

    All matrices are (out, in). ``unembed.weight`` exists only when the output is not tied.
    """
    return {key: component.shape for key, component in config.components().items()}
