"""The tensors of a Hugging Face folder by name, whichever of its files holds them; quantised ones as floats.

It reads headers when it is made and values when they are asked for. It knows names, types and files, no family.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.keys import Shape
from glassformer.checkpoint.quantised import Method
from glassformer.checkpoint.tensorfile import SIZES, Entry, Header, TensorFile
from glassformer.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor


class StoredTensors(Mapping[str, Shape]):
    """Shapes by name; `fetch` gives a tensor.

    Args:
        files: which file holds each stored tensor.
        method: how they are quantised, or None.
        where: the folder, for messages.

    Raises:
        CheckpointError, UnsupportedError: as `Method.find`.
    """

    def __init__(self, files: Mapping[str, Header], method: Method | None, where: str):
        self.entries: dict[str, Entry] = {name: header.tensors[name] for name, header in files.items()}
        self.where = where
        found = None if method is None else method.find(self.entries, where)
        self.packed = {} if found is None else found.tensors
        gone = {member for packed in self.packed.values() for member in packed.members}
        gone.update(() if found is None else found.spare)
        self._shapes = {name: entry.shape for name, entry in self.entries.items() if name not in gone}
        self._shapes |= {name: packed.shape for name, packed in self.packed.items()}
        self._opened = {header.path: TensorFile(header) for header in files.values()}
        self._last: tuple[str, Any] = ("", None)

    def __getitem__(self, name: str) -> Shape:
        return self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def fetch(self, name: str) -> Tensor:
        """One tensor: as it is stored, or in float32 what quantised ones stand for."""
        if name not in self.packed:
            return self._stored(name)
        # One tensor of theirs may hold several of ours, which are asked for one after another.
        if self._last[0] != name:
            self._last = (name, self.packed[name].values(self._stored).contiguous())
        tensor: Tensor = self._last[1]
        return tensor

    def _stored(self, name: str) -> Tensor:
        path = self.entries[name].path
        assert path is not None  # a header that was read has one
        return self._opened[Path(path)][name]

    def refuse_types(self, names: Collection[str]) -> None:
        """Refuses tensors stored in a type that no parameter has, and that no method reads.

        Raises:
            UnsupportedError: naming one.
        """
        for name in names:
            entry = None if name in self.packed else self.entries.get(name)
            if entry is not None and entry.dtype not in SIZES:
                raise UnsupportedError(
                    f"{entry.path} stores {name} as {entry.dtype}, a quantised form that its config.json says nothing "
                    "of and Glassformer does not read; use the model's float release, or a .gguf of it."
                )
