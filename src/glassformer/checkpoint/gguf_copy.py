"""The weights of a GGUF in a data type of torch: a copy that is kept, or operation by operation.

The dequantised copy is a native-layout safetensors file named after the content of the GGUF; opening it again reads
neither the GGUF's tensors nor the `gguf` package. A model whose copy is larger than the cache is dequantised wherever
an operation reads it instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassformer.checkpoint.gguf import Gguf, read_gguf
from glassformer.checkpoint.gguf_header import is_split
from glassformer.checkpoint.gguf_tensors import Blocks, values_of
from glassformer.checkpoint.keys import native_shapes
from glassformer.checkpoint.native import LazyTensors
from glassformer.checkpoint.tensorfile import SIZES, TensorFile, read_header, write_tensors
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.fetch.gguf_parts import paths_of, stem
from glassformer.model.config import Config

if TYPE_CHECKING:
    from torch import Tensor

Dtype = Literal["float32", "float16", "bfloat16"]

_STORED: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_COPY_VERSION = "1"  # of what the cached copies hold; a new number makes the old ones unused
_SAMPLES, _SAMPLE, _HEAD = 64, 4096, 1 << 20


@dataclass(frozen=True)
class Copy:
    """A GGUF's tensors dequantised, and what it says of itself.

    Args:
        at_hand: whether the tensors lie dequantised in the cache; else they are when the first is asked for.
    """

    tensors: Mapping[str, Tensor]
    config: Config
    family: str
    metadata: dict[str, Any]
    at_hand: bool = True


# Block types that need no trial before they are dequantised.
_KNOWN = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"})


def opened(
    path: Path, cache: Path | None = None, dtype: Dtype = "float32", progress: Callable[[int, int], None] | None = None
) -> Copy:
    """A GGUF with its tensors: mapped from the copy in the cache, or dequantised when the first is asked for.

    Then the whole copy is made, where it fits into the cache; else each tensor is dequantised whenever an operation
    reads it, and of experts only those that are read. Arguments as for `dequantised`.

    Raises:
        CheckpointError: the GGUF is broken.
        UnsupportedError: the GGUF holds something Glassformer cannot express.
    """
    if (copy := _opened(_copy_path(path, cache, dtype))) is not None:
        return copy
    gguf = read_gguf(path)
    for kind, stored in {stored.kind: stored for stored in gguf.header.tensors.values()}.items():
        if kind not in _KNOWN:
            with stored.path.open("rb") as file:
                file.seek(stored.start)
                values_of(file.read(stored.row_bytes), kind)
    made: list[Mapping[str, Tensor]] = []
    lock = threading.Lock()

    def fetch(key: str) -> Tensor:
        with lock:
            if not made:
                needed, free = copy_bytes(gguf.config, dtype), _free(cache)
                if needed <= free:
                    made.append(dequantised(path, cache, dtype, progress).tensors)
                else:
                    warnings.warn(
                        f"{path.name} in {dtype} takes {needed / 1e9:.1f} GB and the cache has room for "
                        f"{free / 1e9:.1f}; its weights are dequantised anew wherever they are read, which is slow. "
                        "GLASSFORMER_CACHE and GLASSFORMER_CACHE_LIMIT give it more room.",
                        stacklevel=2,
                    )
                    made.append(_apart(gguf, dtype))
        return made[0][key]

    return Copy(LazyTensors(native_shapes(gguf.config), fetch), gguf.config, gguf.family.name, gguf.metadata, False)


def copy_bytes(config: Config, dtype: Dtype = "float32") -> int:
    """What all of a design's parameters take in this type."""
    return sum(math.prod(shape) for shape in native_shapes(config).values()) * SIZES[_STORED[dtype]]


def _free(cache: Path | None) -> int:
    """Bytes that one more copy may take: the cache's limit, and what is free where it lies."""
    from glassformer.fetch import store

    folder = store.dequantised_directory() if cache is None else cache
    while not folder.exists():
        folder = folder.parent
    return min(store.cache_limit(), shutil.disk_usage(folder).free)


def _apart(gguf: Gguf, dtype: Dtype) -> Mapping[str, Tensor]:
    """Tensors that are dequantised when operations read them, and kept by nobody."""
    import torch

    from glassformer.checkpoint.stored_tensor import StoredTensor

    blocks, kind = Blocks(gguf), {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]

    def fetch(key: str) -> Tensor:
        raw = blocks[key]
        return StoredTensor(raw.shape, raw.rows, kind) if len(raw.shape) > 1 else blocks.tensor(key).to(kind)

    return LazyTensors(blocks, fetch)


def dequantised(
    path: Path, cache: Path | None = None, dtype: Dtype = "float32", progress: Callable[[int, int], None] | None = None
) -> Copy:
    """The dequantised copy of a GGUF, made when the cache has none.

    The copy's name is a digest of the file's size, time of change, first mebibyte and 64 pages spread
    over the rest, so that finding it takes about a millisecond. Two processes that ask at once make it once.

    Args:
        cache: folder of the copies; None for the user's cache.
        progress: called with (bytes written, bytes in all) while the copy is made.
    Raises:
        CheckpointError: the GGUF is broken, or the cache cannot be written.
        UnsupportedError: the GGUF holds something Glassformer cannot express.
    """
    from glassformer.fetch import store

    own, target = cache is None, _copy_path(path, cache, dtype)
    copy, cache = _opened(target), target.parent
    if copy is None:
        import filelock

        try:
            cache.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(target.with_suffix(".lock")):
                copy = _opened(target)
                if copy is None:
                    _make(path, target, dtype, progress)
                    copy = _opened(target)
        except OSError as error:
            raise CheckpointError(
                f"The dequantised copy of {path} cannot be written to {cache} ({error.strerror or error}); "
                "set GLASSFORMER_CACHE to a folder that can be written."
            ) from None
        if copy is None:
            raise CheckpointError(f"The dequantised copy {target} cannot be read back; delete it and try again.")
        if own:
            store.enforce_limit()
    return copy


def _copy_path(path: Path, cache: Path | None, dtype: Dtype) -> Path:
    """Where a GGUF's copy lies, or would; it counts as used from now on."""
    from glassformer.fetch import store

    if dtype not in _STORED:
        raise UnsupportedError(f"A GGUF can be dequantised to {', '.join(_STORED)}; not to {dtype!r}.")
    folder = store.dequantised_directory() if cache is None else cache
    target = folder / f"{stem(path)[:80]}-{identity(path)}-{dtype}.safetensors"
    store.note_use(target)
    return target


def identity(path: Path) -> str:
    """A digest that changes when a large file (or one of its parts) does, without reading all of it.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digests = [_digest(part) for part in (paths_of(path) if is_split(path) else [path])]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:24]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(f"{_COPY_VERSION} {status.st_size} {status.st_mtime_ns}".encode())
            digest.update(file.read(_HEAD))
            for i in range(_SAMPLES if status.st_size > _HEAD else 0):
                file.seek(_HEAD + (status.st_size - _HEAD - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None
    return digest.hexdigest()[:24]


def _opened(target: Path) -> Copy | None:
    """The copy, or None when there is none that is whole: then it is made again."""
    if not target.exists():
        return None
    try:
        header = read_header(target)
        note = json.loads(header.metadata["glassformer"])
        config = Config.from_dict(note["config"])
        if {name: entry.shape for name, entry in header.tensors.items()} != native_shapes(config):
            return None
        return Copy(
            LazyTensors(header.tensors, TensorFile(header).__getitem__), config, note["family"], note["metadata"]
        )
    except (CheckpointError, KeyError, ValueError):
        return None


def _make(path: Path, target: Path, dtype: Dtype, progress: Callable[[int, int], None] | None) -> None:
    gguf = read_gguf(path)
    shapes = native_shapes(gguf.config)
    total = copy_bytes(gguf.config, dtype)
    note = {"config": gguf.config.to_dict(), "family": gguf.family.name, "metadata": gguf.metadata}
    done = 0

    def step(written: int) -> None:
        nonlocal done
        done += written
        if progress is not None:
            progress(done, total)

    blocks = Blocks(gguf)
    write_tensors(target, shapes, blocks.tensor, _STORED[dtype], {"glassformer": json.dumps(note)}, step)
