"""What a quantisation method is, and what several of them share: bits in words, values per block, 4-bit floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.tensorfile import Entry
from glassformer.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

Fetch = Callable[[str], "Tensor"]
# The values of the 4-bit float E2M1 by their codes, sign bit last (OCP Microscaling Formats 1.0, section 5.3.3).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Packed:
    """One float tensor and the stored tensors that it is made of.

    Args:
        shape: of the float tensor.
        members: names of the stored tensors, whose place it takes.
        values: the float32 tensor, from a function that gives stored tensors by name.
    """

    shape: Shape
    members: tuple[str, ...]
    values: Callable[[Fetch], Tensor]


@dataclass(frozen=True)
class Found:
    """What a method found: float tensors by the name they had before, and stored ones that stand for none."""

    tensors: dict[str, Packed]
    spare: tuple[str, ...] = ()


class Method(Protocol):
    """One way to quantise."""

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """The float tensors that a folder's stored ones stand for.

        Args:
            stored: every tensor by name, as the headers describe it.
            where: the folder, for messages.

        Raises:
            CheckpointError: a part of one is missing or has the wrong shape.
            UnsupportedError: stored in a way that is not read; by name.
        """
        ...


def part(stored: Mapping[str, Entry], name: str, where: str) -> Entry:
    """A stored tensor that another one needs.

    Raises:
        CheckpointError: it is not there.
    """
    if name not in stored:
        raise CheckpointError(f"{where} lacks {name}, without which a quantised tensor cannot be read.")
    return stored[name]


def words_of(stored: Mapping[str, Entry], where: str) -> Iterator[tuple[str, Entry, Entry, Entry]]:
    """Matrices stored as `qweight`, `qzeros` and `scales`: what their names begin with, and the three of each.

    Raises:
        CheckpointError: one of them is not there, or is no matrix of 32-bit words.
    """
    for name, entry in stored.items():
        if name.endswith(".qweight"):
            stem = name.removesuffix("qweight")
            zeros, scales = part(stored, stem + "qzeros", where), part(stored, stem + "scales", where)
            fit(len(entry.shape) == 2 and entry.dtype == "I32", where, name, entry.shape)
            yield stem, entry, zeros, scales


def fit(holds: bool, where: str, name: str, shape: Shape) -> None:
    """Raises CheckpointError where a stored tensor's shape does not fit the others'."""
    if not holds:
        raise CheckpointError(f"{where} holds {name} with shape {shape}, which does not fit the tensors beside it.")


def left_out(stored: Mapping[str, Entry], found: Mapping[str, Packed], endings: tuple[str, ...]) -> tuple[str, ...]:
    """Stored tensors with names that end so and that no float tensor is made of."""
    taken = {member for packed in found.values() for member in packed.members}
    return tuple(name for name in stored if name.endswith(endings) and name not in taken)


def only(settings: Mapping[str, Any], where: str, name: str, *accepted: object) -> None:
    """Refuses every value of a setting but the accepted ones; absent and null pass.

    Raises:
        UnsupportedError: naming the setting and its value.
    """
    value = settings.get(name)
    if value is not None and value not in accepted:
        raise UnsupportedError(
            f"{where} sets {name} to {value!r}; Glassformer reads {', '.join(map(repr, accepted))}. "
            "Use the model's float release, or a .gguf of it."
        )


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned values of `bits` bits out of the columns of int32 words (row, word), lowest bits first: (row, count).

    Values may lie across the border of two words, as those of 3 bits do.
    """
    import torch

    at = torch.arange(count) * bits
    index, shift = at // 32, at % 32
    wide = words.long() & 0xFFFFFFFF
    following = torch.nn.functional.pad(wide, (0, 1))[:, index + 1]
    return ((wide[:, index] | following << 32) >> shift) & ((1 << bits) - 1)


def per_block(scales: Tensor, shape: Shape) -> Tensor:
    """One value per block of the last two axes, repeated over the blocks' elements: (..., row, column).

    Blocks are equal and as large as the grid of scales implies; the last of each axis may be cut off.
    """
    for axis in (-2, -1):
        blocks, size = scales.shape[axis], shape[axis]
        scales = scales.repeat_interleave(-(-size // blocks), axis).narrow(axis, 0, size)
    return scales


def e2m1(codes: Tensor) -> Tensor:
    """4-bit floats by their codes, in float32."""
    import torch

    values = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float32)
    return values[codes.long()]


def nibbles(data: Tensor, *, high_first: bool = False) -> Tensor:
    """The two halves of every byte, along the last axis."""
    import torch

    low, high = data & 15, data >> 4
    return torch.stack((high, low) if high_first else (low, high), -1).flatten(-2)


def power_of_two(exponents: Tensor) -> Tensor:
    """Scales stored as biased exponents (E8M0), in float32; other types as they are."""
    import torch

    if exponents.dtype == torch.uint8:
        return torch.ldexp(torch.ones(exponents.shape), exponents.int() - 127)
    return exponents.float()
