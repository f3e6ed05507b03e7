"""Dropout: numbers that the parts of a block add to the stream are left out at random while training.

Which ones is a hash of the seed, the step, the place in the model and the place in the batch (dropout as by
Srivastava et al. 2014; the hash is Wellons' lowbias32). Nothing is drawn in turn: a resumed run leaves out the same
numbers, whatever is computed twice is computed alike, and the native step (native/dropout.h) needs to keep no masks.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glassformer.model import Config
from glassformer.model.sites import Where

_WORD = 0xFFFFFFFF
_SITE, _ROW, _COLUMN = 0x9E3779B9, 0x85EBCA77, 0xC2B2AE3D


class Dropout:
    """What is left out at the step that `begin` named; as a tap it does so at the places `writes` names.

    Args:
        rate: the share that is left out, at least 0 and below 1; the rest is made larger by 1 / (1 − rate).
        seed: of the run.
        config: the model.
    """

    def __init__(self, rate: float, seed: int, config: Config) -> None:
        self.rate, self.seed = rate, seed
        self.share, self.scale = round(rate * 2**32), 1 / (1 - rate)
        self.key = self.place = 0
        names = ["blocks.0.resid_pre"]
        for i, layer in enumerate(config.layers):
            names += [f"blocks.{i}.{part}.out" for part in layer.parts]
        self._sites = {name: number for number, name in enumerate(names)}
        self.reads: frozenset[str] = frozenset()
        self.writes = frozenset(names)

    def begin(self, step: int) -> None:
        """Masks of this step (0-based) from here on, from its first row."""
        self.key, self.place = _hashed(_hashed(self.seed & _WORD) + step & _WORD), 0

    def passed(self, tokens: int) -> None:
        """Rows of this many tokens are done; those that come next in the batch have masks of their own."""
        self.place += tokens

    def keep(self, site: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Multipliers, 0 or `scale`, of `rows` tokens' additions to the stream.

        Args:
            site: 0 for the embeddings, 2 i + 1 for attention in block i, 2 i + 2 for its feed-forward part.
        """
        key = _hashed(self.key + site * _SITE & _WORD)
        row = _hash(np.arange(self.place, self.place + rows, dtype=np.uint32) * np.uint32(_ROW) + np.uint32(key))
        column = np.arange(columns, dtype=np.uint32) * np.uint32(_COLUMN)
        stays = _hash(row[:, None] + column) >= np.uint32(self.share)
        return torch.from_numpy(stays).to(dtype).mul_(self.scale)

    def __call__(self, site: str, x: Tensor, where: Where) -> Tensor:
        mask = self.keep(self._sites[site], x.shape[0] * x.shape[1], x.shape[2], x.dtype)
        return x * mask.view(x.shape).to(x.device)


def _hash(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """32 well-mixed bits of each number, in place."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def _hashed(x: int) -> int:
    return int(_hash(np.array([x], dtype=np.uint32))[0])
